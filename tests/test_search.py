"""Nearest neighbours in a fixed order."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distilltool import search
from distilltool.progress import Silent
from distilltool.search import SLACK, Gallery, check_finite, clusters, nearest


def brute(queries: np.ndarray, gallery: np.ndarray, k: int, itself: np.ndarray | None = None) -> list[list[int]]:
    """By sorting (−score, id) in python."""
    found = []
    for at, query in enumerate(queries):
        ids = [row for row in range(len(gallery)) if itself is None or row != itself[at]]
        found.append(sorted(ids, key=lambda row: (-float(query @ gallery[row]), row))[:k])
    return found


def test_small_integers_by_hand() -> None:
    """Ids and scores, best first."""
    gallery = np.array([[1, 0], [0, 1], [2, 0], [-1, 0]], np.float32)
    found = nearest(np.array([[1, 0]], np.float32), gallery, 3)
    assert found.ids.tolist() == [[2, 0, 1]] and found.scores.tolist() == [[2.0, 1.0, 0.0]]
    assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32


@pytest.mark.parametrize("dim", [3, 300])
def test_ties_come_by_rising_id(dim: int, rng: np.random.Generator) -> None:
    """Small whole numbers, full of ties, in either of the ways faiss computes."""
    gallery = rng.integers(-1, 2, (60, dim)).astype(np.float32)
    gallery[20:40] = gallery[:20]
    queries = gallery[: 550 % 60].repeat(11, axis=0)
    found = nearest(queries, gallery, 15)
    assert found.ids.tolist() == brute(queries, gallery, 15)


def test_more_ties_than_are_fetched_in_advance() -> None:
    """A collapsed model gives every image one vector: the order is still that of the ids."""
    gallery = np.ones((SLACK * 5, 4), np.float32)
    assert nearest(gallery[:3], gallery, 10).ids.tolist() == [list(range(10))] * 3
    itself = np.array([0, 4, 150])
    wanted = [[row for row in range(11) if row != own][:10] for own in itself]
    assert nearest(gallery[:3], gallery, 10, itself).ids.tolist() == wanted


def test_many_ties_below_a_few_winners(rng: np.random.Generator) -> None:
    """Ties that straddle the k-th place, in a gallery in no order."""
    gallery = np.zeros((300, 8), np.float32)
    gallery[:, 0] = rng.permutation(np.repeat([1.0, 2.0, 3.0], [200, 95, 5]).astype(np.float32))
    queries = np.eye(8, dtype=np.float32)[:1].repeat(2, axis=0)
    assert nearest(queries, gallery, 20).ids.tolist() == brute(queries, gallery, 20)


def test_itself_is_left_out_by_id(rng: np.random.Generator) -> None:
    """Not the first hit is dropped but the query's own row, even where a twin stands before it."""
    gallery = rng.normal(size=(40, 6)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    gallery[7] = gallery[30]
    itself = np.array([30, 7, -1])
    queries = gallery[[30, 7, 7]]
    found = nearest(queries, gallery, 5, itself).ids
    assert found.tolist() == brute(queries, gallery, 5, itself)
    assert found[0, 0] == 7 and found[1, 0] == 30 and found[2, :2].tolist() == [7, 30]


@pytest.mark.parametrize("where", ["queries", "gallery"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(where: str, value: float) -> None:
    """faiss would lose such rows without a word."""
    queries, gallery = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    (queries if where == "queries" else gallery)[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        nearest(queries, gallery, 2)


def test_k_larger_than_the_gallery() -> None:
    """What is not there is −1, at the end."""
    gallery = np.array([[1.0], [3.0], [2.0]], np.float32)
    found = nearest(gallery[:2], gallery, 6, np.array([0, -1]))
    assert found.ids.tolist() == [[1, 2, -1, -1, -1, -1], [1, 2, 0, -1, -1, -1]]
    assert (found.scores[found.ids < 0] == -np.inf).all()


def test_more_queries_than_a_block(rng: np.random.Generator) -> None:
    """Blocks are put together in order."""
    gallery = rng.integers(-3, 4, (90, 5)).astype(np.float32)
    queries = rng.integers(-3, 4, (1100, 5)).astype(np.float32)
    itself = rng.integers(-1, 90, 1100)
    assert nearest(queries, gallery, 7, itself).ids.tolist() == brute(queries, gallery, 7, itself)


def test_clusters_find_groups_and_repeat(rng: np.random.Generator) -> None:
    """Well separated groups are found whole, the same way every time."""
    groups = np.repeat(np.arange(4), 25)
    vectors = np.eye(8, dtype=np.float32)[groups] + 0.02 * rng.normal(size=(100, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = clusters(vectors, 8, seed=1)
    assert all(len(set(groups[found == one])) == 1 for one in set(found.tolist()))
    np.testing.assert_array_equal(found, clusters(vectors, 8, seed=1))


@pytest.mark.parametrize("rows", [None, "run", "apart", "copied"])
@pytest.mark.parametrize("seed", range(4))
def test_a_gallery_in_blocks_is_searched_as_one(rows: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers full of ties, lone best ones and rows that are all alike, in blocks of rows and of queries."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(search, "ROWS", 64)
    monkeypatch.setattr(search, "BLOCK", 7)
    monkeypatch.setattr(search, "COMPARED", 3)
    monkeypatch.setattr(search, "COPIED", 10**6 if rows == "copied" else 0)
    vectors = rng.integers(-1, 2, (1300, 3)).astype(np.float32)
    if seed % 2:
        vectors[rng.random(1300) < 0.7] = vectors[0]
    chosen = {"run": np.arange(100, 1200), "apart": rng.permutation(1300)[:1150], "copied": rng.permutation(1300)[:90]}
    wanted = vectors if rows is None else vectors[chosen[rows]]
    gallery = Gallery(vectors, None if rows is None else chosen[rows])
    queries, itself = vectors[rng.integers(0, 1300, 9)], rng.integers(-1, len(wanted), 9)
    for k in (1, 40, len(wanted) + 3):
        found = gallery.nearest(queries, k, itself)
        expected = brute(queries, wanted, k, itself)
        assert [ids[ids >= 0].tolist() for ids in found.ids] == expected
        assert [scores[ids >= 0].tolist() for ids, scores in zip(found.ids, found.scores, strict=True)] == [
            [float(queries[at] @ wanted[row]) for row in one] for at, one in enumerate(expected)
        ]
    np.testing.assert_array_equal(gallery.scores(queries), queries @ wanted.T)
    np.testing.assert_array_equal(gallery.scores(queries[:1]), queries[:1] @ wanted.T)


@pytest.mark.parametrize("at", [0, 1, 39_999])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(at: int) -> None:
    """The gallery is looked at piece by piece."""
    vectors = np.ones((40_000, 4), np.float32)
    check_finite(vectors)
    vectors[at, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        check_finite(vectors)
    with pytest.raises(ValueError, match="NaN"):
        Gallery(vectors, np.array([0, at, 5]))


def test_a_mapped_file_is_not_copied(tmp_path: Path, rng: np.random.Generator) -> None:
    """Searching a file maps it: what the process holds of its own stays below a fifth of it."""
    count, dim = 120_000, 256
    file = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (count, dim))
    for at in range(0, count, 10_000):
        file[at : at + 10_000] = rng.normal(size=(10_000, dim))
    file.flush()
    script = (
        "import sys, numpy as np; from pathlib import Path; from distilltool.search import Gallery\n"
        "def own(): return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0])\n"
        "file = np.load(sys.argv[1], mmap_mode='r'); rows = np.arange(1, len(file))\n"
        "Gallery(file[:1000]).nearest(file[:100], 10); before = own()\n"
        "found = Gallery(file, rows).nearest(np.ascontiguousarray(file[:100]), 10, np.arange(100) - 1)\n"
        "assert (found.ids >= 0).all(); print(own() - before)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says what a process holds of its own")
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "v.npy"], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < count * dim * 4 / 5


def test_progress_comes_to_all_queries(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Told in parts, block of rows by block of rows, and of no query twice."""
    monkeypatch.setattr(search, "ROWS", 64)
    monkeypatch.setattr(search, "BLOCK", 10)
    told: list[int] = []

    class Watch(Silent):
        def advance(self, amount: int = 1, detail: str = "") -> None:
            told.append(amount)

    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    Gallery(vectors).nearest(vectors[:25], 3, None, Watch())
    assert sum(told) == 25 and len(told) > 6 and max(told) < 10

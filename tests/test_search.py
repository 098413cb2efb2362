"""Nearest neighbours in a fixed order."""

import numpy as np
import pytest

from distilltool.search import SLACK, clusters, nearest


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

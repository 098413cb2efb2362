"""Retrieval metrics against cases worked out by hand, and against slow loops."""

import json
import math

import numpy as np
import pytest

from distilltool import metrics
from distilltool.metrics import Task
from distilltool.progress import Silent
from distilltool.report import to_json
from distilltool.truth import Figure, Truth, listed, recalls


def ranked(hits: list[int]) -> tuple[Task, np.ndarray]:
    """One query whose gallery, best first, holds a positive where there is a 1; neighbours fan out from the query."""
    angles = np.concatenate([[0.0], np.linspace(0.1, 1.5, len(hits))])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([1, *hits], np.int64)
    gallery = np.random.default_rng(0).permutation(len(hits)) + 1
    return Task(query=np.array([0]), gallery=gallery, labels=labels), vectors


@pytest.mark.parametrize(
    ("hits", "map_", "map_at_r", "recalls"),
    [
        ([1, 0, 1, 0, 0, 1], (1 + 2 / 3 + 3 / 6) / 3, (1 + 2 / 3) / 3, (1, 1, 1)),
        ([0, 1, 0, 0], 1 / 2, 0.0, (0, 1, 1)),
        ([1, 1, 0, 0], 1.0, 1.0, (1, 1, 1)),
        ([0, 0, 1, 1], (1 / 3 + 2 / 4) / 2, 0.0, (0, 1, 1)),
        ([0] * 6 + [1], 1 / 7, 0.0, (0, 0, 1)),
        ([0] * 11 + [1], 1 / 12, 0.0, (0, 0, 0)),
        ([0, 1, 1, 0], (1 / 2 + 2 / 3) / 2, (1 / 2) / 2, (0, 1, 1)),
    ],
)
def test_one_query_by_hand(hits: list[int], map_: float, map_at_r: float, recalls: tuple[int, int, int]) -> None:
    """Rectangle AP, MAP@R and recall of a ranking that is known."""
    task, vectors = ranked(hits)
    found = metrics.labelled(task, vectors, vectors)
    assert found["map"].tolist() == pytest.approx([map_])
    assert found["map@r"].tolist() == pytest.approx([map_at_r])
    assert [found[f"recall@{k}"][0] for k in (1, 5, 10)] == list(recalls)


def test_a_query_is_not_its_own_answer() -> None:
    """In its own gallery a query is neither found nor counted among its positives."""
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.6], [0, 1]], np.float32)
    every = np.arange(4)
    found = metrics.labelled(Task(query=every, gallery=every, labels=np.array([0, 1, 0, 1])), vectors, vectors)
    assert found["map"].tolist() == pytest.approx([1 / 2, 1 / 3, 1, 1 / 2])
    assert found["recall@1"].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_query_and_gallery_apart() -> None:
    """Where the query is not in the gallery nothing is left out, twins included."""
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    task = Task(query=np.array([0]), gallery=np.array([1, 2]), labels=np.array([5, 5, 6]))
    assert task.itself.tolist() == [-1]
    assert metrics.labelled(task, vectors, vectors)["map"].tolist() == [1.0]


def test_queries_without_positives_leave_the_mean() -> None:
    """They count neither as 0 nor as 1."""
    vectors = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5]], np.float32)
    every = np.arange(3)
    found = metrics.labelled(Task(query=every, gallery=every, labels=np.array([0, 0, 7])), vectors, vectors)
    for values in found.values():
        assert np.isnan(values[2]) and not np.isnan(values[:2]).any()
    assert metrics.interval(found["recall@1"]).value == 1.0


def test_asymmetric_search_uses_the_other_gallery() -> None:
    """Queries of one model against vectors of another."""
    queries = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    gallery = np.array([[0, 1], [1, 0], [0, 1]], np.float32)
    task = Task(query=np.array([0]), gallery=np.array([1, 2]), labels=np.array([1, 1, 0]))
    assert metrics.labelled(task, queries, gallery)["map"].tolist() == [1.0]
    assert metrics.labelled(task, queries, queries)["map"].tolist() == [1.0]
    assert metrics.labelled(task, gallery, gallery)["map"].tolist() == [0.5]


def slow_overlap(task: Task, teacher: np.ndarray, model: np.ndarray, k: int, gallery: np.ndarray) -> list[float]:
    """Query by query with python's sort."""
    found = []
    for row in task.query.tolist():
        others = [at for at in task.gallery.tolist() if at != row]
        theirs = sorted(others, key=lambda at: -float(teacher[row] @ teacher[at]))[:k]
        ours = sorted(others, key=lambda at: -float(model[row] @ gallery[at]))[:k]
        found.append(len(set(theirs) & set(ours)) / len(theirs))
    return found


@pytest.mark.parametrize("k", [1, 3, 10, 19])
def test_overlap(k: int, rng: np.random.Generator) -> None:
    """Against a loop; equal models overlap fully."""
    teacher, model = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    every = np.arange(20)
    for task in (Task(query=every, gallery=every, labels=None), Task(query=every[:5], gallery=every[3:], labels=None)):
        some = min(k, len(task.gallery) - 1)
        assert metrics.overlap(task, teacher, model, some).tolist() == pytest.approx(
            slow_overlap(task, teacher, model, some, model)
        )
        assert (metrics.overlap(task, teacher, teacher, some) == 1).all()
        other = rng.normal(size=(20, 6)).astype(np.float32)
        across = metrics.overlap(task, teacher, other, some, model_gallery_ND=teacher)
        assert across.tolist() == pytest.approx(slow_overlap(task, teacher, other, some, teacher))


def slow_ranks(values: list[float]) -> list[float]:
    """1 + how many are smaller + half of the others that are equal."""
    return [
        1 + sum(other < one for other in values) + (sum(other == one for other in values) - 1) / 2 for one in values
    ]


def slow_spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of the ranks."""
    x, y = slow_ranks(a), slow_ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return top / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))


@pytest.mark.parametrize("pairs", [1, 100, 1 << 24])
def test_shares_of_lists_against_sets(pairs: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """However many are compared at once; −1 is nobody, on either side."""
    monkeypatch.setattr(metrics, "COMPARED", pairs)
    theirs, ours = (np.array([rng.permutation(12)[:k] for _ in range(50)]) for k in (4, 7))
    theirs[rng.random(theirs.shape) < 0.2], ours[rng.random(ours.shape) < 0.2] = -1, -1
    theirs[7] = -1
    found = metrics.shared(theirs, ours)
    assert math.isnan(found[7])
    for at in set(range(50)) - {7}:
        asked = set(theirs[at]) - {-1}
        assert found[at] == len(asked & set(ours[at])) / len(asked)


def test_spearman_with_ties(rng: np.random.Generator) -> None:
    """Small whole numbers tie often; ties share their mean rank; the query itself is left out."""
    teacher = rng.integers(-2, 3, (18, 3)).astype(np.float32)
    model = rng.integers(-2, 3, (18, 2)).astype(np.float32)
    teacher[0], model[0] = 1, 1
    task = Task(query=np.arange(0, 18, 2), gallery=np.arange(18), labels=None)
    wanted = []
    for row in task.query:
        others = [at for at in range(18) if at != row]
        a, b = ([float(rows[row] @ rows[at]) for at in others] for rows in (teacher, model))
        wanted.append(slow_spearman(a, b) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0)
    assert metrics.spearman(task, teacher, model).tolist() == pytest.approx(wanted)


def test_spearman_ends(rng: np.random.Generator) -> None:
    """1 for the same order, −1 for the opposite one, 0 for a model that says the same of all."""
    rows = rng.normal(size=(12, 5)).astype(np.float32)
    task = Task(query=np.array([0, 3]), gallery=np.arange(12), labels=None)
    assert metrics.spearman(task, rows, 3 * rows).tolist() == pytest.approx([1, 1])
    assert metrics.spearman(task, rows, np.ones((12, 2), np.float32)).tolist() == [0, 0]
    line = np.concatenate([[[1.0]], np.arange(1.0, 12)[:, None]]).astype(np.float32)
    assert metrics.spearman(task, line, np.where(np.arange(12)[:, None] > 0, -line, line))[0] == pytest.approx(-1)


def test_spearman_is_bounded_in_cost(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Above the limits a fixed draw of queries is looked at, the same for every model."""
    monkeypatch.setattr(metrics, "SPEARMAN_QUERIES", 7)
    monkeypatch.setattr(metrics, "SPEARMAN_GALLERY", 9)
    rows = rng.normal(size=(30, 4)).astype(np.float32)
    task = Task(query=np.arange(30), gallery=np.arange(30), labels=None)
    found = metrics.spearman(task, rows, rows + 0.1)
    assert found.shape == (7,)
    np.testing.assert_array_equal(found, metrics.spearman(task, rows, rows + 0.1))


def test_interval_covers_the_mean(rng: np.random.Generator) -> None:
    """The mean is inside, and the width is about that of the normal approximation."""
    values = rng.uniform(size=400)
    found = metrics.interval(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Over many samples the true mean is inside 95 times of 100, or nearly."""
    rng = np.random.default_rng(4)
    found = [metrics.interval(rng.exponential(size=80)) for _ in range(120)]
    assert 0.87 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 1


def test_interval_ends() -> None:
    """One value has no spread, none has no value; NaN queries are left out."""
    assert metrics.interval(np.array([0.5, 0.5])) == metrics.interval(np.array([0.5, np.nan]))
    nothing = metrics.interval(np.array([np.nan]))
    assert math.isnan(nothing.value)


def test_figures_without_a_value_are_valid_json() -> None:
    """Where no query has a positive, JSON has null: NaN is no JSON and breaks whoever reads it."""
    text = json.dumps(to_json(metrics.interval(np.array([np.nan]))), allow_nan=False)
    assert json.loads(text)["value"] is None


def test_ratio(rng: np.random.Generator) -> None:
    """1 without spread for the same model; paired, so that a constant factor has no spread either."""
    values = np.where(rng.uniform(size=200) < 0.1, np.nan, rng.uniform(size=200))
    same = metrics.ratio(values, values)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    half = metrics.ratio(values / 2, values)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    other = metrics.ratio(rng.permutation(values[~np.isnan(values)]), values[~np.isnan(values)])
    assert other.value == pytest.approx(1) and other.low < 1 < other.high
    assert math.isnan(metrics.ratio(values, np.zeros(200)).value)


def test_ratio_leaves_out_a_query_on_both_sides() -> None:
    """A query that only one of the two has a figure for would skew the ratio."""
    found = metrics.ratio(np.array([0.5, np.nan, 0.5]), np.array([1.0, 100.0, 1.0]))
    assert found.value == 0.5


def slow_figures(task: Task, queries: np.ndarray, gallery: np.ndarray) -> dict[str, list[float]]:
    """Each query's whole ranking, sorted in python by (−score, place); exact for small whole numbers."""
    assert task.labels is not None
    found: dict[str, list[float]] = {name: [] for name in ("map", "map@r", "r-precision", "recall@1", "recall@200")}
    for row in task.query.tolist():
        places = [at for at, other in enumerate(task.gallery.tolist()) if other != row]
        places.sort(key=lambda at: (-float(queries[row] @ gallery[task.gallery[at]]), at))
        hits = [bool(task.labels[task.gallery[at]] == task.labels[row]) for at in places]
        ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
        right = len(ranks)
        precise = [(seen, rank) for seen, rank in enumerate(ranks, 1)]
        found["map"].append(sum(seen / rank for seen, rank in precise) / right if right else math.nan)
        cut = sum(seen / rank for seen, rank in precise if rank <= right)
        found["map@r"].append(cut / right if right else math.nan)
        found["r-precision"].append(sum(hits[:right]) / right if right else math.nan)
        for k in (1, 200):
            found[f"recall@{k}"].append(float(any(hits[:k])) if right else math.nan)
    return found


FULL = (Figure(measure="map"), Figure(measure="map@r"), Figure(measure="r-precision"), *recalls(1, 200))


@pytest.mark.parametrize("few", [0, 2, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_whole_rankings_against_sorted_ones(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, duplicates, a model that has collapsed, lone classes, large classes, queries in the gallery and not, in any
    order: counting who stands before the positives gives what sorting gives."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(metrics, "FEW", few)
    monkeypatch.setattr(metrics, "SCORES", 1000)
    count = 240
    queries, gallery = (rng.integers(-2, 3, (count, 4)).astype(np.float32) for _ in range(2))
    if seed % 4 == 1:
        queries[:], gallery[:] = 1, 1
    if seed % 4 == 2:
        gallery = gallery[rng.integers(0, count, count)]
    labels = rng.integers(0, (2, 60, 200)[seed % 3], count)
    places = np.arange(count) if seed % 2 else rng.permutation(count)[: 2 * count // 3]
    task = Task(query=np.arange(0, count, 3), gallery=places, labels=labels, figures=FULL)
    for one in (gallery, queries):
        found, wanted = metrics.labelled(task, queries, one), slow_figures(task, queries, one)
        for name, values in found.items():
            assert values.tolist() == pytest.approx(wanted[name], nan_ok=True), name


def test_counting_and_fetching_agree(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Figures of few ranks come from the nearest, those of all from counts: by labels and by lists the same."""
    vectors = rng.integers(-2, 3, (300, 3)).astype(np.float32)
    every = np.arange(300)
    lists = Truth(
        positives=tuple(listed(rng.choice(300, rng.integers(0, 9))) for _ in every),
        ignored=tuple(listed(rng.choice(300, 5)) for _ in every),
    )
    figures = (*recalls(1, 10), Figure(measure="map", cut=20))
    for task in (
        Task(query=every, gallery=every, labels=rng.integers(0, 40, 300), figures=figures),
        Task(query=every, gallery=every, labels=None, truth={"": lists}, figures=figures),
    ):
        monkeypatch.setattr(metrics, "SHORT", 300)
        fetched = metrics.labelled(task, vectors, vectors)
        monkeypatch.setattr(metrics, "SHORT", 0)
        counted = metrics.labelled(task, vectors, vectors)
        for name, values in fetched.items():
            np.testing.assert_allclose(counted[name], values, rtol=1e-12)


def test_progress_comes_to_all_queries_of_a_ranking(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Of each piece of work as many steps as it said there would be."""
    monkeypatch.setattr(metrics, "SCORES", 3000)
    monkeypatch.setattr(metrics, "LONG", 90 * 150)
    works: list[list[int]] = []

    class Watch(Silent):
        def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
            assert "a model" in what
            works.append([total, 0])

        def advance(self, amount: int = 1, detail: str = "") -> None:
            works[-1][1] += amount

    vectors = rng.normal(size=(150, 4)).astype(np.float32)
    task = Task(query=np.arange(90), gallery=np.arange(150), labels=rng.integers(0, 5, 150))
    metrics.labelled(task, vectors, vectors, Watch(), "a model")
    metrics.neighbours(task, vectors, vectors, 10, Watch(), "a model")
    assert works == [[90, 90], [90, 90]]
    monkeypatch.setattr(metrics, "LONG", 90 * 150 + 1)
    metrics.labelled(task, vectors, vectors, Watch(), "a model")  # soon done: nobody is told
    assert len(works) == 2

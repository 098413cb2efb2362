"""Figures of random rankings against the same definitions written out plainly: ties, junk, copies, lone classes."""

import math
from collections.abc import Sequence

import numpy as np
import plain
import pytest
from numpy.typing import NDArray

from distilltool import metrics
from distilltool.metrics import Task, labelled
from distilltool.progress import Progress
from distilltool.search import Gallery, Neighbours
from distilltool.truth import Figure, Truth, listed

KAPPAS = (1, 5, 10)
REVISITED = tuple(
    Figure(measure=measure, cut=cut, level=level)
    for level in ("", "other")
    for measure, cut in (("trapezoid", None), *(("mp", k) for k in KAPPAS))
)


def tied(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Small whole numbers, whose products are exact: many ties, and rows that stand there twice."""
    return rng.integers(-2, 3, (count, 3)).astype(np.float32)


def lists(
    rng: np.random.Generator, queries: int, gallery: NDArray[np.int64]
) -> tuple[Truth, list[tuple[set[int], set[int]]]]:
    """Positives and ignored images, apart from each other, of any number, none among them; and the same as sets."""
    made = []
    for _ in range(queries):
        drawn = rng.permutation(gallery).tolist()
        right, junk = (int(rng.integers(0, 7)) for _ in range(2))
        made.append((set(drawn[:right]), set(drawn[right : right + junk])))
    truth = Truth(positives=tuple(listed(p) for p, _ in made), ignored=tuple(listed(j) for _, j in made))
    return truth, made


def close(found: NDArray[np.float64], wanted: Sequence[float]) -> None:
    """Equal to 1e-6, NaN where it must be."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("inside", [False, True])
def test_revisitop_s_definition(seed: int, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AP and mP@k of two levels, queries apart from the gallery or in it, in blocks of a few queries."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(metrics, "PLACES", 100)
    monkeypatch.setattr(metrics, "SCORES", 100)
    vectors = tied(rng, 40)
    query, gallery = np.arange(10), np.arange(0 if inside else 10, 40)
    truths = {level: lists(rng, 10, gallery) for level in ("", "other")}
    task = Task(
        query=query,
        gallery=gallery,
        labels=None,
        truth={level: truth for level, (truth, _) in truths.items()},
        figures=REVISITED,
    )
    found = labelled(task, vectors, vectors)
    assert len(found) == 8
    lone = 0
    for level, (_, sets) in truths.items():
        rows = []
        for at, (right, junk) in enumerate(sets):
            scores = [float(vectors[at] @ vectors[row]) for row in gallery]
            places = {row: place for place, row in enumerate(gallery.tolist())}
            own = places.get(at, -1)
            ap, precisions = plain.revisitop(
                scores, [places[row] for row in right], [places[row] for row in junk if row != at], KAPPAS, own
            )
            rows.append([ap, *precisions])
        ending = f"-{level}" if level else ""
        names = [f"map{ending}", *(f"mp@{k}{ending}" for k in KAPPAS)]
        for name, wanted in zip(names, zip(*rows, strict=True), strict=True):
            close(found[name], wanted)
            lone += sum(map(math.isnan, wanted))
    assert lone or seed  # the first draw holds queries without a positive


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cut", [None, 1, 3, 100])
def test_lists_with_junk(seed: int, cut: int | None) -> None:
    """Rectangle AP with and without a cut, and recall, where images are ignored."""
    rng = np.random.default_rng((seed, 1))
    vectors = tied(rng, 30)
    gallery = np.arange(6, 30)
    truth, sets = lists(rng, 6, gallery)
    figures = (Figure(measure="map", cut=cut), Figure(measure="recall", cut=cut or 2))
    found = labelled(
        Task(query=np.arange(6), gallery=gallery, labels=None, truth={"": truth}, figures=figures), vectors, vectors
    )
    ranks = [
        plain.ranking([float(vectors[at] @ vectors[row]) for row in gallery], ignored={row - 6 for row in junk})
        for at, (_, junk) in enumerate(sets)
    ]
    right = [{row - 6 for row in positives} for positives, _ in sets]
    close(found[figures[0].name], [plain.average_precision(r, ok, cut) for r, ok in zip(ranks, right, strict=True)])
    close(found[figures[1].name], [plain.recall(r, ok, cut or 2) for r, ok in zip(ranks, right, strict=True)])


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_lists(seed: int) -> None:
    """The same figures whether classes are told by labels or written out as lists, copies and lone classes included."""
    rng = np.random.default_rng((seed, 2))
    vectors, labels = tied(rng, 40), rng.integers(0, 12, 40)
    every = np.arange(40)
    figures = tuple(
        Figure(measure=measure, cut=cut)
        for measure, cut in [("map", None), ("map", 5), ("map@r", None), ("r-precision", None), ("trapezoid", None)][:4]
        + [("recall", 1), ("recall", 7), ("mp", 5), ("ndcg", None), ("ndcg", 4), ("ns", None)]
    )
    same = tuple(listed(np.flatnonzero(labels == one).tolist()) for one in labels)
    truth = Truth(positives=same, ignored=(listed([]),) * 40)
    by_label = labelled(Task(query=every, gallery=every, labels=labels, figures=figures), vectors, vectors)
    by_list = labelled(
        Task(query=every, gallery=every, labels=None, truth={"": truth}, figures=figures), vectors, vectors
    )
    assert list(by_label) == list(by_list) == [one.name for one in figures]
    for name in by_label:
        close(by_label[name], by_list[name].tolist())


def test_ns_score(rng: np.random.Generator) -> None:
    """Objects of four: between 1, the query alone, and 4."""
    vectors, labels = tied(rng, 24), np.repeat(np.arange(6), 4)
    every = np.arange(24)
    figures = (Figure(measure="ns"),)
    found = labelled(Task(query=every, gallery=every, labels=labels, figures=figures), vectors, vectors)["ns"]
    wanted = [
        plain.ns_score(
            plain.ranking([float(vectors[at] @ row) for row in vectors], at),
            set(np.flatnonzero(labels == labels[at])) - {at},
        )
        for at in every
    ]
    close(found, wanted)
    assert 1 <= found.min() < found.max() <= 4


def test_only_as_many_neighbours_as_the_figures_need(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Recall@1 of a large gallery does not sort all of it, and ignored images do not use up the depth."""
    asked = []

    class Watched(Gallery):
        def nearest(
            self,
            queries_QD: NDArray[np.float32],
            k: int,
            itself: NDArray[np.int64] | None = None,
            progress: Progress | None = None,
        ) -> Neighbours:
            asked.append(k)
            return super().nearest(queries_QD, k, itself, progress)

    monkeypatch.setattr(metrics, "Gallery", Watched)
    vectors = np.eye(1, 4, dtype=np.float32).repeat(50, axis=0)  # all the same: order is that of the ids
    truth = Truth(positives=(listed([21]),), ignored=(listed(range(1, 21)),))
    task = Task(
        query=np.array([0]),
        gallery=np.arange(1, 50),
        labels=None,
        truth={"": truth},
        figures=(Figure(measure="recall", cut=1),),
    )
    assert labelled(task, vectors, vectors)["recall@1"].tolist() == [1.0]
    assert asked == [21]
    labels = rng.integers(0, 5, 50)
    figures = (Figure(measure="recall", cut=3), Figure(measure="map@r"))
    labelled(Task(query=np.arange(50), gallery=np.arange(50), labels=labels, figures=figures), vectors, vectors)
    assert asked[-1] == max(3, np.bincount(labels).max() - 1)


def test_every_measure_says_its_convention() -> None:
    """Reports tell trapezoid from rectangle, and AP of all ranks from AP of the first k."""
    told = metrics.conventions(REVISITED)
    assert "trapezoid" in told["map"] and "mp@k" in told and "interval" in told
    assert "rectangle" in metrics.conventions((Figure(measure="map"),))["map"]
    assert "first k" in metrics.conventions((Figure(measure="map", cut=100, level="private"),))["map@k"]

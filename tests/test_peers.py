"""Figures against programs that others wrote: pytorch-metric-learning and trec_eval, on random rankings."""

import numpy as np
import plain
import pytest
import pytrec_eval
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from distilltool.embedder import unit
from distilltool.metrics import Task, labelled
from distilltool.truth import Figure, Truth, listed

METRIC_LEARNING = {
    "recall@1": "precision_at_1",
    "r-precision": "r_precision",
    "map@r": "mean_average_precision_at_r",
    "map": "mean_average_precision",
}
LABELS = (
    Figure(measure="recall", cut=1),
    Figure(measure="r-precision"),
    Figure(measure="map@r"),
    Figure(measure="map"),
)
TREC = {
    "map": "map",
    "r-precision": "Rprec",
    "ndcg": "ndcg",
    "ndcg@5": "ndcg_cut_5",
    "ndcg@100": "ndcg_cut_100",
    "recall@1": "success_1",
    "recall@5": "success_5",
    "recall@10": "success_10",
}
RANKED = (
    Figure(measure="map"),
    Figure(measure="map", cut=5),
    Figure(measure="r-precision"),
    Figure(measure="ndcg"),
    Figure(measure="ndcg", cut=5),
    Figure(measure="ndcg", cut=100),
    *(Figure(measure="recall", cut=k) for k in (1, 5, 10)),
)


def by_id(query: Tensor, k: int, reference: Tensor, ref_includes_query: bool) -> tuple[Tensor, Tensor]:
    """Neighbours for AccuracyCalculator in our order of ties, the query left out by its id."""
    scores = (query @ reference.T).tolist()
    rows = [plain.ranking(row, at if ref_includes_query else -1)[:k] for at, row in enumerate(scores)]
    return torch.zeros(len(rows), k), torch.tensor(rows)


def means(found: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Over queries that have a positive."""
    return {name: float(np.nanmean(values)) for name, values in found.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("apart", [False, True])
def test_metric_learning(seed: int, apart: bool) -> None:
    """Ties, copies, self-matches, classes of one, queries whose class the gallery lacks."""
    rng = np.random.default_rng((seed, 3))
    vectors, labels = rng.integers(-2, 3, (60, 3)).astype(np.float32), rng.integers(0, 20, 60)
    labels[:2] = 20, 21  # of whose classes there is no other
    query, gallery = (np.arange(25), np.arange(25, 60)) if apart else (np.arange(60), np.arange(60))
    ours = means(labelled(Task(query=query, gallery=gallery, labels=labels, figures=LABELS), vectors, vectors))
    calculator = AccuracyCalculator(
        include=tuple(METRIC_LEARNING.values()),
        k=len(gallery) - (not apart),
        device=torch.device("cpu"),
        knn_func=by_id,
    )
    reference = (vectors[gallery], labels[gallery]) if apart else (None, None)
    theirs = calculator.get_accuracy(vectors[query], labels[query], *reference)
    for name, peer in METRIC_LEARNING.items():
        assert ours[name] == pytest.approx(theirs[peer], abs=1e-6), name


def test_metric_learning_s_own_search(rng: np.random.Generator) -> None:
    """Their own neighbours, too, where no two are equally near."""
    vectors, labels = unit(rng.normal(size=(80, 16)).astype(np.float32)), rng.integers(0, 15, 80)
    every = np.arange(80)
    ours = means(labelled(Task(query=every, gallery=every, labels=labels, figures=LABELS), vectors, vectors))
    theirs = AccuracyCalculator(include=tuple(METRIC_LEARNING.values()), k=79, device=torch.device("cpu")).get_accuracy(
        vectors, labels
    )
    for name, peer in METRIC_LEARNING.items():
        assert ours[name] == pytest.approx(theirs[peer], abs=1e-6), name


@pytest.mark.parametrize("seed", range(6))
def test_trec_eval(seed: int) -> None:
    """Lists with junk, ties, copies, and queries that ask among themselves; query by query."""
    rng = np.random.default_rng((seed, 4))
    vectors, queries, gallery = rng.integers(-2, 3, (50, 3)).astype(np.float32), 12, np.arange(50 if seed % 2 else 38)
    right, junk = [], []
    for at in range(queries):
        drawn = [row for row in rng.permutation(gallery).tolist() if row != at]
        count = int(rng.integers(0, 9))
        right.append(drawn[:count])
        junk.append(drawn[count : count + int(rng.integers(0, 9))])
    truth = Truth(positives=tuple(map(listed, right)), ignored=tuple(map(listed, junk)))
    task = Task(query=np.arange(queries), gallery=gallery, labels=None, truth={"": truth}, figures=RANKED)
    ours = labelled(task, vectors, vectors)

    def name(row: int) -> str:
        return f"{99999 - row:05d}"  # trec_eval puts equal scores in falling order of name

    asked = [at for at in range(queries) if right[at]]
    evaluator = pytrec_eval.RelevanceEvaluator(
        {str(at): {name(row): 1 for row in right[at]} for at in asked},
        {"map", "map_cut.5", "Rprec", "ndcg", "ndcg_cut.5,100", "success.1,5,10"},
    )
    run = {
        str(at): {
            name(row): float(vectors[at] @ vectors[row])
            for row in gallery.tolist()
            if row != at and row not in junk[at]
        }
        for at in asked
    }
    theirs = evaluator.evaluate(run)
    assert len(theirs) == len(asked) and 0 < len(asked)
    for at in range(queries):
        for figure, peer in TREC.items():
            if at in asked:
                assert ours[figure][at] == pytest.approx(theirs[str(at)][peer], abs=1e-6), (at, figure)
            else:
                assert np.isnan(ours[figure][at])
        if at in asked:  # trec_eval's map_cut is over all positives, Google Landmarks' over as many as fit
            whole, fit = len(right[at]), min(len(right[at]), 5)
            assert ours["map@5"][at] == pytest.approx(theirs[str(at)]["map_cut_5"] * whole / fit, abs=1e-6)

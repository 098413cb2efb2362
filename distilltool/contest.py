"""Score starts before anything is trained: how well features, plain or mapped in closed form, rank as the teacher.

Nothing here is fitted on what it is judged by: a map is fitted on some clusters of the teacher's vectors and judged on
the others, so that it has to serve images unlike those it has seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import metrics, ridge, search
from distilltool.embedder import unit
from distilltool.metrics import Task

FOLDS = 4
SMALLEST = 4  # images of a fold: with fewer there is nothing to rank
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the ridge, over the mean diagonal of the Gram matrix
SAMPLE = 600  # images scored; more change little and cost seconds for every candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Overlap of the nearest with the teacher's, per image, (N,), NaN where a fold is too small to tell. strength: of
    the ridge that maps the features into the teacher's space, None where they are taken as they are."""

    overlap: NDArray[np.float64]
    strength: float | None

    @property
    def mean(self) -> float:
        """The mean over the images that were scored."""
        return float(np.nanmean(self.overlap))

    def beats(self, other: "Score", errors: float = 1) -> bool:
        """Whether it is better by more than so many standard errors of the paired difference."""
        return metrics.ahead(self.overlap, other.overlap, errors)


def sample(count: int, seed: int) -> NDArray[np.int64]:
    """Rows to score on, in order, (≤ SAMPLE,)."""
    return np.sort(np.random.default_rng((seed, 8)).permutation(count)[:SAMPLE])


def folds(targets_NE: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """The fold of each image, (N,): whole clusters of the teacher's vectors go together."""
    cluster = search.clusters(targets_NE, max(FOLDS, len(targets_NE) // 20), seed)
    order = np.random.default_rng((seed, 9)).permutation(cluster.max() + 1)
    place = np.zeros(len(targets_NE), np.int64)
    filled = np.zeros(FOLDS, np.int64)
    for one in order:  # each cluster to the emptiest fold
        members = cluster == one
        at = int(filled.argmin())
        place[members] = at
        filled[at] += members.sum()
    if filled.min() < SMALLEST:  # one cluster holds nearly all: nothing to keep apart
        place = np.random.default_rng((seed, 11)).permutation(len(targets_NE)) % FOLDS
    return place


def as_they_are(
    features_NF: NDArray[np.float32], targets_NE: NDArray[np.float32], fold_N: NDArray[np.int64], *, centre: bool = True
) -> Score:
    """Features at length 1, less their mean where they are centred, compared among themselves within each fold."""
    rows = centred(features_NF) if centre else unit(features_NF)
    return Score(overlap=_overlap(targets_NE, rows, targets_NE, fold_N, same=True), strength=None)


def mapped(
    features_NF: NDArray[np.float32], targets_NE: NDArray[np.float32], fold_N: NDArray[np.int64], *, gallery: bool
) -> Score:
    """The best of the ridge strengths, each fitted on three folds and judged on the fourth.

    gallery: put to the teacher's own vectors instead of compared among themselves.
    """
    features = torch.from_numpy(unit(features_NF))
    predicted = {strength: np.zeros_like(targets_NE) for strength in STRENGTHS}
    for fold in range(FOLDS):
        inside = torch.from_numpy(fold_N == fold)
        known = torch.from_numpy(targets_NE)[~inside]
        for strength, made in ridge.predict(features[~inside], known, features[inside], STRENGTHS).items():
            predicted[strength][fold_N == fold] = unit(made.numpy())
    found = [
        Score(overlap=_overlap(targets_NE, rows, targets_NE, fold_N, same=not gallery), strength=strength)
        for strength, rows in predicted.items()
    ]
    return max(found, key=lambda one: one.mean)


def balanced(features_NF: NDArray[np.float32], others_NF: NDArray[np.float32], share: float) -> float:
    """The length others need, features at length 1, to have this share of the variance of both together."""
    own, theirs = (float(unit(rows).var(axis=0).sum()) for rows in (features_NF, others_NF))
    return float(np.sqrt(share / (1 - share) * own / max(theirs, 1e-12)))


def centred(features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows at length 1, less their mean, at length 1 again."""
    rows = unit(features_NF)
    return unit(rows - rows.mean(axis=0))


def _overlap(
    teacher: NDArray[np.float32],
    student: NDArray[np.float32],
    gallery: NDArray[np.float32],
    fold_N: NDArray[np.int64],
    *,
    same: bool,
) -> NDArray[np.float64]:
    scores = np.full(len(teacher), np.nan)
    for fold in np.unique(fold_N):
        rows = np.flatnonzero(fold_N == fold).astype(np.int64)
        if len(rows) < 3:
            continue
        task = Task(query=rows, gallery=rows, labels=None)
        scores[rows] = metrics.overlap(task, teacher, student, metrics.reach(len(rows)), None if same else gallery)
    return scores

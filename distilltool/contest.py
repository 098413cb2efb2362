"""Score starts before anything is trained: how well features, plain or mapped in closed form, rank as the teacher.

Nothing here is fitted on what it is judged by: a map is fitted on some clusters of the teacher's vectors and judged on
the others, so that it has to serve images unlike those it has seen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import aim, metrics, ridge, search
from distilltool.aim import LEVELS, Level
from distilltool.embedder import unit
from distilltool.mapped import BESIDE, Map
from distilltool.metrics import Task

Rows = NDArray[np.float32]
Gallery = Literal["own", "teacher"]  # what the student's queries are put to: its own vectors, the teacher's
FOLDS = 4
SMALLEST = 4  # images of a fold: with fewer there is nothing to rank
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge, over the mean diagonal of the Gram matrix
SAMPLE = 600  # images scored; more change little and cost seconds for every candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Overlap of the nearest with the teacher's, per image, (N,), NaN where a fold is too small to tell. strength: of
    the ridge that maps the features into the teacher's space, None where they are taken as they are; level: of the
    aims that it maps them to."""

    overlap: NDArray[np.float64]
    strength: float | None = None
    level: Level = None

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


class Contest:
    """Images with the teacher's answers, in folds; what no start changes is worked out once."""

    def __init__(self, targets_NE: NDArray[np.float32], fold_N: NDArray[np.int64]) -> None:
        """fold_N: as `folds` makes them. Folds of fewer than three images are not judged."""
        self.targets, self.fold = targets_NE, fold_N
        rows = (np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N))
        self.tasks = [Task.among(one) for one in rows if len(one) >= 3]
        self.theirs = [self._nearest(one, targets_NE, targets_NE) for one in self.tasks]
        self._aims: dict[tuple[Level, ...], list[torch.Tensor]] = {}

    def as_they_are(self, features_NF: NDArray[np.float32], *, centre: bool = True) -> Score:
        """Features at length 1, less their mean where they are centred, compared among themselves within each fold."""
        rows = centred(features_NF) if centre else unit(features_NF)
        return Score(overlap=self._overlap(rows, rows))

    def mapped(
        self,
        features_NF: NDArray[np.float32],
        *,
        galleries: tuple[Gallery, ...],
        strengths: tuple[float, ...] = STRENGTHS,
        levels: tuple[Level, ...] = LEVELS,
    ) -> Score:
        """The best of the maps."""
        return max(self.maps(features_NF, galleries, strengths, levels), key=lambda one: one.mean)

    def maps(
        self,
        features_NF: NDArray[np.float32],
        galleries: tuple[Gallery, ...],
        strengths: tuple[float, ...] = STRENGTHS,
        levels: tuple[Level, ...] = LEVELS,
    ) -> list[Score]:
        """A map for each ridge strength and level of aims, fitted on three folds and judged on the fourth.

        galleries: of several the mean counts.
        """
        features, width = torch.from_numpy(unit(features_NF)), self.targets.shape[1]
        predicted = {(one, level): np.zeros_like(self.targets) for one in strengths for level in levels}
        for fold, aims in enumerate(self._aimed(levels)):
            inside = torch.from_numpy(self.fold == fold)
            for strength, made in ridge.predict(features[~inside], aims, features[inside], strengths).items():
                for at, level in enumerate(levels):
                    rows = made[:, at * width : (at + 1) * width]
                    predicted[strength, level][self.fold == fold] = unit(rows.numpy())

        def against(rows: Rows) -> list[Rows]:
            return [rows if one == "own" else self.targets for one in galleries]

        return [
            Score(overlap=self._overlap(rows, *against(rows)), strength=strength, level=level)
            for (strength, level), rows in predicted.items()
        ]

    def beside(
        self, features_NF: NDArray[np.float32], strength: float, level: Level, shares: tuple[float, ...] = BESIDE
    ) -> dict[float, Score]:
        """Maps into the teacher's space with these shares for the features themselves (`distilltool.mapped`), fitted on
        three folds and judged on the fourth, among themselves and in the teacher's gallery."""
        features, made = torch.from_numpy(unit(features_NF)), {share: np.zeros_like(self.targets) for share in shares}
        for fold in range(FOLDS):
            inside = torch.from_numpy(self.fold == fold)
            known = torch.from_numpy(self.targets)[~inside]
            found = Map(features[~inside], known, aim.fit(known, (level,))[level], strength)
            for share, rows in made.items():
                head = found.at(share)
                rows[self.fold == fold] = unit((features[inside] @ head.weight.T + head.bias).numpy())
        return {
            share: Score(overlap=self._overlap(rows, rows, self.targets), strength=strength, level=level)
            for share, rows in made.items()
        }

    def _aimed(self, levels: tuple[Level, ...]) -> list[torch.Tensor]:
        """What is to be predicted of the images outside each fold, level beside level, (N − fold, levels · E)."""
        if levels not in self._aims:
            outside = [torch.from_numpy(self.targets[self.fold != fold]) for fold in range(FOLDS)]
            self._aims[levels] = [
                torch.cat([one(known) for one in aim.fit(known, levels).values()], dim=1) for known in outside
            ]
        return self._aims[levels]

    def _overlap(self, queries: Rows, *galleries: Rows) -> NDArray[np.float64]:
        """Per image, (N,), the mean over the galleries that its query is put to."""
        scores = np.full(len(self.targets), np.nan)
        for task, theirs in zip(self.tasks, self.theirs, strict=True):
            every = [metrics.shared(theirs, self._nearest(task, queries, one)) for one in galleries]
            scores[task.query] = np.mean(every, axis=0)
        return scores

    def _nearest(self, task: Task, queries: Rows, gallery: Rows) -> NDArray[np.int64]:
        k = metrics.reach(len(task.gallery))
        return search.nearest(queries[task.query], gallery[task.gallery], k, task.itself).ids


def balanced(features_NF: NDArray[np.float32], others_NF: NDArray[np.float32], share: float) -> float:
    """The length others need, features at length 1, to have this share of the variance of both together."""
    own, theirs = (float(unit(rows).var(axis=0).sum()) for rows in (features_NF, others_NF))
    return float(np.sqrt(share / (1 - share) * own / max(theirs, 1e-12)))


def centred(features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows at length 1, less their mean, at length 1 again."""
    rows = unit(features_NF)
    return unit(rows - rows.mean(axis=0))

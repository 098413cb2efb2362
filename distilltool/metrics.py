"""Retrieval metrics per query, and their bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distilltool.measures import CUT_MAP, MEASURES, Ranked
from distilltool.progress import Progress, Silent
from distilltool.report import Interval
from distilltool.search import BLOCK, PLACES, Gallery
from distilltool.truth import LABELLED, Figure, Truth

RESAMPLES = 1000
NEIGHBOURS = 10
SCORES = 1 << 26  # of whole galleries that are held at once
LONG = 1 << 27  # comparisons, of images or of resampled queries, from which on work says how far it is
COMPARED = 1 << 24  # pairs of ids at once
SHORT = 100  # neighbours up to which fetching them costs less than counting who is before the positives
FEW = 32  # positives up to which counting for each who is before it costs less than sorting the gallery
SPEARMAN_QUERIES = 1000  # more change the third decimal and cost time
SPEARMAN_GALLERY = 5000
CONVENTIONS = {
    "overlap@10": "share of the teacher's 10 nearest that are among the model's 10 nearest; of fewer, half of the "
    "others, where the gallery is smaller than 21",
    "spearman": f"rank correlation of all similarities of a query, at most {SPEARMAN_QUERIES} queries "
    f"× {SPEARMAN_GALLERY} gallery images, drawn once",
    "self": "a query in the gallery is never its own answer; queries without a positive leave the label metrics",
    "ties": "equal similarities, float32, stand in the order of the images",
    "interval": f"95 % percentile bootstrap over queries, {RESAMPLES} resamples; retention and "
    "differences resample both models alike",
}


def conventions(figures: Sequence[Figure]) -> dict[str, str]:
    """How each figure is defined: one entry for all cuts of a measure."""
    said = {}
    for figure in figures:
        named = replace(figure, level="", cut=None).name + ("" if figure.cut is None else "@k")
        said[named] = CUT_MAP if named == "map@k" else MEASURES[figure.measure].convention
    return said | CONVENTIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Who is asked about what. query, gallery: rows of the embedded images; labels: (N,) or None.

    truth: where lists say what is right, not labels: lists of such rows for each query, by level. figures: what is
    computed. itself: for each query its own place in the gallery, −1 where it is not there.
    """

    query: NDArray[np.int64]
    gallery: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    truth: Mapping[str, Truth] = field(default_factory=dict)
    figures: tuple[Figure, ...] = LABELLED

    @classmethod
    def among(cls, rows: NDArray[np.int64]) -> "Task":
        """Each of these rows against the others; nothing says what is right."""
        return cls(query=rows, gallery=rows, labels=None)

    @property
    def itself(self) -> NDArray[np.int64]:
        place = np.full(max(int(rows.max(initial=0)) for rows in (self.gallery, self.query)) + 1, -1, np.int64)
        place[self.gallery] = np.arange(len(self.gallery))
        return place[self.query]

    @property
    def is_judged(self) -> bool:
        """Whether anything says what is right."""
        return self.labels is not None or bool(self.truth)


def labelled(
    task: Task,
    query_ND: NDArray[np.float32],
    gallery_ND: NDArray[np.float32],
    progress: Progress | None = None,
    name: str = "",
) -> dict[str, NDArray[np.float64]]:
    """Per-query figures against labels or lists, each (Q,), NaN for a query without positives.

    query_ND, gallery_ND: vectors of length 1 of all images, of which `task` picks its rows; they differ where a
    student's queries are put to the teacher's gallery. name: whose ranking it is, for the progress.
    """
    watch = watched(progress, len(task.query) * len(task.gallery))
    relevance = {level: _relevance(task, level) for level in dict.fromkeys(one.level for one in task.figures)}
    depth = _depth(task, relevance)
    gallery, itself = Gallery(gallery_ND, task.gallery), task.itself
    most = max(1, *(int(judge.positives.max(initial=0)) for judge in relevance.values()))
    step = max(1, min(SCORES // len(task.gallery), PLACES // most) if depth > SHORT else min(BLOCK, PLACES // depth))
    parts: dict[str, list[NDArray[np.float64]]] = {figure.name: [] for figure in task.figures}
    watch.begin(f"ranking by {name}", len(task.query), "queries")
    for at in range(0, len(task.query), step):
        block = slice(at, at + step)
        queries_QD = query_ND[task.query[block]]
        if depth > SHORT:  # the ranks of the positives are counted, nothing is sorted
            scores_QG = gallery.scores(queries_QD)
            ranked = {level: _counted(judge, scores_QG, block) for level, judge in relevance.items()}
            del scores_QG  # or the next ones stand beside them
            watch.advance(len(queries_QD))
        else:
            found_QK = gallery.nearest(queries_QD, depth, itself[block], watch).ids
            ranked = {level: judge.ranked(found_QK, block) for level, judge in relevance.items()}
        for figure in task.figures:
            parts[figure.name].append(MEASURES[figure.measure].of(ranked[figure.level], figure.cut))
    watch.end()
    return {name: np.concatenate(values) for name, values in parts.items()}


def watched(progress: Progress | None, work: int) -> Progress:
    """Who is told how far work is: nobody where it is soon done."""
    return progress if progress is not None and work >= LONG else Silent()


def _counted(judge: "_ByLabel | _ByList", scores_QG: NDArray[np.float32], block: slice) -> Ranked:
    """The ranks of all positives from the scores of the whole gallery: 1, and one for each image that is before it."""
    positives = judge.positives[block]
    rank = np.zeros((len(scores_QG), int(positives.max(initial=0))), np.int64)
    for at, scores_G in enumerate(scores_QG):
        right, left_out = judge.places(block.start + at)
        kept = scores_G[left_out]
        scores_G[left_out] = -np.inf
        rank[at, : len(right)] = np.sort(_before(scores_G, right)) + 1
        scores_G[left_out] = kept
    return Ranked(rank=rank, positives=positives)


def _before(scores_G: NDArray[np.float32], places_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images are before each of these places, (P,): those of a higher score, of equals the earlier ones."""
    mine = scores_G[places_P]
    if len(places_P) <= FEW:
        pairs = zip(places_P.tolist(), mine, strict=True)
        return np.array(
            [np.count_nonzero(scores_G[:at] >= one) + np.count_nonzero(scores_G[at:] > one) for at, one in pairs],
            np.int64,
        )
    rising = np.sort(scores_G)
    last = np.searchsorted(rising, mine, "right")
    before = len(rising) - last
    for tied in np.flatnonzero(last - np.searchsorted(rising, mine, "left") > 1):
        before[tied] += np.count_nonzero(scores_G[: places_P[tied]] == mine[tied])
    return before


def shallow(task: Task, found_QK: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Per-query figures that the K first neighbours decide, each (Q,); {} where nothing says what is right.

    found_QK: places in the gallery, the query's own not among them, −1 where there are no more. Where no figure of the
    protocol is so, recall at 1 and at K are given.
    """
    if not task.is_judged:
        return {}
    k = found_QK.shape[1]
    judges = {level: _relevance(task, level) for level in dict.fromkeys(one.level for one in task.figures)}
    figures = [one for one in task.figures if 0 < (_reach(one, judges[one.level]) or 0) <= k]
    if not figures:
        figures = [Figure(measure="recall", cut=cut, level=level) for level in judges for cut in dict.fromkeys((1, k))]
    ranked = {level: judges[level].ranked(found_QK, slice(None)) for level in {one.level for one in figures}}
    return {one.name: MEASURES[one.measure].of(ranked[one.level], one.cut) for one in figures}


class _ByLabel:
    """Right is what has the query's label; nothing is ignored."""

    def __init__(self, task: Task, labels: NDArray[np.int64]) -> None:
        self.query, self.gallery = labels[task.query], labels[task.gallery]
        self._sizes = sizes = np.bincount(self.gallery, minlength=int(labels.max(initial=0)) + 1)
        self.itself = task.itself
        self.positives = (sizes[self.query] - (self.itself >= 0)).astype(np.int64)
        self.ignored = 0
        self._by_label, self._ends = np.argsort(self.gallery, kind="stable"), np.cumsum(sizes)

    def places(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the gallery the positives of a query stand, and what takes no part."""
        label, own = self.query[query], self.itself[query : query + 1]
        mine = self._by_label[self._ends[label] - self._sizes[label] : self._ends[label]]
        return mine[mine != own], own[own >= 0]

    def ranked(self, found_QK: NDArray[np.int64], block: slice) -> Ranked:
        """Places in the gallery that some queries found, judged."""
        hits = (self.gallery[np.maximum(found_QK, 0)] == self.query[block][:, None]) & (found_QK >= 0)
        return Ranked(
            rank=_closed_up(np.where(hits, np.arange(1, found_QK.shape[1] + 1), 0)), positives=self.positives[block]
        )


class _ByList:
    """Right is what is listed; the ranking closes up where images are ignored."""

    def __init__(self, task: Task, truth: Truth) -> None:
        place = np.full(max(int(rows.max(initial=0)) for rows in (task.gallery, task.query)) + 1, -1, np.int64)
        place[task.gallery] = np.arange(len(task.gallery))
        self.lists = []
        for positives, ignored, query in zip(truth.positives, truth.ignored, task.query, strict=True):
            left_out = place[np.union1d(ignored, query)]
            right = np.setdiff1d(place[positives], left_out)
            self.lists.append((right[right >= 0], left_out[left_out >= 0]))
        self.positives = np.array([len(right) for right, _ in self.lists], np.int64)
        self.ignored = max((len(left_out) for _, left_out in self.lists), default=0)

    def ranked(self, found_QK: NDArray[np.int64], block: slice) -> Ranked:
        """Places in the gallery that some queries found, judged."""
        rank = np.zeros(found_QK.shape, np.int64)
        for at, (right, left_out) in enumerate(self.lists[block]):
            kept = (found_QK[at] >= 0) & ~np.isin(found_QK[at], left_out)
            rank[at] = np.where(np.isin(found_QK[at], right), np.cumsum(kept), 0)
        return Ranked(rank=_closed_up(rank), positives=self.positives[block])

    def places(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the gallery the positives of a query stand, and what takes no part."""
        return self.lists[query]


def _closed_up(rank_QK: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranks in each row that are not 0, and as many 0 behind them as the longest row needs."""
    rows, places = np.nonzero(rank_QK)
    counts = np.bincount(rows, minlength=len(rank_QK))
    closed = np.zeros((len(rank_QK), int(counts.max(initial=0))), np.int64)
    closed[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = rank_QK[rows, places]
    return closed


def _relevance(task: Task, level: str) -> _ByLabel | _ByList:
    if task.truth:
        return _ByList(task, task.truth[level])
    assert task.labels is not None
    return _ByLabel(task, task.labels)


def _depth(task: Task, relevance: Mapping[str, _ByLabel | _ByList]) -> int:
    """How many neighbours decide all figures of a task."""
    deepest = 1
    for figure in task.figures:
        judge = relevance[figure.level]
        reach = _reach(figure, judge)
        if reach is None:
            return len(task.gallery)
        deepest = max(deepest, reach + judge.ignored)
    return min(deepest, len(task.gallery))


def _reach(figure: Figure, judge: _ByLabel | _ByList) -> int | None:
    """How many neighbours decide a figure, ignored ones apart; None for all."""
    return MEASURES[figure.measure].reach(figure.cut, int(judge.positives.max(initial=0)))


def reach(gallery: int) -> int:
    """How many neighbours to compare: 10, or half of the others where the gallery has fewer than 21 images."""
    return min(NEIGHBOURS, max(1, (gallery - 1) // 2))


def neighbours(
    task: Task,
    query_ND: NDArray[np.float32],
    gallery_ND: NDArray[np.float32],
    k: int,
    progress: Progress | None = None,
    name: str = "",
) -> NDArray[np.int64]:
    """Per query the places in the gallery of its k nearest, (Q, k), −1 where there are no more.

    query_ND, gallery_ND, name: as of `labelled`.
    """
    watch = watched(progress, len(task.query) * len(task.gallery))
    gallery, itself = Gallery(gallery_ND, task.gallery), task.itself
    watch.begin(f"nearest by {name}", len(task.query), "queries")
    found = [
        gallery.nearest(query_ND[task.query[at : at + BLOCK]], k, itself[at : at + BLOCK], watch).ids
        for at in range(0, len(task.query), BLOCK)
    ]
    watch.end()
    return np.concatenate(found)


def overlap(
    task: Task,
    teacher_ND: NDArray[np.float32],
    model_ND: NDArray[np.float32],
    k: int,
    model_gallery_ND: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Per query, the share of the teacher's k nearest that the model finds among its k nearest, (Q,).

    model_gallery_ND: what the model's queries are put to where that is not the model's own gallery.
    """
    gallery_ND = model_ND if model_gallery_ND is None else model_gallery_ND
    return shared(neighbours(task, teacher_ND, teacher_ND, k), neighbours(task, model_ND, gallery_ND, k))


def shared(theirs_QK: NDArray[np.int64], ours_QK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per query, the share of one list of ids that is in another, (Q,); −1 is no id, a list of none has no share."""
    found = np.zeros(len(theirs_QK))
    step = max(1, COMPARED // max(1, theirs_QK.shape[1] * ours_QK.shape[1]))
    for at in range(0, len(found), step):
        theirs, ours = theirs_QK[at : at + step], ours_QK[at : at + step]
        found[at : at + step] = ((theirs[:, :, None] == ours[:, None, :]).any(axis=2) & (theirs >= 0)).sum(axis=1)
    ids = (theirs_QK >= 0).sum(axis=1)
    return np.where(ids > 0, found / np.maximum(ids, 1), np.nan)


def spearman(
    task: Task,
    teacher_ND: NDArray[np.float32],
    model_ND: NDArray[np.float32],
    model_gallery_ND: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Per query, the rank correlation of the teacher's and the model's similarities to the gallery, (≤ 1000,).

    model_gallery_ND: as of `overlap`.
    """
    gallery_ND = model_ND if model_gallery_ND is None else model_gallery_ND
    rng = np.random.default_rng(0)
    places = np.arange(len(task.query))
    if len(places) > SPEARMAN_QUERIES:
        places = np.sort(rng.choice(places, SPEARMAN_QUERIES, replace=False))
    gallery = task.gallery
    if len(gallery) > SPEARMAN_GALLERY:
        gallery = np.sort(rng.choice(gallery, SPEARMAN_GALLERY, replace=False))
    rows, found = task.query[places], []
    theirs_QG = Gallery(teacher_ND, gallery).scores(teacher_ND[rows])
    ours_QG = Gallery(gallery_ND, gallery).scores(model_ND[rows])
    for row, theirs_G, ours_G in zip(rows, theirs_QG, ours_QG, strict=True):
        others = gallery != row
        a, b = _ranks(theirs_G[others]), _ranks(ours_G[others])
        spread = a.std() * b.std()
        found.append(((a - a.mean()) * (b - b.mean())).mean() / spread if spread > 0 else 0.0)
    return np.array(found)


def _ranks(values_G: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks from 0, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values_G, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = last - (counts + 1) / 2
    return mean_rank[inverse]


def ahead(values_Q: NDArray[np.float64], others_Q: NDArray[np.float64], errors: float) -> bool:
    """Whether values are larger than others, paired, by more than so many standard errors of the mean difference.

    A pair with NaN does not count.
    """
    gain = values_Q - others_Q
    gain = gain[~np.isnan(gain)]
    return bool(gain.mean() > errors * gain.std() / np.sqrt(len(gain)))


def interval(values_Q: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over queries with its 95 % bootstrap interval; NaN queries are left out."""
    kept = values_Q[~np.isnan(values_Q)]
    if not len(kept):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    means = _resampled(kept[:, None], seed)[:, 0]
    return Interval(
        value=float(kept.mean()), low=float(np.quantile(means, 0.025)), high=float(np.quantile(means, 0.975))
    )


def ratio(model_Q: NDArray[np.float64], teacher_Q: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean of one over mean of the other, both resampled alike, with its 95 % bootstrap interval."""
    kept = ~np.isnan(model_Q) & ~np.isnan(teacher_Q)
    pair = np.stack([model_Q[kept], teacher_Q[kept]], axis=1)
    if not len(pair) or pair[:, 1].mean() == 0:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    means = _resampled(pair, seed)
    ratios = means[:, 0] / np.maximum(means[:, 1], 1e-12)
    return Interval(
        value=float(pair[:, 0].mean() / pair[:, 1].mean()),
        low=float(np.quantile(ratios, 0.025)),
        high=float(np.quantile(ratios, 0.975)),
    )


def difference(model_Q: NDArray[np.float64], other_Q: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over queries of one less the other, both resampled alike, with its 95 % bootstrap interval.

    A query that is NaN in either is left out of both.
    """
    return interval(model_Q - other_Q, seed)


def _resampled(values_QM: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of bootstrap resamples of the rows, (RESAMPLES, M), a few resamples in memory at a time."""
    rng = np.random.default_rng(seed)
    count = len(values_QM)
    step = max(1, min(RESAMPLES, 4_000_000 // count))
    parts = []
    for at in range(0, RESAMPLES, step):
        draws = rng.integers(0, count, (min(step, RESAMPLES - at), count))
        parts.append(values_QM[draws].mean(axis=1))
    return np.concatenate(parts)

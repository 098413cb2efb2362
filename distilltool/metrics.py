"""Retrieval metrics per query, and their bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distilltool.report import Interval
from distilltool.search import nearest

RESAMPLES = 1000
RECALLS = (1, 5, 10)
NEIGHBOURS = 10
BLOCK = 512  # queries whose whole ranking is held at once
SPEARMAN_QUERIES = 1000  # more change the third decimal and cost time
SPEARMAN_GALLERY = 5000
CONVENTIONS = {
    "map": "mean over queries of rectangle AP: precision at the rank of each positive, over all positives",
    "map@r": "MAP@R of Musgrave et al. 2020: rectangle AP cut at R, over R, the number of positives",
    "recall@k": "share of queries with at least one positive among the first k",
    "overlap@10": "share of the teacher's 10 nearest that are among the model's 10 nearest; of fewer, half of the "
    "others, where the gallery is smaller than 21",
    "spearman": f"rank correlation of all similarities of a query, at most {SPEARMAN_QUERIES} queries "
    f"× {SPEARMAN_GALLERY} gallery images, drawn once",
    "self": "a query in the gallery is never its own answer; queries without a positive leave the label metrics",
    "interval": f"95 % percentile bootstrap over queries, {RESAMPLES} resamples; retention and "
    "differences resample both models alike",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Who is asked about what. query, gallery: rows of the embedded images; labels: (N,) or None.

    itself: for each query its own place in the gallery, −1 where it is not there.
    """

    query: NDArray[np.int64]
    gallery: NDArray[np.int64]
    labels: NDArray[np.int64] | None

    @property
    def itself(self) -> NDArray[np.int64]:
        place = {row: at for at, row in enumerate(self.gallery.tolist())}
        return np.array([place.get(row, -1) for row in self.query.tolist()], np.int64)


def labelled(
    task: Task, query_ND: NDArray[np.float32], gallery_ND: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Per-query metrics against labels, each (Q,), NaN for a query without positives.

    query_ND, gallery_ND: vectors of length 1 of all images, of which `task` picks its rows; they differ where a
    student's queries are put to the teacher's gallery.
    """
    blocks = [
        _labelled_block(task, query_ND, gallery_ND, slice(at, at + BLOCK)) for at in range(0, len(task.query), BLOCK)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _labelled_block(
    task: Task, query_ND: NDArray[np.float32], gallery_ND: NDArray[np.float32], block: slice
) -> dict[str, NDArray[np.float64]]:
    """The metrics of a block of queries, whose whole ranking is in memory."""
    assert task.labels is not None
    queries, gallery_labels = task.query[block], task.labels[task.gallery]
    found = nearest(query_ND[queries], gallery_ND[task.gallery], len(task.gallery), task.itself[block]).ids
    hits = (gallery_labels[np.maximum(found, 0)] == task.labels[queries][:, None]) & (found >= 0)
    positives = hits.sum(axis=1)
    return {
        "map": _average_precision(hits, positives, cut=False),
        "map@r": _average_precision(hits, positives, cut=True),
        **{f"recall@{k}": np.where(positives > 0, hits[:, :k].any(axis=1), np.nan) for k in RECALLS},
    }


def _average_precision(hits_QG: NDArray[np.bool_], positives_Q: NDArray[np.int64], cut: bool) -> NDArray[np.float64]:
    """Rectangle AP; with `cut` only the first R ranks count, R the number of positives."""
    ranks = np.arange(1, hits_QG.shape[1] + 1)
    precision = np.cumsum(hits_QG, axis=1) / ranks
    counted = hits_QG & (ranks <= positives_Q[:, None]) if cut else hits_QG
    total = (precision * counted).sum(axis=1)
    return np.where(positives_Q > 0, total / np.maximum(positives_Q, 1), np.nan)


def reach(gallery: int) -> int:
    """How many neighbours to compare: 10, or half of the others where the gallery has fewer than 21 images."""
    return min(NEIGHBOURS, max(1, (gallery - 1) // 2))


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
    theirs = nearest(teacher_ND[task.query], teacher_ND[task.gallery], k, task.itself).ids
    ours = nearest(model_ND[task.query], gallery_ND[task.gallery], k, task.itself).ids
    return shared(theirs, ours)


def shared(theirs_QK: NDArray[np.int64], ours_QK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per query, the share of one list of ids that is in another, (Q,); −1 is no id."""
    return np.array([np.isin(a[a >= 0], b[b >= 0]).mean() for a, b in zip(theirs_QK, ours_QK, strict=True)])


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
    found = []
    for row in task.query[places]:
        others = gallery[gallery != row]
        a = _ranks(teacher_ND[others] @ teacher_ND[row])
        b = _ranks(gallery_ND[others] @ model_ND[row])
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

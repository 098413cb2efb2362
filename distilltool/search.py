"""Exact nearest neighbours and clusters, by faiss, block by block."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # queries at once: beyond 128,000 / D faiss multiplies matrices instead of single vectors
SLACK = 32  # faiss orders ties by falling id; fetching a few more lets us order them by rising id


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The nearest of each query, best first. ids: (Q, k) int64, −1 where there are no more; scores: (Q, k) float32."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Gallery:
    """Vectors that are searched again and again; faiss keeps a copy of its own, from the first search on."""

    def __init__(self, vectors_GD: NDArray[np.float32]) -> None:
        self._vectors = np.ascontiguousarray(_finite(vectors_GD), np.float32)

    @cached_property
    def _index(self) -> Any:
        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors)
        return index

    def scores(self, queries_QD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inner product of each query with all vectors, (Q, G)."""
        found: NDArray[np.float32] = _finite(queries_QD).astype(np.float32) @ self._vectors.T
        return found

    def nearest(self, queries_QD: NDArray[np.float32], k: int, itself: NDArray[np.int64] | None = None) -> Neighbours:
        """The k rows of largest inner product, ordered by (−score, id).

        itself: (Q,) the row that is the query and must not be found, −1 for none.
        Raises ValueError where a vector is not finite (faiss would lose such rows without a word).
        """
        queries_QD = np.ascontiguousarray(_finite(queries_QD), np.float32)
        own = np.full(len(queries_QD), -1, np.int64) if itself is None else itself
        ids = np.full((len(queries_QD), k), -1, np.int64)
        scores = np.full((len(queries_QD), k), -np.inf, np.float32)
        size = self._index.ntotal
        for at in range(0, len(queries_QD), BLOCK):
            rows = np.arange(at, min(at + BLOCK, len(queries_QD)))
            unsure = _fill(self._index, queries_QD, own, rows, min(k + 1 + SLACK, size), ids, scores)
            if len(unsure):  # more equal scores than were fetched: only the whole gallery tells which ids are lowest
                _fill(self._index, queries_QD, own, unsure, size, ids, scores)
        return Neighbours(ids=ids, scores=scores)


def nearest(
    queries_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], k: int, itself: NDArray[np.int64] | None = None
) -> Neighbours:
    """The k rows of a gallery nearest to each query, as of `Gallery.nearest`."""
    return Gallery(gallery_GD).nearest(queries_QD, k, itself)


def _finite(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(vectors_ND).all():
        raise ValueError("vectors hold NaN or infinity")
    return vectors_ND


def _fill(
    index: Any,
    queries_QD: NDArray[np.float32],
    own: NDArray[np.int64],
    rows: NDArray[np.int64],
    fetch: int,
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Search some rows and write their answers; returns those whose k-th score may go on beyond what was fetched."""
    k = ids.shape[1]
    got_scores, got_ids = index.search(queries_QD[rows], fetch)
    last = got_scores[:, -1].copy()
    mine = got_ids == own[rows, None]
    got_scores[mine], got_ids[mine] = -np.inf, index.ntotal
    order = np.lexsort((got_ids, -got_scores), axis=1)[:, :k]
    width = order.shape[1]
    found_ids, found_scores = (np.take_along_axis(got, order, axis=1) for got in (got_ids, got_scores))
    ids[rows, :width] = np.where(found_scores == -np.inf, -1, found_ids)
    scores[rows, :width] = found_scores
    return rows[last >= found_scores[:, -1]] if fetch < index.ntotal else rows[:0]


def clusters(vectors_ND: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """Spherical k-means of unit vectors → (N,) the cluster of each."""
    return grouped(vectors_ND, count, seed).cluster


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Rows in clusters. cluster: (N,) int64; closeness: (N,) float32, the inner product with the cluster's mean."""

    cluster: NDArray[np.int64]
    closeness: NDArray[np.float32]


def grouped(vectors_ND: NDArray[np.float32], count: int, seed: int) -> Groups:
    """Spherical k-means of unit vectors, and how near each is to the mean of its cluster."""
    means = faiss.Kmeans(
        vectors_ND.shape[1],
        count,
        niter=20,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1000,
    )
    means.train(np.ascontiguousarray(vectors_ND, np.float32))
    closeness, assigned = means.index.search(np.ascontiguousarray(vectors_ND, np.float32), 1)
    return Groups(cluster=assigned[:, 0], closeness=closeness[:, 0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Rows of queries and of a gallery that belong together, each (P,) int64, in order of the query."""

    query: NDArray[np.int64]
    gallery: NDArray[np.int64]


def within(queries_QB: NDArray[np.uint8], gallery_GB: NDArray[np.uint8], radius: int) -> Pairs:
    """All pairs of codes, eight bits a byte, that differ in `radius` bits or fewer."""
    index = faiss.IndexBinaryFlat(8 * queries_QB.shape[1])
    index.add(np.ascontiguousarray(gallery_GB))
    limits, _, found = index.range_search(np.ascontiguousarray(queries_QB), radius + 1)  # faiss excludes the radius
    counts: NDArray[np.int64] = np.diff(limits).astype(np.int64)
    return Pairs(query=np.repeat(np.arange(len(queries_QB), dtype=np.int64), counts), gallery=found.astype(np.int64))

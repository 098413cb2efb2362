"""Exact nearest neighbours and clusters, by faiss, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool.progress import Progress, Silent

BLOCK = 2048  # queries at once: from 128,000 / D on faiss multiplies matrices instead of single vectors
ROWS = 1 << 17  # of a gallery at once, a multiple of faiss's own 1024: which of them are edges decides the last bit
COPIED = 1 << 28  # bytes of gallery rows that lie apart and are held side by side
PLACES = 1 << 23  # of candidates, or of scores, that are held at once
COMPARED = 1024  # queries whose scores are all looked at, at once
MANY = 32  # queries from which equal rows were never seen to score differently (docs/LOG.md)
SLACK = 32  # faiss orders ties by falling id; fetching a few more lets us order them by rising id
LOOKED = 1 << 16  # numbers that are looked at at once: what is asked of them stays in the processor's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The nearest of each query, best first. ids: (Q, k) int64, −1 where there are no more; scores: (Q, k) float32."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Gallery:
    """Vectors that are searched where they are, in memory or in a mapped file: what is searched is never copied whole.

    Rows that lie apart are copied block by block, or once where they are few.
    """

    def __init__(self, vectors_ND: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> None:
        """rows: which of the vectors are searched, in this order; None for all. Ids are places among them.

        Raises ValueError where a vector is not finite (faiss would lose such rows without a word).
        """
        vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)  # as it is where it is that already
        if rows is not None and _is_run(rows):
            vectors_ND, rows = vectors_ND[rows[0] : rows[-1] + 1], None
        elif rows is not None and len(rows) * vectors_ND.shape[1] * 4 <= COPIED:
            vectors_ND, rows = vectors_ND[rows], None
        self._vectors, self._rows = vectors_ND, rows
        self.size = len(vectors_ND) if rows is None else len(rows)
        for _, block_BD in self._blocks(ROWS):
            check_finite(block_BD)

    def _blocks(self, most: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The place of each block's first row and its vectors, at most so many."""
        if self._rows is not None:
            most = min(most, max(1024, COPIED // (4 * self._vectors.shape[1]) // 1024 * 1024))
        for at in range(0, self.size, most):
            some = slice(at, at + most)
            yield at, self._vectors[some] if self._rows is None else self._vectors[self._rows[some]]

    def scores(self, queries_QD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inner product of each query with all vectors, (Q, G)."""
        check_finite(queries_QD)
        if self._rows is None:
            return _products(queries_QD, self._vectors)
        found = np.empty((len(queries_QD), self.size), np.float32)
        for at, block_BD in self._blocks(ROWS):
            found[:, at : at + len(block_BD)] = _products(queries_QD, block_BD)
        return found

    def nearest(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        itself: NDArray[np.int64] | None = None,
        progress: Progress | None = None,
    ) -> Neighbours:
        """The k rows of largest inner product, ordered by (−score, id).

        itself: (Q,) the row that is the query and must not be found, −1 for none. progress: told of queries as they are
        done; of one in a long gallery, as parts of a block of them.
        Raises ValueError where a query is not finite.
        """
        check_finite(queries_QD)
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        own = np.full(len(queries_QD), -1, np.int64) if itself is None else itself
        ids = np.full((len(queries_QD), k), -1, np.int64)
        scores = np.full((len(queries_QD), k), -np.inf, np.float32)
        fetch = min(k + 1 + SLACK, self.size)
        step = max(1, min(BLOCK, PLACES // fetch))
        for at in range(0, len(queries_QD), step):
            block = slice(at, at + step)
            found_QF = self._fetched(queries_QD[block], fetch, progress or Silent())
            unsure = at + _settled(found_QF, own[block], self.size, ids[block], scores[block])
            for start in range(0, len(unsure), COMPARED):
                some = unsure[start : start + COMPARED]
                exact = self._compared(queries_QD[some], own[some], k)
                ids[some], scores[some] = exact.ids, exact.scores
        return Neighbours(ids=ids, scores=scores)

    def _fetched(self, queries_QD: NDArray[np.float32], fetch: int, progress: Progress) -> Neighbours:
        """So many rows of largest inner product as faiss finds them, in no order that is promised among equals."""
        heap, told = None, 0
        for at, block_BD in self._blocks(ROWS):
            scores, ids = faiss.knn(queries_QD, block_BD, min(fetch, len(block_BD)), faiss.METRIC_INNER_PRODUCT)
            done = len(queries_QD) * min(at + len(block_BD), self.size) // self.size
            progress.advance(done - told)
            told = done
            if len(block_BD) == self.size:
                return Neighbours(ids=ids, scores=scores)
            heap = heap or faiss.ResultHeap(len(queries_QD), fetch, keep_max=True)
            heap.add_result(scores, ids + at)
        assert heap is not None
        heap.finalize()
        return Neighbours(ids=heap.I, scores=heap.D)

    def _compared(self, queries_QD: NDArray[np.float32], own_Q: NDArray[np.int64], k: int) -> Neighbours:
        """As `nearest` for a few queries, by looking at all scores: of equals what comes first in the gallery stays."""
        ids = np.full((len(queries_QD), k), -1, np.int64)
        scores = np.full((len(queries_QD), k), -np.inf, np.float32)
        for at, block_BD in self._blocks(max(1024, PLACES // len(queries_QD) // 1024 * 1024)):
            found_QB = _products(queries_QD, block_BD)
            inside = np.flatnonzero((own_Q >= at) & (own_Q < at + len(block_BD)))
            found_QB[inside, own_Q[inside] - at] = -np.inf
            for query, found_B in enumerate(found_QB):
                better = np.flatnonzero(found_B > scores[query, -1])
                if not len(better):
                    continue
                merged_ids = np.concatenate([ids[query], at + better])
                merged = np.concatenate([scores[query], found_B[better]])
                order = np.argsort(-merged, kind="stable")[:k]  # in order of id among equals already
                ids[query], scores[query] = merged_ids[order], merged[order]
        return Neighbours(ids=ids, scores=scores)


def nearest(
    queries_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], k: int, itself: NDArray[np.int64] | None = None
) -> Neighbours:
    """The k rows of a gallery nearest to each query, as of `Gallery.nearest`."""
    return Gallery(gallery_GD).nearest(queries_QD, k, itself)


def nearest_in(index: Any, queries_Q: NDArray[Any], k: int, itself: NDArray[np.int64]) -> NDArray[np.int64]:
    """The k nearest that a faiss index which looks at everything finds, ordered by (nearness, id), (Q, k) int64.

    queries_Q: as the index takes them, vectors or codes. itself: as of `Gallery.nearest`.
    """
    ids = np.full((len(queries_Q), k), -1, np.int64)
    fetch = min(k + 1 + SLACK, index.ntotal)
    unsure = _looked_up(index, queries_Q, itself, np.arange(len(queries_Q)), fetch, ids)
    _looked_up(index, queries_Q, itself, unsure, index.ntotal, ids)  # only the whole tells which of equals come first
    return ids


def _looked_up(
    index: Any,
    queries_Q: NDArray[Any],
    itself: NDArray[np.int64],
    rows: NDArray[np.int64],
    fetch: int,
    ids: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Search some of the queries and write what they find; returns those that may go on beyond what was fetched."""
    far = isinstance(index, faiss.IndexBinary) or index.metric_type != faiss.METRIC_INNER_PRODUCT
    step, unsure = max(1, min(BLOCK, PLACES // fetch)), [rows[:0]]
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        got, got_ids = index.search(queries_Q[some], fetch)
        got = got.astype(np.float32)
        found = np.full((len(some), ids.shape[1]), -1, np.int64)
        scores = np.full(found.shape, -np.inf, np.float32)
        left = _settled(Neighbours(ids=got_ids, scores=-got if far else got), itself[some], index.ntotal, found, scores)
        ids[some] = found
        unsure.append(some[left])
    return np.concatenate(unsure)


def check_finite(vectors_ND: NDArray[np.float32]) -> None:
    """Raise ValueError where a number is NaN or infinite, without holding more than a little beside the vectors."""
    step = max(1, LOOKED // max(1, vectors_ND.shape[1]))
    for at in range(0, len(vectors_ND), step):
        if not np.isfinite(vectors_ND[at : at + step]).all():
            raise ValueError("vectors hold NaN or infinity")


def _is_run(rows: NDArray[np.int64]) -> bool:
    """Whether rows follow each other without a gap, so that a slice is all of them."""
    return bool(len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())


def _products(queries_QD: NDArray[np.float32], block_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products, (Q, B). A few queries are multiplied as if they were many: alone they take a way on which equal
    rows may differ in the last bit."""
    queries_QD = queries_QD.astype(np.float32, copy=False)
    if 0 < len(queries_QD) < MANY:
        return _products(np.resize(queries_QD, (MANY, queries_QD.shape[1])), block_BD)[: len(queries_QD)]
    found: NDArray[np.float32] = queries_QD @ block_BD.T
    return found


def _without(mine_QF: NDArray[np.bool_]) -> NDArray[np.int64]:
    """An order of columns in which the marked one, one a row at most, is the last, (Q, F)."""
    columns = np.arange(mine_QF.shape[1])
    at = np.where(mine_QF.any(axis=1), mine_QF.argmax(axis=1), mine_QF.shape[1])[:, None]
    order: NDArray[np.int64] = columns + (columns >= at)
    return np.where(order == len(columns), at, order)


def _settled(
    found: Neighbours, own_Q: NDArray[np.int64], size: int, ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Put what was fetched into order and write it; returns the queries whose k-th score may go on beyond it."""
    got_ids, got_scores = found.ids, found.scores
    k, fetch = ids.shape[1], got_ids.shape[1]
    last = got_scores[:, -1].copy()
    tied = (got_scores[:, 1:] == got_scores[:, :-1]).any(axis=1)
    mine = got_ids == own_Q[:, None]
    got_scores[mine], got_ids[mine] = -np.inf, size
    order = _without(mine)[:, :k]
    order[tied] = np.lexsort((got_ids[tied], -got_scores[tied]), axis=1)[:, :k]
    width = order.shape[1]
    found_ids = np.take_along_axis(got_ids, order, axis=1)
    found_scores = np.take_along_axis(got_scores, order, axis=1)
    ids[:, :width] = np.where(found_scores == -np.inf, -1, found_ids)
    scores[:, :width] = found_scores
    unsure = last >= found_scores[:, -1] if fetch < size else np.zeros(len(own_Q), np.bool_)
    return np.flatnonzero(unsure).astype(np.int64)


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

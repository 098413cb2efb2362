"""What searching a gallery through an index costs: recall against exact search, time, memory, throughput.

Every index is built on one thread, so that it comes out the same each time; neighbours are those of one thread too, and
a query's own image is never its answer. A neighbour counts as found where it is as near as the last of the exact ones,
so that which of equals is returned makes no difference.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool import indexes, latency, metrics
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation
from distilltool.images import workers
from distilltool.indexes import Index, Point, Wanted
from distilltool.metrics import Task
from distilltool.progress import Progress
from distilltool.report import IndexPoint, IndexReport, Interval
from distilltool.search import Gallery, nearest_in

SINGLE = 200  # queries that are timed one by one
REPEATS = 3  # of each of them
BATCH = 500  # queries at once, at most
BATCHES = 3  # of them at least
BATCH_SECONDS = 0.1  # for them at least, as threads have to wait for each other on a busy machine
ROUNDING = 1e-6  # of an inner product of vectors of length 1, in float32
CONVENTIONS = {
    "index recall": "share of a query's 10 nearest by exact search that an index returns among its 10 first, of fewer "
    "as in overlap@10; what is as near as the last of them counts as one of them",
    "index figures": "of the images an index returns, all others counted as not found",
    "index time": f"p50 of at most {SINGLE} queries one by one on one thread, {REPEATS} times each; queries a second "
    f"are the median of {BATCHES} or more batches of all, at most {BATCH:,}, on one thread or on all processors, "
    "whichever is faster; the vectors are at hand",
    "index memory": "bytes of the index as faiss writes it to a file, built on one thread",
}


def added(made: Evaluation, wanted: Sequence[Wanted], progress: Progress) -> Evaluation:
    """The evaluation with every model's gallery in each index type that is wanted."""
    progress.begin("indexes", len(made.models) * len(wanted), "indexes")
    reports = []
    for at, model in enumerate(made.report.models):
        found = []
        gallery = made.models[at].vectors[made.task.gallery]
        queries, itself = made.models[at].vectors[made.task.query], made.task.itself
        k = metrics.reach(len(gallery))
        exact = Gallery(gallery).nearest(queries, k, itself).scores[:, -1]
        for one in wanted:
            found.append(_measured(one, made.task, gallery, queries, itself, exact, k))
            progress.advance(1, one.text)
        reports.append(replace(model, indexes=tuple(found)))
    progress.end()
    report = replace(made.report, models=tuple(reports), conventions={**made.report.conventions, **CONVENTIONS})
    return replace(made, report=report)


def _measured(
    wanted: Wanted,
    task: Task,
    gallery_GD: NDArray[np.float32],
    queries_QD: NDArray[np.float32],
    itself: NDArray[np.int64],
    exact_Q: NDArray[np.float32],
    k: int,
) -> IndexReport:
    """One index type on one gallery. exact_Q: the inner product with each query's k-th nearest."""
    report = IndexReport(index=wanted.text, k=k, queries=len(queries_QD), gallery=len(gallery_GD))
    with _threads(1):
        began = time.perf_counter()
        try:
            built = indexes.build(wanted, gallery_GD)
        except DistillError as error:
            return replace(report, reason=f"{error.message}; {error.fix}")
        seconds = time.perf_counter() - began
        encoded = built.encode(queries_QD)
        points = []
        for point in built.points:
            ids = _found(built, point, encoded, itself, k)
            right = (_scores(queries_QD, gallery_GD, ids) >= exact_Q[:, None] - ROUNDING) & (ids >= 0)
            points.append(
                _timed(
                    built,
                    point,
                    encoded,
                    k,
                    recall=metrics.interval(right.mean(axis=1)),
                    judged={name: metrics.interval(one) for name, one in metrics.shallow(task, ids).items()},
                )
            )
    return replace(
        report, settings=dict(built.settings), build_seconds=seconds, bytes=size_of(built.index), points=tuple(points)
    )


def _scores(
    queries_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], ids_QK: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Inner products of queries with what was found for them, (Q, k); a few queries at a time."""
    parts = [
        np.einsum("qd,qkd->qk", queries_QD[at : at + BATCH], gallery_GD[np.maximum(ids_QK[at : at + BATCH], 0)])
        for at in range(0, len(queries_QD), BATCH)
    ]
    return np.concatenate(parts)


def _found(built: Index, point: Point, encoded_Q: NDArray[Any], itself: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Places in the gallery of each query's k nearest but itself, as the index finds them, (Q, k), −1 for none."""
    if built.complete:
        return nearest_in(built.index, encoded_Q, k, itself)
    point.prepare()
    _, got = built.index.search(encoded_Q, k + 1)
    got = np.where(got == itself[:, None], -1, got)
    order = np.argsort(got < 0, axis=1, kind="stable")  # what is missing goes behind
    found: NDArray[np.int64] = np.take_along_axis(got, order, axis=1)[:, :k]
    return found


def _timed(
    built: Index, point: Point, encoded_Q: NDArray[Any], k: int, *, recall: Interval, judged: dict[str, Interval]
) -> IndexPoint:
    """How long a query takes by itself, and how many a second come out of a batch."""

    def search(some: NDArray[Any]) -> None:
        built.index.search(some, k)

    point.prepare()
    some = encoded_Q[:SINGLE]
    singly = [some[at : at + 1] for at in range(len(some))]
    search(some)
    ms = 1000 * np.array([_seconds(search, one) for _ in range(REPEATS) for one in singly])
    batch = encoded_Q[:BATCH]
    took = {count: _batches(search, batch, count) for count in sorted({1, workers()})}
    threads = min(took, key=lambda count: took[count])
    earned = latency.percentiles(ms)
    return IndexPoint(
        settings=dict(point.settings),
        recall=recall,
        metrics=judged,
        n=len(ms),
        p50_ms=float(np.median(ms)),
        p90_ms=earned[90],
        p95_ms=earned[95],
        batch=len(batch),
        qps=len(batch) / took[threads],
        threads=threads,
    )


def _batches(search: Callable[[NDArray[Any]], None], batch: NDArray[Any], count: int) -> float:
    """Seconds of a batch on so many threads, the median."""
    with _threads(count):
        search(batch[: len(batch) // 10])
        took, end = list[float](), time.perf_counter() + BATCH_SECONDS
        while len(took) < BATCHES or time.perf_counter() < end:
            took.append(_seconds(search, batch))
    return median(took)


def _seconds(search: Callable[[NDArray[Any]], None], some: NDArray[Any]) -> float:
    began = time.perf_counter_ns()
    search(some)
    return (time.perf_counter_ns() - began) / 1e9


def size_of(index: Any) -> int:
    """Bytes of an index as faiss writes it to a file."""
    counted = [0]

    def count(piece: bytes) -> int:
        counted[0] += len(piece)
        return len(piece)

    writer = faiss.PyCallbackIOWriter(count)
    (faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index)(index, writer)
    del writer  # what it has buffered is written
    return counted[0]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let faiss use so many threads for a while."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)

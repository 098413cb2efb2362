"""How much of a teacher's retrieval quality its students keep."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import images, metrics
from distilltool.datasets import Dataset
from distilltool.embedder import Embedder, unit
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation, Measured, completed
from distilltool.metrics import Task
from distilltool.progress import Progress
from distilltool.report import EvalReport, Interval, ModelReport, Skipped

BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """The teacher's side of an evaluation. vectors: (N, D) at length 1, a row for each of the dataset's `rows`."""

    name: str
    space_id: str
    rows: tuple[int, ...]
    vectors: NDArray[np.float32]
    skipped: tuple[Skipped, ...]
    queries: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model to measure. dims: lengths at which its vectors are of use when cut."""

    model: Embedder
    dims: tuple[int, ...] = ()


def evaluate(entries: Sequence[Entry], dataset: Dataset, known: Known, data: str, progress: Progress) -> Evaluation:
    """Measure each model on the images the teacher has answered about, beside the teacher itself."""
    began = time.perf_counter()
    paths = [dataset.paths[row] for row in known.rows]
    task = _task(dataset, known.rows, data)
    theirs = _labelled(task, known.vectors, known.vectors)
    reports = [
        ModelReport(
            name=known.name,
            dim=known.vectors.shape[1],
            space=known.space_id,
            metrics=_intervals(theirs),
            fidelity=None,
            retention={},
            asymmetric=None,
        )
    ]
    measured = [Measured(name=known.name, vectors=known.vectors, values=theirs)]
    for entry in entries:
        vectors = unit(embed_files(entry.model, paths, progress))
        whole, values = _measure(entry.model, vectors, known, task, theirs)
        measured.append(Measured(name=entry.model.name, vectors=vectors, values=values))
        nested = {
            str(dim): _measure(entry.model, unit(vectors[:, :dim]), known, task, theirs)[0]
            for dim in entry.dims
            if dim < vectors.shape[1]
        }
        reports.append(replace(whole, nested=nested))
    report = EvalReport(
        data=data,
        queries=len(task.query),
        gallery=len(task.gallery),
        protocol=dataset.protocol,
        models=tuple(reports),
        skipped=known.skipped,
        teacher_queries=known.queries,
        conventions=metrics.CONVENTIONS,
        seconds=time.perf_counter() - began,
    )
    labels = None if dataset.labels is None else [dataset.labels[row] for row in known.rows]
    root = Path(data) if Path(data).is_dir() else Path(data).parent
    return completed(report, task, paths, labels, measured, root)


def _task(dataset: Dataset, rows: Sequence[int], data: str) -> Task:
    labels = None
    if dataset.labels is not None:
        names = [dataset.labels[row] or f"\0{row}" for row in rows]  # an empty label is like no other
        _, labels = np.unique(names, return_inverse=True)
    query = np.flatnonzero([dataset.query[row] for row in rows]).astype(np.int64)
    gallery = np.flatnonzero([dataset.gallery[row] for row in rows]).astype(np.int64)
    if not len(query) or len(gallery) < 2:
        raise DistillError(
            f"{data} has {len(query)} queries and {len(gallery)} gallery images that can be read",
            "evaluation needs at least one query and two gallery images",
        )
    return Task(query=query, gallery=gallery, labels=labels)


def _measure(
    model: Embedder, vectors: NDArray[np.float32], known: Known, task: Task, theirs: dict[str, NDArray[np.float64]]
) -> tuple[ModelReport, dict[str, NDArray[np.float64]]]:
    """A model's report, and its figures of each query, (Q,)."""
    ours = _labelled(task, vectors, vectors)
    k = metrics.reach(len(task.gallery))
    shared = metrics.overlap(task, known.vectors, vectors, k)
    fidelity = {
        "overlap@10": metrics.interval(shared),
        "spearman": metrics.interval(metrics.spearman(task, known.vectors, vectors)),
    }
    across = None
    if model.space_id == known.space_id:
        across = _intervals(_labelled(task, vectors, known.vectors))
        overlap = metrics.overlap(task, known.vectors, vectors, k, model_gallery_ND=known.vectors)
        across["overlap@10"] = metrics.interval(overlap)
    report = ModelReport(
        name=model.name,
        dim=vectors.shape[1],
        space=model.space_id,
        metrics=_intervals(ours),
        fidelity=fidelity,
        asymmetric=across,
        retention={name: metrics.ratio(ours[name], theirs[name]) for name in ours},
    )
    return report, {**ours, "overlap@10": shared}


def _labelled(
    task: Task, query_ND: NDArray[np.float32], gallery_ND: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    return {} if task.labels is None else metrics.labelled(task, query_ND, gallery_ND)


def _intervals(values: dict[str, NDArray[np.float64]]) -> dict[str, Interval]:
    return {name: metrics.interval(value) for name, value in values.items()}


def embed_files(model: Embedder, paths: Sequence[Path], progress: Progress) -> NDArray[np.float32]:
    """Embed image files that were readable a moment ago, (N, D) float32; threads decode ahead of the model."""
    progress.begin(f"embedding with {model.name}", len(paths), "images")
    ready = images.ahead(paths, lambda path: images.prepare(path, model.preprocess))
    parts, waiting = [], list[NDArray[np.uint8]]()
    for at, found in enumerate(ready):
        if isinstance(found, str):
            raise DistillError(f"{paths[at]} {found}", "the teacher could read it a moment ago; put it back")
        waiting.append(found)
        if len(waiting) == BATCH or at == len(paths) - 1:
            parts.append(model.embed(np.stack(waiting)))
            progress.advance(len(waiting))
            waiting.clear()
    progress.end()
    vectors = np.concatenate(parts)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise DistillError(
            f"{model.name} gives NaN or infinity for {paths[broken[0]]} and {len(broken) - 1} more",
            "such a model cannot rank; export it again",
        )
    return vectors

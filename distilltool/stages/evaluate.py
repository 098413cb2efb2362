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
from distilltool.images import Box
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
    """A model to measure. dims: lengths at which its vectors are of use when cut. vectors: (N, D), a row for each of
    the dataset's `rows`, where they are known and the model need not be asked."""

    model: Embedder
    dims: tuple[int, ...] = ()
    vectors: NDArray[np.float32] | None = None


def evaluate(entries: Sequence[Entry], dataset: Dataset, known: Known, data: str, progress: Progress) -> Evaluation:
    """Measure each model on the images the teacher has answered about, beside the teacher itself."""
    began = time.perf_counter()
    paths = [dataset.paths[row] for row in known.rows]
    boxes = None if dataset.boxes is None else [dataset.boxes[row] for row in known.rows]
    task = _task(dataset, known.rows, data)
    known = replace(known, vectors=_behind(known.vectors, known.name, dataset))
    if dataset.distractors is not None:
        more = np.arange(len(paths), len(known.vectors))
        task = replace(task, gallery=np.concatenate([task.gallery, more]))
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
        made = entry.vectors if entry.vectors is not None else embed_files(entry.model, paths, progress, boxes)
        vectors = _behind(unit(made), entry.model.name, dataset)
        if len(vectors) != len(known.vectors):
            raise DistillError(
                f"{dataset.distractors} has another number of vectors for {entry.model.name} than for {known.name}",
                "embed the same distractors with each model",
            )
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
        conventions={**metrics.conventions(dataset.figures if task.is_judged else ()), **dataset.conventions},
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
    queries = [row for row, asks in enumerate(dataset.query) if asks]
    return Task(
        query=query,
        gallery=gallery,
        labels=labels,
        truth={level: one.among(rows, queries) for level, one in dataset.truth.items()},
        figures=dataset.figures,
    )


def _behind(vectors_ND: NDArray[np.float32], model: str, dataset: Dataset) -> NDArray[np.float32]:
    """Vectors of the images at hand, and behind them those that the same model has of distractors."""
    if dataset.distractors is None:
        return vectors_ND
    path = dataset.distractors / f"{model}.npy"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DistillError(
            f"{path} cannot be read ({str(error).splitlines()[0]})", f"keep the distractors' vectors by {model} in it"
        ) from None
    if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] != vectors_ND.shape[1]:
        raise DistillError(
            f"{path} holds {found.dtype} of shape {found.shape}",
            f"it must be floats (N, {vectors_ND.shape[1]}), one row a distractor",
        )
    more = unit(np.asarray(found, np.float32))
    if not np.isfinite(more).all():
        raise DistillError(f"{path} holds NaN or infinity", "embed the distractors anew")
    return np.concatenate([vectors_ND, more])


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
    return {} if not task.is_judged else metrics.labelled(task, query_ND, gallery_ND)


def _intervals(values: dict[str, NDArray[np.float64]]) -> dict[str, Interval]:
    return {name: metrics.interval(value) for name, value in values.items()}


def embed_files(
    model: Embedder, paths: Sequence[Path], progress: Progress, boxes: Sequence[Box | None] | None = None
) -> NDArray[np.float32]:
    """Embed image files that were readable a moment ago, or parts of them, (N, D) float32; threads decode ahead."""
    progress.begin(f"embedding with {model.name}", len(paths), "images")
    meant = zip(paths, boxes or [None] * len(paths), strict=True)
    ready = images.ahead(meant, lambda one: images.prepare(one[0], model.preprocess, one[1]))
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

"""How much of a teacher's retrieval quality its students keep."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import images, metrics, whitening
from distilltool.datasets import Dataset
from distilltool.embedder import Embedder, embed_all, unit
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation, Measured, completed
from distilltool.images import Box
from distilltool.metrics import Task
from distilltool.progress import Progress
from distilltool.report import EvalReport, Interval, ModelReport, Skipped, ViewsReport, WhiteningReport
from distilltool.views import ONE, Views

BATCH = 32
PIXELS = BATCH * 512 * 512  # of a batch: of larger images fewer at once, so that a network's maps fit into memory


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
    the dataset's `rows`, where they are known and the model need not be asked; apart: those of images apart."""

    model: Embedder
    dims: tuple[int, ...] = ()
    vectors: NDArray[np.float32] | None = None
    apart: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """Images that whitening is learned on, none of those evaluated. data: as the user named them; vectors: the
    teacher's, (N, D) at length 1, a row for each path; dim: directions that are kept, None for all."""

    data: str
    paths: tuple[Path, ...]
    vectors: NDArray[np.float32]
    dim: int | None

    def whitened(
        self, vectors_ND: NDArray[np.float32], learned_on_ND: NDArray[np.float32], model: str
    ) -> NDArray[np.float32]:
        """Vectors of a model, whitened as its vectors of these images, of which the first D numbers count."""
        width = vectors_ND.shape[1]
        cut = width < learned_on_ND.shape[1]  # the first numbers of vectors that are of use when cut
        dim = self.dim if self.dim is None or not cut else min(self.dim, width)
        return whitening.learn(unit(learned_on_ND[:, :width]), dim, model).apply(vectors_ND)

    def told(self, dim: int) -> WhiteningReport:
        """For the report. dim: of the teacher's whitened vectors."""
        return WhiteningReport(data=self.data, images=len(self.paths), dim=dim)


def evaluate(
    entries: Sequence[Entry],
    dataset: Dataset,
    known: Known,
    data: str,
    progress: Progress,
    views: Views = ONE,
    apart: Apart | None = None,
) -> Evaluation:
    """Measure each model on the images the teacher has answered about, beside the teacher itself.

    views: those that the teacher's vectors are of, and that every model's are made of. apart: None without whitening.
    """
    began = time.perf_counter()
    paths = [dataset.paths[row] for row in known.rows]
    boxes = None if dataset.boxes is None else [dataset.boxes[row] for row in known.rows]
    task = _task(dataset, known.rows, data)
    known = replace(known, vectors=_behind(known.vectors, known.name, dataset))
    if apart is not None:
        known = replace(known, vectors=apart.whitened(known.vectors, apart.vectors, known.name))
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
        made = entry.vectors
        if made is None:
            made = embed_views(entry.model, paths, progress, views, boxes)
        vectors = _behind(unit(made), entry.model.name, dataset)
        if len(vectors) != len(known.vectors):
            raise DistillError(
                f"{dataset.distractors} has another number of vectors for {entry.model.name} than for {known.name}",
                "embed the same distractors with each model",
            )
        learned_on = entry.apart
        if learned_on is None and apart is not None:
            learned_on = embed_views(entry.model, apart.paths, progress, views)
        whole, of_it = _entered(entry, vectors, learned_on, known, task, theirs, apart)
        reports.append(whole)
        measured.append(of_it)
    report = EvalReport(
        data=data,
        queries=len(task.query),
        gallery=len(task.gallery),
        protocol=dataset.protocol,
        models=tuple(reports),
        skipped=known.skipped,
        teacher_queries=known.queries,
        conventions=_conventions(dataset, task, views, apart),
        views=ViewsReport(
            scales=views.scales, flip=views.flip, combine=views.combine, power=views.power or 1.0, count=views.count
        ),
        whitening=None if apart is None else apart.told(known.vectors.shape[1]),
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


def _conventions(dataset: Dataset, task: Task, views: Views, apart: Apart | None) -> dict[str, str]:
    return {
        **metrics.conventions(dataset.figures if task.is_judged else ()),
        **dataset.conventions,
        "views": views.convention(),
        "whitening": "none beyond the models' own" if apart is None else whitening.CONVENTION,
    }


def _entered(
    entry: Entry,
    vectors: NDArray[np.float32],
    learned_on: NDArray[np.float32] | None,
    known: Known,
    task: Task,
    theirs: dict[str, NDArray[np.float64]],
    apart: Apart | None,
) -> tuple[ModelReport, Measured]:
    """A model's report with those of its vectors cut short. learned_on: its vectors of the images apart, (M, D)."""
    model = entry.model
    dims = [dim for dim in entry.dims if dim < vectors.shape[1]]
    cuts, queries = [vectors, *(unit(vectors[:, :dim]) for dim in dims)], vectors
    if apart is not None and learned_on is not None:
        if model.space_id == known.space_id:
            queries = apart.whitened(vectors, apart.vectors, known.name)
        cuts = [apart.whitened(cut, learned_on, model.name) for cut in cuts]
    whole, values = _measure(model, cuts[0], known, task, theirs, queries)
    nested = {
        str(dim): _measure(model, cut, known, task, theirs, cut)[0] for dim, cut in zip(dims, cuts[1:], strict=True)
    }
    return replace(whole, nested=nested), Measured(name=model.name, vectors=cuts[0], values=values)


def _measure(
    model: Embedder,
    vectors: NDArray[np.float32],
    known: Known,
    task: Task,
    theirs: dict[str, NDArray[np.float64]],
    queries: NDArray[np.float32],
) -> tuple[ModelReport, dict[str, NDArray[np.float64]]]:
    """A model's report, and its figures of each query, (Q,). queries: its vectors as put to the teacher's gallery."""
    ours = _labelled(task, vectors, vectors)
    k = metrics.reach(len(task.gallery))
    shared = metrics.overlap(task, known.vectors, vectors, k)
    fidelity = {
        "overlap@10": metrics.interval(shared),
        "spearman": metrics.interval(metrics.spearman(task, known.vectors, vectors)),
    }
    across = None
    if model.space_id == known.space_id:
        across = _intervals(_labelled(task, queries, known.vectors))
        overlap = metrics.overlap(task, known.vectors, queries, k, model_gallery_ND=known.vectors)
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


def embed_views(
    model: Embedder,
    paths: Sequence[Path],
    progress: Progress,
    views: Views = ONE,
    boxes: Sequence[Box | None] | None = None,
) -> NDArray[np.float32]:
    """One vector of length 1 an image of all its views, (N, D) float32."""
    hows = views.of(model.preprocess)
    return views.combined(
        embed_files(model if views.are_one else model.viewed(how), paths, progress, boxes) for how in hows
    )


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
        full = len(waiting) == BATCH or sum(one[..., 0].size for one in waiting) >= PIXELS
        if full or at == len(paths) - 1:
            parts.append(embed_all(model, waiting))
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

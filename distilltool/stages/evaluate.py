"""How much of a teacher's retrieval quality its students keep."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

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
from distilltool.search import check_finite
from distilltool.shelf import ROWS, Rows, Shelf
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
    """A model to measure. file: where its vectors are kept; made_from: what tells it from other models, JSON values;
    dims: lengths at which its vectors are of use when cut. vectors: (N, D), a row for each of
    the dataset's `rows`, where they are known and the model need not be asked; apart: those of images apart."""

    model: Embedder
    file: Path
    made_from: Mapping[str, Any]
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
        self, vectors_ND: NDArray[np.float32], learned_on_ND: NDArray[np.float32], model: str, shelf: Shelf
    ) -> NDArray[np.float32]:
        """Vectors of a model, whitened as its vectors of these images, of which the first D numbers count."""
        width = vectors_ND.shape[1]
        cut = width < learned_on_ND.shape[1]  # the first numbers of vectors that are of use when cut
        dim = self.dim if self.dim is None or not cut else min(self.dim, width)
        learned = whitening.learn(unit(learned_on_ND[:, :width]), dim, model)
        shape = len(vectors_ND), learned.basis.shape[1]
        return shelf.made(shape, (learned.apply(some) for some in _parts(vectors_ND)))

    def told(self, dim: int) -> WhiteningReport:
        """For the report. dim: of the teacher's whitened vectors."""
        return WhiteningReport(data=self.data, images=len(self.paths), dim=dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """What every model is measured beside. values: the teacher's figures, each (Q,); nearest: the places in the gallery
    of its nearest, (Q, K); width: how long its own vectors are, before any whitening."""

    known: Known
    task: Task
    values: dict[str, NDArray[np.float64]]
    nearest: NDArray[np.int64]
    width: int
    progress: Progress


def evaluate(
    entries: Sequence[Entry],
    dataset: Dataset,
    known: Known,
    data: str,
    progress: Progress,
    shelf: Shelf,
    views: Views = ONE,
    apart: Apart | None = None,
) -> Evaluation:
    """Measure each model on the images the teacher has answered about, beside the teacher itself.

    shelf: where vectors are kept. views: those that the teacher's vectors are of, and that every model's are made of.
    apart: None without whitening.
    """
    began = time.perf_counter()
    root = Path(data) if Path(data).is_dir() else Path(data).parent
    paths = [dataset.paths[row] for row in known.rows]
    boxes = None if dataset.boxes is None else [dataset.boxes[row] for row in known.rows]
    task, width = _task(dataset, known.rows, data), known.vectors.shape[1]
    known = replace(known, vectors=_behind(known.vectors, known.name, dataset, shelf))
    if apart is not None:
        known = replace(known, vectors=apart.whitened(known.vectors, apart.vectors, known.name, shelf))
    if dataset.distractors is not None:
        more = np.arange(len(paths), len(known.vectors))
        task = replace(task, gallery=np.concatenate([task.gallery, more]))
    k = metrics.reach(len(task.gallery))
    side = _Side(
        known=known,
        task=task,
        values=_labelled(task, known.vectors, known.vectors, progress, known.name),
        nearest=metrics.neighbours(task, known.vectors, known.vectors, k, progress, known.name),
        width=width,
        progress=progress,
    )
    reports = [
        ModelReport(
            name=known.name,
            dim=known.vectors.shape[1],
            space=known.space_id,
            metrics=_intervals(side.values, progress, known.name),
            fidelity=None,
            retention={},
            asymmetric=None,
        )
    ]
    measured = [Measured(name=known.name, vectors=known.vectors, values=side.values)]
    for entry in entries:
        made = _vectors(entry, paths, boxes, root, views, shelf, progress)
        vectors = _behind(made, entry.model.name, dataset, shelf)
        if len(vectors) != len(known.vectors):
            raise DistillError(
                f"{dataset.distractors} has another number of vectors for {entry.model.name} than for {known.name}",
                "embed the same distractors with each model",
            )
        learned_on = entry.apart
        if learned_on is None and apart is not None:
            learned_on = np.concatenate([*embedded(entry.model, apart.paths, progress, views)])
        whole, of_it = _entered(entry, vectors, learned_on, side, apart, shelf)
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
    return completed(report, task, paths, labels, measured, root, progress)


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


def _vectors(
    entry: Entry,
    paths: Sequence[Path],
    boxes: Sequence[Box | None] | None,
    root: Path,
    views: Views,
    shelf: Shelf,
    progress: Progress,
) -> NDArray[np.float32]:
    """A model's vectors of length 1, (N, D): those that are known, or are there already, or are computed."""
    if (known := entry.vectors) is not None:
        return shelf.made(known.shape, (unit(some) for some in _parts(known)))
    wanted = Rows(
        count=len(paths),
        made_from=entry.made_from,
        about=about(entry.model, views, paths, root),
        blocks=lambda start: embedded(entry.model, paths, progress, views, boxes, start),
    )
    return shelf.kept(entry.file, wanted)


def about(model: Embedder, views: Views, paths: Sequence[Path], root: Path) -> dict[str, Any]:
    """What is said beside kept vectors, so that they can be read as a model's: their space, which is the model's own
    where an image is one view, and their images, from the data's folder where they are in it."""
    files = [one.relative_to(root).as_posix() if one.is_relative_to(root) else str(one.absolute()) for one in paths]
    return {"files": files, **({"space_id": model.space_id} if views.are_one else {})}


def _parts(vectors_ND: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (vectors_ND[at : at + ROWS] for at in range(0, len(vectors_ND), ROWS))


def _cut(vectors_ND: NDArray[np.float32], dim: int, shelf: Shelf) -> NDArray[np.float32]:
    return shelf.made((len(vectors_ND), dim), (unit(some[:, :dim]) for some in _parts(vectors_ND)))


def _behind(vectors_ND: NDArray[np.float32], model: str, dataset: Dataset, shelf: Shelf) -> NDArray[np.float32]:
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
    more = (_finite(unit(np.asarray(some, np.float32)), path) for some in _parts(found))
    shape = len(vectors_ND) + len(found), vectors_ND.shape[1]
    return shelf.made(shape, chain(_parts(vectors_ND), more))


def _finite(vectors_ND: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    try:
        check_finite(vectors_ND)
    except ValueError:
        raise DistillError(f"{path} holds NaN or infinity", "embed the distractors anew") from None
    return vectors_ND


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
    side: _Side,
    apart: Apart | None,
    shelf: Shelf,
) -> tuple[ModelReport, Measured]:
    """A model's report with those of its vectors cut short. learned_on: its vectors of the images apart, (M, D)."""
    model, known = entry.model, side.known
    dims = [dim for dim in entry.dims if dim < vectors.shape[1]]
    cuts = [vectors, *(_cut(vectors, dim, shelf) for dim in dims)]
    shares = model.space_id == known.space_id and vectors.shape[1] == side.width
    queries = vectors if shares else None
    if apart is not None and learned_on is not None:
        if shares:
            queries = apart.whitened(vectors, apart.vectors, known.name, shelf)
        cuts = [apart.whitened(cut, learned_on, model.name, shelf) for cut in cuts]
    whole, values = _measure(model, cuts[0], side, queries)
    nested = {str(dim): _measure(model, cut, side, None)[0] for dim, cut in zip(dims, cuts[1:], strict=True)}
    return replace(whole, nested=nested), Measured(name=model.name, vectors=cuts[0], values=values)


def _measure(
    model: Embedder, vectors: NDArray[np.float32], side: _Side, queries: NDArray[np.float32] | None
) -> tuple[ModelReport, dict[str, NDArray[np.float64]]]:
    """A model's report, and its figures of each query, (Q,). queries: its vectors as they meet the teacher's, None
    where they are of another space or length."""
    task, known, k = side.task, side.known, side.nearest.shape[1]
    ours = _labelled(task, vectors, vectors, side.progress, model.name)
    nearest = metrics.neighbours(task, vectors, vectors, k, side.progress, model.name)
    shared = metrics.shared(side.nearest, nearest)
    fidelity = {
        "overlap@10": metrics.interval(shared),
        "spearman": metrics.interval(metrics.spearman(task, known.vectors, vectors)),
    }
    across = back = None
    if queries is not None:
        across = _across(queries, known.vectors, side, f"{model.name} in the teacher's gallery")
        back = _across(known.vectors, queries, side, f"the teacher's queries to {model.name}")
    report = ModelReport(
        name=model.name,
        dim=vectors.shape[1],
        space=model.space_id,
        metrics=_intervals(ours, side.progress, model.name),
        fidelity=fidelity,
        asymmetric=across,
        reverse=back,
        retention={
            figure: metrics.ratio(value, side.values[figure])
            for figure, value in _told(ours, side.progress, f"what {model.name} keeps")
        },
    )
    return report, {**ours, "overlap@10": shared}


def _across(
    query_ND: NDArray[np.float32], gallery_ND: NDArray[np.float32], side: _Side, name: str
) -> dict[str, Interval]:
    """Figures of one model's queries in another's gallery, and how many of the teacher's nearest they find."""
    found = _intervals(_labelled(side.task, query_ND, gallery_ND, side.progress, name), side.progress, name)
    k = side.nearest.shape[1]
    nearest = metrics.neighbours(side.task, query_ND, gallery_ND, k, side.progress, name)
    return {**found, "overlap@10": metrics.interval(metrics.shared(side.nearest, nearest))}


def _labelled(
    task: Task, query_ND: NDArray[np.float32], gallery_ND: NDArray[np.float32], progress: Progress, name: str
) -> dict[str, NDArray[np.float64]]:
    return {} if not task.is_judged else metrics.labelled(task, query_ND, gallery_ND, progress, name)


def _intervals(values: dict[str, NDArray[np.float64]], progress: Progress, name: str) -> dict[str, Interval]:
    return {figure: metrics.interval(value) for figure, value in _told(values, progress, f"intervals of {name}")}


def _told(
    values: dict[str, NDArray[np.float64]], progress: Progress, what: str
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Figures of queries one after the other; where resampling them takes long, it is said how far it is."""
    queries = max((len(value) for value in values.values()), default=0)
    watch = metrics.watched(progress, len(values) * queries * metrics.RESAMPLES)
    watch.begin(what, len(values), "figures")
    for one in values.items():
        yield one
        watch.advance()
    watch.end()


def made_from(keys: Sequence[bytes], views: Views, **model: Any) -> dict[str, Any]:
    """What some vectors are made from, for `Rows`: images by their content and the parts of them that are meant, in
    order, how they are looked at, and what tells the model from others."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(key).digest() for key in keys)).hexdigest()
    return {"images": digest, "views": views.convention(), **model}


def embedded(
    model: Embedder,
    paths: Sequence[Path],
    progress: Progress,
    views: Views = ONE,
    boxes: Sequence[Box | None] | None = None,
    start: int = 0,
) -> Iterator[NDArray[np.float32]]:
    """Embed image files that were readable a moment ago, or parts of them, from one place on: vectors of length 1 that
    are made of all views, (n, D) float32, a batch at a time; threads decode ahead.

    start: a multiple of `BATCH`, so that batches, which may change the last bit of a vector, are always the same.
    """
    hows = views.of(model.preprocess)
    seen = views.models(model)
    batches = [range(at, min(at + BATCH, len(paths))) for at in range(start, len(paths), BATCH)]
    meant = ((row, how) for batch in batches for how in hows for row in batch)
    ready = images.ahead(
        meant, lambda one: images.prepare(paths[one[0]], one[1], None if boxes is None else boxes[one[0]])
    )
    progress.begin(f"embedding with {model.name}", len(paths), "images", start)
    for batch in batches:
        parts = [_embed_batch(one, paths, batch, ready) for one in seen]
        yield views.combined(parts)
        progress.advance(len(batch))
    progress.end()


def _embed_batch(
    model: Embedder, paths: Sequence[Path], batch: range, ready: Iterator[NDArray[np.uint8] | str]
) -> NDArray[np.float32]:
    """One view of some images, (n, D), as they come prepared; where they are large, some after the other."""
    parts, waiting = [], list[NDArray[np.uint8]]()
    for row in batch:
        found = next(ready)
        if isinstance(found, str):
            raise DistillError(f"{paths[row]} {found}", "the teacher could read it a moment ago; put it back")
        waiting.append(found)
        if row == batch[-1] or sum(one[..., 0].size for one in waiting) >= PIXELS:
            parts.append(embed_all(model, waiting))
            waiting.clear()
    vectors = np.concatenate(parts)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        more = f" and {len(broken) - 1} more of the {len(batch)} images with it" if len(broken) > 1 else ""
        raise DistillError(
            f"{model.name} gives NaN or infinity for {paths[batch[broken[0]]]}{more}",
            "such a model cannot rank; export it again",
        )
    return vectors

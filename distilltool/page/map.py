"""A map of the images as each model sees them: UMAP where it is installed, else two principal components, turned
towards the teacher's."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distilltool.evaluation import ALIKE, MAIN, Evaluation, found, main_figure, right
from distilltool.names import titled
from distilltool.page import svg
from distilltool.page.charts import WIDE, clipped

POINTS = 1600  # in all maps together
MAPS = 4
CROWD = 200  # points from which marks are smaller
NEIGHBOURS = 15  # of each image that UMAP looks at, its default; of no more images there are principal components
NEAREST = 10  # by which it is told how much of a neighbourhood a map shows
SHARE = 0.5  # share of the teacher's ten nearest from which a query without labels counts as found


Way = Literal["umap", "pca"]
NAMES: dict[Way, str] = {"umap": "UMAP", "pca": "principal components"}
AXES: dict[Way, tuple[str, str]] = {
    "umap": ("UMAP, turned", "UMAP, turned"),
    "pca": ("first component", "second component"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flat:
    """Vectors on a plane. at: (N, 2); share: as of a `Map`."""

    at: NDArray[np.float64]
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """One model's map. way: how it was made; share: of what is in the vectors that it shows, of the variance where it
    is of principal components, of each image's ten nearest where it is of UMAP; found: of the queries in it."""

    model: int
    drawing: Markup
    way: "Way"
    share: float
    points: int
    found: int


def maps(made: Evaluation, titles: Sequence[str]) -> list[Map]:
    """The teacher's map and those of the first students, of the same queries, drawn at random where there are many."""
    places = range(min(MAPS, len(made.models)))
    count = min(len(made.task.query), POINTS // len(places))
    queries = np.sort(np.random.default_rng(0).choice(len(made.task.query), count, replace=False)).astype(np.int64)
    if count < 3:
        return []
    order = queries[np.argsort([_class(made, int(query)) for query in queries], kind="stable")]  # keys walk by class
    rows = made.task.query[order]
    vectors = [made.models[place].vectors[rows] for place in places]
    way, flat = _flat(vectors)
    laid = [replace(one, at=towards(flat[0].at, one.at)) for one in flat]
    return [_drawn(made, place, order, way, laid[place], titles) for place in places]


def _flat(vectors: Sequence[NDArray[np.float32]]) -> tuple[Way, list[Flat]]:
    """Every model's vectors in the plane, by UMAP where it is installed and finds them to differ."""
    varied = all(len(one) > NEIGHBOURS and np.ptp(one, axis=0).max() > 0 for one in vectors)
    if varied and _has_umap():
        found = [neighbourly(one) for one in vectors]
        if all(np.isfinite(one.at).all() for one in found):
            return "umap", found
    return "pca", [principal(one) for one in vectors]


def _has_umap() -> bool:
    """Whether umap-learn is installed; there is another package of its module's name."""
    try:
        return find_spec("umap.umap_") is not None
    except ImportError:
        return False


def _class(made: Evaluation, query: int) -> str:
    return made.label(made.task.query[query]) or ""


def principal(vectors_ND: NDArray[np.float32]) -> Flat:
    """The first two principal components, and the share of the variance that they hold."""
    centred = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(centred), 2))
    flat[:, : min(2, len(size))] = left[:, :2] * size[:2]
    total = float((size**2).sum())
    return Flat(at=flat, share=float((size[:2] ** 2).sum()) / total if total > 0 else 0.0)


def neighbourly(vectors_ND: NDArray[np.float32]) -> Flat:
    """UMAP from the principal components on, seeded, and the share of each image's nearest that are its nearest in it.

    McInnes, Healy, Melville, *UMAP: Uniform manifold approximation and projection for dimension reduction*, 2018.
    """
    start = principal(vectors_ND).at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what else its package could do with other packages
        from umap import UMAP

        made = UMAP(n_neighbors=NEIGHBOURS, init=start.astype(np.float32), random_state=0, n_jobs=1)
        flat = np.asarray(made.fit_transform(vectors_ND), np.float64)
    flat -= flat.mean(axis=0)
    k = min(NEAREST, len(flat) - 1)
    truth, shown = _nearest(vectors_ND.astype(np.float64), k), _nearest(flat, k)
    shared = [len(np.intersect1d(one, other)) for one, other in zip(truth, shown, strict=True)]
    return Flat(at=flat, share=float(np.mean(shared)) / k)


def _nearest(points_ND: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The k rows nearest to each, (N, k), itself left out."""
    squares = (points_ND**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * points_ND @ points_ND.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k].astype(np.int64)


def towards(fixed_N2: NDArray[np.float64], turned_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The second map turned and mirrored so that it lies as the first does (orthogonal Procrustes), (N, 2)."""
    left, _, right = np.linalg.svd(turned_N2.T @ fixed_N2)
    turned: NDArray[np.float64] = turned_N2 @ (left @ right)
    return turned


def _drawn(
    made: Evaluation,
    place: int,
    order: NDArray[np.int64],
    way: Way,
    flat: Flat,
    titles: Sequence[str],
) -> Map:
    values = made.models[place].values
    firsts = found(made, place, order, 1)[:, 0]
    if not made.is_judged:
        alike = values.get(ALIKE, np.ones(len(made.task.query)))[order]
        hits = alike >= SHARE
        said = [f"{100 * value:.0f} % of the teacher's nearest" for value in alike] if place else [""] * len(order)
    else:
        pairs = zip(order.tolist(), firsts.tolist(), strict=True)
        hits = np.array([first >= 0 and bool(right(made, query, first)) for query, first in pairs])
        main = main_figure(made.report)
        said = [_precision(value, main) for value in values[main][order]]
    with svg.drawing():
        figure = Figure(figsize=(WIDE, 4.2), layout="constrained")
        axes = figure.add_subplot()
        notes = {}
        for gid, chosen, form, colour in (("hits", hits, "o", svg.HIT), ("misses", ~hits, "X", svg.MISS)):
            if not chosen.any():
                continue
            axes.scatter(
                flat.at[chosen, 0],
                flat.at[chosen, 1],
                s=(34 if len(order) < CROWD else 18) * (1.7 if form == "X" else 1),
                marker=form,
                c=colour,
                linewidths=0.5,
                edgecolors=svg.PAPER,
                gid=gid,
            )
            notes[gid] = [
                _note(made, int(order[at]), int(firsts[at]), at, said[at]) for at in np.flatnonzero(chosen).tolist()
            ]
        axes.set_aspect("equal", adjustable="datalim")
        across, upwards = AXES[way]
        axes.set(xticks=[], yticks=[], xlabel=across, ylabel=upwards)
        how, said_of = NAMES[way], f"{int(hits.sum()):,} of them are {'found' if made.is_judged else 'alike'}"
        label = f"Map ({how}) of {len(order):,} queries as {titles[place]} sees them; {said_of}."
        drawing = svg.inline(figure, f"map{place}", label, notes)
    return Map(model=place, drawing=drawing, way=way, share=flat.share, points=len(order), found=int(hits.sum()))


def _precision(value: float, figure: str) -> str:
    name = "AP" if figure == MAIN else titled(figure)
    return f"{name} {value:.2f}" if np.isfinite(value) else "nothing to find"


def _note(made: Evaluation, query: int, first: int, at: int, said: str) -> dict[str, str]:
    row = int(made.task.query[query])
    label = clipped(made.label(row) or "", 40)
    of, figure = f", {label}" if label else "", f"; {said}" if said else ""
    nearest = f"; first: {clipped(made.name(first), 60)}" if first >= 0 else ""
    return {"title": f"{clipped(made.name(row), 60)}{of}{figure}{nearest}", "data-i": str(at), "data-c": label}

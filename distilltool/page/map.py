"""A map of the images as each model sees them: two principal components, turned towards the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass

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
SHARE = 0.5  # share of the teacher's ten nearest from which a query without labels counts as found


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """One model's map. share: of the variance that the two components hold; found: of the queries in it."""

    model: int
    drawing: Markup
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
    flat = [principal(made.models[place].vectors[rows]) for place in places]
    return [_drawn(made, place, order, towards(flat[0][0], flat[place][0]), flat[place][1], titles) for place in places]


def _class(made: Evaluation, query: int) -> str:
    return made.label(made.task.query[query]) or ""


def principal(vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """The first two principal components, (N, 2), and the share of the variance that they hold."""
    centred = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0, dtype=np.float64)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(centred), 2))
    flat[:, : min(2, len(size))] = left[:, :2] * size[:2]
    total = float((size**2).sum())
    return flat, float((size[:2] ** 2).sum()) / total if total > 0 else 0.0


def towards(fixed_N2: NDArray[np.float64], turned_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The second map turned and mirrored so that it lies as the first does (orthogonal Procrustes), (N, 2)."""
    left, _, right = np.linalg.svd(turned_N2.T @ fixed_N2)
    turned: NDArray[np.float64] = turned_N2 @ (left @ right)
    return turned


def _drawn(
    made: Evaluation,
    place: int,
    order: NDArray[np.int64],
    flat_N2: NDArray[np.float64],
    share: float,
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
                flat_N2[chosen, 0],
                flat_N2[chosen, 1],
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
        axes.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
        label = f"Map of {len(order):,} queries as {titles[place]} sees them; {int(hits.sum()):,} of them are found."
        drawing = svg.inline(figure, f"map{place}", label, notes)
    return Map(model=place, drawing=drawing, share=share, points=len(order), found=int(hits.sum()))


def _precision(value: float, figure: str) -> str:
    name = "AP" if figure == MAIN else titled(figure)
    return f"{name} {value:.2f}" if np.isfinite(value) else "nothing to find"


def _note(made: Evaluation, query: int, first: int, at: int, said: str) -> dict[str, str]:
    row = int(made.task.query[query])
    label = clipped(made.label(row) or "", 40)
    of, figure = f", {label}" if label else "", f"; {said}" if said else ""
    nearest = f"; first: {clipped(made.name(first), 60)}" if first >= 0 else ""
    return {"title": f"{clipped(made.name(row), 60)}{of}{figure}{nearest}", "data-i": str(at), "data-c": label}

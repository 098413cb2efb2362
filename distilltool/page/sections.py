"""What the page shows where it was asked for: index types, and images unlike those that students know."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from distilltool import drift_text, index_text
from distilltool.drift import SPAN
from distilltool.evaluation import ALIKE, Evaluation
from distilltool.index_text import Entry, Line
from distilltool.page import charts
from distilltool.page.charts import Traded, clipped
from distilltool.report import DriftReport, EvalReport, Interval, ModelReport

SHOWN = 4  # models with a chart of their own
POINTS = 600  # queries in a chart
NAME = 120  # characters of a name that others chose


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexed:
    """One model's gallery in index types. drawing: None where a single way of searching was measured; built: (index,
    what it was built with); refused: (index, why it could not be built)."""

    title: str
    drawing: Markup | None
    caption: str
    lines: tuple[Line, ...]
    built: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexes:
    """The section on index types. heads: of the figures in each line; timing: how times were taken."""

    heads: tuple[str, ...]
    models: tuple[Indexed, ...]
    timing: str


def indexes(report: EvalReport, titles: Sequence[str]) -> Indexes | None:
    """None where nobody asked for it; a chart for each of the first models."""
    if not any(model.indexes for model in report.models):
        return None
    measured = any(one.points for model in report.models for one in model.indexes)
    models = [_indexed(report, at, titles[at]) for at in range(min(SHOWN, len(report.models)))]
    return Indexes(
        heads=tuple(index_text.heads(report)),
        models=tuple(models),
        timing=index_text.timing(report) if measured else "",
    )


def _indexed(report: EvalReport, at: int, title: str) -> Indexed:
    model = report.models[at]
    label = f"{title}: recall@{model.indexes[0].k} of exact search against the time of a query, by index type."
    return Indexed(
        title=title,
        drawing=_drawn(model, f"indexes{at}", label),
        caption=f"{label} The table holds the same numbers.",
        lines=tuple(line for line in index_text.lines(report, at) if line.entries),
        built=tuple((one.index, index_text.built(one)) for one in model.indexes if one.settings),
        refused=tuple((one.index, one.reason) for one in model.indexes if one.reason),
    )


def _drawn(model: ModelReport, name: str, label: str) -> Markup | None:
    curves = [
        Traded(name=one.index, points=tuple((point.p50_ms, point.recall) for point in one.points))
        for one in model.indexes
        if one.points
    ]
    if sum(len(one.points) for one in curves) < 2:
        return None
    k = model.indexes[0].k
    return charts.effort(name, curves, "ms a query, one thread", f"recall@{k} of exact search", label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of figures with its heading."""

    head: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drifted:
    """What one run makes of images unlike its own. drawing: None where it was trained on all queries, then nothing but
    the verdict is known. groups: by distance; distances: limit, median, held-out median, share beyond, correlations;
    farthest: distance and overlap of single queries."""

    title: str
    drawing: Markup | None
    caption: str
    report: DriftReport
    groups: tuple[Row, ...]
    distances: tuple[Row, ...]
    farthest: tuple[Row, ...]


def drifted(made: Evaluation, titles: Sequence[str]) -> list[Drifted]:
    """Where it was asked for: the first runs of which something is drawn, those trained on every query beside."""
    asked = {at: model.drift for at, model in enumerate(made.report.models) if model.drift is not None}
    drawn = [at for at, one in asked.items() if one.queries][:SHOWN]
    return [_drifted(made, at, titles[at]) for at, one in asked.items() if at in drawn or not one.queries]


def _drifted(made: Evaluation, at: int, title: str) -> Drifted:
    one = made.report.models[at].drift
    assert one is not None
    key = f"models/{at}/drift"
    label = f"{title}: overlap@10 with the teacher against the distance from what it was trained on."
    return Drifted(
        title=title,
        drawing=_falling(made, at, one, label) if one.queries else None,
        caption=f"{label} Queries beyond the dashed line are farther than 95 % of the held-out images.",
        report=one,
        groups=tuple(
            Row(
                head=f"{drift_text.range_of(group.low, group.high)}",
                entries=(
                    Entry(text=f"{group.queries:,}", value=group.queries, key=f"{key}/span/groups/{place}/queries"),
                    _share(group.overlap, f"{key}/span/groups/{place}/overlap/value"),
                ),
            )
            for place, group in enumerate(one.span.groups)
        ),
        distances=tuple(
            Row(
                head=said,
                entries=(
                    *(
                        Entry(text=f"{number:.3f}", value=number, key=f"{key}/{name}/{field}")
                        for field, number in (
                            ("median", distance.median),
                            ("held_out_median", distance.held_out_median),
                            ("limit", distance.limit),
                        )
                    ),
                    _share(distance.beyond, f"{key}/{name}/beyond/value"),
                    _correlation(distance.correlation, f"{key}/{name}/correlation/value"),
                    _correlation(distance.adjusted, f"{key}/{name}/adjusted/value"),
                ),
            )
            for name, said, distance in drift_text.distances(one)
        ),
        farthest=tuple(
            Row(
                head=clipped(query.path, NAME),
                entries=(
                    Entry(text=f"{query.distance:.3f}", value=query.distance, key=f"{key}/farthest/{place}/distance"),
                    Entry(text=f"{query.overlap:.3f}", value=query.overlap, key=f"{key}/farthest/{place}/overlap"),
                ),
            )
            for place, query in enumerate(one.farthest)
        ),
    )


def _falling(made: Evaluation, at: int, one: DriftReport, label: str) -> Markup:
    values = made.models[at].values
    counted = np.flatnonzero(np.isfinite(values[SPAN]))
    if len(counted) > POINTS:
        counted = np.sort(np.random.default_rng(0).choice(counted, POINTS, replace=False))
    order = np.sort(values[SPAN][np.isfinite(values[SPAN])])
    middles = [float(np.median(some)) for some in np.array_split(order, len(one.span.groups))]
    groups = [(middle, group.overlap) for middle, group in zip(middles, one.span.groups, strict=True)]
    across, upwards = values[SPAN][counted].tolist(), values[ALIKE][counted].tolist()
    return charts.falling(f"drift{at}", across, upwards, groups, one.span.limit, label)


def _share(value: Interval, key: str) -> Entry:
    return Entry(text=drift_text.shown(value), value=value.value if value.value == value.value else None, key=key)


def _correlation(value: Interval, key: str) -> Entry:
    return Entry(text=drift_text.correlation(value), value=value.value if value.value == value.value else None, key=key)

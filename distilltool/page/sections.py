"""What the page shows where it was asked for: index types."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from distilltool import index_text
from distilltool.index_text import Line
from distilltool.page import charts
from distilltool.page.charts import Traded
from distilltool.report import EvalReport, ModelReport

SHOWN = 4  # models with a chart of their own


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
        built=tuple((one.index, index_text.built(one)) for one in model.indexes if one.points),
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

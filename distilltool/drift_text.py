"""What an evaluation says of images unlike those that students were trained on, for Markdown and CSV."""

from collections.abc import Iterator

from distilltool.report import DriftDistance, DriftReport, EvalReport, Interval

DISTANCES = {"span": "to the span", "nearest": "to the nearest"}


def distances(one: DriftReport) -> Iterator[tuple[str, str, DriftDistance]]:
    """Each distance by its field and in words, the one that decides first."""
    for name, said in DISTANCES.items():
        yield name, said, getattr(one, name)


def range_of(low: float, high: float) -> str:
    """A group's distances."""
    return f"{low:.3f} to {high:.3f}"


def correlation(value: Interval) -> str:
    """A correlation with its interval and its sign."""
    if value.value != value.value:
        return "–"
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})".replace("-", "−")


def csv_rows(report: EvalReport) -> Iterator[tuple[str, str, str, tuple[float | None, ...]]]:
    """Family, model, figure, and value, low and high of everything that was measured; paths as figures."""
    for model in report.models:
        one = model.drift
        if one is None:
            continue
        for name, _, distance in distances(one):
            family = f"drift.{name}"
            for figure in ("limit", "median", "held_out_median"):
                yield family, model.name, figure, (getattr(distance, figure), None, None)
            for figure in ("beyond", "correlation", "adjusted"):
                yield family, model.name, figure, _numbers(getattr(distance, figure))
            for place, group in enumerate(distance.groups, 1):
                yield f"{family}.group{place}", model.name, "overlap@10", _numbers(group.overlap)
                yield f"{family}.group{place}", model.name, "distance", (group.low, group.low, group.high)
        for figure, value in (("near", one.near), ("far", one.far)):
            if value is not None:
                yield f"drift.{figure}", model.name, "overlap@10", _numbers(value)
        yield "drift", model.name, "ask", (float(one.ask), None, None)
        for query in one.farthest:
            yield "drift.farthest", model.name, query.path, (query.distance, None, None)


def tables(report: EvalReport) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each run its verdict, heads and rows: what is far, and the overlap by distance."""
    for model in report.models:
        one = model.drift
        if one is None:
            continue
        heads = ["distance", "queries", "overlap@10"]
        rows = [
            [range_of(group.low, group.high), f"{group.queries:,}", shown(group.overlap)] for group in one.span.groups
        ]
        yield one.verdict, heads, rows


def shown(value: Interval | None) -> str:
    """A share with its interval."""
    if value is None or value.value != value.value:
        return "–"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def _numbers(value: Interval) -> tuple[float, float, float]:
    return value.value, value.low, value.high

"""What an evaluation says of index types, as lines that the terminal, Markdown, CSV and the page share."""

from collections.abc import Iterator
from dataclasses import dataclass

from distilltool.names import titled
from distilltool.report import EvalReport, IndexPoint, IndexReport, Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A figure of a line. text: as people read it; value: the number, None where there is none; key: where `--json`
    holds it."""

    text: str
    value: float | None
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One way of searching one model's gallery. at: the model's place; index: as it was asked for; searched: with what
    settings; entries: in the order of `heads`, none where the index could not be built, `reason` saying why."""

    at: int
    index: str
    searched: str
    entries: tuple[Entry, ...] = ()
    reason: str = ""


def heads(report: EvalReport) -> list[str]:
    """What the entries of each line are."""
    first = next((one for model in report.models for one in model.indexes), None)
    if first is None:
        return []
    judged = [titled(_judged(report))] if _judged(report) else []
    return [f"recall@{first.k}", *judged, "p50 ms", "per s", "MB", "build s"]


def lines(report: EvalReport, at: int) -> list[Line]:
    """All of one model."""
    found = list[Line]()
    for place, one in enumerate(report.models[at].indexes):
        if one.reason:
            found.append(Line(at=at, index=one.index, searched="", reason=one.reason))
        for number, point in enumerate(one.points):
            key = f"models/{at}/indexes/{place}"
            entries = tuple(_entries(one, point, key, f"{key}/points/{number}", _judged(report)))
            found.append(Line(at=at, index=one.index, searched=_set(point.settings), entries=entries))
    return found


def built(one: IndexReport) -> str:
    """What an index was built with, in words."""
    return _set(one.settings)


def headed(line: Line, first: bool) -> str:
    """What stands before a line: the index on its first one, and what is not said of the search by its name."""
    name = line.index if first else ""
    return " ".join(
        filter(None, (name, "" if line.searched in line.index.split(":")[-1].split(",") else line.searched))
    )


def timing(report: EvalReport) -> str:
    """How the times were taken, in a sentence."""
    points = [point for model in report.models for one in model.indexes for point in one.points]
    most = max(point.threads for point in points)
    threads = "one thread" if most == 1 else f"one thread or {most}, whichever is faster"
    return (
        f"p50 of {points[0].n:,} searches one by one on one thread; queries per s of {points[0].batch:,} at once on "
        f"{threads}; built on one thread"
    )


def csv_rows(report: EvalReport) -> Iterator[tuple[str, str, str, tuple[float | None, ...]]]:
    """Family, model, figure, and value, low and high of everything that was measured."""
    for model in report.models:
        for one in model.indexes:
            family = f"indexes.{one.index}"
            for figure, number in (("bytes", one.bytes), ("build_seconds", one.build_seconds)):
                if number is not None:
                    yield family, model.name, figure, (number, None, None)
            for point in one.points:
                at = ".".join([family, _set(point.settings)]).rstrip(".")
                for name, value in {f"recall@{one.k} of exact": point.recall, **point.metrics}.items():
                    yield at, model.name, name, (value.value, value.low, value.high)
                for name, number in (("p50_ms", point.p50_ms), ("p90_ms", point.p90_ms), ("p95_ms", point.p95_ms)):
                    if number is not None:
                        yield at, model.name, name, (number, None, None)
                yield at, model.name, "qps", (point.qps, None, None)


def _judged(report: EvalReport) -> str:
    """The figure against labels that stands for the others; empty without labels."""
    points = [point for model in report.models for one in model.indexes for point in one.points]
    return next(iter(points[0].metrics), "") if points else ""


def _entries(one: IndexReport, point: IndexPoint, index: str, key: str, judged: str) -> Iterator[Entry]:
    yield _entry(point.recall, f"{key}/recall/value")
    if judged:
        yield _entry(point.metrics[judged], f"{key}/metrics/{judged}/value")
    yield Entry(text=_short(point.p50_ms), value=point.p50_ms, key=f"{key}/p50_ms")
    yield Entry(text=f"{point.qps:,.0f}", value=point.qps, key=f"{key}/qps")
    assert one.bytes is not None and one.build_seconds is not None
    yield Entry(text=_short(one.bytes / 1e6), value=one.bytes, key=f"{index}/bytes")
    yield Entry(text=_short(one.build_seconds), value=one.build_seconds, key=f"{index}/build_seconds")


def _entry(value: Interval, key: str) -> Entry:
    known = value.value == value.value
    text = f"{value.value:.3f} ±{(value.high - value.low) / 2:.3f}" if known else "–"
    return Entry(text=text, value=value.value if known else None, key=key)


def _short(number: float) -> str:
    """Three digits that mean something, and no power of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _set(settings: dict[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())

"""The page as a whole: what its template is filled with."""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distilltool import eval_text
from distilltool.evaluation import ALIKE, Evaluation, gap_of, main_figure, verdict
from distilltool.names import printable, titled
from distilltool.page import charts, grids, map, sections
from distilltool.page.charts import Placed, clipped
from distilltool.page.facts import Facts
from distilltool.report import ClassReport, EvalReport, Interval

LIMIT = 3_000_000  # bytes of a page
NAME = 120  # characters of a name that others chose
ROWS = 300  # of a table; the CSV has all
CURVES = 6
CLASS_CHARTS = 3
TIMES = "time of one image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure in a table. text: as people read it; key: where `--json` holds the same."""

    text: str
    value: float | None
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row of a table. head: its heading; notes: cells that are words."""

    head: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart and the sentence below it. title: of the model it is about, empty where it is about all."""

    title: str
    drawing: Markup
    caption: str


def render(made: Evaluation, facts: Facts) -> str:
    """The page as HTML; everything that others named is escaped."""
    report = made.report
    titles = _titles(report)
    folder = resources.files(__package__)
    style, script = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_fit,
    )
    return environment.get_template("report.html").render(
        title=f"{', '.join(titles[1:4])}{' and more' if len(titles) > 4 else ''} on {Path(report.data).name}",
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdicts=[verdict(report, at) for at in range(1, len(report.models))],
        report=report,
        titles=titles,
        lines=_lines(report),
        kept=_kept(report, titles),
        differences=_differences(report, titles),
        pair_count=len({one.at for one in report.differences}),
        grids=[(titles[grid.model], grid) for grid in grids.grids(made)],
        labelled=made.is_judged,
        classed=made.labels is not None,
        main=titled(main_figure(report)),
        times=_times(report, facts, titles),
        asked=_asked(report, facts, titles),
        indexes=sections.indexes(report, titles),
        drifted=sections.drifted(made, titles),
        classes=_classes(report)[:ROWS],
        class_count=len(report.classes),
        class_charts=_class_charts(report, titles),
        maps=map.maps(made, titles),
        alike=map.SHARE,
        curves=_curves(facts, titles),
        tables=[(title, one.curve) for title, one in zip(titles, facts.models, strict=True) if one.curve][:CURVES],
        trained=sum(one.curve is not None for one in facts.models),
        worst=_worst(report, titles),
        said=facts.said,
        model_facts=[(title, one.said) for title, one in zip(titles, facts.models, strict=True)],
        rows=ROWS,
    )


def _fit(value: Any) -> Any:
    """Whatever is put into the template: numbers as they are, texts without what is not to be shown."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _titles(report: EvalReport) -> list[str]:
    """A name for each model, another for each: `student`, `student (2)`."""
    seen = Counter[str]()
    found = []
    for model in report.models:
        name = clipped(model.name, 60)
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _cell(value: Interval | None, text: str, key: str) -> Cell:
    known = value is not None and math.isfinite(value.value)
    return Cell(text=text, value=value.value if value is not None and known else None, key=key)


def _lines(report: EvalReport) -> list[Line]:
    lines = []
    for family, figure, heading, values in eval_text.rows(report):
        cells = [
            _cell(value, eval_text.shown(value, family), f"models/{at}/{family.replace('.', '/')}/{figure}/value")
            for at, value in enumerate(values)
        ]
        lines.append(Line(head=heading, cells=tuple(cells)))
    return lines


def _kept(report: EvalReport, titles: Sequence[str]) -> Chart | None:
    """Retention by figure, where there are labels and the teacher finds anything."""
    students = report.models[1:]
    figures = (
        [name for name in students[0].retention if math.isfinite(students[0].retention[name].value)] if students else []
    )
    if not figures:
        return None
    rows = [
        (title, [one.retention.get(name) for name in figures]) for title, one in zip(titles[1:], students, strict=True)
    ]
    label = "Share of the teacher's figures that each student keeps; the table holds the same numbers."
    return Chart(title="", drawing=charts.kept([titled(one) for one in figures], rows, label), caption=label)


def _differences(report: EvalReport, titles: Sequence[str]) -> tuple[list[str], list[Line]]:
    """Figures, and for each pair of models their differences in them."""
    figures = list(dict.fromkeys(one.figure for one in report.differences))
    pairs = list(dict.fromkeys(one.at for one in report.differences))[:ROWS]
    place = {(one.at, one.figure): at for at, one in enumerate(report.differences)}
    lines = []
    for pair in pairs:
        cells = [_gap(report, place.get((pair, figure))) for figure in figures]
        lines.append(Line(head=f"{titles[pair[0]]} − {titles[pair[1]]}", cells=tuple(cells)))
    return [titled(figure) for figure in figures], lines


def _gap(report: EvalReport, at: int | None) -> Cell:
    if at is None:
        return Cell(text="–", value=None, key="")
    gap = report.differences[at].difference
    chance = "≈ " if gap.low <= 0 <= gap.high else ""
    return _cell(gap, chance + gap_of(gap, report.differences[at].figure), f"differences/{at}/difference/value")


def _quality(report: EvalReport, at: int) -> tuple[str, Interval]:
    """What models are judged by in charts; of the overlap with itself the teacher has all."""
    figure = main_figure(report)
    if figure != ALIKE:
        return titled(figure), report.models[at].metrics[figure]
    whole = Interval(value=1.0, low=1.0, high=1.0)
    return "overlap@10 with the teacher", (report.models[at].fidelity or {}).get(ALIKE, whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Quality against time. lines: (model, way, p50, times faster, quality, on the front); drawing: None where fewer
    than two models can be compared."""

    lines: tuple[tuple[str, str, str, str, str, bool], ...]
    drawing: Markup | None
    relative: bool


def _times(report: EvalReport, facts: Facts, titles: Sequence[str]) -> Times | None:
    """None where no model was timed. Times of several measurements are compared as shares of the teacher's in each."""
    known = [(at, one.timed) for at, one in enumerate(facts.models) if one.timed is not None]
    if not known:
        return None
    relative = len({timed.session for _, timed in known}) > 1
    across = dict[int, float]()
    for at, timed in known:
        if not relative:
            across[at] = timed.p50_ms
        elif timed.speedup is not None:
            across[at] = 1 / timed.speedup.value
    if relative and across:
        across[0] = 1.0
    front = {at for at in across if not any(_beats(report, across, other, at) for other in across)}
    points = [
        Placed(name=titles[at], place=at, at=across[at], value=_quality(report, at)[1], front=at in front)
        for at in sorted(across)
    ]
    drawing = None
    if len(points) > 1:
        axis = f"{TIMES}, share of the teacher's" if relative else f"{TIMES}, ms ({known[0][1].way})"
        what = _quality(report, 0)[0]
        label = f"{what} against {axis}; the table holds the same numbers."
        drawing = charts.scattered("times", points, axis, what, label, log=True)
    lines = [
        (
            titles[at],
            timed.way,
            f"{timed.p50_ms:.2f}",
            ""
            if timed.speedup is None
            else f"{timed.speedup.value:.2f} ({timed.speedup.low:.2f} to {timed.speedup.high:.2f})",
            f"{_quality(report, at)[1].value:.3f}",
            at in front and len(points) > 1,
        )
        for at, timed in known
    ]
    return Times(lines=tuple(lines), drawing=drawing, relative=relative)


def _beats(report: EvalReport, across: dict[int, float], one: int, other: int) -> bool:
    """Whether a model is at least as good as another at no more time, and better in one of both."""
    quality = [_quality(report, at)[1].value for at in (one, other)]
    no_worse = across[one] <= across[other] and quality[0] >= quality[1]
    return no_worse and (across[one] < across[other] or quality[0] > quality[1])


def _asked(report: EvalReport, facts: Facts, titles: Sequence[str]) -> tuple[list[tuple[str, str, str]], Markup] | None:
    """What students keep against how many answers they were made from; None for fewer than two of known number."""
    figure = main_figure(report)
    points, lines = [], []
    for at, one in enumerate(facts.models):
        if at == 0 or one.answers is None:
            continue
        model = report.models[at]
        value = (model.fidelity or {})[ALIKE] if figure == ALIKE else model.retention[figure]
        if math.isfinite(value.value):
            points.append(Placed(name=titles[at], place=at, at=one.answers, value=value, front=True))
            lines.append((titles[at], f"{one.answers:,}", eval_text.shown(value, "retention")))
    if len(points) < 2:
        return None
    scale = [_times_hundred(one) for one in points]
    what = "overlap@10, %" if figure == ALIKE else f"{titled(figure)} kept, %"
    label = f"{what.removesuffix(', %')} against answers of the teacher; the table holds the same numbers."
    return lines, charts.scattered("asked", scale, "answers of the teacher", what, label, log=False)


def _times_hundred(one: Placed) -> Placed:
    value = Interval(value=100 * one.value.value, low=100 * one.value.low, high=100 * one.value.high)
    return Placed(name=one.name, place=one.place, at=one.at, value=value)


def _classes(report: EvalReport) -> list[Line]:
    return [
        Line(
            head=clipped(one.label, NAME),
            cells=tuple(
                _cell(value, eval_text.shown(value, "metrics"), f"classes/{row}/models/{at}/value")
                for at, value in enumerate(one.models)
            ),
            notes=(f"{one.queries:,}",),
        )
        for row, one in enumerate(report.classes)
    ]


def _loss(one: ClassReport, at: int) -> float:
    return one.models[at].value - one.models[0].value


def _class_charts(report: EvalReport, titles: Sequence[str]) -> list[Chart]:
    found = list[Chart]()
    for at in range(1, min(len(report.models), 1 + CLASS_CHARTS)) if report.classes else ():
        order = sorted(report.classes, key=lambda one, at=at: _loss(one, at))  # type: ignore[misc]
        shown = order[: charts.BARS]
        rest = f" The {len(shown)} classes that lose most of {len(order):,}." if len(order) > len(shown) else ""
        label = f"mAP by class: bars are {titles[at]}, marks the teacher; what loses most is on top.{rest}"
        found.append(
            Chart(title=titles[at], drawing=charts.class_bars(f"classes{at}", shown, at, label), caption=label)
        )
    return found


def _curves(facts: Facts, titles: Sequence[str]) -> list[Chart]:
    found = list[Chart]()
    for at, one in enumerate(facts.models):
        if one.curve is not None and len(found) < CURVES:
            label = f"Training of {titles[at]}: loss by step, and overlap@10 with the teacher on held-out images."
            found.append(
                Chart(title=titles[at], drawing=charts.training(f"training{at}", one.curve, label), caption=label)
            )
    return found


def _worst(report: EvalReport, titles: Sequence[str]) -> list[tuple[str, list[Line]]]:
    found = list[tuple[str, list[Line]]]()
    for at in range(1, len(report.models)):
        lines = [
            Line(
                head=clipped(one.path, NAME),
                cells=(
                    Cell(text=f"{one.value:.3f}", value=one.value, key=f"worst/{place}/value"),
                    Cell(
                        text="–" if one.teacher is None else f"{one.teacher:.3f}",
                        value=one.teacher,
                        key=f"worst/{place}/teacher",
                    ),
                ),
                notes=(clipped(one.label or "", NAME), clipped(one.first, NAME)),
            )
            for place, one in enumerate(report.worst)
            if one.at == at
        ]
        if lines and len(found) < CURVES:
            found.append((titles[at], lines))
    return found

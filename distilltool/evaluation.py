"""What an evaluation knows beyond its report: vectors and figures of each query, and what follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import metrics
from distilltool.metrics import Task
from distilltool.names import headline, titled
from distilltool.progress import Progress
from distilltool.report import ClassReport, Difference, EvalReport, Interval, WorstQuery
from distilltool.search import Gallery
from distilltool.truth import Truth

WORST = 20
WORK = 100_000  # comparisons that take as long as the interval of a small class
MAIN = "map"
MEDIUM = "map-medium"
ALIKE = "overlap@10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model's answers. vectors: (N, D) at length 1, a row for each image; values: figure → (Q,), NaN where a query
    has none."""

    name: str
    vectors: NDArray[np.float32]
    values: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A report with what it was made from.

    task: who is asked about what; files: (N,) the images; names: (N,) the same, seen from the data's folder; labels:
    (N,) or None; models: in the order of the report's, the teacher first.
    """

    report: EvalReport
    task: Task
    files: tuple[Path, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    models: tuple[Measured, ...]

    @property
    def is_judged(self) -> bool:
        """Whether anything says what is right."""
        return bool(self.models[0].values)

    def name(self, row: int) -> str:
        """An image's name; what stands in the gallery as a vector alone has none."""
        return self.names[row] if row < len(self.names) else "a distractor"

    def label(self, row: int) -> str | None:
        """An image's label, None where there are none."""
        return self.labels[row] if self.labels is not None and row < len(self.names) else None


def completed(
    report: EvalReport,
    task: Task,
    files: Sequence[Path],
    labels: Sequence[str] | None,
    models: Sequence[Measured],
    root: Path,
    progress: Progress,
) -> Evaluation:
    """Add to a report what single queries say: differences between models, the worst queries, classes, a verdict."""
    made = Evaluation(
        report=report,
        task=task,
        files=tuple(files),
        names=tuple(seen_from(root, file) for file in files),
        labels=None if labels is None else tuple(labels),
        models=tuple(models),
    )
    told = replace(
        report,
        differences=_differences(made.models, progress),
        worst=tuple(one for at in range(1, len(models)) for one in _worst(made, at)),
        classes=_classes(made, progress),
    )
    return replace(made, report=replace(told, verdict=" ".join(verdict(told, at) for at in range(1, len(models)))))


def seen_from(root: Path, file: Path) -> str:
    """What a file is called by whoever stands in a folder; its bare name where it is elsewhere."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _differences(models: Sequence[Measured], progress: Progress) -> tuple[Difference, ...]:
    """Every later model less every earlier one, in each figure that both have."""
    wanted = [
        (one, other, figure)
        for other, one in combinations(range(len(models)), 2)
        for figure in models[one].values
        if figure in models[other].values
    ]
    queries = len(next(iter(models[1].values.values()))) if wanted else 0
    watch = metrics.watched(progress, len(wanted) * queries * metrics.RESAMPLES)
    watch.begin("differences", len(wanted), "figures")
    found = []
    for one, other, figure in wanted:
        gap = metrics.difference(models[one].values[figure], models[other].values[figure])
        name, beside = models[one].name, models[other].name
        found.append(Difference(model=name, other=beside, at=(one, other), figure=figure, difference=gap))
        watch.advance()
    watch.end()
    return tuple(found)


def main_figure(report: EvalReport) -> str:
    """What models are compared by: mAP, of several levels the medium one, else what stands first in the protocol's
    headline; without ground truth the overlap."""
    figures = report.models[0].metrics
    return next((one for one in (MAIN, MEDIUM, *headline(figures), *figures) if one in figures), ALIKE)


def _truth(made: Evaluation) -> Truth | None:
    """The lists that the main figure rests on; None where labels or nothing judge."""
    lists = made.task.truth
    return lists.get(main_figure(made.report).partition("-")[2]) or next(iter(lists.values()), None)


def right(made: Evaluation, query: int, row: int) -> bool | None:
    """Whether an image answers the query of that place; None where nothing says so."""
    labels, truth = made.task.labels, _truth(made)
    if truth is not None:
        return bool((truth.positives[query] == row).any())
    if labels is None:
        return None
    return row < len(labels) and bool(labels[made.task.query[query]] == labels[row])


def ranked(made: Evaluation, at: int) -> NDArray[np.int64]:
    """A student's queries from the worst to the best, of equal ones those first that it ranks least like the teacher;
    queries without a figure are left out."""
    values = made.models[at].values
    value, like = values[main_figure(made.report)], values[ALIKE]
    order = np.lexsort((np.arange(len(value)), like, value))
    return order[~np.isnan(value[order])].astype(np.int64)


def found(made: Evaluation, at: int, queries: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Rows of the k images that a model ranks first for some queries, (q, k), those left out that are neither right nor
    wrong; −1 where there are no more."""
    task, vectors, truth = made.task, made.models[at].vectors, _truth(made)
    ignored = [() if truth is None else truth.ignored[query] for query in queries.tolist()]
    fetch = min(k + max(map(len, ignored), default=0), len(task.gallery))
    gallery = Gallery(vectors, task.gallery)
    ids = gallery.nearest(vectors[task.query[queries]], fetch, task.itself[queries]).ids
    rows = np.full((len(queries), k), -1, np.int64)
    for place, one in enumerate(ids):
        kept = task.gallery[one[one >= 0]]
        kept = kept[~np.isin(kept, ignored[place])][:k]
        rows[place, : len(kept)] = kept
    return rows


def _worst(made: Evaluation, at: int) -> list[WorstQuery]:
    model, teacher = made.models[at], made.models[0]
    figure = main_figure(made.report)
    queries = ranked(made, at)[:WORST]
    firsts = found(made, at, queries, 1)[:, 0]
    return [
        WorstQuery(
            model=model.name,
            at=at,
            path=made.names[made.task.query[query]],
            label=made.label(made.task.query[query]),
            figure=figure,
            value=float(model.values[figure][query]),
            teacher=float(teacher.values[figure][query]) if figure in teacher.values else None,
            first=made.name(first) if first >= 0 else "",
        )
        for query, first in zip(queries.tolist(), firsts.tolist(), strict=True)
    ]


def _classes(made: Evaluation, progress: Progress) -> tuple[ClassReport, ...]:
    """By name; a class none of whose queries has a positive is left out, as is what has no name."""
    if made.labels is None or MAIN not in made.models[0].values:
        return ()
    groups: dict[str, list[int]] = {}
    for query in np.flatnonzero(~np.isnan(made.models[0].values[MAIN])).tolist():
        groups.setdefault(made.labels[made.task.query[query]], []).append(query)
    groups.pop("", None)
    watch = metrics.watched(progress, len(groups) * len(made.models) * WORK)
    watch.begin("classes", len(groups), "classes")
    found = []
    for label in sorted(groups):
        mine = np.array(groups[label])
        models = tuple(metrics.interval(model.values[MAIN][mine]) for model in made.models)
        found.append(ClassReport(label=label, queries=len(mine), models=models))
        watch.advance()
    watch.end()
    return tuple(found)


def verdict(report: EvalReport, at: int) -> str:
    """What became of one student, in a sentence."""
    model, teacher, figure = report.models[at], report.models[0], main_figure(report)
    overlap = (model.fidelity or {})[ALIKE]
    alike = f"{100 * overlap.value:.0f} % of its nearest are the teacher's"
    kept = model.retention.get(figure)
    if kept is None or not math.isfinite(kept.value):
        low, high = f"{100 * overlap.low:.0f}", f"{100 * overlap.high:.0f}"
        return f"{model.name}: {alike} ({low} to {high} %); without labels nothing more can be said."
    gap = next(one.difference for one in report.differences if one.at == (at, 0) and one.figure == figure)
    chance = "" if gap.low > 0 or gap.high < 0 else ", which is within chance"
    return (
        f"{model.name} keeps {100 * kept.value:.1f} % ({100 * kept.low:.1f} to {100 * kept.high:.1f}) of the teacher's "
        f"{titled(figure)}, {model.metrics[figure].value:.3f} of {teacher.metrics[figure].value:.3f}: "
        f"{gap_of(gap, figure)}{'' if is_score(figure) else ' points'}{chance}; {alike}."
    )


def is_score(figure: str) -> bool:
    """Whether a figure counts to more than 1, so that a difference is no share."""
    return figure == "ns"


def gap_of(value: Interval, figure: str) -> str:
    """A difference in points, or of a score as it is, half the width of its interval beside it."""
    if not math.isfinite(value.value):
        return "–"
    if is_score(figure):
        return f"{value.value:+.3f} ± {(value.high - value.low) / 2:.3f}".replace("-", "−")
    return f"{points(value.value)} ± {50 * (value.high - value.low):.1f}"


def points(value: float) -> str:
    """A difference of two shares in points, with its sign."""
    said = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if said in ("+0.0", "−0.0") else said


def alone(report: EvalReport, at: int) -> EvalReport:
    """The report as if one student alone had been evaluated."""
    one = [gap for gap in report.differences if gap.at == (at, 0)]
    return replace(
        report,
        models=(report.models[0], report.models[at]),
        differences=tuple(replace(gap, at=(1, 0)) for gap in one),
        worst=tuple(replace(query, at=1) for query in report.worst if query.at == at),
        classes=tuple(replace(each, models=(each.models[0], each.models[at])) for each in report.classes),
        verdict=verdict(report, at),
    )

"""The charts of the page but the map: figures with intervals, time, queries, classes, training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from distilltool.names import printable
from distilltool.page import svg
from distilltool.page.facts import Curve
from distilltool.report import ClassReport, Interval

WIDE = 4.7  # inches of 72 units; about what a phone shows
MODELS = ("#3d4550", "#0060a8", "#b34a00", "#00734f", "#8f2f7d", "#7a5c00")
MARKERS = ("D", "o", "s", "^", "v", "P")  # nobody needs the colours
BARS = 40  # classes in a chart; the table has more
POINTS = 400  # of a curve
WORTH_A_LOG = 3  # the largest over the smallest, from which an axis is logarithmic


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A model in a chart. value: of what goes upwards; at: of what goes to the right; front: nothing is better at
    less."""

    name: str
    place: int
    at: float
    value: Interval
    front: bool = False


def clipped(text: str, length: int) -> str:
    """A text of others, its middle left out where it is longer."""
    text = printable(text)
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def colour(place: int) -> str:
    """A model's colour by its place, the teacher's at 0."""
    return MODELS[0] if place == 0 else MODELS[1 + (place - 1) % (len(MODELS) - 1)]


def marker(place: int) -> str:
    """A model's mark by its place."""
    return MARKERS[0] if place == 0 else MARKERS[1 + (place - 1) % (len(MARKERS) - 1)]


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    return figure, figure.add_subplot()


def _drawn(
    figure: Figure, name: str, label: str, titles: Mapping[str, Sequence[Mapping[str, str]]] | None = None
) -> Markup:
    return svg.inline(figure, name, label, titles or {})


def kept(figures: Sequence[str], models: Sequence[tuple[str, Sequence[Interval | None]]], label: str) -> Markup:
    """What each student keeps, in per cent of the teacher's, with intervals; a row for each figure."""
    with svg.drawing():
        figure, axes = _figure(0.7 + max(0.3, 0.17 * len(models)) * len(figures) + 0.19 * len(models))
        for place, (name, values) in enumerate(models, 1):
            for row, value in enumerate(values):
                if value is None:
                    continue
                y = row + (place - (len(models) + 1) / 2) * 0.7 / len(models)
                axes.plot([100 * value.low, 100 * value.high], [y, y], color=colour(place), linewidth=1.6)
                axes.plot(
                    [100 * value.value],
                    [y],
                    marker(place),
                    color=colour(place),
                    markersize=5.5,
                    label=clipped(name, 40) if row == 0 else None,
                )
        axes.axvline(100, color=MODELS[0], linewidth=1, linestyle=(0, (4, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_yticks(range(len(figures)), figures)
        axes.set_ylim(len(figures) - 0.4, -0.6)
        axes.set_xlabel("% of the teacher's (dashed)")
        axes.grid(axis="y", visible=False)
        if len(models) > 1:
            figure.legend(loc="outside upper left", ncols=1, handletextpad=0.4, fontsize=9.5)
        return _drawn(figure, "kept", label)


def scattered(
    name: str,
    points: Sequence[Placed],
    across: str,
    upwards: str,
    label: str,
    log: bool,
    reference: tuple[str, float] | None = None,
    height: float = 3.3,
) -> Markup:
    """Quality against what it costs; models of the front are joined. reference: a cost to compare with, as a line;
    height: in inches, names included."""
    costs = [one.at for one in points] + ([reference[1]] if reference else [])
    with svg.drawing():
        figure, axes = _figure(height)
        front = sorted((one for one in points if one.front), key=lambda one: one.at)
        if len(front) > 1:
            axes.plot(
                [p.at for p in front],
                [p.value.value for p in front],
                color=svg.MUTED,
                linewidth=1,
                linestyle=(0, (4, 2)),
            )
        for one in points:
            low, high = one.value.value - one.value.low, one.value.high - one.value.value
            axes.errorbar(
                [one.at],
                [one.value.value],
                yerr=[[max(0.0, low)], [max(0.0, high)]],
                fmt=marker(one.place),
                color=colour(one.place),
                markersize=7,
                markerfacecolor=colour(one.place) if one.front or not front else svg.PAPER,
                linewidth=1.6,
                label=clipped(one.name, 40),
            )
        if reference:
            axes.axvline(reference[1], color=MODELS[0], linewidth=1.1, linestyle=(0, (1, 1.5)), label=reference[0])
        if log and max(costs) > WORTH_A_LOG * min(costs):
            _log(axes, costs)
        else:
            axes.margins(x=0.12)
        axes.margins(y=0.14)
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        figure.legend(loc="outside upper left", ncols=1, handletextpad=0.4, fontsize=9.5)
        return _drawn(figure, name, label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traded:
    """What one thing gives for what it costs, from the least effort to the most. points: (cost, value)."""

    name: str
    points: tuple[tuple[float, Interval], ...]


def effort(name: str, curves: Sequence[Traded], across: str, upwards: str, label: str) -> Markup:
    """Values against costs of several things, each with a curve of its own."""
    with svg.drawing():
        figure, axes = _figure(3.3)
        for place, curve in enumerate(curves, 1):
            costs, values = [cost for cost, _ in curve.points], [value for _, value in curve.points]
            axes.errorbar(
                costs,
                [value.value for value in values],
                yerr=[
                    [max(0.0, value.value - value.low) for value in values],
                    [max(0.0, value.high - value.value) for value in values],
                ],
                fmt=f"{marker(place)}-",
                color=colour(place),
                markersize=5.5,
                linewidth=1.3,
                elinewidth=1.1,
                label=clipped(curve.name, 40),
            )
        every = [cost for curve in curves for cost, _ in curve.points]
        if max(every) > WORTH_A_LOG * min(every):
            _log(axes, every)
        else:
            axes.margins(x=0.12)
        axes.margins(y=0.12)
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.4, fontsize=9.5)
        return _drawn(figure, name, label)


def falling(
    name: str,
    at: Sequence[float],
    values: Sequence[float],
    groups: Sequence[tuple[float, Interval]],
    limit: float,
    label: str,
) -> Markup:
    """What single queries have by their distance, the means of groups of them with intervals, and what is far."""
    with svg.drawing():
        figure, axes = _figure(3.3)
        axes.plot(at, values, ".", color=svg.MUTED, markersize=3, label="a query")
        means = [value for _, value in groups]
        axes.errorbar(
            [middle for middle, _ in groups],
            [value.value for value in means],
            yerr=[
                [max(0.0, value.value - value.low) for value in means],
                [max(0.0, value.high - value.value) for value in means],
            ],
            fmt=f"{marker(1)}-",
            color=colour(1),
            markersize=6.5,
            linewidth=1.6,
            label="a fifth of them",
        )
        axes.axvline(limit, color=svg.INK, linewidth=1.1, linestyle=(0, (4, 2)), label="95 % of held-out images")
        axes.set_ylim(-0.04, 1.04)
        axes.margins(x=0.04)
        axes.set_xlabel("distance from the span of images trained on")
        axes.set_ylabel("overlap@10 with the teacher")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2, fontsize=9.5)
        return _drawn(figure, name, label)


def _log(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis to the right, from a round number to a round number."""
    axes.set_xscale("log")
    axes.set_xlim(*_round(values))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _round(values: Sequence[float]) -> tuple[float, float]:
    """The nearest 1, 2 or 5 times a power of ten below and above all values."""
    steps = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    low, high = min(values) / 1.08, max(values) * 1.08
    return max((one for one in steps if one <= low), default=low), min(
        (one for one in steps if one >= high), default=high
    )


def class_bars(name: str, classes: Sequence[ClassReport], place: int, label: str) -> Markup:
    """A student's mAP of each class as bars, the teacher's as a mark on each; what loses most is on top."""
    with svg.drawing():
        figure, axes = _figure(0.9 + 0.215 * len(classes))
        rows = np.arange(len(classes))
        axes.barh(rows, [one.models[place].value for one in classes], color=colour(place), height=0.62, label="student")
        theirs = [one.models[0].value for one in classes]
        axes.plot(theirs, rows, "|", color=svg.PAPER, markersize=11, markeredgewidth=5)  # so that it shows on a bar
        axes.plot(theirs, rows, "|", color=svg.INK, markersize=10, markeredgewidth=2, label="teacher")
        axes.set_yticks(rows, [clipped(one.label, 22) for one in classes], fontsize=9.5)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(0, 1.015)
        axes.set_xlabel("mAP of the class's queries")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.5, fontsize=9.5)
        return _drawn(figure, name, label)


def training(name: str, curve: Curve, label: str) -> Markup:
    """The loss of each step, and below it the overlap on held-out images."""
    with svg.drawing():
        figure = Figure(figsize=(WIDE, 4.2 if curve.held_out else 2.4), layout="constrained")
        count = 2 if curve.held_out else 1
        above = figure.add_subplot(count, 1, 1)
        steps, losses = _thinned(curve.losses)
        above.plot(steps, losses, color=colour(1), linewidth=1.3)
        above.set_ylabel("loss")
        above.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if not curve.held_out:
            above.set_xlabel("step")
            return _drawn(figure, name, label)
        below = figure.add_subplot(count, 1, 2, sharex=above)
        above.tick_params(labelbottom=False)
        steps, values = _thinned(curve.held_out)
        below.plot(steps, values, "o-", color=colour(1), markersize=4, linewidth=1.3, label="in training")
        below.axhline(curve.undistilled, color=colour(2), linewidth=1.3, linestyle=(0, (4, 2)), label="undistilled")
        below.axhline(curve.kept, color=colour(3), linewidth=1.3, linestyle=(0, (1, 1.5)), label="weights kept")
        below.set_ylabel("overlap@10, held out")
        below.set_xlabel("step")
        below.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.5, fontsize=9.5, borderaxespad=0.2
        )
        return _drawn(figure, name, label)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """At most POINTS points, each the mean of those it stands for."""
    groups = np.array_split(np.array(points, float), min(POINTS, len(points)))
    return [round(group[-1, 0]) for group in groups], [float(group[:, 1].mean()) for group in groups]

"""Curves of what is kept of the teacher: by answers, by training, by the student's cost, and in the teacher's gallery.

From the rows of quality.json, and by training also from those of ten_minutes.json: each draw, in two lengths of time.

pip install matplotlib
python benchmarks/curves.py benchmarks/results/quality.json benchmarks/results/ten_minutes.json docs/curves.svg
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from setting import mean

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402

Row = dict[str, Any]
AIM = 90
COLOURS = {"untrained": "#a35200", "best": "#0b62a4", "best-one-run": "#6b6b6b"}
MARKS = {"untrained": "s", "best": "o", "best-one-run": "^"}
NAMES = {"untrained": "untrained", "best": "distilled", "best-one-run": "in a single run"}
SPACE = "-teacher"  # of recipes whose vectors live in the teacher's space
FLOPS = {"caltech": 0.10, "caltech-200": 0.25}  # of the teacher's, at 128 and 200 px
PIXELS = 128  # that the student of `caltech` looks at


def curve(
    ax: Any, rows: list[Row], arm: str, at: Callable[[Row], float], steps: int | None = None, of: str = "map kept"
) -> None:
    """Means over seeds, with 95 % t-intervals where there are three or more."""
    cells = defaultdict(list)
    for row in rows:
        if row["arm"] == arm and (steps is None or row["steps"] in (0, steps)):
            cells[at(row)].append(100 * row["figures"][of])
    named = arm.removesuffix(SPACE)
    places = sorted(cells)
    found = [mean(cells[place]) for place in places]
    half = [one["half"] if one["seeds"] > 2 else 0 for one in found]
    ax.errorbar(
        places,
        [one["mean"] for one in found],
        yerr=half,
        label=NAMES[named],
        color=COLOURS[named],
        marker=MARKS[named],
        markersize=5,
        capsize=3,
        linewidth=1.5,
    )


def timed(ax: Any, rows: list[Row]) -> None:
    """What the command keeps of each draw, by the steps it came to within one time and another."""
    cells = defaultdict(list)
    for row in rows:
        if row["input"] == PIXELS:
            cells[row["seed"]].append((row["distilled"]["steps"], 100 * row["distilled"]["retention"]["map"]["value"]))
    for number, points in enumerate(cells.values()):
        label = "each draw, in 10 minutes and an hour" if number == 0 else None
        ax.plot(*zip(*sorted(points), strict=True), color="#2e7d32", marker="D", markersize=4, linewidth=1, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("timed", type=Path)
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.json.read_text())["rows"]
    mine = [row for row in rows if row["setting"] == "caltech"]
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "distilltool", "font.family": "sans-serif"})
    figure, ((answers, training), (cost, gallery)) = plt.subplots(2, 2, figsize=(9.6, 6.2), layout="constrained")
    for ax in (training, cost):
        ax.sharey(answers)
    for arm in ("untrained", "best"):
        curve(answers, mine, arm, queries, steps=150)
        curve(gallery, mine, arm + SPACE, queries, steps=150, of="recall@1 kept, to teacher")
        curve(
            cost, [row for row in rows if row["queries"] == 1000 and row["setting"] in FLOPS], arm, cost_of, steps=150
        )
    for arm in ("best", "best-one-run"):
        curve(training, [row for row in mine if row["queries"] == 1000], arm, lambda row: row["figures"]["steps"])
    timed(training, json.loads(args.timed.read_text())["rows"])
    answers.set(ylabel="teacher's mAP kept, %")
    gallery.set(ylabel="R@1 kept in its gallery, %")
    for ax in (answers, gallery):
        ax.set(xlabel="images asked about", xscale="log")
        ax.set_xticks([250, 1000, 2077], ["250", "1,000", "2,077"], minor=False)
        ax.minorticks_off()
    training.set(xlabel="steps of 192 images", xscale="log", xlim=(30, 1600))
    training.set_xticks([50, 100, 500, 1000], ["50", "100", "500", "1,000"], minor=False)
    training.minorticks_off()
    cost.set(xlabel="student's FLOPs, % of the teacher's", ylabel="teacher's mAP kept, %", xlim=(5, 30))
    cost.set_xticks([10, 25])
    for ax in (answers, training, cost, gallery):
        ax.axhline(AIM, color="#777777", linewidth=1, linestyle=":")
        ax.grid(visible=True, color="#dddddd", linewidth=0.5)
    for ax in (cost, gallery):
        ax.legend(loc="lower right", frameon=False)
    training.legend(loc="lower left", frameon=False)
    figure.savefig(args.svg, metadata={"Date": None})


def queries(row: Row) -> float:
    return float(row["queries"])


def cost_of(row: Row) -> float:
    return 100 * FLOPS[row["setting"]]


if __name__ == "__main__":
    main()

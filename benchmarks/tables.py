"""The tables of docs/QUALITY.md, from the rows of quality.json.

    python benchmarks/tables.py benchmarks/results/quality.json docs/QUALITY.md
    python benchmarks/tables.py benchmarks/results/quality.json docs/QUALITY.md --check   # exit 1 where they differ

A table stands between `<!-- table SETTING N -->` and `<!-- end -->`; what is there is replaced. Between
`<!-- verdicts -->` and `<!-- end -->` stand the cells that do not gain over their start beyond chance, and what their
runs said of themselves.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from setting import mean, rows_in

Row = dict[str, Any]
PLACE = re.compile(r"(<!-- table (\S+) (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)
VERDICTS = re.compile(r"(<!-- verdicts -->\n).*?(<!-- end -->)", re.DOTALL)
SAID = {  # by words of a run's verdict, of which the first that is found counts
    "training did not improve it": "not improved",
    "of the ten nearest that is within the noise": "of the ten nearest within the noise, nearer to all similarities",
    "within the noise": "within the noise",
    "": "a gain",
}
COLUMNS = {
    "mAP": "map",
    "mAP kept": "map kept",
    "overlap of ten": "overlap@10",
    "R@1 kept": "recall@1 kept",
    "R@1 kept, teacher's gallery": "recall@1 kept, to teacher",
}
SHARES = {"map kept", "recall@1 kept", "recall@1 kept, to teacher"}
GAINED = {"map kept": (100, 1), "overlap@10": (1, 3)}
START = "untrained"
UNASKED = "plain"  # the network as it is: nothing was asked for it
IN_SPACE = {"csd", "regression", "rop", "best-teacher"}  # whose vectors live in the teacher's space


def table(rows: list[Row], setting: str, queries: int) -> list[str]:
    """Lines of Markdown, one an arm and number of steps, the one that keeps most first."""
    cells: dict[tuple[str, int], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if (row["setting"], row["queries"]) == (setting, queries):
            cells[row["arm"], row["steps"]][row["seed"]] = row["figures"]
    order = sorted(cells, key=lambda cell: -float(np.mean([one["map kept"] for one in cells[cell].values()])))
    head = ["recipe", "draws", "queries", "steps", *COLUMNS, "CPU s", "mAP kept, less its start"]
    return [line(head), line(["---"] * len(head)), *(line(row_of(cells, cell, queries)) for cell in order)]


def row_of(cells: dict[tuple[str, int], dict[int, Row]], cell: tuple[str, int], queries: int) -> list[str]:
    arm, steps = cell
    seeds = cells[cell]
    found = [
        f"`{arm}`",
        str(len(seeds)),
        "0" if arm == UNASKED else f"{queries:,}",
        f"{median(seeds, 'steps')}" if steps else "",
    ]
    found += [figure(seeds, name) for name in COLUMNS.values()]
    found.append(median(seeds, "cpu seconds") if "cpu seconds" in next(iter(seeds.values())) else "")
    start = cells.get((f"{START}-teacher" if arm in IN_SPACE else START, 0), {})
    shared = sorted(set(seeds) & set(start))
    if not steps or not shared:
        return [*found, ""]
    gained = mean([100 * (seeds[seed]["map kept"] - start[seed]["map kept"]) for seed in shared])
    return [*found, spread(gained["mean"], gained["half"], 1, "+")]


def verdicts(rows: list[Row], arm: str = "best") -> list[str]:
    """Lines of Markdown, one a draw of each cell in which mAP kept or overlap does not gain beyond chance."""
    starts = {(row["setting"], row["queries"], row["seed"]): row["figures"] for row in rows if row["arm"] == START}
    cells: dict[tuple[str, int, int], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if row["arm"] == arm and "held-out gain" in row["figures"]:
            cells[row["setting"], row["queries"], row["steps"]][row["seed"]] = row["figures"]
    head = ["setting", "answers", "steps", "gain in mAP kept", "in overlap", "draw", "gain on held-out images", "said"]
    found = [line(head), line(["---"] * len(head))]
    for (setting, count, _), seeds in sorted(cells.items()):
        said = {seed: one for seed, one in sorted(seeds.items()) if (setting, count, seed) in starts}
        if len(said) < 2:
            continue
        gains = {
            name: mean([one[name] - starts[setting, count, seed][name] for seed, one in said.items()])
            for name in GAINED
        }
        if all(one["mean"] > one["half"] for one in gains.values()):
            continue
        share, overlap = (
            spread(scale * gains[name]["mean"], scale * gains[name]["half"], digits, "+")
            for name, (scale, digits) in GAINED.items()
        )
        for number, (seed, one) in enumerate(said.items()):
            held = one["held-out gain"]["overlap@10"]
            within = f"{held['value']:+.3f} ({held['low']:.3f} to {held['high']:.3f})".replace("-", "−")
            what = next(word for key, word in SAID.items() if key in one["verdict"])
            cell = [f"`{setting}`", f"{count:,}", median(said, "steps"), share, overlap] if not number else [""] * 5
            found.append(line([*cell, str(seed), within, what]))
    return found


def median(seeds: dict[int, Row], name: str) -> str:
    return f"{np.median([one[name] for one in seeds.values()]):,.0f}"


def figure(seeds: dict[int, Row], name: str) -> str:
    """The mean over draws with its 95 % t-interval, shares in percent."""
    if name not in next(iter(seeds.values())):
        return ""
    scale, digits = (100, 1) if name in SHARES else (1, 3)
    one = mean([scale * figures[name] for figures in seeds.values()])
    return spread(one["mean"], one["half"], digits) + (" %" if name in SHARES else "")


def spread(value: float, half: float | None, digits: int, sign: str = "") -> str:
    text = f"{value:{sign}.{digits}f}".replace("-", "−")
    return text if half is None else f"{text} ± {half:.{digits}f}"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def filled(text: str, rows: list[Row]) -> str:
    """The document with its tables made anew."""
    text = VERDICTS.sub(lambda found: found[1] + "\n".join(verdicts(rows)) + "\n" + found[2], text)
    return PLACE.sub(
        lambda found: found[1] + "\n".join(table(rows, found[2], int(found[3]))) + "\n" + found[4],
        text,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("document", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stands = args.document.read_text()
    fresh = filled(stands, rows_in(args.json))
    if args.check and fresh != stands:
        raise SystemExit(f"{args.document} does not say what is in {args.json}: run this without --check")
    if not args.check:
        args.document.write_text(fresh)


if __name__ == "__main__":
    main()

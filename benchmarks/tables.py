"""The tables of docs/QUALITY.md, from the rows of quality.json.

    python benchmarks/tables.py benchmarks/results/quality.json docs/QUALITY.md
    python benchmarks/tables.py benchmarks/results/quality.json docs/QUALITY.md --check   # exit 1 where they differ

A table stands between `<!-- table SETTING N -->` and `<!-- end -->`; what is there is replaced.
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
COLUMNS = {
    "mAP": "map",
    "mAP kept": "map kept",
    "overlap of ten": "overlap@10",
    "R@1 kept": "recall@1 kept",
    "R@1 kept, teacher's gallery": "recall@1 kept, to teacher",
}
SHARES = {"map kept", "recall@1 kept", "recall@1 kept, to teacher"}
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

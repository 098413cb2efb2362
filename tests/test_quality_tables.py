"""The tables of docs/QUALITY.md are those of the raw results, and say what a row of them means."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "tables.py"
RAW = ROOT / "benchmarks" / "results" / "quality.json"
DOCUMENT = ROOT / "docs" / "QUALITY.md"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script, as it is called by hand."""
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def rows(arm: str, steps: int, kept: list[float], **more: float) -> list[dict[str, Any]]:
    """A cell with a draw for each share that is kept."""
    return [
        {
            "setting": "here",
            "queries": 250,
            "arm": arm,
            "seed": seed,
            "steps": steps,
            "figures": {"map": one / 2, "map kept": one, "recall@1 kept": 1.0, "overlap@10": 0.5, "steps": 50} | more,
        }
        for seed, one in enumerate(kept)
    ]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """Rows of three arms, and a document with a place for them."""
    raw, document = tmp_path / "raw.json", tmp_path / "TABLES.md"
    every = rows("untrained", 0, [0.80, 0.82, 0.84]) + rows("best", 150, [0.83, 0.86, 0.86], **{"cpu seconds": 1234.4})
    every += rows("regression", 150, [0.7], **{"recall@1 kept, to teacher": 0.9})
    raw.write_text(json.dumps({"rows": every}))
    document.write_text("before\n<!-- table here 250 -->\nold\n<!-- end -->\nafter\n")
    return raw, document


def test_the_document_says_what_the_raw_results_say() -> None:
    done = run(RAW, DOCUMENT, "--check")
    assert done.returncode == 0, done.stderr


def test_every_cell_of_the_raw_results_has_its_table() -> None:
    measured = {(row["setting"], row["queries"]) for row in json.loads(RAW.read_text())["rows"]}
    placed = re.findall(r"<!-- table (\S+) (\d+) -->", DOCUMENT.read_text())
    assert {(setting, int(count)) for setting, count in placed} == measured


def test_means_intervals_and_paired_differences(made: tuple[Path, Path]) -> None:
    """By hand: 0.85 ± 4.303 · 0.01732 / √3; differences 3, 4, 2 points: 3 ± 4.303 · 1 / √3."""
    raw, document = made
    assert run(raw, document).returncode == 0
    first, *table, last = document.read_text().splitlines()[1:-1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    best, untrained, regression = cells[2:]
    assert (first, last) == ("<!-- table here 250 -->", "<!-- end -->") and cells[0][0] == "recipe"
    assert best[:6] == ["`best`", "3", "250", "50", "0.425 ± 0.022", "85.0 ± 4.3 %"]
    assert best[-2:] == ["1,234", "+3.0 ± 2.5"]
    assert untrained[0] == "`untrained`" and untrained[3] == "" and untrained[-1] == ""
    assert regression[1] == "1" and "±" not in regression[5] and regression[8] == "90.0 %"
    assert regression[-1] == "", "its start is that of the teacher's space, which is not here"


def test_a_document_that_is_behind_is_told(made: tuple[Path, Path]) -> None:
    raw, document = made
    before = document.read_text()
    done = run(raw, document, "--check")
    assert done.returncode == 1 and "does not say" in done.stderr and document.read_text() == before
    assert run(raw, document).returncode == 0 and run(raw, document, "--check").returncode == 0


def test_cells_within_chance_stand_with_what_their_runs_said(tmp_path: Path) -> None:
    """By hand: gains of 1, 2 and 0 points are 1 ± 4.303 · 1 / √3; a cell that gains for certain is left out."""
    raw, document = tmp_path / "raw.json", tmp_path / "TABLES.md"
    every = rows("untrained", 0, [0.80, 0.82, 0.84])
    every += rows("pca-64", 0, [0.1, 0.1, 0.1])
    for steps, kept, overlap in ((150, [0.81, 0.84, 0.84], 0.51), (300, [0.85, 0.87, 0.89], 0.51)):
        more = rows("best", steps, kept)
        for number, said in enumerate(("; training did not improve it: x", "; that is within the noise of it: x", "")):
            held = {"value": -0.01, "low": -0.02, "high": number / 10}
            more[number]["figures"] |= {"held-out gain": {"overlap@10": held}, "verdict": f"keeps 1 %{said}"}
            more[number]["figures"]["overlap@10"] = overlap + number / 1000
        every += more
    raw.write_text(json.dumps({"rows": every}))
    document.write_text("<!-- verdicts -->\n<!-- end -->\n")
    assert run(raw, document).returncode == 0
    lines = document.read_text().splitlines()[3:-1]
    cells = [[cell.strip() for cell in one.strip("|").split("|")] for one in lines]
    assert cells[0] == [
        "`here`",
        "250",
        "50",
        "+1.0 ± 2.5",
        "+0.011 ± 0.002",
        "0",
        "−0.010 (−0.020 to 0.000)",
        "not improved",
    ]
    assert [one[-3:] for one in cells[1:]] == [
        ["1", "−0.010 (−0.020 to 0.100)", "within the noise"],
        ["2", "−0.010 (−0.020 to 0.200)", "a gain"],
    ]

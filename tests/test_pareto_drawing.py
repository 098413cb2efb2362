"""The drawing of several students: names, places, the teacher's time, light and dark."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the drawing needs distilltool[report]")

from distilltool import page
from distilltool.page.pareto import drawn
from distilltool.report import DistillReport, Fidelity, Interval, ParetoPoint, ParetoReport, StudentReport

SVG = "{http://www.w3.org/2000/svg}"
AROUND = Interval(value=0.5, low=0.45, high=0.55)


def student(spec: str, side: int, ms: float, kept: float, front: bool = True) -> ParetoPoint:
    """A student with a name, a time and an overlap."""
    value = Interval(value=kept, low=kept - 0.02, high=kept + 0.02)
    made = Fidelity(overlap_at_10=value, spearman=AROUND)
    report = DistillReport(
        run="run",
        recipe="best",
        student=StudentReport(spec=spec, input=(side, side), params=1, dim=128, space="own", start="pretrained"),
        queries={},
        images={},
        steps=1,
        best_step=1,
        start_share=0.0,
        seconds=1.0,
        k=10,
        fidelity=made,
        undistilled=made,
        verdict="",
        seed=0,
    )
    return ParetoPoint(target=f"p50<{ms}ms", flops=1, p50_ms=ms, front=front, student=report)


REPORT = ParetoReport(
    runs="runs",
    points=(
        student("teacher:cut=0.35", 96, 0.9, 0.61),
        student("timm:mobilenetv3_<small>&", 128, 2.1, 0.52, front=False),
        student("teacher", 128, 3.4, 0.74),
        student("teacher", 128, 9.5, 0.83),
    ),
    refused={},
    teacher_p50_ms=24.0,
    threads=1,
    seconds=1.0,
)
NAMES = (
    "teacher:cut=0.35 at 96 px",
    "timm:mobilenetv3_<small>& at 128 px",
    "teacher at 128 px, p50<3.4ms",
    "teacher at 128 px, p50<9.5ms",
)


def marks(text: str) -> list[tuple[float, float]]:
    """Where the marks of students stand, in the order of the drawing; those of the legend come after."""
    uses = [one for one in ElementTree.fromstring(text).iter(f"{SVG}use") if one.get("y") is not None]
    colours = ("#0060a8", "#b34a00", "#00734f", "#8f2f7d")
    found: list[tuple[float, float]] = []
    for colour in colours:
        of_it = [one for one in uses if f"stroke: {colour}" in (one.get("style") or "")]
        found.append((float(of_it[0].get("x", "nan")), float(of_it[0].get("y", "nan"))))
    return found


def test_every_student_is_named_and_stands_where_its_numbers_say() -> None:
    """To the right by time, upwards by overlap; the teacher's time is the line that is furthest right."""
    text = drawn(REPORT)
    root = ElementTree.fromstring(text)
    words = ["".join(one.itertext()).strip() for one in root.iter(f"{SVG}text")]
    assert set(NAMES) <= set(words) and "teacher's time" in words
    assert "overlap@10 with the teacher" in words and "time of one image, ms (batch 1, 1 thread)" in words
    places = marks(text)
    assert [x for x, _ in places] == sorted(x for x, _ in places) and len({x for x, _ in places}) == 4
    by_height = sorted(range(4), key=lambda at: -places[at][1])  # downwards in a drawing
    assert by_height == [1, 0, 2, 3]
    ups = [one.get("d", "") for one in root.iter(f"{SVG}path") if "1.65" in (one.get("style") or "")]
    (line,) = {float(re.findall(r"[\d.]+", d)[0]) for d in ups if len(set(re.findall(r"M? ?([\d.]+) [\d.]+", d))) == 1}
    assert line > places[-1][0]


def test_it_is_read_in_light_and_dark_and_without_variables() -> None:
    """Colours follow the reader's; one who knows no variables gets those of the light page."""
    text = drawn(REPORT)
    assert "prefers-color-scheme: dark" in text and "--paper: #14171b" in text and "--m1: #5fb2f2" in text
    assert "stroke: #0060a8; stroke: var(--m1)" in text
    assert not re.search(
        r"(?<!; )\b(fill|stroke): var", text.replace("; fill: var", "; ").replace("; stroke: var", "; ")
    )
    assert re.search(r'<svg [^>]*width="\d+" height="\d+"', text)


def test_a_teacher_that_was_not_timed_has_no_line() -> None:
    """As one behind an address; a single student is drawn too."""
    text = drawn(replace(REPORT, teacher_p50_ms=None, points=REPORT.points[:1]))
    assert "teacher's time" not in text and NAMES[0] in text


def test_without_what_draws_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the comparison does not depend on it."""
    assert page.draw_pareto(tmp_path / "pareto.svg", REPORT) and (tmp_path / "pareto.svg").is_file()
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert not page.draw_pareto(tmp_path / "no.svg", REPORT) and not (tmp_path / "no.svg").exists()

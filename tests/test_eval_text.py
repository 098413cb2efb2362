"""What `eval` says of single queries, differences and classes, and how it writes them."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import class_folders, drawn, onnx_teacher
from typer.testing import CliRunner

import distilltool
from distilltool import eval_text, metrics
from distilltool.cli import app
from distilltool.errors import DistillError
from distilltool.evaluation import alone, gap_of, points, verdict
from distilltool.names import titled
from distilltool.report import EvalReport, ExportReport, Interval, to_json
from distilltool.stages.export import _without_paths

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    for name, dim, seed in (("teacher", 16, 0), ("a", 12, 1), ("b", 12, 2)):
        onnx_teacher(root / f"{name}.onnx", dim=dim, seed=seed)
    class_folders(root / "labelled", classes=5, each=6)
    drawn(99).save(root / "labelled" / "class0" / "=alone|.png")
    (root / "labelled" / "single").mkdir()
    drawn(98).save(root / "labelled" / "single" / "one.png")  # a class without a positive
    distilltool.evaluate([root / "a.onnx", root / "b.onnx"], **given(root), csv=root / "x.csv", markdown=root / "x.md")
    return root


def given(root: Path) -> dict[str, object]:
    words = {"teacher": root / "teacher.onnx", "store": root / "e.sqlite", "preprocess": PRE}
    return {"data": root / "labelled", **words}


@pytest.fixture(scope="module")
def report(work: Path) -> EvalReport:
    return distilltool.evaluate([work / "a.onnx", work / "b.onnx"], **given(work))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def queries(work: Path) -> list[dict[str, str]]:
    with (work / "x.queries.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(queries: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) if row[name] else math.nan for row in queries])


def test_a_difference_is_paired(rng: np.random.Generator) -> None:
    """Queries differ much, models little: the paired interval is narrow where the models' own are wide."""
    one = rng.uniform(0, 1, 400)
    other = one - 0.05 + rng.normal(0, 0.02, 400)
    other[3] = np.nan
    gap = metrics.difference(other, one)
    both = ~np.isnan(other)
    assert gap.value == pytest.approx((other - one)[both].mean()) and gap.low < gap.value < gap.high < -0.04
    alone_ = metrics.interval(one)
    assert gap.high - gap.low < (alone_.high - alone_.low) / 5
    expected = 2 * 1.96 * (other - one)[both].std() / math.sqrt(both.sum())
    assert gap.high - gap.low == pytest.approx(expected, rel=0.1)


def test_differences_are_of_every_two_models(report: EvalReport) -> None:
    assert [one.at for one in report.differences if one.figure == "map"] == [(1, 0), (2, 0), (2, 1)]
    assert [one.at for one in report.differences if one.figure == "overlap@10"] == [(2, 1)]  # the teacher has none
    for one in report.differences:
        a, b = (report.models[at] for at in one.at)
        assert (one.model, one.other) == (a.name, b.name)
        family = "fidelity" if one.figure == "overlap@10" else "metrics"
        means = [getattr(model, family)[one.figure].value for model in (a, b)]
        assert one.difference.value == pytest.approx(means[0] - means[1], abs=1e-12)


def test_every_querys_figures_are_kept(report: EvalReport, queries: list[dict[str, str]], work: Path) -> None:
    """Their means are the report's; one without a positive has none."""
    assert len(queries) == report.queries == 32
    for model in report.models:
        for name, value in {**model.metrics, **(model.fidelity or {})}.items():
            if name != "spearman":
                assert np.nanmean(column(queries, f"{model.name}: {name}")) == pytest.approx(value.value)
    [single] = [row for row in queries if row["label"] == "single"]
    assert single["path"] == "single/one.png" and single["a: map"] == "" and single["a: overlap@10"] != ""


def test_the_twenty_worst_are_the_worst(report: EvalReport, queries: list[dict[str, str]]) -> None:
    for at, name in ((1, "a"), (2, "b")):
        values = column(queries, f"{name}: map")
        worst = [one for one in report.worst if one.at == at]
        assert [one.value for one in worst] == sorted(values[~np.isnan(values)])[:20]
        for one in worst:
            [row] = [row for row in queries if row["path"].lstrip("'") == one.path]
            assert (one.model, one.label, one.figure) == (name, row["label"], "map")
            assert one.value == float(row[f"{name}: map"]) and one.teacher == float(row["teacher: map"])
            found = one.first.split("/")[0] == one.label
            assert found == (float(row[f"{name}: recall@1"]) == 1) and one.first != one.path


def test_classes_are_the_means_of_their_queries(report: EvalReport, queries: list[dict[str, str]]) -> None:
    assert [one.label for one in report.classes] == [f"class{at}" for at in range(5)]
    assert [one.queries for one in report.classes] == [7, 6, 6, 6, 6]
    for one in report.classes:
        mine = [row for row in queries if row["label"] == one.label]
        for model, value in zip(report.models, one.models, strict=True):
            assert value.value == pytest.approx(column(mine, f"{model.name}: map").mean())


def test_the_verdict_says_what_is_within_chance(report: EvalReport) -> None:
    gap = report.differences[0]
    for low, high, expected in ((-0.05, -0.01, False), (-0.05, 0.01, True), (0.01, 0.03, False)):
        value = Interval(value=(low + high) / 2, low=low, high=high)
        said = verdict(replace(report, differences=(replace(gap, difference=value),)), 1)
        assert ("within chance" in said) == expected and said.startswith("a keeps ")
    assert verdict(report, 1) in report.verdict and verdict(report, 2) in report.verdict
    assert (points(-0.0312), points(0.0312), points(-0.0001)) == ("−3.1", "+3.1", "0.0")


def test_one_student_alone_is_the_report_of_it_alone(report: EvalReport, work: Path) -> None:
    """What a run keeps of an evaluation with others."""
    single = distilltool.evaluate([work / "b.onnx"], **given(work))  # type: ignore[arg-type]
    mine, theirs = to_json(alone(report, 2)), to_json(single)
    for name in ("seconds", "teacher_queries"):
        mine.pop(name), theirs.pop(name)
    assert mine == theirs


def test_csv_and_markdown_hold_the_jsons_figures(work: Path, report: EvalReport) -> None:
    with (work / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == eval_text.COLUMNS
    found = {(row["family"], row["model"], row["other"], row["figure"]): row for row in rows}
    text = (work / "x.md").read_text(encoding="utf-8")
    assert len(found) == len(rows)
    count = 0
    for model in report.models:
        for family in ("metrics", "retention", "fidelity", "asymmetric", "reverse"):
            for name, value in (getattr(model, family) or {}).items():
                row = found[family, model.name, "", name]
                assert [float(row[end]) for end in ("value", "low", "high")] == [value.value, value.low, value.high]
                assert eval_text.shown(value, family) in text
                count += 1
    for gap in report.differences:
        row = found["differences", gap.model, gap.other, gap.figure]
        assert float(row["value"]) == gap.difference.value
        assert f"| {gap.model} − {gap.other} | {titled(gap.figure)} | {gap_of(gap.difference, gap.figure)} |" in text
    assert len(rows) == count + len(report.differences) + 3 * len(report.classes) + len(report.worst)
    assert all(f"| {one.path} |".replace("|.png", "\\|.png") in text for one in report.worst)


def test_names_are_no_formulas_and_no_markup(work: Path, report: EvalReport) -> None:
    """A spreadsheet computes what begins with =, Markdown reads a |."""
    text = (work / "x.queries.csv").read_text(encoding="utf-8")
    assert "class0/=alone|.png" in text
    assert eval_text._cell("=1+1") == "'=1+1" and eval_text._cell("+x\n") == "'+x�" and eval_text._cell("a=1") == "a=1"
    table = [line for line in (work / "x.md").read_text(encoding="utf-8").splitlines() if "alone" in line]
    assert all(line.replace("\\|", "").count("|") == 7 for line in table)


def test_markdown_is_appended_and_the_rest_replaced(work: Path, tmp_path: Path) -> None:
    words = ["eval", str(work / "a.onnx"), "--data", str(work / "labelled"), "--teacher", str(work / "teacher.onnx")]
    words += ["--store", str(work / "e.sqlite"), "--json", *(word for one in PRE for word in ("--preprocess", one))]
    words += ["--csv", str(tmp_path / "new" / "x.csv"), "--markdown", str(tmp_path / "x.md")]
    (tmp_path / "x.md").write_text("before\n")
    results = [CliRunner().invoke(app, words) for _ in range(2)]
    assert [one.exit_code for one in results] == [0, 0], results[0].stderr
    text = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.count("\n| mAP | ") == 2
    found = json.loads(results[1].stdout)
    assert found["verdict"].startswith("a keeps") and len(found["worst"]) == 20
    assert (tmp_path / "new" / "x.csv").read_text().count("\ndifferences,") == len(found["differences"]) == 5


def test_a_file_that_cannot_be_written_is_said_before_the_teacher_is_asked(work: Path, tmp_path: Path) -> None:
    words = {**given(work), "store": tmp_path / "fresh.sqlite"}
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillError, match="cannot be written"):
        distilltool.evaluate(work / "a.onnx", csv=tmp_path / "file" / "x.csv", **words)  # type: ignore[arg-type]
    assert not (tmp_path / "fresh.sqlite").exists()


def test_names_of_files_and_classes_do_not_travel_in_a_bundle(report: EvalReport) -> None:
    """A bundle is given away; what the images are called stays."""
    kept = {**to_json(report), "data": "/home/me/photos"}
    whole = ExportReport(bundle="runs/x/bundle", variants=(), teacher={}, machine={}, evaluations=(kept,))
    [shipped] = _without_paths(whole).evaluations
    assert (shipped["data"], shipped["worst"], shipped["classes"]) == ("photos", [], [])
    assert "photo0" not in json.dumps(shipped) and shipped["differences"] and shipped["verdict"]

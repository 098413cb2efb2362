"""`eval --gate`: what is understood, what holds, and how the command ends."""

import json
from pathlib import Path

import pytest
from builders import class_folders, onnx_teacher, photo_folder
from typer.testing import CliRunner

from distilltool.cli import app
from distilltool.errors import DistillError, Exit
from distilltool.quality_gate import judge, parse
from distilltool.report import Interval, ModelReport

PRE = ["--preprocess", "scale=1/255", "--preprocess", "mean=0.5", "--preprocess", "std=0.5"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gates")
    onnx_teacher(root / "teacher.onnx", seed=0)
    onnx_teacher(root / "other.onnx", seed=5)
    class_folders(root / "labelled", classes=6, each=4)
    photo_folder(root / "plain", 12, endings=("png",))
    return root


def evaluated(work: Path, model: str, data: str, *gates: str) -> tuple[int, list[dict[str, object]], str]:
    words = ["eval", str(work / model), "--data", str(work / data), "--teacher", str(work / "teacher.onnx")]
    words += ["--store", str(work / "e.sqlite"), "--json", *PRE]
    found = CliRunner().invoke(app, [*words, *(word for gate in gates for word in ("--gate", gate))])
    return found.exit_code, json.loads(found.stdout)["gates"] if found.stdout else [], found.stderr


def report(**families: dict[str, Interval]) -> ModelReport:
    nothing: dict[str, dict[str, Interval]] = {"metrics": {}, "retention": {}, "fidelity": {}, "asymmetric": {}}
    return ModelReport(name="s", dim=8, space="own", **{**nothing, **families})


def test_a_student_as_good_as_asked_for_passes(work: Path) -> None:
    code, gates, said = evaluated(work, "teacher.onnx", "labelled", "retention.map>=1", "fidelity.overlap@10 >= 0.999")
    assert code == 0, said
    assert [(one["gate"], one["outcome"]) for one in gates] == [
        ("retention.map>=1", "holds"),
        ("fidelity.overlap@10 >= 0.999", "holds"),
    ]
    assert gates[0]["model"] == "teacher" and gates[0]["value"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_one_gate_that_fails_ends_the_command_with_3(work: Path) -> None:
    code, gates, _ = evaluated(work, "other.onnx", "labelled", "retention.map>0", "fidelity.overlap@10>=0.999")
    assert code == Exit.GATE
    assert [one["outcome"] for one in gates] == ["holds", "fails"]


def test_what_was_not_measured_does_not_hold(work: Path) -> None:
    """A gate on labels that are not there must not pass in silence."""
    code, gates, _ = evaluated(work, "teacher.onnx", "plain", "retention.map>=0.1")
    assert code == Exit.GATE and gates[0]["value"] is None
    assert "no labels" in str(gates[0]["why"])


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("retention.map>=0.9", "holds"),
        ("retention.map>0.9", "fails"),
        ("retention.map<=0.9", "holds"),
        ("retention.map<0.9", "fails"),
        ("retention.map.low>=0.9", "fails"),
        ("retention.map.low>=0.85", "holds"),
        ("retention.map.high<0.94", "holds"),
        ("retention.map@r>=0.5", "fails"),
        ("retention.map-medium.low>=0.5", "holds"),
        ("retention.mp@10-hard<0.5", "holds"),
        ("retention.r-precision>=0.5", "holds"),
        ("retention.map@100-private.low>=0.5", "fails"),
    ],
)
def test_a_figure_or_an_end_of_its_interval_is_compared(text: str, outcome: str) -> None:
    figures = {name: Interval(value=0.6, low=0.5, high=0.7) for name in ("map-medium", "r-precision")}
    figures |= {name: Interval(value=0.4, low=0.3, high=0.5) for name in ("mp@10-hard", "map@100-private")}
    model = report(retention={"map": Interval(value=0.9, low=0.85, high=0.93), **figures})
    assert judge(parse(text), model).outcome == outcome


def test_a_limit_within_the_interval_is_said() -> None:
    model = report(retention={"map": Interval(value=0.9, low=0.85, high=0.93)})
    assert judge(parse("retention.map>=0.9"), model).why == (
        "0.900 (0.850 to 0.930, an interval that the limit lies in)"
    )
    assert judge(parse("retention.map>=0.8"), model).why == "0.900 (0.850 to 0.930)"


@pytest.mark.parametrize(
    "text",
    ["", "map>=0.9", "retention.map=0.9", "retention.map>=", "retention.maps>=1", "kept.map>=1", "retention.map.mid>=1"]
    + ["metrics.recall>=1", "metrics.mp@0-hard>=1", "metrics.map@r@5>=1", "fidelity.spearman-easy>=1"]
    + ["fidelity.map>=0.5", "retention.map>=-1", "p50<1.1x", "retention.map>=0.9 and more"],
)
def test_a_gate_that_is_not_understood_is_wrong_usage(text: str, work: Path) -> None:
    with pytest.raises(DistillError) as raised:
        parse(text)
    assert raised.value.code == Exit.USAGE
    code, _, said = evaluated(work, "teacher.onnx", "missing", text)  # before anything is looked at
    assert code == Exit.USAGE and "--gate" in said

"""Trackers: what TensorBoard, MLflow and Weights & Biases read back is what the run's own log says, whatever stops."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import class_folders, onnx_teacher, photo_folder
from test_bad_input import fails
from test_bought import call

from distilltool import trackers, tracking
from distilltool.rundir import RunDir, write_json
from distilltool.trackers.wandb import how
from distilltool.tracking import TOLD, RunLog, points, read_log

Curves = dict[str, list[tuple[int, float]]]
FLAGS = ["--preprocess", "scale=1/255", "--student", "timm:test_efficientnet", "--input", "32", "--out", "run"]


def quick(epochs: int) -> list[str]:
    """Flags of a short training, ten looks at the held-out images."""
    told = ("schedule.batch=16", "schedule.evaluations=10", "schedule.patience=1000", f"schedule.epochs={epochs}")
    return [*FLAGS, *(word for one in told for word in ("--set", one))]


def of_tensorboard(run: RunDir) -> Curves:
    """What TensorBoard shows of a training."""
    return board(run.trackers / "tensorboard")


def board(folder: Path) -> Curves:
    """What TensorBoard shows of a folder."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason="tensorboard is not installed")
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def of_mlflow(run: RunDir) -> Curves:
    """What the store of MLflow holds."""
    mlflow = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    client = mlflow.MlflowClient(f"sqlite:///{(run.trackers / 'mlflow' / 'mlflow.db').resolve()}")
    known = json.loads((run.trackers / "mlflow" / "run.json").read_text())["run_id"]
    held = client.get_run(known)
    assert held.data.params["recipe.student.spec"] == "timm:test_efficientnet"
    names = held.data.metrics
    return {
        name.replace("_at_", "@"): [(one.step, one.value) for one in client.get_metric_history(known, name)]
        for name in names
    }


def records(data: bytes) -> Iterator[bytes]:
    """What a file of `wandb` holds: a log of LevelDB (its docs/log_format.md) behind a header of seven bytes."""
    block, head, at, held = 32_768, 7, 7, b""
    while at + head <= len(data):
        if block - at % block < head:  # the rest of a block that has no room for another head is empty
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        held += data[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            yield held
            held = b""


def of_wandb(run: RunDir) -> Curves:
    """What `wandb sync` would send."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    curves = defaultdict[str, list[tuple[int, float]]](list)
    for file in sorted(run.trackers.glob("wandb/wandb/offline-run-*/*.wandb")):
        for raw in records(file.read_bytes()):
            record = proto.Record()
            record.ParseFromString(raw)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                curves[name].append((record.history.step.num, json.loads(item.value_json)))
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                if name.startswith("final/"):
                    curves[name] = [(0, json.loads(item.value_json))]
    return {name: curve for name, curve in curves.items() if not name.startswith("_")}


READ: Mapping[str, Callable[[RunDir], Curves]] = {
    "tensorboard": of_tensorboard,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


def logged(run: RunDir) -> Curves:
    """The same of the run's own log."""
    found = defaultdict[str, list[tuple[int, float]]](list)
    for one in read_log(run.log):
        for key, name in tracking.NAMES.items():
            if key in one and "step" in one:
                found[name].append((one["step"], one[key]))
        if "seconds" in one:
            found["train/steps_per_second"].append((one["step"], 1 / one["seconds"]))
    return found


def same(run: RunDir, name: str) -> None:
    """Every point of the log is in the tracker, once and in order, and nothing else but the figures at the end."""
    read, wanted = READ[name](run), logged(run)
    assert {one for one in read if not one.startswith("final/")} == set(wanted)
    for curve, expected in wanted.items():
        assert [step for step, _ in read[curve]] == [step for step, _ in expected], curve
        assert [value for _, value in read[curve]] == pytest.approx([value for _, value in expected], rel=1e-6)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a teacher and images; nobody is logged in anywhere."""
    monkeypatch.chdir(tmp_path)
    for name in [one for one in os.environ if one.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 40)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_curves_of_a_training(name: str, work: Path) -> None:
    """Loss, learning rate, speed and fidelity of each step, and the figures of the report at the end."""
    pytest.importorskip(name)
    report = call("distill", "t.onnx", "imgs", *quick(4), "--log", name, "-q")
    run = RunDir(Path("run"))
    same(run, name)
    read = READ[name](run)
    assert len(read["train/loss"]) == report["steps"] and len(read["held_out/overlap"]) > 3
    [(_, overlap)] = read["final/overlap@10"]
    assert overlap == pytest.approx(report["fidelity"]["overlap@10"]["value"], abs=1e-6)
    assert read["final/parameters"][0][1] == report["student"]["params"]
    before = {file: file.read_bytes() for file in run.trackers.rglob("*") if file.is_file()}
    assert call("distill", "t.onnx", "imgs", *quick(4), "--log", name, "-q") == report
    assert {file: file.read_bytes() for file in run.trackers.rglob("*") if file.is_file()} == before
    words = [sys.executable, "-m", "distilltool", "distill", "t.onnx", "imgs", *quick(2), "--restart", "--log", name]
    subprocess.run(words, check=True, capture_output=True)
    if name != "mlflow":  # which keeps the database that was there before open in this process
        same(run, name)


@pytest.mark.slow
def test_an_evaluation_is_told_once(work: Path) -> None:
    """As a run of its own beside the training, however often it is made; without a run there is nobody to tell of."""
    pytest.importorskip("tensorboard")
    class_folders(work / "labelled", classes=4, each=5)
    call("distill", "t.onnx", "imgs", *quick(1), "-q")
    for _ in range(2):
        found = call("eval", "run", "--data", "labelled", "--log", "tensorboard", "-q")
    [folder] = Path("run/trackers").glob("eval-labelled-folders-*/tensorboard")
    read = board(folder)
    for figure, value in found["models"][1]["retention"].items():
        assert read[f"retention/{figure}"] == [(0, pytest.approx(value["value"], rel=1e-6))]
    line = fails(2, "eval", "t.onnx", "--data", "labelled", "--teacher", "t.onnx", "--log", "tensorboard")
    assert "none of these models is one: name a run" in line


@pytest.mark.slow
@pytest.mark.parametrize("how_it_ends", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", READ)
def test_a_run_that_goes_on_goes_on_with_its_curves(name: str, how_it_ends: signal.Signals, work: Path) -> None:
    """No step is there twice, none is missing; another tracker that is named only then has all of them too."""
    pytest.importorskip(name)
    words = ["t.onnx", "imgs", *quick(60), "--log", name]
    first = subprocess.Popen(
        [sys.executable, "-m", "distilltool", "distill", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = Path("run/log.jsonl")
    while not log.exists() or sum("loss" in one for one in read_log(log)) < 40:
        assert first.poll() is None, first.communicate()
    first.send_signal(how_it_ends)
    assert first.wait(60) in (130, -signal.SIGKILL)
    call("distill", *words, "--log", "tensorboard", "-q")
    run = RunDir(Path("run"))
    steps = [one["step"] for one in read_log(run.log) if "loss" in one]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 40
    same(run, name)
    same(run, "tensorboard")


def entries(first: int, last: int) -> list[dict[str, Any]]:
    """Lines of a training."""
    return [{"step": at, "loss": 1 / at, "lr": 1e-3, "seconds": 0.5} for at in range(first, last + 1)]


class Said:
    """A progress that remembers warnings."""

    def __init__(self) -> None:
        self.warned = list[str]()

    def warn(self, message: str) -> None:
        """Remember it."""
        self.warned.append(message)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has begun."""
    pytest.importorskip("tensorboard")
    write_json(tmp_path / "run" / "plan.json", {"recipe": {"name": "x|y", "dims": [64, 32], "none": None}})
    return RunDir(tmp_path / "run")


@pytest.mark.parametrize("told", [5, 10])
def test_what_was_told_and_not_kept_is_told_once(told: int, run: RunDir) -> None:
    """Killed at step 10 with training kept at 5, before or after it was written down that the tracker knows of 10."""
    first = RunLog(run, ["tensorboard"], Said())
    first.begin(-1)
    for line in entries(1, 10):
        first.write(line)
        if line["step"] in (5, 10):
            first.tell()
    write_json(run.trackers / "tensorboard" / TOLD, {"step": told})
    with RunLog(run, ["tensorboard"], Said()) as second:
        second.begin(5)
        assert [one["step"] for one in read_log(run.log)] == [1, 2, 3, 4, 5]
        for line in entries(6, 12):
            second.write(line)
        second.finish({"final/x": 0.25})
    same(run, "tensorboard")
    assert of_tensorboard(run)["final/x"] == [(0, 0.25)]


def test_a_tracker_that_fails_is_said_once_and_costs_nothing(run: RunDir) -> None:
    """A file stands where its folder would, or what it must write cannot be written."""
    run.trackers.write_text("")
    said = Said()
    with RunLog(run, ["tensorboard"], said) as log:
        log.begin(-1)
        for line in entries(1, 3):
            log.write(line)
        log.finish({})
    assert len(said.warned) == 1 and said.warned[0].startswith("--log tensorboard failed and is left out")
    run.trackers.unlink()
    with RunLog(run, ["tensorboard"], said) as log:
        log.begin(3)
        (run.trackers / "tensorboard" / TOLD).unlink()
        (run.trackers / "tensorboard" / TOLD / "in the way").mkdir(parents=True)
        for line in entries(4, 6):
            log.write(line)
            log.tell()
        log.finish({})
    assert len(said.warned) == 2 and "cannot be written" in said.warned[1]
    assert [one["step"] for one in read_log(run.log)] == [1, 2, 3, 4, 5, 6]


def test_the_settings_are_flat_and_shown(run: RunDir) -> None:
    with RunLog(run, ["tensorboard"], Said()) as log:
        log.begin(-1)
    assert tracking.settings(run) == {"recipe.name": "x|y", "recipe.dims.0": 64, "recipe.dims.1": 32}
    [file] = (run.trackers / "tensorboard").glob("events*")
    assert b"x\\|y" in file.read_bytes()


def test_a_line_that_a_killed_process_left_half_is_none(run: RunDir) -> None:
    lines = [json.dumps(one) for one in (*entries(1, 2), {"start_share": 0.5, "overlap": 0.3})]
    run.log.write_text("\n".join([*lines, '{"step": 3, "lo']))
    assert [one.get("step") for one in read_log(run.log)] == [1, 2, None]
    assert [(one.step, one.figures["train/steps_per_second"]) for one in points(read_log(run.log))] == [(1, 2), (2, 2)]


def test_what_is_missing_or_unknown_is_said_first(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before the teacher is asked."""
    line = fails(1, "distill", "t.onnx", "imgs", *quick(1), "--log", "paper")
    assert "there is no tracker 'paper': use one of mlflow, tensorboard, wandb" in line
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    line = fails(1, "distill", "t.onnx", "imgs", *quick(1), "--log", "mlflow")
    assert "--log mlflow needs mlflow: pip install 'distilltool[mlflow]'" in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "netrc", "expected"),
    [
        ({}, None, "offline"),
        ({}, "machine elsewhere.org login user password x", "offline"),
        ({}, "machine api.wandb.ai login user password x", None),
        ({}, "not a netrc", "offline"),
        ({"WANDB_BASE_URL": "http://ours:8080"}, "machine ours login user password x", None),
        ({"WANDB_MODE": "online"}, None, None),
        ({"WANDB_API_KEY": "x"}, None, None),
    ],
)
def test_nothing_calls_home_by_itself(
    words: dict[str, str], netrc: str | None, expected: str | None, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases is offline unless somebody is logged in or says otherwise."""
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (work / "netrc").write_text(netrc)
        (work / "netrc").chmod(0o600)
    assert how() == expected

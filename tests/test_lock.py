"""Two processes that would make the same run: the second is refused, and what a killed one held is free."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import onnx_teacher, photo_folder

import distilltool
from distilltool.errors import DistillError
from distilltool.rundir import LOCK, RunDir, write_json

HOLD = """
import sys, time
from pathlib import Path
from distilltool.rundir import RunDir
with RunDir(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""
PRE = ["--preprocess", "scale=1/255"]
WORDS = ["--student", "timm:test_efficientnet", "--input", "32", "--set", "schedule.epochs=2000", "--out", "run", *PRE]


@contextmanager
def holding(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that makes the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_run_that_is_being_made_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """The command ends at once, the ledger is not made; a killed process blocks nobody."""
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 4)
    run = RunDir(tmp_path / "run")
    words = {"out": run.root, "store": tmp_path / "l.sqlite", "preprocess": ["scale=1/255"]}
    with holding(run.root) as other:
        with pytest.raises(DistillError, match="another process is making the run .*run: wait for it"):
            distilltool.distill(tmp_path / "t.onnx", tmp_path / "imgs", student="timm:test_vit", **words)
        assert not (tmp_path / "l.sqlite").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
        with run.held():
            assert not run.begin({"seed": 1}, restart=False)
    with run.held():
        run.check({"seed": 1})


def test_what_nothing_came_of_leaves_nothing(tmp_path: Path) -> None:
    """A command that failed early can be given again with anything else."""
    run = RunDir(tmp_path / "deep" / "run")
    with pytest.raises(ZeroDivisionError), run.held():
        _ = 1 // 0
    assert not run.root.exists()
    with run.held():
        run.check({})
        write_json(run.plan, {})
    assert {one.name for one in run.root.iterdir()} == {LOCK, "plan.json"}


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DistillError, match="is a file: choose another folder"), RunDir(tmp_path / "run").held():
        pass


@pytest.mark.slow
def test_two_commands_on_one_run(tmp_path: Path) -> None:
    """The first is killed in training; the same command goes on from there."""
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 40)
    command = [sys.executable, "-m", "distilltool", "distill", "t.onnx", "imgs", *WORDS]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        checkpoint = tmp_path / "run" / "checkpoint.safetensors"
        while not checkpoint.exists():
            assert first.poll() is None, first.communicate()
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 1 and "Traceback" not in second.stderr
        assert "another process is making the run run" in second.stderr
    finally:
        first.kill()
        first.wait()
    third = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert third.stderr is not None
    said = []
    for line in third.stderr:
        said.append(line)
        if "going on from step" in line:
            break
    third.send_signal(signal.SIGINT)
    assert third.wait(60) == 130 and "going on from step" in said[-1], said

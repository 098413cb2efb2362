"""What people hand to the tool that is wrong: one line that says what and how to mend it, and no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import onnx_teacher, photo_folder
from typer.testing import CliRunner

from distilltool.cli import app
from distilltool.ledger import Ledger
from distilltool.onnx_file import read_file

PRE = ["--preprocess", "scale=1/255", "--preprocess", "mean=0.5", "--preprocess", "std=0.5"]
QUICK = [*PRE, "--student", "timm:test_efficientnet", "--input", "32", "--set", "schedule.epochs=1"]


def fails(code: int, *words: object) -> str:
    """Run a command that must end with this code and one line of error; returns that line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.exit_code == code, result.stderr
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert errors[0].count(":") >= 2, "no word on how to mend it"
    return errors[0]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good teacher and 12 good images, which is the working folder too."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "teacher.onnx")
    photo_folder(tmp_path / "imgs", 12)
    return tmp_path


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4cac\nsize 12345\n")


def text_file(path: Path) -> None:
    path.write_text("this is a text file that somebody renamed\n")


def weights_gone(path: Path) -> None:
    onnx_teacher(path, external=True)
    Path(f"{path}.data").unlink()


def empty_file(path: Path) -> None:
    path.touch()


def torn_model(path: Path) -> None:
    onnx_teacher(path)
    path.write_bytes(path.read_bytes()[:300])


def unknown_operator(path: Path) -> None:
    onnx_teacher(path)
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lfs_pointer, "git lfs pull"),
        (text_file, "is no ONNX model"),
        (empty_file, "is no ONNX model"),
        (torn_model, "is no ONNX model"),
        (weights_gone, "which is not there"),
        (unknown_operator, "onnxruntime cannot run"),
    ],
)
@pytest.mark.parametrize("command", ["query", "distill"])
def test_teachers_that_are_none(make: Callable[[Path], None], said: str, command: str, good: Path) -> None:
    make(good / "broken.onnx")
    line = fails(1, command, good / "broken.onnx", good / "imgs", *PRE, "--store", good / "l.sqlite")
    assert said in line


def test_no_such_teacher(good: Path) -> None:
    assert "there is no file" in fails(1, "query", good / "missing.onnx", good / "imgs")
    assert "is a folder" in fails(1, "query", good / "imgs", good / "imgs")


def test_no_such_folder_and_an_empty_one(good: Path) -> None:
    (good / "empty").mkdir()
    assert "there is no folder" in fails(1, "query", good / "teacher.onnx", good / "nowhere", *PRE)
    assert "there is no image" in fails(1, "query", good / "teacher.onnx", good / "empty", *PRE)


def test_preprocessing_that_nobody_wrote_down_shows_the_choices(good: Path) -> None:
    line = fails(1, "query", good / "teacher.onnx", good / "imgs", "--store", good / "l.sqlite")
    for choice in ("imagenet", "clip", "tf", "caffe", "scale=1/255"):
        assert choice in line
    assert "guessing takes" in line and "there are 12 here" in line
    with Ledger.open(good / "l.sqlite") as ledger:
        assert ledger.spent(read_file(good / "teacher.onnx").sha256) == 0, "a guess that cannot be costs nothing"


@pytest.mark.parametrize("flag", ["nonsense", "size=12x", "mean=a,b", "colour=red", "resize=melt", "size=64"])
def test_preprocess_flags_that_cannot_be(flag: str, good: Path) -> None:
    fails(1, "query", good / "teacher.onnx", good / "imgs", *PRE, "--preprocess", flag, "--store", good / "l.sqlite")


def test_torn_image_among_good_ones_is_skipped_and_listed(good: Path) -> None:
    whole = sorted((good / "imgs").glob("*.jpg"))[0]
    (good / "imgs" / "torn.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (good / "imgs" / "text.png").write_text("no image")
    (good / "imgs" / "nothing.jpg").touch()
    words = ["query", str(good / "teacher.onnx"), str(good / "imgs"), *PRE, "--store", str(good / "l.sqlite"), "--json"]
    result = CliRunner().invoke(app, words)
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (report["images"], report["queried"]) == (12, 12)
    reasons = {Path(one["path"]).name: one["reason"] for one in report["skipped"]}
    assert set(reasons) == {"torn.jpg", "text.png", "nothing.jpg"}
    assert "truncated" in reasons["torn.jpg"].lower() and "no image" in reasons["text.png"]


def test_a_folder_of_only_torn_images(good: Path) -> None:
    (good / "bad").mkdir()
    (good / "bad" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    result = CliRunner().invoke(
        app, ["query", str(good / "teacher.onnx"), str(good / "bad"), *PRE, "--store", str(good / "l.sqlite"), "--json"]
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["queried"] == 0
    line = fails(1, "distill", good / "teacher.onnx", good / "bad", *QUICK, "--store", good / "l.sqlite")
    assert "a student needs" in line


def test_budget_smaller_than_the_images_is_kept_and_said(good: Path) -> None:
    store = good / "l.sqlite"
    words = ["query", str(good / "teacher.onnx"), str(good / "imgs"), *PRE, "--store", str(store), "--budget", "5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "5 of a budget of 5" in result.stderr and "raise --budget" in result.stderr
    line = fails(1, "distill", good / "teacher.onnx", good / "imgs", *QUICK, "--store", store, "--budget", "5")
    assert "answered about 5 images" in line and "--budget" in line


def test_a_run_folder_from_another_teacher_is_not_touched(good: Path) -> None:
    photo_folder(good / "more", 40)
    onnx_teacher(good / "other.onnx", seed=5)
    common = [*QUICK, "--store", good / "l.sqlite", "--out", good / "run"]
    first = CliRunner().invoke(
        app, [str(word) for word in ("distill", good / "teacher.onnx", good / "more", *common, "-q")]
    )
    assert first.exit_code == 0, first.stderr
    before = (good / "run" / "run.json").read_bytes()
    line = fails(1, "distill", good / "other.onnx", good / "more", *common)
    assert "another" in line and "teacher" in line and "--out" in line and "--restart" in line
    assert (good / "run" / "run.json").read_bytes() == before
    line = fails(
        1, "eval", good / "run", "--data", good / "more", "--teacher", good / "other.onnx", "--store", good / "e.sqlite"
    )
    assert "another teacher" in line


def test_folders_that_are_no_run(good: Path) -> None:
    assert "no run" in fails(1, "export", good / "imgs")
    assert "no run" in fails(1, "eval", good / "imgs", "--data", good / "imgs")
    line = fails(
        1, "distill", good / "teacher.onnx", good / "imgs", *QUICK, "--out", good / "imgs", "--store", good / "l.sqlite"
    )
    assert "imgs" in line


def test_an_unfinished_run_is_said_to_be_one(good: Path) -> None:
    (good / "half").mkdir()
    (good / "half" / "plan.json").write_text("{}")
    assert "not finished" in fails(1, "export", good / "half")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "nothing"], "there is no recipe"),
        (["--set", "optimiser.lr=fast"], "must be a float"),
        (["--set", "student.color=3"], "unknown"),
        (["--student", "timm:resnet1"], "did you mean"),
        (["--student", "resnet18"], "not KIND:NAME"),
        (["--student", "magic:resnet18"], "no kind of student"),
        (["--weights", "missing.safetensors"], "there is no file"),
        (["--recipe", "regression", "--dim", "8"], "exclude each other"),
        (["--recipe", "regression", "--set", "space=own"], "space"),
        (["--set", "loss.sne.temperature=2"], "no option temperature"),
        (["--select", "best"], "there is no selection"),
        (["--output", "nope"], "no tensor"),
        (["--pool", "median"], "no pooling"),
    ],
)
def test_wrong_choices_cost_no_query(words: list[str], said: str, good: Path) -> None:
    store = good / "l.sqlite"
    line = fails(1, "distill", good / "teacher.onnx", good / "imgs", *QUICK, *words, "--store", store)
    assert said in line
    assert not store.exists(), "it was known to be wrong before anything was asked"


def test_time_budget_that_is_no_time(good: Path) -> None:
    fails(2, "distill", good / "teacher.onnx", good / "imgs", "--time-budget", "soon")


def test_weights_that_do_not_fit(good: Path) -> None:
    from safetensors.numpy import save_file

    photo_folder(good / "more", 40)
    save_file({"x": np.zeros(3, np.float32)}, good / "w.safetensors")
    (good / "p.safetensors").write_bytes(b"\x80\x04 a pickle")
    for file, said in (("w.safetensors", "does not fit"), ("p.safetensors", "pickles are not read")):
        line = fails(
            1,
            "distill",
            good / "teacher.onnx",
            good / "more",
            *QUICK,
            "--weights",
            good / file,
            "--store",
            good / "l.sqlite",
            "--out",
            good / "run",
            "--restart",
        )
        assert said in line


def test_a_ledger_that_is_none_and_a_folder_that_cannot_be_written(good: Path) -> None:
    (good / "text.sqlite").write_text("no ledger" * 100)
    assert "ledger" in fails(1, "query", good / "teacher.onnx", good / "imgs", *PRE, "--store", good / "text.sqlite")
    assert "ledger" in fails(1, "query", good / "teacher.onnx", good / "imgs", *PRE, "--store", "/proc/x/l.sqlite")


def test_eval_on_data_that_cannot_be(good: Path) -> None:
    (good / "bad.csv").write_text("file,class\na,b\n")
    store = ["--store", good / "e.sqlite"]
    base = ["eval", good / "teacher.onnx", "--teacher", good / "teacher.onnx", *PRE, *store]
    assert "column" in fails(1, *base, "--data", good / "bad.csv")
    (good / "gone.csv").write_text("path,label\nnot-there.jpg,a\n")
    assert "no image" in fails(1, *base, "--data", good / "gone.csv")
    assert "there is no folder" in fails(1, *base, "--data", good / "nowhere")
    assert "there is no teacher" in fails(1, "eval", good / "teacher.onnx", "--data", good / "imgs", *store)
    assert "no protocol" in fails(1, *base, "--data", good / "imgs", "--protocol", "guess")


def test_file_names_cannot_command_the_terminal(good: Path) -> None:
    evil = good / "imgs" / "\x1b[31m[red]evil\x07.jpg"
    evil.write_text("no image")
    words = ["query", str(good / "teacher.onnx"), str(good / "imgs"), *PRE, "--store", str(good / "l.sqlite")]
    result = CliRunner().invoke(app, words)
    assert "\x1b[31m" not in result.stderr and "\x07" not in result.stderr
    assert "[red]evil" in result.stderr.replace("\n", "")


def test_disk_is_looked_at_before_images_are_decoded(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only stand-in: a disk that says it is nearly full."""
    photo_folder(good / "more", 40)
    full = shutil.disk_usage(good)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    line = fails(
        1, "distill", good / "teacher.onnx", good / "more", *QUICK, "--store", good / "l.sqlite", "--out", good / "run"
    )
    assert "disk" in line and ("full" in line or "free" in line)

"""Files of vectors as models of `eval`: figures are those of the model that made them, alone and among other kinds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import class_folders, onnx_teacher
from numpy.typing import NDArray
from test_bad_input import fails
from test_bought import WAYS, as_npz, call, of_hashes

import distilltool
from distilltool import images
from distilltool.embedder import Embedder
from distilltool.progress import Silent
from distilltool.report import ModelReport
from distilltool.stages.evaluate import embedded
from distilltool.teacher import TeacherOptions, open_teacher

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
FLAGS = [word for one in PRE for word in ("--preprocess", one)]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a teacher, a student, labelled images."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "teacher.onnx")
    onnx_teacher(tmp_path / "student.onnx", dim=12, seed=5)
    class_folders(tmp_path / "labelled", classes=4, each=5)
    return tmp_path


def labelled(work: Path) -> list[Path]:
    return images.find(work / "labelled")


def opened(path: Path) -> Embedder:
    return open_teacher(path, TeacherOptions(preprocess=tuple(PRE)))


def vectors_of(path: Path, photos: list[Path]) -> NDArray[np.float32]:
    """What an ONNX file makes of images, as `eval` has it."""
    return np.concatenate([*embedded(opened(path), photos, Silent())])


def figures(report: ModelReport) -> dict[str, Any]:
    """Everything of a model but its name and its space."""
    return {"dim": report.dim, "metrics": report.metrics, "fidelity": report.fidelity, "kept": report.retention}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["path", "sha256"])
def test_vectors_have_the_figures_of_the_model_that_made_them(way: str, key: str, work: Path) -> None:
    """In every format, by path and by hash; rows of other images and their order mean nothing."""
    name, write = WAYS[way]
    photos = labelled(work)[::-1]
    names = of_hashes(photos) if key == "sha256" else [path.relative_to(work).as_posix() for path in photos]
    strange = ["00" * 32 if key == "sha256" else "labelled/gone.png"]
    rows = np.concatenate([vectors_of(work / "student.onnx", photos), np.ones((1, 12), np.float32)])
    write(work / name, names + strange, rows, key)
    report = distilltool.evaluate(["student.onnx", name], "labelled", teacher="teacher.onnx", preprocess=PRE)
    _, model, file = report.models
    assert figures(model) == figures(file)
    assert file.name == "v" and file.space not in (model.space, report.models[0].space) and file.asymmetric is None


def test_files_of_vectors_alone(work: Path) -> None:
    """Teacher and models are files; one claims the teacher's space and has figures across."""
    photos = labelled(work)
    theirs, ours = (vectors_of(work / f"{name}.onnx", photos) for name in ("teacher", "student"))
    as_npz(work / "teacher.npz", of_hashes(photos), theirs, "sha256")
    pairs = {"sha256": np.array(of_hashes(photos)), "vectors": theirs + 0.1}
    np.savez(work / "near.npz", space_id=np.array(opened(work / "teacher.onnx").space_id), **pairs)
    pq.write_table(pa.table({"sha256": of_hashes(photos), "vector": list(ours)}), "far.parquet")
    for name in ("teacher.onnx", "student.onnx"):
        (work / name).unlink()
    found = call("eval", "near.npz", "far.parquet", "teacher.npz", "--data", "labelled", "--teacher", "teacher.npz")
    teacher, near, far, same = found["models"]
    assert [one["name"] for one in found["models"]] == ["teacher", "near", "far", "teacher"]
    assert near["asymmetric"] is far["asymmetric"] is None, "that is the model's space, not this file's"
    assert same["metrics"] == teacher["metrics"] and same["fidelity"]["overlap@10"]["value"] == 1
    assert same["asymmetric"]["map"] == teacher["metrics"]["map"]
    pairs["vectors"] = theirs
    np.savez(work / "teacher.npz", space_id=np.array(near["space"]), **pairs)
    found = call("eval", "near.npz", "far.parquet", "--data", "labelled", "--teacher", "teacher.npz")
    assert found["models"][1]["asymmetric"]["map"]["value"] > 0 and found["models"][2]["asymmetric"] is None


@pytest.mark.parametrize("ending", ["parquet", "npz", "csv"])
def test_exported_answers_keep_their_space(ending: str, work: Path) -> None:
    """What `ledger export` writes of a teacher is in its space."""
    before = call("eval", "student.onnx", "--data", "labelled", "--teacher", "teacher.onnx", *FLAGS)
    call("ledger", "export", f"v.{ending}", "--store", "runs/evaluation.sqlite")
    found = call("eval", f"v.{ending}", "student.onnx", "--data", "labelled", "--teacher", f"v.{ending}", *FLAGS)
    for place, was in ((0, 0), (1, 0), (2, 1)):
        assert found["models"][place]["metrics"] == before["models"][was]["metrics"]
        assert found["models"][place]["space"] == before["models"][was]["space"]


def test_images_without_a_vector_are_one_line(work: Path) -> None:
    photos = labelled(work)
    as_npz(work / "v.npz", of_hashes(photos[3:]), vectors_of(work / "student.onnx", photos[3:]), "sha256")
    line = fails(1, "eval", "v.npz", "--data", "labelled", "--teacher", "teacher.onnx", *FLAGS)
    assert "v.npz has no vector for 3 of 20 images, the first is labelled/class0/photo0000.png" in line
    other = ["no.png"]
    as_npz(work / "v.npz", other, np.ones((1, 4), np.float32), "path")
    line = fails(1, "eval", "v.npz", "--data", "labelled", "--teacher", "teacher.onnx", *FLAGS)
    assert "none of its 1 row is one of these images" in line and "write paths as seen from labelled" in line


def test_rows_of_two_spaces_are_refused(work: Path) -> None:
    with (work / "v.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "space_id", "vector"])
        writer.writerows([f"labelled/{at}.png", space, "[1, 2]"] for at, space in enumerate("abab"))
    line = fails(1, "eval", "v.csv", "--data", "labelled", "--teacher", "teacher.onnx", *FLAGS)
    assert "its rows are of 2 spaces, a and b" in line


BUNDLE_FAULTS = {
    "alone": (None, "No such file"),
    "no list": ("[]", "with v.json"),
    "torn": ("{", "with v.json"),
    "unnamed": ('{"space_id": "x"}', "with v.json"),
    "short": ('{"files": ["a.png"]}', "v.json lists 1 images for 2×3 float32"),
}


@pytest.mark.parametrize("fault", BUNDLE_FAULTS)
def test_a_bundles_vectors_without_their_list(fault: str, work: Path) -> None:
    text, said = BUNDLE_FAULTS[fault]
    np.save(work / "v.npy", np.ones((2, 3), np.float32))
    if text is not None:
        (work / "v.json").write_text(text)
    line = fails(1, "eval", "v.npy", "--data", "labelled", "--teacher", "teacher.onnx", *FLAGS)
    assert "cannot be read as vectors" in line and said in line


@pytest.mark.slow
def test_runs_files_and_vectors_in_one_command(work: Path) -> None:
    """A run, the file and the vectors of its bundle, and what somebody else computed: one report, one page."""
    class_folders(work / "imgs", classes=6, each=8, seed=3)
    quick = ["--set", "schedule.epochs=2", "--set", "schedule.batch=16", "--set", "schedule.evaluations=2"]
    student = ["--student", "timm:test_efficientnet", "--input", "32", "--space", "teacher", "--recipe", "regression"]
    call("distill", "teacher.onnx", "imgs", *FLAGS, *student, *quick, "--out", "run")
    call("export", "run", "--seconds", "1", "--precision", "fp32", "--vectors", "labelled")
    photos = labelled(work)
    as_npz(work / "other.npz", of_hashes(photos), vectors_of(work / "student.onnx", photos), "sha256")
    models = ["run", "run/bundle/student.onnx", "run/bundle/vectors.npy", "other.npz"]
    words = ["--html", "r.html", "--csv", "r.csv", "--markdown", "r.md"]
    found = call("eval", *models, "--data", "labelled", *words)
    teacher, run, file, vectors, other = found["models"]
    assert run["space"] == file["space"] == vectors["space"] == teacher["space"] != other["space"]
    for figure in ("map", "recall@1"):
        expected = file["metrics"][figure]["value"]
        assert vectors["metrics"][figure]["value"] == pytest.approx(expected, abs=1e-6)
        assert run["metrics"][figure]["value"] == pytest.approx(expected, abs=0.05)
        across = file["asymmetric"][figure]["value"]
        assert vectors["asymmetric"][figure]["value"] == pytest.approx(across, abs=1e-6)
    assert other["asymmetric"] is None and other["dim"] == 12
    page = Path("r.html").read_text()
    assert "taken from the file as they are" in page
    call("eval", "run", "--data", "labelled", "--protocol", "unlabelled")
    kept = [json.loads(one.read_text())["protocol"] for one in sorted(Path("run/evaluations").glob("*.json"))]
    assert kept == ["folders", "unlabelled"]
    call("ledger", "export", "judge.parquet", "--store", "runs/evaluation.sqlite")
    (work / "teacher.onnx").unlink()
    again = call("eval", "run", "other.npz", "--data", "labelled", "--teacher", "judge.parquet")
    assert again["models"][1]["asymmetric"] == run["asymmetric"], (
        "exported answers stand in for the file that gave them"
    )

"""Vectors that are of use when cut: trained, measured, stamped on the file."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import class_folders, onnx_teacher, photo_folder
from test_chain import SMALL_FLAGS, run
from torch.nn import functional as F

import distilltool
from distilltool import images, metrics
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.metrics import Task
from distilltool.recipe import load
from distilltool.student import cut
from distilltool.teacher import TeacherOptions, open_teacher

FLAGS = [*SMALL_FLAGS, "--store", "ledger.sqlite"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, photographs, labelled ones."""
    root = tmp_path_factory.mktemp("nested")
    onnx_teacher(root / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(root / "imgs", 64)
    class_folders(root / "labelled", classes=5, each=6)
    return root


def test_lengths_are_put_in_order() -> None:
    student = load("best", ["student.dims=[8, 32, 8, 16]"]).student
    assert student.dims == (32, 16, 8) and student.dim == 32
    assert load("best").student.dims == ()
    for wrong in (["student.dims=[1, 8]"], ["student.dims=[8, 16]", "student.dim=8"], ["student.dims=['a']"]):
        with pytest.raises(DistillError, match="has faults"):
            load("best", wrong)


def test_a_cut_vector_has_length_one() -> None:
    vectors = F.normalize(torch.randn(5, 12), dim=1)
    short = cut(vectors, 4)
    assert torch.allclose(short.norm(dim=1), torch.ones(5)) and cut(vectors, 12) is vectors
    assert torch.allclose(short, vectors[:, :4] / vectors[:, :4].norm(dim=1, keepdim=True))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["best", "drd"])
def test_every_length_is_trained_measured_and_told(work: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.chdir(work)
    more = ["--set", "mix.partners=bank"] if recipe == "drd" else []
    words = ["distill", "teacher.onnx", "imgs", *FLAGS, *more, "--recipe", recipe, "--dims", "8,24,16", "--out", recipe]
    code, out, err = run(work, *words, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["student"]["dim"] == 24 and list(report["nested"]) == ["24", "16", "8"]
    assert report["nested"]["24"] == report["fidelity"]
    assert "first 8" in run(work, *words)[2]  # finished: its report again
    code, out, err = run(work, "eval", recipe, "--data", "labelled", "--json")
    assert code == 0, err
    model = json.loads(out)["models"][1]
    assert list(model["nested"]) == ["16", "8"] and model["nested"]["8"]["dim"] == 8
    assert model["nested"]["8"]["fidelity"]["overlap@10"] != model["fidelity"]["overlap@10"]
    assert "mAP kept, first 8" in run(work, "eval", recipe, "--data", "labelled")[2]
    code, _, err = run(work, "export", recipe, "--seconds", "1")
    assert code == 0, err
    file = work / recipe / "bundle" / "student.onnx"
    said = {one.key: one.value for one in onnx.load(file).metadata_props}
    assert said["distilltool.dims"] == "24,16,8"
    assert "| nested | cut to the first numbers" in (work / recipe / "bundle" / "card.md").read_text()
    code, out, err = run(
        work, "eval", str(file), "--teacher", "teacher.onnx", *FLAGS[:6], "--data", "labelled", "--json"
    )
    assert code == 0, err
    again = json.loads(out)["models"][1]["nested"]["8"]["fidelity"]["overlap@10"]["value"]
    assert again == pytest.approx(model["nested"]["8"]["fidelity"]["overlap@10"]["value"], abs=0.02)


@pytest.mark.slow
def test_the_lengths_are_those_of_the_vectors_themselves(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported for a length is what cutting the finished student's vectors gives."""
    monkeypatch.chdir(work)
    words = ["distill", "teacher.onnx", "imgs", *FLAGS, "--dims", "24,4", "--out", "cuts", "--json"]
    report = json.loads(run(work, *words)[1])
    student = distilltool.load_student("cuts")
    held = [Path(path) for path in json.loads(Path("cuts/run.json").read_text())["held_out"]]
    rows, _ = images.load(held, student.preprocess)
    vectors = unit(student.embed(rows)[:, :4])
    teacher = open_teacher(Path("teacher.onnx"), TeacherOptions(preprocess=("scale=1/255", "mean=0.5", "std=0.5")))
    asked, _ = images.load(held, teacher.preprocess)
    every = np.arange(len(held), dtype=np.int64)
    task = Task(query=every, gallery=every, labels=None)
    found = metrics.overlap(task, unit(teacher.embed(asked)), vectors, report["k"]).mean()
    assert found == pytest.approx(report["nested"]["4"]["overlap@10"]["value"], abs=1e-6)


def test_lengths_that_cannot_be_are_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    for words, said in (
        (["--dims", "8,x"], "is no list of whole numbers"),
        (["--dims", "8,16", "--dim", "4"], "leave one away"),
        (["--dims", "8,16", "--space", "teacher"], "--dims"),
        (["--dims", "100000,16"], "is more than"),
    ):
        code, _, err = run(work, "distill", "teacher.onnx", "imgs", *FLAGS, *words, "--out", "wrong")
        assert code in (1, 2) and said in " ".join(err.split()), err
    assert not (work / "wrong").exists()

"""The whole chain with students made of a graph: distil, load, evaluate, export, go on where it stopped."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import class_folders, onnx_teacher, photo_folder
from test_chain import PRE, PRE_FLAGS, interrupted, stepped
from test_imported import fixed_teacher

import distilltool
from distilltool import images
from distilltool.errors import DistillError
from distilltool.report import to_json
from distilltool.rundir import read_json
from distilltool.teacher import open_teacher
from distilltool.weights import read_weights

pytestmark = pytest.mark.slow
QUICK = ["schedule.epochs=2", "schedule.batch=16", "schedule.evaluations=2"]
SPECS = ("teacher", "teacher:cut=hidden", "teacher:width=0.5")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, another file, 48 photographs and labelled ones."""
    root = tmp_path_factory.mktemp("graph")
    onnx_teacher(root / "teacher.onnx", size=None, dim=24)
    onnx_teacher(root / "other.onnx", size=None, dim=20, seed=4, layout="NHWC")
    fixed_teacher(root / "fixed.onnx")
    photo_folder(root / "imgs", 48)
    class_folders(root / "labelled", classes=3, each=5)
    return root


def distilled(work: Path, out: Path, spec: str, teacher: str = "teacher.onnx", **more: Any) -> Any:
    """A short run."""
    flags = [*PRE, "size=32"] if teacher == "teacher.onnx" else PRE
    return distilltool.distill(
        work / teacher,
        work / "imgs",
        out=out,
        student=spec,
        preprocess=flags,
        store=work / "ledger.sqlite",
        **{"changes": QUICK, **more},
    )


@pytest.mark.parametrize(
    "spec", [*SPECS, "onnx:{}/other.onnx,preprocess=tf", "onnx:{}/other.onnx,width=0.5,preprocess=tf"]
)
def test_the_chain(work: Path, tmp_path: Path, spec: str) -> None:
    """And without the files it was made of: only what needs them fails, and the exported file agrees."""
    own = tmp_path / "own"
    shutil.copytree(work, own)
    report = distilled(own, tmp_path / "run", spec.format(own), input_size=16)
    assert report.student.start.startswith("the weights of ") and report.student.input == (16, 16)
    assert report.fidelity.overlap_at_10.value >= report.undistilled.overlap_at_10.value
    before = distilltool.load_student(tmp_path / "run")
    found = distilltool.evaluate([tmp_path / "run"], own / "labelled", store=own / "e.sqlite")
    moved = own / "moved.onnx"
    shutil.move(own / "teacher.onnx", moved)
    (own / "other.onnx").unlink()
    student = distilltool.load_student(tmp_path / "run")
    pixels, _ = images.load(sorted((own / "imgs").iterdir())[:5], student.preprocess)
    vectors = student.embed(pixels)
    np.testing.assert_array_equal(vectors, before.embed(pixels))
    again = distilltool.evaluate([tmp_path / "run"], own / "labelled", teacher=moved, store=own / "e.sqlite")
    assert to_json(again.models[1]) == to_json(found.models[1])
    exported = distilltool.export(tmp_path / "run", seconds=0.2)
    assert exported.variants[0].status == "accepted" and exported.variants[0].parity["cosine_min"] > 0.9999
    bundle = open_teacher(tmp_path / "run/bundle/student.onnx")
    np.testing.assert_allclose(bundle.embed(pixels), vectors, atol=1e-5)
    with pytest.raises(DistillError, match="there is no file"):
        distilled(own, tmp_path / "another", spec.format(own))


def test_undistilled_it_is_the_teacher(work: Path, tmp_path: Path) -> None:
    """At the teacher's own size nothing has to be learnt."""
    report = distilled(work, tmp_path / "run", "teacher", input_size=32)
    assert report.undistilled.overlap_at_10.value == pytest.approx(1)


def test_a_graph_of_one_size_is_used_at_it_where_none_is_said(work: Path, tmp_path: Path) -> None:
    """Another file's own size too; what is said and cannot be is an error."""
    assert distilled(work, tmp_path / "one", "teacher", "fixed.onnx").student.input == (32, 32)
    large = distilltool.distill(
        work / "teacher.onnx",
        work / "imgs",
        out=tmp_path / "two",
        student=f"onnx:{work / 'fixed.onnx'},preprocess=tf",
        preprocess=[*PRE, "size=48"],
        store=work / "ledger.sqlite",
        changes=QUICK,
    )
    assert large.student.input == (32, 32)
    for change in ({"input_size": 16}, {"changes": ["student.input=16"]}):
        with pytest.raises(DistillError, match="only works on images of 32×32"):
            distilltool.distill(
                work / "fixed.onnx",
                work / "imgs",
                out=tmp_path / "three",
                student="teacher",
                preprocess=PRE,
                store=work / "ledger.sqlite",
                **change,
            )


@pytest.mark.parametrize("spec", ["teacher", "teacher:width=0.5"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(work: Path, tmp_path: Path, spec: str) -> None:
    """Bit for bit, and the finished run is found finished."""
    words = [
        "distilltool", "distill", str(work / "teacher.onnx"), str(work / "imgs"), "--student", spec, "--input", "16",
        *PRE_FLAGS, "--preprocess", "size=32", "--store", str(work / "ledger.sqlite"),
        *[word for one in QUICK for word in ("--set", one)], "--out",
    ]  # fmt: skip
    distilled(work, tmp_path / "straight", spec, input_size=16)
    first = interrupted([*words, str(tmp_path / "stopped")], "distilltool.train", "_Trainer", "_step", call=3)
    assert first.returncode == 130, first.stderr
    assert not (tmp_path / "stopped/run.json").exists()
    distilled(work, tmp_path / "stopped", spec, input_size=16, changes=[*QUICK, "schedule.memory=0.1"])
    one, other = (read_weights(tmp_path / name / "student.safetensors") for name in ("straight", "stopped"))
    assert all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one) and one.keys() == other.keys()
    assert len(stepped(tmp_path / "stopped")) > 3 and stepped(tmp_path / "stopped") == stepped(tmp_path / "straight")
    again = distilled(work, tmp_path / "stopped", spec, input_size=16)
    assert again.steps == read_json(tmp_path / "stopped/run.json")["report"]["steps"]


@pytest.mark.parametrize(("batches", "said"), [(1, True), (2, False)])
def test_memory_where_nothing_is_kept_is_said(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, batches: int, said: bool
) -> None:
    """Beside other keys that are set in vain."""
    changes = ["schedule.epochs=1", "schedule.batch=4", f"schedule.batches_finetune={batches}", "schedule.memory=2"]
    distilled(work, tmp_path / "run", "teacher", input_size=16, changes=[*changes, "anchor=0"])
    assert any("nothing reads --set schedule.memory" in one for one in caplog.messages) == said
    assert any("nothing reads --set anchor:" in one for one in caplog.messages)


def test_another_spec_is_another_run(work: Path, tmp_path: Path) -> None:
    distilled(work, tmp_path / "run", "teacher", input_size=16)
    with pytest.raises(DistillError, match="was made with another"):
        distilled(work, tmp_path / "run", "teacher:width=0.5", input_size=16)


@pytest.mark.parametrize("spoil", ["architecture", "weights"])
def test_a_run_folder_that_lies_is_one_line(work: Path, tmp_path: Path, spoil: str) -> None:
    distilled(work, tmp_path / "run", "teacher", input_size=16)
    if spoil == "architecture":
        (tmp_path / "run/architecture.onnx").write_bytes(b"\x08\x07 what is this")
    else:
        model = onnx.load(tmp_path / "run/architecture.onnx")
        for one in model.graph.initializer:
            if len(one.dims) == 4 and one.dims[1] == 3:
                one.dims[2] = one.dims[3] = 2
        onnx.save(model, tmp_path / "run/architecture.onnx")
    with pytest.raises(DistillError) as caught:
        distilltool.load_student(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_what_is_kept_says_no_path(work: Path, tmp_path: Path) -> None:
    distilled(work, tmp_path / "run", "teacher:width=0.5", input_size=16)
    kept = (tmp_path / "run/architecture.onnx").read_bytes()
    assert str(work).encode() not in kept and len(kept) < 10_000
    assert distilltool.load_student(tmp_path / "run").card.spec == "teacher:width=0.5"

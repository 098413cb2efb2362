"""The files students are made of: which there are, how their images are prepared, what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import onnx_teacher, photo_folder

import distilltool
from distilltool import sources
from distilltool.bought import open_bought
from distilltool.embedder import Teacher
from distilltool.errors import DistillError
from distilltool.progress import Silent
from distilltool.sources import Source, open_source
from distilltool.teacher import TeacherOptions, open_teacher

PRE = ("scale=1/255", "mean=0.5", "std=0.5")


def opened(path: Path) -> Teacher:
    return open_teacher(path, TeacherOptions(preprocess=PRE))


def found(spec: str, teacher: Teacher, isolate: bool = False, photos: list[Path] | None = None) -> Source | None:
    return open_source(spec, teacher, isolate, photos or [], Silent())


def test_the_teacher_is_its_own_source(tmp_path: Path) -> None:
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx"), TeacherOptions(preprocess=PRE))
    source = found("teacher:cut=0.5", teacher)
    assert source is not None and source.path == tmp_path / "t.onnx" and source.sha256 == teacher.file.sha256
    assert source.preprocess == teacher.preprocess and source.fixed == (32, 32)


def test_students_of_other_kinds_have_none(teacher: Path) -> None:
    assert found("timm:resnet18", opened(teacher)) is None


def test_another_file_with_its_own_preprocessing(tmp_path: Path, teacher: Path) -> None:
    onnx_teacher(tmp_path / "s.onnx", seed=5)
    source = found(f"onnx:{tmp_path / 's.onnx'},cut=hidden,preprocess=caffe", opened(teacher))
    assert source is not None and source.name == "s.onnx" and source.preprocess.channels == "BGR"


def test_a_file_that_is_not_there(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(DistillError, match="there is no file"):
        found(f"onnx:{tmp_path / 'none.onnx'}", opened(teacher))


def test_a_preprocessing_that_does_not_exist(tmp_path: Path, teacher: Path) -> None:
    onnx_teacher(tmp_path / "s.onnx", seed=5)
    with pytest.raises(DistillError, match="imagenette"):
        found(f"onnx:{tmp_path / 's.onnx'},preprocess=imagenette", opened(teacher))


def test_a_guess_that_is_not_clear_asks_to_be_told(tmp_path: Path, teacher: Path) -> None:
    """Random weights find no photograph again better in one way than in another."""
    onnx_teacher(tmp_path / "s.onnx", seed=5)
    with pytest.raises(DistillError, match=r"nothing says how s\.onnx wants its images") as caught:
        found(f"onnx:{tmp_path / 's.onnx'}", opened(teacher), photos=photo_folder(tmp_path / "p", 12))
    assert "preprocess=imagenet" in str(caught.value.fix)


def test_further_inputs_are_refused(tmp_path: Path) -> None:
    """A graph that reads a number beside the image."""
    model = onnx.load(onnx_teacher(tmp_path / "s.onnx"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, []))
    model.graph.node[-1].input[1] = "gain"
    onnx.save(model, tmp_path / "s.onnx")
    other = open_teacher(tmp_path / "s.onnx", TeacherOptions(preprocess=PRE, inputs=("gain=1",)))
    with pytest.raises(DistillError, match="reads gain=1.* beside the image"):
        found("teacher", other)


def test_a_teacher_that_is_isolated_is_not_run_here(teacher: Path) -> None:
    with pytest.raises(DistillError, match="which --isolate is to prevent"):
        found("teacher", opened(teacher), isolate=True)


def test_answers_bought_elsewhere_have_no_graph(tmp_path: Path) -> None:
    path = photo_folder(tmp_path / "p", 3)[0]
    np.savez(tmp_path / "v.npz", paths=np.array([path.name]), vectors=np.ones((1, 4), np.float32))
    with pytest.raises(DistillError, match="this teacher is no ONNX file"):
        found("teacher", open_bought(tmp_path / "v.npz", TeacherOptions()))


@pytest.mark.parametrize("piece", ["cut", "=3", "cut=", "depth=2", "cut==", " "])
def test_settings_that_say_nothing(piece: str) -> None:
    if piece == "cut==":
        assert sources.settings(piece) == {"cut": "="}
        return
    with pytest.raises(DistillError, match="says nothing of a student"):
        sources.settings(piece)


def test_weights_beside_such_a_student_are_refused(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\0")
    photo_folder(tmp_path / "p", 40)
    with pytest.raises(DistillError, match="has its weights already"):
        distilltool.distill(
            teacher,
            tmp_path / "p",
            student="teacher",
            weights=tmp_path / "w.safetensors",
            preprocess=PRE,
            store=tmp_path / "l.sqlite",
            out=tmp_path / "run",
        )
    assert not (tmp_path / "l.sqlite").exists(), "nothing was asked"


def test_the_teachers_file_under_another_name_is_the_teacher(tmp_path: Path, teacher: Path) -> None:
    """It is known how it wants its images, and what it may not be run for."""
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(teacher.read_bytes())
    own = found("teacher", opened(teacher))
    assert found(f"onnx:{copy}", opened(teacher)) == own
    with pytest.raises(DistillError, match="--isolate"):
        found(f"onnx:{copy}", opened(teacher), isolate=True)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("onnx:/home/me/small.onnx", "onnx:small.onnx"),
        ("onnx:models/small.onnx,cut=0.6,preprocess=imagenet", "onnx:small.onnx,cut=0.6,preprocess=imagenet"),
        ("teacher:cut=0.6", "teacher:cut=0.6"),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_what_travels_names_no_folder(spec: str, told: str) -> None:
    assert sources.named(spec) == told

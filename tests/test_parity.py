"""What an exported file may differ by from the student it was made of."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builders import onnx_teacher, photo_folder
from onnx import numpy_helper
from torch import Tensor, nn

import distilltool
from distilltool import students
from distilltool.errors import DistillError
from distilltool.onnx_export import to_onnx
from distilltool.preprocess import METADATA_KEY, Preprocess
from distilltool.stages.export import TOLERANCE, _unproved
from distilltool.student import FORM, Student, StudentCard, TorchEmbedder, embed
from distilltool.students import Backbone, Start
from distilltool.teacher import OnnxEmbedder, open_teacher

HOW = Preprocess(size=(16, 16), layout="NHWC", dtype="uint8")


class Dull(nn.Module):
    """Features of which `share` tells images apart; the rest is common to all."""

    def __init__(self, share: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 32, 3, bias=False)
        self.mix = nn.Linear(32, 32, bias=False)
        self.share = share
        self.common = nn.Parameter(1 + torch.rand(32))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        told: Tensor = self.mix(self.conv(images_NCHW).mean(dim=(2, 3)) * self.share + self.common)
        return told


def student(share: float, rows: np.ndarray) -> TorchEmbedder:
    backbone = Backbone(module=Dull(share), width=32, mean=(0.5,) * 3, std=(0.2,) * 3, start="scratch")
    made = Student(backbone, 0, bias=False).eval()
    with torch.no_grad():
        made.centre.copy_(made.features(torch.tensor(rows).permute(0, 3, 1, 2)).mean(dim=0))
    card = StudentCard(
        spec="timm:dull",
        input=(16, 16),
        dim=32,
        head=0,
        bias=False,
        space="own",
        space_id="own-0",
        start="scratch",
        params=0,
        preprocess=HOW,
        form=FORM,
    )
    return TorchEmbedder(made, card, "dull")


def exported(one: TorchEmbedder, path: Path, off: float = 0.0) -> OnnxEmbedder:
    """The student's file; with `off`, with one matrix that much wrong."""
    model = to_onnx(one.student, (16, 16), 20)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({**HOW.to_dict(), "source": "distilltool"})})
    for held in model.graph.initializer if off else ():
        values = numpy_helper.to_array(held)
        if values.shape == (32, 32):
            wrong = values + off * np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
            held.CopyFrom(numpy_helper.from_array(wrong, held.name))
    onnx.save(model, path)
    return open_teacher(path)


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (7, 16, 16, 3)).astype(np.uint8)


def test_rounding_that_the_student_shares_is_no_fault(rows: np.ndarray, tmp_path: Path) -> None:
    """Where little tells images apart, no two ways to add in float32 agree; the file is not to blame."""
    one = student(1e-3, rows)
    file = exported(one, tmp_path / "s.onnx")
    assert np.abs(file.embed(rows) - one.embed(rows)).max() > TOLERANCE
    assert _unproved(one, file, rows) == ""


@pytest.mark.parametrize("share", [1e-3, 1.0])
def test_a_file_that_is_wrong_is_told(share: float, rows: np.ndarray, tmp_path: Path) -> None:
    one = student(share, rows)
    assert "differs from the trained student" in _unproved(one, exported(one, tmp_path / "s.onnx", 1e-2), rows)


def test_a_student_that_tells_images_apart_is_met_to_the_tolerance(rows: np.ndarray, tmp_path: Path) -> None:
    one = student(1.0, rows)
    file = exported(one, tmp_path / "s.onnx")
    assert np.abs(file.embed(rows) - one.embed(rows)).max() < TOLERANCE
    assert _unproved(one, file, rows) == ""


@pytest.mark.slow
def test_attention_with_a_position_bias_is_exported(tmp_path: Path, rng: np.random.Generator) -> None:
    """PyTorch's exporter fails on it as one operator; the network itself stays as it was."""
    backbone = students.build("timm:vit_srelpos_small_patch16_224", Start(input=64, seed=0))
    made = Student(backbone, 0, bias=False).eval()
    file = tmp_path / "s.onnx"
    onnx.save(to_onnx(made, (64, 64), 20), file)
    assert all(one.fused_attn for one in made.modules() if hasattr(one, "fused_attn"))
    pixels = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"images": pixels})[0] - embed(made, pixels)).max() < TOLERANCE


class Undecided(Dull):
    """A network whose way depends on what it sees, which no graph can hold."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return super().forward(images_NCHW if images_NCHW.mean() > 0 else -images_NCHW)


def test_what_cannot_be_exported_is_one_line_and_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(module=Undecided(1.0), width=32, mean=(0.5,) * 3, std=(0.2,) * 3, start="scratch")
    with pytest.raises(DistillError, match="cannot write this student as ONNX") as raised:
        to_onnx(Student(backbone, 0, bias=False), (16, 16), 20)
    assert "\n" not in str(raised.value)
    onnx_teacher(tmp_path / "teacher.onnx")
    photo_folder(tmp_path / "imgs", 40)
    monkeypatch.setattr(students, "build", lambda spec, start: backbone)
    with pytest.raises(DistillError, match="cannot write this student as ONNX"):
        distilltool.distill(
            tmp_path / "teacher.onnx",
            tmp_path / "imgs",
            student="timm:undecided",
            input_size=16,
            out=tmp_path / "run",
            store=tmp_path / "l.sqlite",
            preprocess=["scale=1/255", "mean=0.5", "std=0.5"],
        )
    assert not (tmp_path / "run" / "log.jsonl").exists()

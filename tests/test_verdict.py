"""What a run says of itself at its end, and where it stops because a number is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import onnx_teacher, photo_folder
from test_chain import SMALL

import distilltool
from distilltool import objective, train
from distilltool.checkpoint import State
from distilltool.errors import DistillError
from distilltool.report import Fidelity, Gain, Interval, StudentReport
from distilltool.scores import Scores, gain
from distilltool.stages.distill import _verdict
from distilltool.train import Outcome


def ended(
    kept: float,
    first: float,
    seen: tuple[float, float],
    best: int = 50,
    step: int = 100,
    order: float | None = None,
    nearer: float = 0.0,
    lap: int = 0,
    there: float | None = None,
) -> Outcome:
    """A training that ended so; half of an interval is 0.02. order: its rank correlation where that is not `kept`;
    nearer: by how much the divergence fell; there: overlap in the teacher's gallery, undistilled 0.1 below."""

    def fidelity(value: float) -> Fidelity:
        return Fidelity(overlap_at_10=about(value), spearman=about(value))

    def about(value: float) -> Interval:
        return Interval(value=value, low=value - 0.02, high=value + 0.02)

    after = Fidelity(overlap_at_10=about(kept), spearman=about(kept if order is None else order))
    return Outcome(
        state=State(step=step, total=step, best_step=best, lap=lap),
        kept_step=best,
        start_share=0.5,
        fidelity=after,
        undistilled=fidelity(first),
        k=10,
        stopped="all steps are done",
        nested={},
        seen=seen,
        unasked=0,
        runs=1,
        gain=Gain(
            overlap_at_10=about(kept - first),
            spearman=about(after.spearman.value - first),
            divergence=about(-nearer),
        ),
        to_teacher=None if there is None else (fidelity(there - 0.1), fidelity(there)),
    )


def made(spec: str = "teacher:cut=0.6", start: str = "the weights of teacher.onnx") -> StudentReport:
    return StudentReport(spec=spec, params=1, dim=8, input=(64, 64), space="own", start=start)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (ended(0.91, 0.80, (0.8, 0.95)), "keeps 91 ± 2 % of the teacher's top-10 on held-out images"),
        (ended(0.91, 0.80, (0.8, 0.95)), "best at step 50; step 100: all steps are done"),
        (ended(0.91, 0.80, (0.8, 0.95), best=95), "still improving at the end: give it longer"),
        (ended(0.91, 0.80, (0.8, 0.95), best=95, lap=25), "step 100: all steps are done"),
        (ended(0.61, 0.60, (0.6, 0.9)), "within the noise of the undistilled student: +30 points on images it was"),
        (ended(0.61, 0.60, (0.6, 0.9)), "+1 on others: more images would help most"),
        (
            ended(0.61, 0.60, (0.6, 0.9), nearer=0.03, order=0.65),
            "of the ten nearest that is within the noise of the undistilled student, though it is nearer to all of the "
            "teacher's similarities beyond chance (Spearman 0.60 → 0.65); best at step 50; step 100",
        ),
        (ended(0.81, 0.80, (0.6, 0.9), nearer=0.03), "beyond chance; best at step 50; step 100: all steps are done"),
        (ended(0.60, 0.60, (0.6, 0.9), best=0), "training did not improve it: +30 points"),
        (ended(0.60, 0.60, (0.6, 0.61), best=0), "it hardly learned: give it longer"),
        (ended(0.60, 0.60, (0.6, 0.61), best=0), "or a larger optimiser.lr_finetune with --set"),
        (ended(0.55, 0.40, (0.4, 0.6)), "+20 points on images it was trained on, to 60 %, +15 on others: the student"),
        (
            ended(0.55, 0.40, (0.4, 0.6)),
            "the student itself limits: a larger --input, a later cut or a larger --target",
        ),
        (ended(0.66, 0.66, (0.66, 0.72), best=0), "limits: a larger --input, a later cut or a larger --target"),
        (ended(0.36, 0.05, (0.06, 0.61)), "a larger --target; more images would help too"),
        (ended(0.55, 0.50, (0.4, 0.9)), "more images would help most"),
        (ended(0.91, 0.80, (0.8, 0.95), there=0.7), ", 70 % of it in the teacher's own gallery (undistilled 60 %); "),
    ],
)
def test_a_verdict_says_what_limits_the_student(outcome: Outcome, said: str) -> None:
    assert said in _verdict(outcome, made())


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (("timm:mobilenetv4_conv_small_050", "scratch"), "pretrained weights, a larger network or a larger --input"),
        (("timm:mobilenetv4_conv_small_050", "timm"), "a larger --input, a larger network or a larger --target"),
        (("onnx:small.onnx", "its weights"), "a larger --input, a larger network or a larger --target"),
        (("onnx:small.onnx,width=0.5", "its weights"), "a larger --input, more width or a larger --target"),
        (("teacher:width=0.5,cut=0.5", "its weights"), "a larger --input, a later cut or a larger --target"),
        (("teacher", "its weights"), "limits: a larger --input or a larger --target"),
    ],
)
def test_advice_names_what_such_a_student_can_have(student: tuple[str, str], said: str) -> None:
    assert said in _verdict(ended(0.55, 0.40, (0.4, 0.6)), made(*student))


def test_a_student_from_scratch_is_told_its_own_learning_rate() -> None:
    said = _verdict(ended(0.06, 0.05, (0.05, 0.06)), made("timm:any", "scratch"))
    assert said.endswith("give it longer, or a larger optimiser.lr with --set")


def test_what_changed_is_compared_image_by_image() -> None:
    """A gain of 0.01 on each of images that differ by 0.2 is beyond chance; of single means it would not be."""
    apart = np.random.default_rng(0).normal(0, 0.2, 50)
    before = Scores(overlap=0.5 + apart, spearman=0.5 + apart, divergence=0.3 + apart)
    noise = np.random.default_rng(1).normal(0, 0.01, 50)
    after = Scores(
        overlap=before.overlap + 0.01 + noise,
        spearman=before.spearman,
        divergence=before.divergence - 0.01 + noise,
    )
    found = gain(after, before)
    assert 0 < found.overlap_at_10.low < 0.01 < found.overlap_at_10.high < 0.02
    assert (found.spearman.low, found.spearman.high) == (0, 0)
    assert found.divergence.high < 0


def test_a_good_student_gets_no_advice() -> None:
    assert _verdict(ended(0.91, 0.80, (0.8, 0.95)), made()).endswith("all steps are done")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_none_stops_with_step_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    onnx_teacher(tmp_path / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(tmp_path / "imgs", 64)
    real, calls = objective.sum_of_losses, list[int]()

    def broken(*given: Any) -> object:
        loss = real(*given)

        def step(student: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) < 3:
                return loss(student, teacher, rows)
            return student.sum() * np.nan if where == "loss" else (student * 0).pow(0.5).sum()

        return step

    monkeypatch.setattr(train, "sum_of_losses", broken)
    with pytest.raises(DistillError) as found:
        distilltool.distill(
            tmp_path / "teacher.onnx",
            tmp_path / "imgs",
            out=tmp_path / "run",
            store=tmp_path / "ledger.sqlite",
            **SMALL,  # type: ignore[arg-type]
        )
    what = "the loss is nan" if where == "loss" else "the gradient is not finite"
    assert found.value.message.startswith(f"{what} at step 2 (images {tmp_path / 'imgs'}")
    assert "and 13 more, all in" in found.value.message and "lower the learning rate" in found.value.fix
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and len(last["images"]) == 16 and all(Path(one).exists() for one in last["images"])

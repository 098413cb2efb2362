"""Variants of an exported student in other precisions: made, and judged by what they make of held-out images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from distilltool import images, latency, metrics, precisions, quantising
from distilltool.defaults import DEVICE, MAX_DROP, MIN_OVERLAP
from distilltool.embedder import unit
from distilltool.metrics import Task
from distilltool.onnx_file import opset_of
from distilltool.precisions import FP32, Given
from distilltool.report import Interval, Speedup
from distilltool.teacher import TeacherOptions, open_teacher

if TYPE_CHECKING:
    from distilltool.student import TorchEmbedder

CALIBRATED_AT_ONCE = 8
PRODUCTS = 0.5  # share of the weights in matrix products from which int8-dynamic is tried unasked
STRETCHES = (0.1, 0.2, 0.4)  # shares of the layers left in float32 where --mixed is asked for
INFINITE = "its vectors are not finite"
PRECISION_KEY = "distilltool.precision"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which variants are to be made, and what is asked of them beside float32.

    precisions: names; None for what can pay on this machine. min_overlap: of the ten nearest with float32's; max_drop:
    of the overlap with the teacher's ten nearest; smaller: share of float32's bytes from which a variant is welcome
    though it is not faster, None for no such share. mixed: where 8 bits rank worse, leave layers in float32. any_size:
    add a file that resizes images itself. device: where they are judged and timed.
    """

    precisions: tuple[str, ...] | None = None
    min_overlap: float = MIN_OVERLAP
    max_drop: float = MAX_DROP
    smaller: float | None = None
    mixed: bool = False
    any_size: bool = False
    device: str = DEVICE


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How a file ranks held-out images: beside the torch student, float32 and the teacher."""

    cosine_min: float
    cosine_mean: float
    overlap: Interval
    fidelity: Interval | None
    loss: Interval | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What files are judged on. vectors: the torch student's of these images, (N, D); answers: the teacher's, (N, E),
    None where the run has none."""

    student: "TorchEmbedder"
    paths: tuple[Path, ...]
    images: NDArray[np.uint8]
    vectors: NDArray[np.float32]
    answers: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A file that was made. left: layers of an 8-bit graph that stay in float32 though they could be quantised."""

    precision: str
    file: Path
    opset: int
    judged: Judged
    left: int = 0


def names(model: onnx.ModelProto, wanted: Wanted) -> list[str]:
    """Precisions to make beside float32: those asked for, or those that can pay.

    On a GPU half precision; on a processor 8 bits, without calibration where most weights are in matrix products.
    """
    if wanted.precisions is not None:
        return [name for name in dict.fromkeys(wanted.precisions) if name != FP32]
    if wanted.device in ("cuda", "tensorrt"):
        return ["fp16"]
    kinds = quantising.weights_in(model, quantising.WEIGHTED)
    products = quantising.weights_in(model, ("MatMul", "Gemm"), quantising.around(model))
    return ["int8-static", *(["int8-dynamic"] if kinds and products >= PRODUCTS * kinds else [])]


def make_variant(
    name: str,
    model: onnx.ModelProto,
    sample: Sample,
    reference: NDArray[np.float32],
    manifest: dict[str, Any],
    wanted: Wanted,
    folder: Path,
) -> Variant:
    """A variant, judged. Raises DistillError where there is nothing to convert, or nothing that runs comes of it."""
    make, within = precisions.find(name), folder / name
    within.mkdir()
    given = Given(
        model=model,
        batches=lambda: calibration(sample.student, manifest),
        leave=quantising.around(model),
        saturates=latency.saturates(),
        symmetric=wanted.device == "tensorrt",
        folder=within,
    )
    variant = _finish(name, make(given), sample, reference, folder, wanted.device)
    for share in STRETCHES if wanted.mixed and name == "int8-static" else ():
        if not worse(variant.judged, wanted):
            break
        left = quantising.sensitive(given, onnx.load(variant.file), share)
        mixed = replace(given, leave=(*given.leave, *left))
        variant = replace(_finish(name, make(mixed), sample, reference, folder, wanted.device), left=len(left))
    return variant


def _finish(
    name: str, model: onnx.ModelProto, sample: Sample, reference: NDArray[np.float32], folder: Path, device: str
) -> Variant:
    """Write a variant and judge it by what the device makes of it."""
    file = folder / f"student.{name}.onnx"
    onnx.helper.set_model_props(model, {**{one.key: one.value for one in model.metadata_props}, PRECISION_KEY: name})
    onnx.save_model(model, file)
    judged = judge(sample, open_teacher(file, TeacherOptions(device=device)).embed(sample.images), reference)
    return Variant(precision=name, file=file, opset=opset_of(model), judged=judged)


def calibration(student: "TorchEmbedder", manifest: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """Images trained on, a few at a time; held-out ones for a run that does not list them."""
    listed = [Path(path) for path in manifest.get("calibration", manifest["held_out"]) if Path(path).is_file()]
    for at in range(0, len(listed), CALIBRATED_AT_ONCE):
        rows, _ = images.load(listed[at : at + CALIBRATED_AT_ONCE], student.preprocess)
        if len(rows):
            yield rows


def judge(sample: Sample, found: NDArray[np.float32], reference: NDArray[np.float32]) -> Judged:
    """A file's vectors beside the torch student's, and their ranking beside that of reference vectors."""
    if not np.isfinite(found).all():
        nothing = Interval(value=0.0, low=0.0, high=0.0)
        return Judged(cosine_min=0.0, cosine_mean=0.0, overlap=nothing, fidelity=None, loss=None, reason=INFINITE)
    cosine = (unit(sample.vectors) * unit(found)).sum(axis=1)
    every = np.arange(len(found), dtype=np.int64)
    task, k = Task.among(every), metrics.reach(len(found))
    fidelity, loss = None, None
    if sample.answers is not None:
        before, now = (metrics.overlap(task, sample.answers, one, k) for one in (reference, found))
        fidelity, loss = metrics.interval(now), metrics.interval(before - now)
    return Judged(
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        overlap=metrics.interval(metrics.overlap(task, reference, found, k)),
        fidelity=fidelity,
        loss=loss,
        reason="",
    )


def worse(judged: Judged, wanted: Wanted) -> str:
    """Why a variant ranks too differently; empty where it does not."""
    if judged.reason:
        return judged.reason
    if judged.overlap.value < wanted.min_overlap:
        return f"its ten nearest share {judged.overlap.value:.3f} with float32's, less than {wanted.min_overlap:g}"
    if judged.loss is not None and judged.loss.value > wanted.max_drop:
        return f"of the teacher's ten nearest it loses {judged.loss.value:.3f}, more than {wanted.max_drop:g}"
    return ""


def not_worth(gain: Speedup, share: float, wanted: Wanted) -> str:
    """Why a variant that ranks well does not pay; empty where it is certainly faster, or as small as was asked for."""
    if gain.low > 1 or (wanted.smaller is not None and share <= wanted.smaller):
        return ""
    slower = "slower than" if gain.high < 1 else "not certainly faster than"
    small = "" if wanted.smaller is None else f", and {share:.2f} of its size, more than {wanted.smaller:g}"
    return f"{slower} float32: {gain.value:.2f} times as fast ({gain.low:.2f} to {gain.high:.2f}){small}"

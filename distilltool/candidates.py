"""Students that could be made at a given cost: early parts of the teacher, and small pretrained networks at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from distilltool import students, trainable
from distilltool.errors import DistillError
from distilltool.sources import Source
from distilltool.students import Start
from distilltool.trainable import Cut

USUAL = 0.1  # of the teacher's floating-point operations, where nothing else is asked for
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, USUAL)  # of the teacher's work, at which it is cut; the last at its own size
LEAST = 64  # pixels of the longer side below which photographs say little
STEP = 16  # sides are multiples of it
SMALL = ("mobilenetv4_conv_small", "mobilenetv3_large_100", "repvit_m0_9", "resnet18")  # of timm, tried where at hand


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A student that could be made. input: longer side of its images in pixels. flops: of one image."""

    spec: str
    input: int
    flops: int


NO_LIMIT = 1 << 62  # floating-point operations


def at_hand(source: Source | None, side: int | None, longest: int, fetch: str) -> tuple[Candidate, ...]:
    """Students that cost a tenth of the teacher, or where it is no file whatever small network there is.

    side: the longer side of their images where it is asked for; longest: of the teacher's. Raises DistillError where
    there is none, before anything is paid for.
    """
    cost, parts, refused = NO_LIMIT, list[Candidate](), list[str]()
    if source is not None:
        try:
            cost = int(USUAL * total(source))
            parts = of_teacher(source, cost, side)
        except DistillError as error:
            refused.append(f"{source.name}: {error.message}")
    fit = (*parts, *of_timm(cost, side, longest, fetch))
    if not fit:
        size = f" at {side} px" if side else ""
        raise DistillError(
            f"no student is at hand that costs a tenth of the teacher{size}" + "".join(f" ({one})" for one in refused),
            "name one: --student timm:NAME, with --weights FILE.safetensors, or onnx:FILE, or teacher with --input",
        )
    return fit


def total(source: Source) -> int:
    """Floating-point operations of a file for one image, up to its embedding."""
    return _cuts(source)[-1].flops


@lru_cache(maxsize=1)  # asked for the total and for the parts of one file
def _cuts(source: Source) -> Sequence[Cut]:
    model = trainable.read_whole(source.path)
    found = trainable.cuts(model, source.output, source.preprocess.size)
    if not found:
        raise DistillError(f"{source.name} cannot be read up to {source.output}", "name a student with --student")
    return found


def of_teacher(source: Source, cost: int, side: int | None) -> list[Candidate]:
    """Parts of the teacher's own network that cost no more, each at the largest size that fits, or at `side`.

    cost: floating-point operations for one image.
    """
    found, longest = _cuts(source), max(source.preprocess.size)
    wanted = {one.name: one for share in SHARES if (one := _nearest(found, share)) is not None}
    made = []
    for cut in wanted.values():
        fits = side or min(longest, _below(longest * (cost / cut.flops) ** 0.5))
        flops = round(cut.flops * (fits / longest) ** 2)
        if fits >= min(LEAST, side or longest) and flops <= cost:
            spec = "teacher" if cut is found[-1] else f"teacher:cut={cut.name}"
            made.append(Candidate(spec=spec, input=fits, flops=flops))
    return made


def _nearest(found: Sequence[Cut], share: float) -> Cut | None:
    below = [one for one in found if one.share <= share + 1e-9]
    return below[-1] if below else None


def of_timm(cost: int, side: int | None, longest: int, fetch: str) -> list[Candidate]:
    """Small networks of timm whose pretrained weights are at hand, each at the largest size that fits, or at `side`.

    longest: side of the teacher's images, more than which tells no more. fetch: "online" may ask a hub for weights.
    """
    made = []
    for name in SMALL:
        at = side or min(longest, 224)
        backbone = students.build(f"timm:{name}", Start(input=at, seed=0, fetch=fetch))
        if backbone.start == "scratch":
            continue
        flops = _flops(backbone.module, at)
        fits = side or min(at, max(_below(at * (cost / flops) ** 0.5), 1))
        flops = round(flops * (fits / at) ** 2)
        if fits >= min(LEAST, side or longest) and flops <= cost:
            made.append(Candidate(spec=f"timm:{name}", input=fits, flops=flops))
    return made


def _below(side: float) -> int:
    return int(side + 1e-6) // STEP * STEP


def _flops(module: torch.nn.Module, side: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops())

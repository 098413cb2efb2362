"""What a student may cost: a share of the teacher's work, or a time on this machine; and the largest images that do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from distilltool.errors import DistillError, Exit

USUAL = "flops<0.1x"
PARETO = ("flops<0.5x", "flops<0.25x", "flops<0.1x", "flops<0.05x")
STEP = 16  # sides are multiples of it
ROUNDS = 5  # sides tried
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "us": 1e-3, "ms": 1.0, "s": 1e3}
WRITTEN = (
    r"(?P<what>flops|p50)<=?(?P<number>\d+(?:\.\d+)?)(?P<unit>x|[KMG]|us|ms|s|)"
    r"(?:@(?P<device>\w+)(?::(?P<threads>\d+))?)?"
)
HINT = 'write "flops<0.1x", "flops<100M", "p50<5ms" or "p50<5ms@cpu:1", in quotes, as < means something to a shell'


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The most one image may cost. limit: floating-point operations, the teacher's share of them where `share`, or
    milliseconds of one inference at batch 1 in onnxruntime on `threads` threads."""

    text: str
    measure: Literal["flops", "p50"]
    limit: float
    share: bool = False
    threads: int = 1


def parse(text: str) -> Target:
    """Read `flops<0.1x`, `flops<100M` or `p50<5ms@cpu:1`, `<=` too; raises DistillError."""
    found = re.fullmatch(WRITTEN, text.strip())
    wrong = DistillError(f"--target {text} is not understood", HINT, Exit.USAGE)
    if not found or not float(found["number"]):
        raise wrong
    limit, unit = float(found["number"]), found["unit"]
    if found["what"] == "p50":
        if unit not in ("us", "ms", "s") or found["threads"] == "0":
            raise wrong
        if found["device"] not in (None, "cpu"):
            raise DistillError(
                f"--target {text}: times are taken on the CPU alone", 'write "p50<5ms@cpu:1"', Exit.USAGE
            )
        return Target(text=text.strip(), measure="p50", limit=limit * UNITS[unit], threads=int(found["threads"] or 1))
    if unit in ("us", "ms", "s") or found["device"]:
        raise wrong
    if unit == "x":
        return Target(text=text.strip(), measure="flops", limit=limit, share=True)
    return Target(text=text.strip(), measure="flops", limit=limit * UNITS[unit])


def largest(
    measure: Callable[[int], float], limit: float, least: int, most: int, first: int | None = None
) -> tuple[int, float] | None:
    """The largest side between two, in pixels, whose measure is no more than the limit, and that measure.

    What is measured is taken to grow with the number of pixels, and measured again where that leads; None where the
    smallest side costs more. first: the side to measure first, by default the largest.
    """
    least, tried = min(least, most), dict[int, float]()
    side = most if first is None else min(max(first, least), most)
    for _ in range(ROUNDS):
        tried[side] = measure(side)
        fits = max((one for one, cost in tried.items() if cost <= limit), default=None)
        over = min((one for one, cost in tried.items() if cost > limit), default=most + STEP)
        guess = below(min(most, side * (limit / max(tried[side], 1e-12)) ** 0.5))
        lowest = least if fits is None else fits + STEP
        side = min(max(guess, lowest), most, below(over - 1) if over <= most else most)
        if side < lowest or side in tried:
            break
    fits = max((one for one, cost in tried.items() if cost <= limit), default=None)
    return None if fits is None else (fits, tried[fits])


def below(side: float) -> int:
    """The largest multiple of STEP that is no more."""
    return int(side + 1e-6) // STEP * STEP

"""What a model's time must keep to: a share of the baseline's, or milliseconds."""

import re
from dataclasses import dataclass
from typing import Literal

from distilltool.errors import DistillError, Exit

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
WRITTEN = r"p(?P<percentile>50|90|95|99)\s*<=?\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>x|us|ms|s)"
HINT = 'write "p50<1.10x" (of the baseline) or "p50<5ms" (p90, p95 and p99 too), in quotes'

Outcome = Literal["holds", "fails", "inconclusive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """The most a run may take. limit: milliseconds of the percentile, or times the baseline's where `share`, as
    `distilltool.versus` compares them."""

    text: str
    percentile: int
    limit: float
    share: bool


def parse(text: str) -> Gate:
    """Read `p50<1.10x` or `p99<5ms`, `<=` too; raises DistillError."""
    found = re.fullmatch(WRITTEN, text.strip())
    if not found or not float(found["number"]):
        raise DistillError(f"--gate {text} is not understood", HINT, Exit.USAGE)
    percentile, share = int(found["percentile"]), found["unit"] == "x"
    if share and percentile != 50:  # a block has too few runs for more
        raise DistillError(f"--gate {text}: only p50 is compared with a baseline", HINT, Exit.USAGE)
    scale = 1.0 if share else UNITS[found["unit"]]
    return Gate(text=text.strip(), percentile=percentile, limit=float(found["number"]) * scale, share=share)


def outcome(gate: Gate, low: float, high: float) -> Outcome:
    """How a figure known to lie between two stands to the gate."""
    if high < gate.limit:
        return "holds"
    return "fails" if low > gate.limit else "inconclusive"

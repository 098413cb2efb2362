"""An earlier report of `bench` as a baseline: what it says of each way of running, with every run's time."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilltool.errors import DistillError
from distilltool.latency import Timed
from distilltool.report import BenchFile, Interval

LEAST_BLOCKS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRun:
    """One way of running, as it was measured then. noise: of that model over itself, None where it does not say."""

    device: str
    threads: int
    batch: int
    copies: str
    timed: Timed
    noise: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A report. model: the file that was timed; runs: its own, not its baseline's."""

    path: str
    model: BenchFile
    machine: dict[str, Any]
    runs: tuple[StoredRun, ...]

    def check(self, device: str, threads: int, batch: int) -> None:
        """Raise DistillError where it says nothing of this way of running."""
        known = {(one.device, one.threads, one.batch) for one in self.runs}
        if (device, threads, batch) not in known:
            there = "; ".join(f"--device {d} --threads {t} --batch {b}" for d, t, b in sorted(known))
            raise DistillError(
                f"{self.path} says nothing of {device} with {threads} threads at batch {batch}", f"it has {there}"
            )

    def run(self, device: str, threads: int, batch: int, copies: str) -> StoredRun:
        """One way of running."""
        for one in self.runs:
            if (one.device, one.threads, one.batch, one.copies) == (device, threads, batch, copies):
                return one
        raise DistillError(f"{self.path} has no times of {device} with copies {copies}", "measure the baseline anew")


def read_stored(path: Path) -> Stored:
    """Read a report that `bench --out` wrote; DistillError for anything else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check the path of the baseline") from None
    except ValueError:
        values = None
    try:
        assert isinstance(values, dict)
        runs = tuple(_run(one) for one in values["runs"] if one["side"] == "model")
        found = Stored(path=str(path), model=BenchFile(**values["model"]), machine=dict(values["machine"]), runs=runs)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise DistillError(
            f"{path} is no report of bench", "make one with: distilltool bench MODEL --out FILE.json"
        ) from None
    if not runs or any(len(one.timed.blocks) < LEAST_BLOCKS for one in runs):
        raise DistillError(f"{path} holds too few times to compare with", "measure the baseline anew")
    return found


def _run(values: dict[str, Any]) -> StoredRun:
    blocks = tuple(np.asarray(block, np.float64) / 1000 for block in values["blocks_ms"])
    if not all(block.ndim == 1 and len(block) and np.isfinite(block).all() and block.min() > 0 for block in blocks):
        raise ValueError("times that are none")
    noise = values["noise"]
    return StoredRun(
        device=str(values["device"]),
        threads=int(values["threads"]),
        batch=int(values["batch"]),
        copies=str(values["copies"]),
        timed=Timed(blocks=blocks),
        noise=None if noise is None else Interval(**{name: float(noise[name]) for name in ("value", "low", "high")}),
    )

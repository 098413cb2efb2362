"""An earlier report of `bench` as a baseline: what it says of each way of running, with every run's time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilltool.errors import DistillError
from distilltool.latency import Timed
from distilltool.report import BenchFed, BenchFile, Interval

LEAST_BLOCKS = 15
OF_INPUTS = ("shapes", "inputs", "preprocess")  # settings that change what is fed, beside images


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRun:
    """One way of running, as it was measured then. noise: of that model over itself, None where it does not say."""

    device: str
    threads: int
    batch: int
    copies: str
    fed: tuple[BenchFed, ...]
    timed: Timed
    noise: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A report. model: the file that was timed; settings: what was said of its inputs; runs: its own, not its
    baseline's."""

    path: str
    model: BenchFile
    settings: dict[str, Any]
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

    def check_fed(self, model: BenchFile, fed: Sequence[BenchFed], settings: dict[str, Any], batch: int) -> str:
        """What is to be warned of, as another model is fed otherwise; empty where there is nothing.

        Raises DistillError where the same file, or one with the same inputs of which other things were said, is fed
        otherwise: the times would be of different work.
        """
        before = next(one.fed for one in self.runs if one.batch == batch)
        same = model.sha256 == self.model.sha256
        there, here = _unlike(before, fed, named=same or model.inputs == self.model.inputs)
        if not there and not here:
            pictures = [{one.said for one in each if one.source == "images"} for each in (before, fed)]
            return "" if pictures[0] == pictures[1] else f"{self.path} was fed other images"
        said = f"{self.path} is of {there or 'nothing else'}, this would be of {here or 'nothing else'}"
        ours, theirs = (
            [*(list(one[name]) for name in OF_INPUTS), bool(one["images"])] for one in (settings, self.settings)
        )
        if same or (model.inputs == self.model.inputs and ours != theirs):
            raise DistillError(
                said, "give the same --shape, --input, --images and --preprocess, or measure the baseline anew"
            )
        return f"{said}: the two do different work"

    def run(self, device: str, threads: int, batch: int, copies: str) -> StoredRun:
        """One way of running."""
        for one in self.runs:
            if (one.device, one.threads, one.batch, one.copies) == (device, threads, batch, copies):
                return one
        raise DistillError(f"{self.path} has no times of {device} with copies {copies}", "measure the baseline anew")


def read_stored(path: Path) -> Stored:
    """Read a report that `bench` wrote; DistillError for anything else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check the path of the baseline") from None
    except ValueError:
        values = None
    if isinstance(values, dict) and "runs" in values and "verdict" in values and "settings" not in values:
        raise DistillError(
            f"{path} is of an earlier version and does not say what was fed", "measure the baseline anew"
        )
    try:
        assert isinstance(values, dict)
        runs = tuple(_run(one) for one in values["runs"] if one["side"] == "model")
        model, settings = dict(values["model"]), dict(values["settings"])
        found = Stored(
            path=str(path),
            model=BenchFile(**{**model, "inputs": tuple(model["inputs"])}),
            settings={**{name: list(settings[name]) for name in OF_INPUTS}, "images": int(settings["images"])},
            machine=dict(values["machine"]),
            runs=runs,
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        raise DistillError(
            f"{path} is no report of bench", "make one with: distilltool bench MODEL --json FILE.json"
        ) from None
    if not runs or any(len(one.timed.blocks) < LEAST_BLOCKS for one in runs):
        raise DistillError(f"{path} holds too few times to compare with", "measure the baseline anew")
    return found


def _unlike(before: Sequence[BenchFed], now: Sequence[BenchFed], *, named: bool) -> tuple[str, str]:
    """The inputs that were fed otherwise, then and now. named: by their names, which another file has of its own."""

    def key(one: BenchFed) -> tuple[Any, ...]:
        said = one.said if one.source == "setting" else ""
        return one.name if named else "", one.shape, one.dtype, one.source, said

    rest, new = list(before), list[BenchFed]()
    for one in now:
        alike = next((other for other in rest if key(other) == key(one)), None)
        if alike is None:
            new.append(one)
        else:
            rest.remove(alike)
    return ", ".join(map(_told, rest)), ", ".join(map(_told, new))


def _told(one: BenchFed) -> str:
    shape = "×".join(map(str, one.shape))
    how = {"images": "images", "setting": f"--input {one.name}={one.said}"}.get(one.source, "drawn")
    return f"{one.name} {shape} {one.dtype} ({how})" if shape else f"{one.name} {one.dtype} ({how})"


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
        fed=tuple(BenchFed(**{**one, "shape": tuple(map(int, one["shape"]))}) for one in values["fed"]),
        timed=Timed(blocks=blocks),
        noise=None if noise is None else Interval(**{name: float(noise[name]) for name in ("value", "low", "high")}),
    )

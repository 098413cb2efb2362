"""How long a model takes, measured so that two models can be compared."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distilltool.report import LatencyReport, Speedup

EARNED = {90: 64, 95: 130, 99: 662}  # samples a percentile takes (MLPerf's early stopping at confidence 0.99)
BLOCKS = 16  # of each model, in the order A B B A A B B A ...
WARM_SECONDS = 0.5
WARM_RUNS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Raw samples. blocks: seconds of each run, a list per block."""

    blocks: tuple[NDArray[np.float64], ...]

    @property
    def samples(self) -> NDArray[np.float64]:
        return np.concatenate(self.blocks)


def interleaved(run: Callable[[], Any], baseline: Callable[[], Any], seconds: float) -> tuple[Timed, Timed]:
    """Time two things in alternating blocks (ABBA), so that a drifting machine meets both alike.

    seconds: for the whole measurement, warm-up apart; each block gets the same time and at least two runs.
    """
    ours, theirs = together((run, baseline), seconds / 2)
    return ours, theirs


def alone(run: Callable[[], Any], seconds: float) -> Timed:
    """Time one thing for so long, warm-up apart."""
    warm(run)
    return Timed(blocks=(block(run, seconds),))


def together(runs: Sequence[Callable[[], Any]], seconds: float) -> list[Timed]:
    """Time several things in turns, so that a drifting machine meets all alike. seconds: for each, warm-up apart."""
    for run in runs:
        warm(run)
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in runs]
    for turn in range(BLOCKS):
        for place in range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs))):
            blocks[place].append(block(runs[place], seconds / BLOCKS))
    return [Timed(blocks=tuple(one)) for one in blocks]


def warm(run: Callable[[], Any]) -> int:
    """Run until both the time and the number of a warm-up are reached; how often that was."""
    end, runs = time.perf_counter() + WARM_SECONDS, 0
    while runs < WARM_RUNS or time.perf_counter() < end:
        run()
        runs += 1
    return runs


def block(run: Callable[[], Any], seconds: float) -> NDArray[np.float64]:
    """Seconds of each run for so long, two at least; one before them is not counted."""
    run()  # the caches are the other model's
    samples = list[float]()
    end = time.perf_counter() + seconds
    while len(samples) < 2 or time.perf_counter() < end:
        began = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - began) / 1e9)
    return np.array(samples)


def summarise(
    timed: Timed, *, provider: str, threads: int, batch: int, ratio: Speedup | None, device: str = "cpu"
) -> LatencyReport:
    """Percentiles in milliseconds; those the samples do not earn are None."""
    ms = timed.samples * 1000
    earned = percentiles(ms)
    return LatencyReport(
        device=device,
        provider=provider,
        threads=threads,
        batch=batch,
        n=len(ms),
        min_ms=float(ms.min()),
        p50_ms=float(np.median(ms)),
        p90_ms=earned[90],
        p95_ms=earned[95],
        p99_ms=earned[99],
        throughput=batch * 1000 / float(np.median(ms)),
        speedup=ratio,
    )


def percentiles(ms: NDArray[np.float64]) -> dict[int, float | None]:
    """p90, p95 and p99; those that the samples do not earn are None."""
    return {p: float(np.percentile(ms, p)) if len(ms) >= n else None for p, n in EARNED.items()}


def saturates() -> bool:
    """Whether this processor adds products of 8 bits in 16, as x86 does without VNNI or AMX: sums may then overflow."""
    without = not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine()["vector"])
    return platform.machine().lower() in ("x86_64", "amd64") and without


def machine() -> dict[str, Any]:
    """What the times were taken on: processor, its vector instructions, load, versions."""
    said = {"model name": platform.processor(), "flags": ""}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in said and value:
                said[key.strip()] = value.strip()
    except OSError:
        pass
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    return {
        "cpu": said["model name"],
        "vector": [f for f in wanted if f in said["flags"].split()],
        "load_1min": round(os.getloadavg()[0], 2),
        "onnxruntime": ort.__version__,
        "system": platform.system(),
    }

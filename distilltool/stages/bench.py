"""Time a model, alone or against a baseline: a fresh process for each, blocks in turns, and what may be said of it."""

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool import latency, machine, versus
from distilltool.bench_text import elsewhere
from distilltool.energy import LAG, LEAST_SECONDS, Meter, open_meter
from distilltool.errors import DistillError, Interrupted
from distilltool.feeds import Subject, Wish, fed_of, feeds_of, open_subject
from distilltool.gate import Gate, outcome
from distilltool.latency import EARNED, Timed
from distilltool.measure import Worker
from distilltool.progress import Progress
from distilltool.report import BenchComparison, BenchFed, BenchFile, BenchGate, BenchReport, BenchRun, Interval, Speedup
from distilltool.runtime import provider_of
from distilltool.stored import Stored
from distilltool.versus import Compared

LEAST_TURNS, MOST_TURNS = 16, 200  # even, so that each order is met as often as its reverse
RUNS_A_BLOCK = 2  # at least, beside the one that is not counted
WORST = ("slower", "inconclusive", "same", "faster")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure. batches: none for the model's own, 1 where it is free; seconds: of timing for each way of
    running, all processes together, warm-up apart; tolerance: by which times may differ and be the same."""

    batches: tuple[int, ...]
    threads: tuple[int, ...]
    devices: tuple[str, ...]
    seconds: float
    tolerance: float
    gates: tuple[Gate, ...]
    wish: Wish
    energy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way of running a model. copies: as in `BenchRun`."""

    device: str
    threads: int
    batch: int
    copies: str = "none"

    def __str__(self) -> str:
        copies = {"included": ", with copies", "excluded": ", without copies"}.get(self.copies, "")
        return f"{self.device}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}{copies}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metered:
    """What counts energy, None where nothing does; said: its name, or why not."""

    meter: Meter | None
    said: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """One process that takes its turns. side: "model", "baseline" or "again", the second process of one of them."""

    side: str
    subject: Subject
    fed: tuple[BenchFed, ...]
    worker: Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What one lane's turns gave. joules: of one run."""

    lane: Lane
    timed: Timed
    warm_up: dict[str, float]
    joules: float | None
    peak: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that one way of running gave. medians: their ratio, None without a baseline."""

    way: Way
    taken: dict[str, Taken]
    compared: Compared | None
    medians: Interval | None
    noise: Interval


def bench(model: Path, baseline: Path | Stored | None, plan: Plan, progress: Progress) -> BenchReport:
    """Measure every way of running that the plan names. baseline: a file that is timed beside, or an earlier report.

    Raises DistillError for what cannot be run as asked, before anything is timed where that can be seen.
    """
    began, before = time.perf_counter(), machine.facts()
    ours = open_subject(model)
    theirs = open_subject(baseline) if isinstance(baseline, Path) else None
    stored = baseline if isinstance(baseline, Stored) else None
    ways = _ways(ours, theirs, plan)
    meters = {device: _meter(device, plan, progress) for device in plan.devices}
    fed_otherwise = dict[str, None]()
    for way in ways:
        provider_of(way.device)
        feeds = feeds_of(ours, way.batch, plan.wish)
        if theirs is not None:
            feeds_of(theirs, way.batch, plan.wish)
        if stored is not None:
            stored.check(way.device, way.threads, way.batch)
            fed = fed_of(ours, feeds, plan.wish)
            fed_otherwise[stored.check_fed(_file(ours), fed, _settings(plan), way.batch)] = None
    for said in filter(None, fed_otherwise):
        progress.warn(said)
    unlike = machine.differences(before, stored.machine) if stored is not None else []
    if unlike:
        progress.warn(f"{_apart(unlike)}: nothing is compared")
    found = list[Outcome]()
    try:
        for way in ways:
            progress.begin(f"timing on {way}", 0, "blocks")
            found += _measure(way, ours, theirs, stored, plan, meters[way.device].meter, progress)
            progress.end()
    except KeyboardInterrupt:
        raise Interrupted("nothing was written; the same command begins anew") from None
    energy = "; ".join(f"{device}: {one.said}" for device, one in meters.items()) if plan.energy else None
    report = _report(found, ours, theirs, stored, plan, unlike, before)
    return replace(report, energy=energy, seconds=time.perf_counter() - began)


def _ways(ours: Subject, theirs: Subject | None, plan: Plan) -> list[Way]:
    """Every device with every number of threads and batch."""
    fixed = {one.batch for one in (ours, theirs) if one is not None and one.batch is not None}
    if len(fixed) > 1:
        raise DistillError(
            f"{ours.path} takes batches of {ours.batch} alone, the baseline of {theirs.batch if theirs else ''}",
            "export both with the same batch, or with a free one",
        )
    batches = plan.batches or (next(iter(fixed), 1),)
    return [
        Way(device=device, threads=threads, batch=batch)
        for device, threads, batch in itertools.product(plan.devices, plan.threads, batches)
    ]


def _measure(
    way: Way,
    ours: Subject,
    theirs: Subject | None,
    stored: Stored | None,
    plan: Plan,
    meter: Meter | None,
    progress: Progress,
) -> list[Outcome]:
    """One way of running, or two where a device can keep arrays: with copies and without."""
    sides = [("baseline", theirs), ("model", ours), ("again", theirs)] if theirs else [("model", ours), ("again", ours)]
    with ExitStack() as open_workers:
        lanes = list[Lane]()
        for side, subject in sides:
            assert subject is not None
            feeds = feeds_of(subject, way.batch, plan.wish)
            worker = Worker(subject, way.device, way.threads, feeds, way.batch)
            open_workers.callback(worker.close)
            fed = fed_of(subject, feeds, plan.wish)
            lanes.append(Lane(side=side, subject=subject, fed=fed, worker=worker))
        for lane in lanes[: len(sides) - 1]:
            _say_elsewhere(lane, progress)
        found = list[Outcome]()
        for copies in lanes[0].worker.loaded.copies:
            named = replace(way, copies=copies if len(lanes[0].worker.loaded.copies) > 1 else "none")
            taken = {one.lane.side: one for one in _turns(lanes, copies, plan.seconds, meter, progress)}
            found.append(_outcome(named, taken, stored))
    return found


def _say_elsewhere(lane: Lane, progress: Progress) -> None:
    loaded = lane.worker.loaded
    if said := elsewhere(loaded.provider, loaded.nodes, loaded.elsewhere, wholly=loaded.wholly):
        progress.warn(f"{lane.subject.path}: {said}")


def _meter(device: str, plan: Plan, progress: Progress) -> Metered:
    """What counts energy on a device, where that was asked for."""
    if not plan.energy:
        return Metered(meter=None, said="")
    try:
        meter = open_meter(device)
    except DistillError as why:
        progress.warn(f"no energy on {device}: {why}")
        return Metered(meter=None, said=why.message)
    return Metered(meter=meter, said=meter.source)


def _turns(lanes: Sequence[Lane], copies: str, seconds: float, meter: Meter | None, progress: Progress) -> list[Taken]:
    """Let each lane run a block at a time, forwards and backwards in turn, so that drift meets all alike."""
    warmed = [lane.worker.warm(copies) for lane in lanes]
    slowest = max(one["seconds"] / one["runs"] for one in warmed)
    turns = _even(seconds / (len(lanes) * slowest * (RUNS_A_BLOCK + 1)))
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in lanes]
    progress.expect(turns * len(lanes))
    for turn in range(turns):
        for place in range(len(lanes)) if turn % 2 == 0 else reversed(range(len(lanes))):
            blocks[place].append(lanes[place].worker.block(seconds / turns / len(lanes), copies))
            progress.advance()
    return [
        Taken(
            lane=lane,
            timed=Timed(blocks=tuple(ran)),
            warm_up=warm_up,
            joules=_joules(lane.worker, copies, meter) if meter and lane.side != "again" else None,
            peak=lane.worker.peak(),
        )
        for lane, ran, warm_up in zip(lanes, blocks, warmed, strict=True)
    ]


def _joules(worker: Worker, copies: str, meter: Meter) -> float:
    """Of one run, apart from the turns: those are shorter than what a counter takes to hold what was spent."""
    worker.block(LAG, copies)  # what comes late is this model's own then
    before = meter.read()
    runs = len(worker.block(LEAST_SECONDS, copies)) + 1
    return meter.since(before) / runs


def _even(turns: float) -> int:
    return int(min(max(turns, LEAST_TURNS), MOST_TURNS)) // 2 * 2


def _outcome(way: Way, taken: dict[str, Taken], stored: Stored | None) -> Outcome:
    model, again = taken["model"].timed, taken["again"].timed
    if "baseline" in taken:
        compared = versus.compare(model, taken["baseline"].timed, again)
        medians = versus.medians(model, taken["baseline"].timed, in_turns=True)
        return Outcome(way=way, taken=taken, compared=compared, medians=medians, noise=compared.noise)
    noise = versus.noise_of(model, again)
    if stored is None:
        return Outcome(way=way, taken=taken, compared=None, medians=None, noise=noise)
    before = stored.run(way.device, way.threads, way.batch, way.copies)
    compared = versus.compare_apart(model, before.timed, [one for one in (noise, before.noise) if one])
    medians = versus.medians(model, before.timed, in_turns=False)
    return Outcome(way=way, taken=taken, compared=compared, medians=medians, noise=noise)


def _report(
    found: Sequence[Outcome],
    ours: Subject,
    theirs: Subject | None,
    stored: Stored | None,
    plan: Plan,
    unlike: Sequence[str],
    before: dict[str, object],
) -> BenchReport:
    comparisons = [
        _comparison(one.way, one.compared, one.medians, plan, unlike)
        for one in found
        if one.compared is not None and one.medians is not None
    ]
    worst = min(comparisons, key=lambda one: (WORST.index(one.verdict), -one.ratio.value), default=None)
    after = machine.facts()["load"]
    return BenchReport(
        model=_file(ours),
        baseline=_file(theirs) if theirs else stored.model if stored else None,
        baseline_report=stored.path if stored else None,
        runs=tuple(run for one in found for run in _runs(one)),
        comparisons=tuple(comparisons),
        gates=tuple(_gated(gate, one, unlike) for gate in plan.gates for one in found),
        ratio=worst.ratio if worst else None,
        verdict=worst.verdict if worst else None,
        why=worst.why if worst else "",
        tolerance=plan.tolerance,
        inputs=f"{len(plan.wish.photos)} images" if plan.wish.photos else "random numbers by the signature",
        settings=_settings(plan),
        energy=None,
        machine={**before, "load_after": after},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
    )


def _settings(plan: Plan) -> dict[str, Any]:
    """What was said of the inputs and the time, as a report keeps it."""
    wish = plan.wish
    return {
        "shapes": wish.shapes,
        "inputs": wish.settings,
        "preprocess": wish.preprocess,
        "images": len(wish.photos),
        "seconds": plan.seconds,
    }


def _apart(unlike: Sequence[str]) -> str:
    return f"the baseline was measured on another machine or under other conditions ({'; '.join(unlike)})"


def _file(subject: Subject) -> BenchFile:
    return BenchFile(
        path=str(subject.path),
        sha256=subject.file.sha256,
        bytes=subject.file.size_bytes,
        opset=subject.opset,
        ir_version=subject.proto.ir_version,
        inputs=subject.signature,
    )


def _comparison(way: Way, compared: Compared, medians: Interval, plan: Plan, unlike: Sequence[str]) -> BenchComparison:
    verdict = "inconclusive" if unlike else versus.judge(compared, plan.tolerance)
    return BenchComparison(
        device=way.device,
        threads=way.threads,
        batch=way.batch,
        copies=way.copies,
        ratio=compared.ratio,
        medians=medians,
        noise=compared.noise,
        widened=compared.widened,
        p=compared.p,
        verdict=verdict,
        why=_why(verdict, compared, plan.tolerance, unlike),
    )


def _why(verdict: str, found: Compared, tolerance: float, unlike: Sequence[str]) -> str:
    """One sentence for a verdict."""
    if unlike:
        return _apart(unlike)
    times = f"{found.ratio.value:.3f} of the baseline's time ({found.ratio.low:.3f} to {found.ratio.high:.3f})"
    noise = f"a model over itself is {_figures(found.noise)}"
    if verdict == "same":
        return f"{times}, within {100 * tolerance:g} %; {noise}"
    if verdict != "inconclusive":
        return f"{times}; {noise}"
    if max(found.noise.value, 1 / found.noise.value) > 1 + tolerance:
        return f"too noisy: {noise}, more than {100 * tolerance:g} % from 1; {times}"
    return f"{times}, on either side of {100 * tolerance:g} %; {noise}: a quieter machine or more --seconds may tell"


def _figures(one: Interval) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _runs(one: Outcome) -> list[BenchRun]:
    """The model's figures and the baseline's; the second process is there for the noise alone."""
    return [_run(one, side) for side in ("model", "baseline") if side in one.taken]


def _run(one: Outcome, side: str) -> BenchRun:
    taken, way = one.taken[side], one.way
    ms, loaded = taken.timed.samples * 1000, taken.lane.worker.loaded
    earned, ratio = latency.percentiles(ms), one.compared.ratio if one.compared and side == "model" else None
    return BenchRun(
        model=taken.lane.subject.path.name,
        side=side,
        device=way.device,
        provider=loaded.provider,
        threads=way.threads,
        batch=way.batch,
        copies=way.copies,
        elsewhere=loaded.elsewhere,
        nodes={name: count for name, count in loaded.nodes.items() if count},
        wholly=loaded.wholly,
        shapes={one.name: one.shape for one in taken.lane.fed},
        fed=taken.lane.fed,
        n=len(ms),
        min_ms=float(ms.min()),
        p50_ms=float(np.median(ms)),
        p90_ms=earned[90],
        p95_ms=earned[95],
        p99_ms=earned[99],
        mad_ms=float(np.median(np.abs(ms - np.median(ms)))),
        throughput=way.batch * 1000 / float(np.median(ms)),
        speedup=None if ratio is None else Speedup(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low),
        warm_up=taken.warm_up,
        load_ms=loaded.load_seconds * 1000,
        first_ms=loaded.first_seconds * 1000,
        memory_bytes=max(0, taken.peak - loaded.before),
        peak_bytes=taken.peak,
        joules=taken.joules,
        noise=one.noise,
        blocks_ms=tuple(tuple(round(float(t) * 1000, 6) for t in block) for block in taken.timed.blocks),
    )


def _gated(gate: Gate, one: Outcome, unlike: Sequence[str]) -> BenchGate:
    """A gate on one way of running; milliseconds are widened by the bias as ratios are. One in x is about the ratio of
    mean times, as verdicts are: that of medians leaps where runs are interrupted (`distilltool.versus`)."""
    timed, value = one.taken["model"].timed, None
    if gate.share:
        assert one.compared is not None
        value = one.compared.widened
    elif len(timed.samples) >= EARNED.get(gate.percentile, 1):
        value = versus.widen(versus.percentile_interval(timed, gate.percentile), one.noise)
    decided, why = "inconclusive", f"p{gate.percentile} takes more runs than {len(timed.samples)}: more --seconds"
    if value is not None:
        decided, why = outcome(gate, value.low, value.high), f"{_figures(value)} ms"
        if gate.share and one.medians is not None:
            why = f"by mean times {_figures(value)} of the baseline's; by medians, not judged, {_figures(one.medians)}"
        unsure = one.compared is not None and one.compared.p >= versus.P
        if decided == "fails" and gate.share and gate.limit >= 1 and unsure:  # the test asks whether both take as long
            decided = "inconclusive"
    if gate.share and unlike:
        decided, why = "inconclusive", _apart(unlike)
    return BenchGate(
        gate=gate.text,
        device=one.way.device,
        threads=one.way.threads,
        batch=one.way.batch,
        copies=one.way.copies,
        value=value,
        medians=one.medians if gate.share else None,
        outcome=decided,
        why=why,
    )

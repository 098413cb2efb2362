"""The log of a training, `log.jsonl` in the run, and trackers that are told of it: each step once, whatever stops."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distilltool import extensions, trackers
from distilltool.progress import Progress
from distilltool.rundir import RunDir, read_json, write_json, write_text
from distilltool.trackers import Given, Point, Setting, Tracker

TOLD = "told.json"  # in a tracker's folder: the last step it was told of
NAMES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "overlap": "held_out/overlap",
    "spearman": "held_out/spearman",
    "divergence": "held_out/divergence",
}


class RunLog:
    """What happens in a training, line by line, and for trackers.

    Trackers are told when training is kept, at each look at the held-out images: what they know is never taken back,
    and what they were not told is told when a run goes on, or is opened again with another tracker.
    """

    def __init__(self, run: RunDir, names: Sequence[str], progress: Progress) -> None:
        """names: of `distilltool.trackers`."""
        self.run, self.names, self.progress = run, tuple(dict.fromkeys(names)), progress
        self.open = dict[str, Tracker]()
        self.told = dict[str, int]()
        self.waiting = list[Mapping[str, Any]]()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._each(lambda _, tracker: tracker.stop())
        self.open.clear()

    def begin(self, step: int) -> None:
        """Go on after this step, −1 from the start: later lines are of an attempt that was not kept."""
        lines = [one for one in read_log(self.run.log) if one.get("step", math.inf) <= step]
        if self.run.log.exists():
            write_text(self.run.log, "".join(f"{json.dumps(one)}\n" for one in lines))
        self.catch_up()

    def catch_up(self) -> None:
        """Open the trackers where they were left, and tell them what the log has beyond."""
        for name in self.names:
            self._guarded(name, None, self._open)
        self.waiting = read_log(self.run.log) if self.open else []
        self.tell()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line, with the time it was written."""
        entry = {**entry, "time": round(time.time(), 3)}
        with self.run.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.open:
            self.waiting.append(entry)

    def tell(self) -> None:
        """Tell the trackers what happened since they were told."""
        every = list(points(self.waiting))
        self.waiting = []

        def told(name: str, tracker: Tracker) -> None:
            new = [one for one in every if one.step > self.told[name]]
            if new:
                tracker.log(new)
                self.told[name] = new[-1].step
                write_json(self._folder(name) / TOLD, {"step": self.told[name]})

        self._each(told)

    def finish(self, figures: Mapping[str, float]) -> None:
        """Tell what is left, then the figures that the run ended with."""
        self.tell()

        def finished(name: str, tracker: Tracker) -> None:
            tracker.finish(figures)
            write_json(self._folder(name) / TOLD, {"step": self.told[name], "finished": True})

        self._each(finished)
        self.open.clear()

    def _folder(self, name: str) -> Path:
        return self.run.trackers / name

    def _open(self, name: str, _: Tracker | None) -> None:
        folder = self._folder(name)
        known = read_json(folder / TOLD) if (folder / TOLD).exists() else {}
        if known.get("finished"):
            return
        given = Given(folder=folder, name=self.run.name, settings=settings(self.run), step=known.get("step"))
        tracker: Tracker = extensions.find(trackers.__name__, "tracker", name)(given)
        self.open[name] = tracker
        self.told[name] = -1 if tracker.told is None else tracker.told

    def _each(self, work: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            self._guarded(name, tracker, work)

    def _guarded(self, name: str, tracker: Any, work: Callable[[str, Any], None]) -> None:
        """Whatever a tracker raises is said once; from then on it is left alone."""
        try:
            work(name, tracker)
        except Exception as error:
            self.open.pop(name, None)
            self.progress.warn(f"--log {name} failed and is left out from here on ({_said(error)}); the run goes on")


def finished(run: RunDir, names: Sequence[str], progress: Progress) -> None:
    """Tell trackers of a run that is finished already what they do not know of it."""
    with RunLog(run, names, progress) as log:
        log.catch_up()
        log.finish(figures(read_json(run.manifest)["report"]))


def evaluated(
    run: RunDir, place: str, names: Sequence[str], said: Mapping[str, Setting], found: Mapping[str, float], at: Progress
) -> None:
    """Tell trackers the figures of an evaluation, as a run of their own beside the training; an earlier one of the same
    name is replaced where it is kept here.

    place: a name for the evaluation; said: what else was it made from.
    """
    for name in names:
        folder = run.trackers / f"eval-{place}" / name
        shutil.rmtree(folder, ignore_errors=True)
        told = {"run": run.name, **said, **settings(run)}
        given = Given(folder=folder, name=f"{run.name} {place}", settings=told, step=None)
        try:
            extensions.find(trackers.__name__, "tracker", name)(given).finish(found)
        except Exception as error:
            at.warn(f"--log {name} failed ({_said(error)}); the evaluation is whole")


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_log(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a log; one that a killed process left half is none."""
    found = list[Mapping[str, Any]]()
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def points(entries: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """What lines of the log mean to a tracker; those that are no figures of a step mean nothing."""
    for entry in entries:
        found = {name: float(entry[key]) for key, name in NAMES.items() if key in entry}
        if entry.get("seconds"):
            found["train/steps_per_second"] = 1 / entry["seconds"]
        if found and "step" in entry:
            yield Point(step=int(entry["step"]), time=float(entry.get("time", 0.0)) or time.time(), figures=found)


def settings(run: RunDir) -> dict[str, Setting]:
    """What a run is made from, flat: its recipe and what else its plan says, versions and machine."""
    plan = read_json(run.plan) if run.plan.exists() else {}
    said = {key: plan[key] for key in ("teacher", "output", "target", "time budget", "start") if key in plan}
    machine = read_json(run.environment) if run.environment.exists() else {}
    chosen = read_json(run.choice) if run.choice.exists() else {}
    every = {"recipe": plan.get("recipe", {}), **said, "chosen": chosen, "environment": machine}
    return dict(_flat(every))


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a run ended with, of its report as JSON."""
    found = {
        f"final/{where}{name}": one["value"]
        for where, both in (("", report["fidelity"]), ("undistilled/", report["undistilled"]))
        for name, one in both.items()
    }
    found |= {
        f"final/first_{dim}/overlap@10": one["overlap@10"]["value"] for dim, one in report.get("nested", {}).items()
    }
    found |= {f"final/{name}": report[name] for name in ("steps", "best_step", "start_share", "soup", "seconds")}
    found["final/parameters"] = report["student"]["params"]
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, Setting]]:
    """Nested values as name.of.each → value; what is not set is left out."""
    if isinstance(values, Mapping | list):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from _flat(value, f"{name}.{key}".lstrip("."))
    elif isinstance(values, bool | int | float | str):
        yield name, values

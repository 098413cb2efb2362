"""What is known about the models of an evaluation beside their figures: how they were made, and how fast they are."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distilltool import __version__, images
from distilltool.bought import is_vectors
from distilltool.embedder import Teacher
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation
from distilltool.names import manner
from distilltool.report import Speedup, to_json
from distilltool.rundir import RunDir, read_json

UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, DistillError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A time from a model's export. way: device, threads and batch; speedup: over the teacher in the same measurement,
    None where that was not timed; session: which measurement it was."""

    way: str
    p50_ms: float
    speedup: Speedup | None
    session: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """How a training went. losses: (step, loss); held_out: (step, overlap@10) of the weights then; undistilled: that of
    the student before its first step; kept: the overlap@10 of the weights that were kept."""

    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]
    undistilled: float
    kept: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of one model. answers: images whose answers it was made from, None where nobody says; timed: by its
    bundle, None where there is none; said: (what, value) for people."""

    said: tuple[tuple[str, str], ...]
    answers: int | None = None
    timed: Timed | None = None
    curve: Curve | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of all models, the teacher first. said: about the evaluation itself."""

    said: tuple[tuple[str, str], ...]
    models: tuple[ModelFacts, ...]


def gather(made: Evaluation, teacher: Teacher, models: Sequence[RunDir | Path]) -> Facts:
    """Read runs and bundles; what cannot be read there is not known, and no fault of the evaluation."""
    students = [_of_run(model) if isinstance(model, RunDir) else _of_file(model) for model in models]
    timed = {one.timed.session: one.timed for one in students if one.timed is not None}
    report = made.report
    asked = report.teacher_queries
    said = [
        ("Data", f"{Path(report.data).name}, {report.queries:,} queries in a gallery of {report.gallery:,} images"),
        ("Protocol", report.protocol),
        *([("Vectors", how)] if (how := manner(to_json(report.views), to_json(report.whitening))) else []),
        ("Left out", f"{len(report.skipped):,} files that could not be read" if report.skipped else "nothing"),
        ("Answers of the teacher", f"{asked.get('new', 0):,} asked for now, {asked.get('cached', 0):,} known before"),
        ("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC in {report.seconds:,.1f} s"),
        ("By", f"distilltool {__version__}, Python {platform.python_version()}, {platform.machine()}"),
    ]
    return Facts(said=tuple(said), models=(_of_teacher(teacher, timed, models), *students))


def _of_teacher(teacher: Teacher, timed: Mapping[str, Timed], models: Sequence[RunDir | Path]) -> ModelFacts:
    said = [
        ("SHA-256", teacher.key.sha256),
        ("Output", teacher.key.output),
        ("Images", teacher.preprocess.describe()),
        ("Size", f"{teacher.size_bytes / 1e6:,.1f} MB" if teacher.size_bytes else "not known"),
    ]
    alone = _teacher_time(next(iter(timed))) if len(timed) == 1 else None
    return ModelFacts(said=tuple(said), timed=alone)


def _of_run(run: RunDir) -> ModelFacts:
    found = read_json(run.manifest)["report"]
    student, counted = found["student"], found["images"]
    answers = counted["train"] + counted["validation"]
    runs = f" in {found['soup']} runs" if found.get("soup", 1) > 1 else ""
    said = [
        ("Made by", f"distilling with the recipe {found['recipe']}, seed {found['seed']}"),
        ("Student", f"{student['spec']}, {student['params'] / 1e6:,.2f} M weights, {_sides(student['input'])} px"),
        ("Started from", student["start"]),
        ("From", f"{answers:,} answers of the teacher, {counted['validation']:,} of them held out"),
        ("Training", f"{found['steps']:,} steps{runs} in {found['seconds'] / 60:,.1f} minutes"),
        ("Verdict of the run", found["verdict"]),
        ("Versions", _versions(run)),
    ]
    return ModelFacts(
        said=tuple((what, value) for what, value in said if value),
        answers=answers,
        timed=_timed(run.bundle, lambda one: one["precision"] == "fp32" and one["image"] == "prepared"),
        curve=_curve(run, found),
    )


def _sides(sides: Sequence[int]) -> str:
    return "×".join(str(side) for side in sides)


def _versions(run: RunDir) -> str:
    try:
        known = read_json(run.environment)
        return ", ".join(f"{name} {known[name]}" for name in ("distilltool", "torch", "onnxruntime") if name in known)
    except UNREADABLE:
        return ""


def _of_file(path: Path) -> ModelFacts:
    sha256 = images.digest(path)
    said = [("File", path.name), ("SHA-256", sha256), ("Size", f"{path.stat().st_size / 1e6:,.1f} MB")]
    if is_vectors(path):
        said.append(("Vectors", "taken from the file as they are; nothing was run"))
    return ModelFacts(said=tuple(said), timed=_timed(path.parent, _file_of(path, sha256)))


def _file_of(path: Path, sha256: str) -> Callable[[Mapping[str, Any]], bool]:
    """Which variant of a bundle a file is, or, of the bundle's own vectors, which one made them."""
    if path.suffix.lower() != ".npy":
        return lambda one: bool(one["sha256"] == sha256)
    try:
        maker = read_json(path.with_suffix(".json"))["model"]
    except UNREADABLE:
        return lambda _: False
    return lambda one: bool(one["file"] == maker)


def _timed(bundle: Path, wanted: Any) -> Timed | None:
    """The first time of the wanted file in a bundle's report."""
    report = bundle / "report.json"
    if not report.is_file():
        return None
    try:
        variant = next(one for one in read_json(report)["variants"] if wanted(one) and one["latency"])
        return _time(variant["latency"][0], report)
    except (StopIteration, *UNREADABLE):
        return None


def _teacher_time(session: str) -> Timed | None:
    """The teacher's own time beside a bundle's."""
    try:
        return _time(read_json(Path(session))["teacher"]["latency"][0], Path(session))
    except UNREADABLE:
        return None


def _time(one: Mapping[str, Any], report: Path) -> Timed:
    faster = one.get("speedup")
    return Timed(
        way=f"{one['device']}:{one['threads']}, batch {one['batch']}",
        p50_ms=float(one["p50_ms"]),
        speedup=None if faster is None else Speedup(**{key: float(faster[key]) for key in ("value", "low", "high")}),
        session=str(report.resolve()),
    )


def _curve(run: RunDir, found: Mapping[str, Any]) -> Curve | None:
    """What the log says of training; None where there was none."""
    try:
        lines = [json.loads(line) for line in run.log.read_text("utf-8").splitlines() if line]
        losses = [(int(one["step"]), float(one["loss"])) for one in lines if "loss" in one]
        held_out = [(int(one["step"]), float(one["overlap"])) for one in lines if "overlap" in one and "step" in one]
        if not losses:
            return None
        return Curve(
            losses=tuple(losses),
            held_out=tuple(held_out),
            undistilled=float(found["undistilled"]["overlap@10"]["value"]),
            kept=float(found["fidelity"]["overlap@10"]["value"]),
        )
    except UNREADABLE:
        return None

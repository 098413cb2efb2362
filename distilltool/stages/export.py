"""Write a finished run's student as one ONNX file, check it against the student, time it beside its teacher."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from distilltool import __version__, deploy, images, latency, metrics
from distilltool.card import render_card
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.metrics import Task
from distilltool.onnx_export import to_onnx
from distilltool.preprocess import METADATA_KEY
from distilltool.progress import Progress
from distilltool.report import ExportReport, Interval, LatencyReport, VariantReport, to_json
from distilltool.rundir import RunDir, read_json, write_bytes, write_json, write_text
from distilltool.student import StudentCard, TorchEmbedder
from distilltool.teacher import DIMS_KEY, SPACE_KEY, OnnxEmbedder, open_teacher

BATCHES = (1, 2, 7)  # where a dynamic batch is proved
TOLERANCE = 1e-4  # largest difference between torch and onnxruntime in a coordinate of a unit vector
MIN_COSINE = 0.999
PARITY_IMAGES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How an exported file compares with the torch student on image files."""

    cosine_min: float
    cosine_mean: float
    overlap: Interval
    reason: str


def export(
    run: RunDir,
    student: TorchEmbedder,
    teacher: OnnxEmbedder | None,
    bundle: Path,
    *,
    opset: int,
    seconds: float,
    threads: int,
    progress: Progress,
) -> ExportReport:
    """Fill the folder `bundle`; a student that does not survive the export is rejected and left out of it.

    teacher: opened with `threads` and timed beside the student; None, or one in a process of its own, is not timed.
    seconds: for the latency measurement.
    """
    began = time.perf_counter()
    manifest = read_json(run.manifest)
    paths = [Path(path) for path in manifest["held_out"] if Path(path).is_file()][:PARITY_IMAGES]
    if not paths:
        raise DistillError(
            f"none of the held-out images of {run.root} is where it was, so nothing can be checked",
            "run export where the images are",
        )
    progress.begin("exporting", 4, "steps")
    fresh = bundle / ".student.onnx"
    try:
        write_bytes(fresh, lambda path: _write_onnx(student, manifest, opset, path))
        progress.advance(1, "checking parity")
        exported = open_teacher(fresh)
        judged = _judge(student, exported, paths)
        progress.advance(1, "timing")
        timed = _time(open_teacher(fresh, threads=threads), teacher, paths[0], seconds, threads)
        progress.advance(1, "writing")
        variant = _ship(fresh, bundle / "student.onnx", judged, timed[0], opset)
    finally:
        fresh.unlink(missing_ok=True)
    report = ExportReport(
        bundle=str(bundle),
        variants=(variant,),
        teacher=_teacher_facts(manifest, teacher, timed[1]),
        machine=latency.machine(),
        evaluations=_evaluations(run),
        seconds=time.perf_counter() - began,
    )
    write_json(bundle / "report.json", to_json(_without_paths(report)))
    if variant.status == "accepted":
        shutil.copyfile(deploy.__file__, bundle / "deploy.py")
        write_text(bundle / "card.md", render_card(report, manifest, student.card))
    progress.advance(1, "done")
    progress.end()
    return report


def _without_paths(report: ExportReport) -> ExportReport:
    """The report as it travels: nothing of the folders it was made in."""
    evaluations = tuple({**one, "data": Path(one["data"]).name, "skipped": []} for one in report.evaluations)
    return replace(report, bundle=Path(report.bundle).name, evaluations=evaluations)


def _ship(fresh: Path, final: Path, judged: Judged, timed: tuple[LatencyReport, ...], opset: int) -> VariantReport:
    accepted = judged.reason == ""
    size, sha256 = fresh.stat().st_size, images.digest(fresh)
    for old in (final, final.with_name("card.md"), final.with_name("deploy.py")):
        old.unlink(missing_ok=True)  # of an earlier export: nothing stays that this one does not vouch for
    if accepted:
        fresh.replace(final)
    return VariantReport(
        precision="fp32",
        file=final.name,
        bytes=size,
        sha256=sha256,
        opset=opset,
        status="accepted" if accepted else "rejected",
        reason=judged.reason,
        parity={"cosine_min": judged.cosine_min, "cosine_mean": judged.cosine_mean},
        overlap_at_10=judged.overlap,
        latency=timed,
    )


def _write_onnx(student: TorchEmbedder, manifest: dict[str, Any], opset: int, path: Path) -> None:
    """One self-contained file, checked and stamped."""
    model = to_onnx(student.student, student.preprocess.size, opset)
    onnx.helper.set_model_props(model, stamp(student.card, manifest))
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def stamp(card: StudentCard, manifest: dict[str, Any]) -> dict[str, str]:
    """What the file says of itself: enough to prepare images for it and to know what may be compared with it."""
    versions = {"distilltool": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
    return {
        METADATA_KEY: json.dumps({**card.preprocess.to_dict(), "source": "distilltool"}),
        SPACE_KEY: card.space_id,
        "distilltool.teacher_sha256": manifest["teacher"]["sha256"],
        "distilltool.dim": str(card.dim),
        **({DIMS_KEY: ",".join(str(dim) for dim in card.dims)} if card.dims else {}),
        "distilltool.teacher_preprocess": json.dumps(manifest["teacher"]["preprocess"]),
        "distilltool.recipe": manifest["report"]["recipe"],
        "distilltool.student": card.spec,
        "distilltool.versions": json.dumps(versions),
    }


def _unproved(student: TorchEmbedder, exported: OnnxEmbedder, images_NHWC: NDArray[np.uint8]) -> str:
    """Why torch and onnxruntime do not give the same vectors at every batch size that is promised; empty if they do."""
    for batch in BATCHES:
        rows = images_NHWC[np.arange(batch) % len(images_NHWC)]
        worst = float(np.abs(exported.embed(rows) - student.embed(rows)).max())
        if worst > TOLERANCE:
            return f"at batch {batch} it differs from the trained student by {worst:.2g}, more than {TOLERANCE}"
    return ""


def _judge(student: TorchEmbedder, exported: OnnxEmbedder, paths: Sequence[Path]) -> Judged:
    rows, skipped = images.load(paths, student.preprocess)
    if skipped:
        raise DistillError(f"{skipped[0].path} {skipped[0].reason}", "put the image back as it was")
    ours, theirs = student.embed(rows), exported.embed(rows)
    if not np.isfinite(theirs).all():
        nothing = Interval(value=0.0, low=0.0, high=0.0)
        return Judged(cosine_min=0.0, cosine_mean=0.0, overlap=nothing, reason="vectors are not finite")
    cosine = (unit(ours) * unit(theirs)).sum(axis=1)
    every = np.arange(len(rows), dtype=np.int64)
    task = Task(query=every, gallery=every, labels=None)
    overlap = metrics.interval(metrics.overlap(task, ours, theirs, metrics.reach(len(rows))))
    low = f"cosine to the trained student {cosine.min():.4f} < {MIN_COSINE}" if cosine.min() < MIN_COSINE else ""
    low = low or _unproved(student, exported, rows)
    return Judged(cosine_min=float(cosine.min()), cosine_mean=float(cosine.mean()), overlap=overlap, reason=low)


def _time(
    exported: OnnxEmbedder, teacher: OnnxEmbedder | None, path: Path, seconds: float, threads: int
) -> tuple[tuple[LatencyReport, ...], tuple[LatencyReport, ...]]:
    """Latency of student and teacher in alternating blocks at the teacher's batch, 1 where it is free; inputs ready."""
    batch = (teacher.batch if teacher else None) or 1
    student_run = _runner(exported, path, batch)
    teacher_run = _runner(teacher, path, batch) if teacher is not None else None
    assert student_run is not None
    if teacher is None or teacher_run is None:
        alone, _ = latency.interleaved(student_run, student_run, seconds)
        return (latency.summarise(alone, provider=exported.provider, threads=threads, batch=batch, ratio=None),), ()
    ours, theirs = latency.interleaved(student_run, teacher_run, seconds)
    ratio = latency.speedup(ours, theirs)
    return (
        (latency.summarise(ours, provider=exported.provider, threads=threads, batch=batch, ratio=ratio),),
        (latency.summarise(theirs, provider=teacher.provider, threads=threads, batch=batch, ratio=None),),
    )


def _runner(embedder: OnnxEmbedder, path: Path, batch: int) -> Callable[[], Any] | None:
    """One inference on a real image; None where another process would do it."""
    image = images.prepare(path, embedder.preprocess)
    assert not isinstance(image, str)
    fed = embedder.preprocess.feed(np.repeat(image[None], batch, axis=0))
    return embedder.model.ready(fed) if embedder.model.ready is not None else None


def _teacher_facts(
    manifest: dict[str, Any], teacher: OnnxEmbedder | None, timed: tuple[LatencyReport, ...]
) -> dict[str, Any]:
    facts = manifest["teacher"]
    return {
        "name": Path(facts["path"]).stem,
        "sha256": facts["sha256"],
        "bytes": facts["bytes"],
        "dim": teacher.dim if teacher else None,
        "latency": [to_json(one) for one in timed],
    }


def _evaluations(run: RunDir) -> tuple[dict[str, Any], ...]:
    """What `eval` has found about this run so far."""
    files = sorted(run.evaluations.glob("*.json")) if run.evaluations.is_dir() else []
    return tuple(read_json(file) for file in files)

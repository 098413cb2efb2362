"""Write a finished run's student as ONNX files, check them against the student, time them beside the teacher."""

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from distilltool import __version__, deploy, golden, images, latency, versus
from distilltool import bundle as contents
from distilltool.any_size import any_size, check_filter
from distilltool.card import filled_in, render_card, with_licences
from distilltool.defaults import DEVICE
from distilltool.deploy import IMAGE_KEY
from distilltool.errors import DistillError
from distilltool.latency import Timed
from distilltool.onnx_export import to_onnx
from distilltool.onnx_file import opset_of
from distilltool.precisions import FP32
from distilltool.preprocess import METADATA_KEY
from distilltool.progress import Progress
from distilltool.report import ExportReport, Interval, LatencyReport, Speedup, VariantReport, to_json
from distilltool.rundir import RunDir, read_json, write_array, write_bytes, write_json, write_text
from distilltool.runtime import open_session
from distilltool.student import StudentCard, TorchEmbedder, embed
from distilltool.teacher import DIMS_KEY, SPACE_KEY, OnnxEmbedder, TeacherOptions, open_teacher
from distilltool.variants import Judged, Sample, Variant, Wanted, judge, make_variant, names, not_worth, worse

BATCHES = (1, 2, 7)  # where a dynamic batch is proved
TOLERANCE = 1e-4  # largest difference between torch and onnxruntime in a coordinate of a unit vector
ROUNDING = 4  # times as far from the exact answer as float32 in torch, at most, where it is further than that
MIN_COSINE = 0.999
JUDGED = 1000  # held-out images that variants are judged on
EMBEDDED_AT_ONCE = 32
ANY_SIZE = "student.any.onnx"
ANY_SIZE_SECONDS = 2.0  # for which it is timed, warm-up apart


def export(
    run: RunDir,
    student: TorchEmbedder,
    teacher: OnnxEmbedder | None,
    bundle: Path,
    wanted: Wanted,
    *,
    opset: int,
    seconds: float,
    threads: int,
    gallery: Sequence[Path] = (),
    progress: Progress,
) -> ExportReport:
    """Fill the folder `bundle`; what is no better than float32, or ranks worse, is rejected and left out of it.

    teacher: opened with `threads` and timed beside the student; None, or one in a process of its own, is not timed.
    seconds: for the latency measurement. gallery: images whose vectors go into the bundle. An earlier bundle stays
    until this one is whole. Raises DistillError for a folder that holds anything else.
    """
    with contents.replaced(bundle) as fresh:
        report = _export(
            run,
            student,
            teacher,
            fresh,
            wanted,
            opset=opset,
            seconds=seconds,
            threads=threads,
            gallery=gallery,
            progress=progress,
        )
        _keep_licences(bundle / contents.CARD, fresh / contents.CARD, report, progress)
    if others := contents.foreign(bundle):
        some = others[0] + (f" and {len(others) - 1:,} more" if len(others) > 1 else "")
        progress.warn(f"{bundle} holds {some}, which is none of the bundle's: verify will say so")
    return replace(report, bundle=str(bundle))


def _export(
    run: RunDir,
    student: TorchEmbedder,
    teacher: OnnxEmbedder | None,
    bundle: Path,
    wanted: Wanted,
    *,
    opset: int,
    seconds: float,
    threads: int,
    gallery: Sequence[Path],
    progress: Progress,
) -> ExportReport:
    """As `export`, into an empty folder."""
    began = time.perf_counter()
    if wanted.any_size:
        check_filter(student.preprocess)
    manifest = read_json(run.manifest)
    sample = _sample(run, student, manifest)
    progress.begin("exporting", 3, "steps")
    with tempfile.TemporaryDirectory(prefix=".", dir=bundle) as folder:
        made, refused = list[Variant](), dict[str, str]()
        _make_all(made, refused, sample, manifest, wanted, opset, Path(folder), progress)
        progress.advance(1, "timing")
        timed = _time(made, teacher, sample.paths[0], wanted.device, seconds, threads)
        progress.advance(1, "writing")
        plain = onnx.load(made[0].file) if wanted.any_size and not made[0].judged.reason else None
        variants = (*_shipped(made, timed, wanted, bundle), *(_missing(*one) for one in refused.items()))
        if plain is not None:
            variants += (_ship_any_size(plain, sample, wanted, bundle, threads),)
    report = ExportReport(
        bundle=str(bundle),
        variants=variants,
        teacher=_teacher_facts(manifest, teacher, timed.teacher),
        machine=latency.machine(),
        evaluations=_evaluations(run),
        sources=manifest.get("sha256", {}),
        seconds=time.perf_counter() - began,
    )
    write_json(bundle / "report.json", to_json(_without_paths(report)))
    if variants[0].status == "accepted":
        shutil.copyfile(deploy.__file__, bundle / "deploy.py")
        write_text(bundle / "card.md", render_card(report, manifest, student.card))
        _write_hub(bundle, student.card, manifest)
        _write_golden(bundle, student, variants)
        if gallery:
            _write_vectors(bundle, gallery, student.card, progress)
        contents.seal(bundle)
    progress.advance(1, "done")
    progress.end()
    return report


def _keep_licences(earlier: Path, card: Path, report: ExportReport, progress: Progress) -> None:
    """Take over what an earlier card says of licences where it is of the same teacher and images."""
    if not earlier.is_file() or not card.is_file():
        return
    before = earlier.read_text("utf-8", "replace")
    if not (section := filled_in(before)):
        return
    of = [report.teacher["sha256"], *(report.sources[one] for one in ("images", "unasked") if one in report.sources)]
    hold = "images" in report.sources and all(one in before for one in of)
    if not hold:
        progress.warn(
            f"{earlier}: its licences were filled in for another teacher or other images, and are a comment at its end "
            "now: fill them in anew"
        )
    write_text(card, with_licences(card.read_text("utf-8"), section, hold=hold))


def _sample(run: RunDir, student: TorchEmbedder, manifest: dict[str, Any]) -> Sample:
    """The held-out images that are still where they were."""
    listed = [Path(path) for path in manifest["held_out"]][:JUDGED]
    there = np.array([path.is_file() for path in listed], bool)
    paths = tuple(path for path in listed if path.is_file())
    if not paths:
        raise DistillError(
            f"none of the held-out images of {run.root} is where it was, so nothing can be checked",
            "run export where the images are",
        )
    rows, skipped = images.load(paths, student.preprocess)
    if skipped:
        raise DistillError(f"{skipped[0].path} {skipped[0].reason}", "put the image back as it was")
    answers = None
    if run.answers.exists():
        answers = np.load(run.answers, allow_pickle=False)[: len(there)][there]
    return Sample(student=student, paths=paths, images=rows, vectors=student.embed(rows), answers=answers)


def _make_all(
    made: list[Variant],
    refused: dict[str, str],
    sample: Sample,
    manifest: dict[str, Any],
    wanted: Wanted,
    opset: int,
    folder: Path,
    progress: Progress,
) -> None:
    """Append the float32 file, and beside it what was asked for or can pay, judged but not yet timed.

    refused: what was asked for and cannot be made, with the reason.
    """
    plain = folder / "student.onnx"
    model = _write_onnx(sample.student, manifest, opset, plain)
    first = open_teacher(plain)
    reference = first.embed(sample.images)
    judged = _judge_float32(sample, plain, first, reference, wanted)
    made.append(Variant(precision=FP32, file=plain, opset=opset, judged=judged))
    if judged.reason:
        return
    others = names(model, wanted)
    if wanted.mixed and "int8-static" not in others:
        progress.note("--mixed leaves layers of int8-static in float32, which is not among the precisions")
    for name in others:
        progress.advance(0, name)
        try:
            made.append(make_variant(name, model, sample, reference, manifest, wanted, folder))
        except DistillError as error:
            if wanted.precisions is not None:
                refused[name] = error.message


def _write_hub(bundle: Path, card: StudentCard, manifest: dict[str, Any]) -> None:
    """What the hub and its libraries look for beside a model."""
    write_json(bundle / "preprocessor_config.json", contents.preprocessor_config(card.preprocess))
    write_json(bundle / "config.json", contents.config(card, manifest["teacher"]["sha256"], __version__))


def _write_golden(bundle: Path, student: TorchEmbedder, variants: Sequence[VariantReport]) -> None:
    """The golden pictures, and what the trained student and every file that ships make of them."""
    pictures = golden.draw(bundle / golden.FOLDER)
    rows, _ = images.load(pictures, student.preprocess)
    found = {golden.TRAINED: student.embed(rows)}
    for one in variants:
        if one.status == "accepted":
            found[one.file] = deploy.Student(bundle / one.file, threads=images.workers()).embed(pictures)
    with (bundle / golden.FOLDER / golden.VECTORS).open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]


def _write_vectors(bundle: Path, gallery: Sequence[Path], card: StudentCard, progress: Progress) -> None:
    """`vectors.npy`, (N, D) float32 of length 1, and in `vectors.json` whose they are and in which space."""
    exported = open_teacher(bundle / "student.onnx")
    parts, kept = [np.zeros((0, card.dim), np.float32)], list[Path]()
    progress.begin("embedding images", len(gallery), "images")
    for at in range(0, len(gallery), EMBEDDED_AT_ONCE):
        some = gallery[at : at + EMBEDDED_AT_ONCE]
        rows, skipped = images.load(some, exported.preprocess)
        lost = {one.path for one in skipped}
        kept += [path for path in some if str(path) not in lost]
        parts += [exported.embed(rows)] if len(rows) else []
        for one in skipped:
            progress.warn(f"{one.path} {one.reason}")
        progress.advance(len(some))
    progress.end()
    write_array(bundle / "vectors.npy", np.concatenate(parts))
    whose = {"files": [path.name for path in kept], "sha256": [images.digest(path) for path in kept]}
    write_json(bundle / "vectors.json", {"space_id": card.space_id, "model": "student.onnx", **whose})


def _without_paths(report: ExportReport) -> ExportReport:
    """The report as it travels: nothing of the folders it was made in."""
    private: dict[str, Any] = {"skipped": [], "worst": [], "classes": []}  # names of files and classes stay here
    evaluations = tuple(
        {**one, "data": Path(one["data"]).name, **private, "models": [_nameless(model) for model in one["models"]]}
        for one in report.evaluations
    )
    return replace(report, bundle=Path(report.bundle).name, evaluations=evaluations)


def _nameless(model: dict[str, Any]) -> dict[str, Any]:
    """A model's figures without the files that are farthest from what it knows."""
    return {**model, "drift": {**model["drift"], "farthest": []}} if model.get("drift") else model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Times:
    """Latency of each variant, how much faster than float32 each is, and the teacher's latency."""

    variants: tuple[tuple[LatencyReport, ...], ...]
    gains: tuple[Speedup | None, ...]
    teacher: tuple[LatencyReport, ...]


def _time(
    made: Sequence[Variant], teacher: OnnxEmbedder | None, path: Path, device: str, seconds: float, threads: int
) -> _Times:
    """Every variant and the teacher in turns at the teacher's batch, 1 where it is free; inputs ready.

    Where there are variants, float32 is timed a second time beside itself: how far the two are apart is what a ratio
    may owe to chance, and a variant has to be faster by more.
    """
    batch = (teacher.batch if teacher else None) or 1
    opened = [open_teacher(one.file, TeacherOptions(device=device), threads=threads) for one in made]
    runs = [_runner(one, path, batch) for one in opened]
    theirs = _runner(teacher, path, batch) if teacher is not None else None
    again = None
    if len(made) > 1:
        again = _runner(open_teacher(made[0].file, TeacherOptions(device=device), threads=threads), path, batch)
    every = [run for run in (*runs, theirs, again) if run is not None]
    found = latency.together(every, seconds / len(every)) if len(every) > 1 else [latency.alone(every[0], seconds)]
    ours, base = found[: len(made)], found[len(made)] if theirs is not None else None
    noise = versus.noise_of(ours[0], found[-1]) if again is not None else versus.EXACT

    def said(one: Timed, embedder: OnnxEmbedder, baseline: Timed | None) -> LatencyReport:
        ratio = versus.speedup(one, baseline) if baseline is not None else None
        return latency.summarise(
            one, device=device, provider=embedder.provider, threads=threads, batch=batch, ratio=ratio
        )

    return _Times(
        variants=tuple((said(one, embedder, base),) for one, embedder in zip(ours, opened, strict=True)),
        gains=(None, *(versus.speedup(one, ours[0], noise) for one in ours[1:])),
        teacher=(said(base, teacher, None),) if base is not None and teacher is not None else (),
    )


def _shipped(made: Sequence[Variant], timed: _Times, wanted: Wanted, bundle: Path) -> tuple[VariantReport, ...]:
    """Move what is accepted into the bundle."""
    size = made[0].file.stat().st_size
    found = []
    for variant, times, gain in zip(made, timed.variants, timed.gains, strict=True):
        reason = variant.judged.reason or worse(variant.judged, wanted)
        if gain is not None and not reason:
            reason = not_worth(gain, variant.file.stat().st_size / size, wanted)
        asked = variant.precision == FP32 or wanted.precisions is not None
        found.append(_told(variant, times, gain, reason, asked))
        if not reason:
            variant.file.replace(bundle / variant.file.name)
    return tuple(found)


def _ship_any_size(model: onnx.ModelProto, sample: Sample, wanted: Wanted, bundle: Path, threads: int) -> VariantReport:
    """The file that takes decoded images of any size, judged on them beside the one that takes prepared ones, and timed
    on one of them, resizing included."""
    whole = any_size(model, sample.student.preprocess)
    said = {
        one.key: one.value for one in model.metadata_props if one.key != METADATA_KEY
    }  # nobody is to prepare images
    onnx.helper.set_model_props(whole, {**said, IMAGE_KEY: "any"})
    onnx.checker.check_model(whole, full_check=True)
    file = bundle / ANY_SIZE
    write_bytes(file, lambda fresh: onnx.save_model(whole, fresh))
    reference, found = (
        open_teacher(bundle / "student.onnx").embed(sample.images),
        deploy.Student(file, threads=images.workers()).embed(sample.paths),
    )
    judged = judge(sample, found, reference)
    variant = Variant(precision=FP32, file=file, opset=opset_of(model), judged=judged)
    reason = worse(judged, wanted)
    times = _time_any_size(file, sample.paths[0], wanted.device, threads)
    report = replace(_told(variant, (times,), None, reason, asked=True), image="any")
    if reason:
        file.unlink()
    return report


def _time_any_size(file: Path, path: Path, device: str, threads: int) -> LatencyReport:
    """On one decoded image, as large as it is."""
    picture = images.decode(path)
    assert not isinstance(picture, str)
    fed = np.asarray(picture, np.uint8)[None]
    session = open_session(file, threads, device)
    name = session.get_inputs()[0].name
    timed = latency.alone(lambda: session.run(None, {name: fed}), ANY_SIZE_SECONDS)
    provider = str(session.get_providers()[0])
    return latency.summarise(timed, device=device, provider=provider, threads=threads, batch=1, ratio=None)


def _told(
    variant: Variant, times: tuple[LatencyReport, ...], gain: Speedup | None, reason: str, asked: bool
) -> VariantReport:
    judged = variant.judged
    return VariantReport(
        precision=variant.precision,
        file=variant.file.name,
        bytes=variant.file.stat().st_size,
        sha256=images.digest(variant.file),
        opset=variant.opset,
        status="rejected" if reason else "accepted",
        reason=reason,
        parity={"cosine_min": judged.cosine_min, "cosine_mean": judged.cosine_mean},
        overlap_at_10=judged.overlap,
        fidelity=judged.fidelity,
        fidelity_loss=judged.loss,
        latency=times,
        faster_than_fp32=gain,
        left_in_float=variant.left,
        asked=asked,
    )


def _missing(name: str, reason: str) -> VariantReport:
    """A variant that was asked for and could not be made."""
    nothing = Interval(value=0.0, low=0.0, high=0.0)
    return VariantReport(
        precision=name,
        file="",
        bytes=0,
        sha256="",
        opset=0,
        status="rejected",
        reason=reason,
        parity={},
        overlap_at_10=nothing,
        latency=(),
    )


def _write_onnx(student: TorchEmbedder, manifest: dict[str, Any], opset: int, path: Path) -> onnx.ModelProto:
    """One self-contained file, checked and stamped."""
    model = to_onnx(student.student, student.preprocess.size, opset)
    onnx.helper.set_model_props(model, stamp(student.card, manifest))
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, lambda fresh: onnx.save_model(model, fresh))
    return model


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
    """Why torch and onnxruntime do not give the same vectors at every batch size that is promised; empty if they do.

    Where they differ by more than the tolerance, the file may be no further from the student in float64 than a few
    times as far as the student in float32 itself: a network that tells images apart by a thousandth of its features has
    no better answer.
    """
    for batch in BATCHES:
        rows = images_NHWC[np.arange(batch) % len(images_NHWC)]
        found = exported.embed(rows)
        worst = float(np.abs(found - student.embed(rows)).max())
        if worst > TOLERANCE and not _as_near_as_rounding_allows(student, found, rows):
            return f"at batch {batch} it differs from the trained student by {worst:.2g}, more than {TOLERANCE}"
    return ""


def _as_near_as_rounding_allows(
    student: TorchEmbedder, found: NDArray[np.float32], images_NHWC: NDArray[np.uint8]
) -> bool:
    try:
        exact = embed(copy.deepcopy(student.student).double(), images_NHWC)
    except (RuntimeError, TypeError):  # a graph that names float32 itself
        return False
    ours = float(np.abs(student.embed(images_NHWC) - exact).max())
    return float(np.abs(found - exact).max()) <= ROUNDING * ours


def _judge_float32(
    sample: Sample, file: Path, exported: OnnxEmbedder, found: NDArray[np.float32], wanted: Wanted
) -> Judged:
    """The float32 file must be the trained student, not only rank like it; where another device is asked for, it must
    rank like it there too. exported: the file, opened on the processor; found: what it makes of the images, (N, D)."""
    judged = judge(sample, found, sample.vectors)
    low = judged.reason
    if not low and judged.cosine_min < MIN_COSINE:
        low = f"cosine to the trained student {judged.cosine_min:.4f} < {MIN_COSINE}"
    low = low or _unproved(sample.student, exported, sample.images)
    if low or wanted.device == DEVICE:
        return replace(judged, reason=low)
    there = judge(sample, open_teacher(file, TeacherOptions(device=wanted.device)).embed(sample.images), found)
    reason = worse(there, wanted)
    return replace(there, reason=f"on {wanted.device}: {reason}" if reason else "")


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

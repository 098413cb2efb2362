"""Say what was understood of a model file: taken apart without running it, then run on a few images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import guess, images, sanity
from distilltool.anatomy import Anatomy, dissect
from distilltool.embedder import by_shape, embed_all
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess, parse_flags
from distilltool.probe import guessed, look, outcome_of, pictures
from distilltool.progress import Progress
from distilltool.report import InspectReport, Skipped
from distilltool.teacher import OnnxEmbedder, OnnxModel, TeacherOptions, open_model, resolve

CHECKED = 64  # images that sanity is judged on
TIMED_SECONDS = 1.0
TIMED_RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What running the model came to. dim: of its vectors; seconds: for one image; warnings: of its vectors."""

    dim: int
    seconds: float
    warnings: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    images: int = 0


def inspect(
    path: Path,
    options: TeacherOptions,
    photos: Sequence[Path],
    *,
    tensors: bool,
    rank: bool,
    progress: Progress,
) -> InspectReport:
    """Take the file apart, then run it on two images, or on up to 64 of `photos` to see whether its vectors make sense.

    tensors: list inner tensors that can serve as the embedding. rank: the known preprocessings, also where it is
    known; where it is not, and there are images, they are ranked in any case.
    """
    anatomy = dissect(path, options)
    problem, trial, model, settled, ranking = anatomy.problem, None, None, None, None
    if problem is None:
        try:
            model = open_model(path, options, size=anatomy.size)
            said = [one for one in (parse_flags(options.preprocess), *model.said) if one]
            settled = resolve(model, said)
            if photos and (rank or (settled is None and len(photos) >= guess.FEWEST)):
                ranking = look(model, said, pictures(photos), progress)
            if settled is None and ranking is not None and ranking.clear:
                settled = guessed(model, said, ranking)
            trial = _try(model, settled, anatomy.size or (224, 224), photos, progress)
        except DistillError as error:
            problem = (error.message, error.fix)
    report = _report(anatomy, model, settled, trial, problem, tensors, unclear=ranking is not None)
    return report if ranking is None else replace(report, guess=outcome_of(ranking))


def _try(
    model: OnnxModel,
    preprocess: Preprocess | None,
    size: tuple[int, int],
    photos: Sequence[Path],
    progress: Progress,
) -> Trial:
    """Run on real images where they are given and it is known how to prepare them, else on two drawn ones of `size`."""
    if preprocess is None:
        plain = Preprocess.from_dict(
            {"size": size, "scale": 1 / 255, "layout": model.layout, "dtype": model.image.dtype}
        )
        return _time(OnnxEmbedder(model, plain), _noise(2, plain.size))
    embedder = OnnxEmbedder(model, preprocess)
    if not photos:
        return _time(embedder, _noise(2, preprocess.size))
    chosen = [photos[at] for at in np.unique(np.linspace(0, len(photos) - 1, CHECKED).astype(int))]
    rows, skipped = images.load_each(chosen, preprocess)
    if not rows:
        raise DistillError(f"none of {len(chosen)} images could be read ({skipped[0].reason})", "check the folder")
    alike = [rows[at] for at in by_shape(rows)[0]]
    timed = _time(embedder, np.stack(alike[:2]))
    progress.begin("looking at its vectors", len(rows), "images")
    vectors = []
    for at in range(0, len(rows), 8):
        vectors.append(embed_all(embedder, rows[at : at + 8]))
        progress.advance(len(vectors[-1]))
    progress.end()
    return Trial(
        dim=timed.dim,
        seconds=timed.seconds,
        warnings=tuple(sanity.warnings(np.concatenate(vectors))),
        skipped=tuple(skipped),
        images=len(rows),
    )


def _time(embedder: OnnxEmbedder, rows_NHWC: NDArray[np.uint8]) -> Trial:
    """Embed two images at once, then one (or the graph's fixed batch) again and again; the median counts."""
    dim = embedder.embed(rows_NHWC).shape[1]
    batch = embedder.batch or 1
    some = np.repeat(rows_NHWC[:1], batch, axis=0)
    seconds = list[float]()
    while len(seconds) < TIMED_RUNS or (sum(seconds) < TIMED_SECONDS and len(seconds) < 100):
        began = time.perf_counter()
        embedder.embed(some)
        seconds.append(time.perf_counter() - began)
    return Trial(dim=dim, seconds=float(np.median(seconds)) / batch)


def _noise(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def _report(
    anatomy: Anatomy,
    model: OnnxModel | None,
    preprocess: Preprocess | None,
    trial: Trial | None,
    problem: tuple[str, str] | None,
    tensors: bool,
    *,
    unclear: bool,
) -> InspectReport:
    """unclear: images were looked at to find out how it wants them; where that is not settled, they did not tell."""
    warnings = list(trial.warnings) if trial is not None else []
    if problem is None and preprocess is None:
        warnings.append(
            "nothing says how it wants its images prepared, "
            + (
                "and these images do not tell"
                if unclear
                else f"with a folder of {guess.FEWEST} images or more it can be guessed"
            )
        )
    if anatomy.choice is not None and not anatomy.counted:
        warnings.append("some shapes are not known without running it: FLOPs are a lower bound")
    choice = anatomy.choice
    return InspectReport(
        path=str(anatomy.file.path),
        sha256=anatomy.file.sha256,
        bytes=anatomy.file.size_bytes,
        external=tuple(one.name for one in anatomy.file.external),
        kind=anatomy.kind,
        opset=anatomy.opset,
        ir_version=anatomy.ir_version,
        domains=anatomy.domains,
        inputs=anatomy.inputs,
        outputs=anatomy.outputs,
        tensors=anatomy.tensors if tensors else None,
        embedding=choice.tensor if choice is not None else None,
        why=choice.why if choice is not None else "",
        pool=choice.pool if choice is not None else "none",
        dim=trial.dim if trial is not None else (model.dim if model is not None else None),
        preprocess=preprocess.to_dict() if preprocess is not None else None,
        description=preprocess.describe() if preprocess is not None else "",
        params=anatomy.params,
        flops=anatomy.flops,
        size=anatomy.size,
        provider=model.provider if model is not None else None,
        ms_per_image=1000 * trial.seconds if trial is not None else None,
        images=trial.images if trial is not None else 0,
        skipped=trial.skipped if trial is not None else (),
        problem=": ".join(problem) if problem is not None else None,
        warnings=tuple(warnings),
    )

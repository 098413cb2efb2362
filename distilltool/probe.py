"""Find out how a model wants its images where nothing says it: probe it, pay for that, remember the outcome."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilltool import guess, images
from distilltool.embedder import embed_all
from distilltool.errors import DistillError, Interrupted
from distilltool.guess import Entry, Ranking
from distilltool.images import Photo
from distilltool.ledger import Ledger
from distilltool.preprocess import Layout, Preprocess, parse_flags
from distilltool.progress import Progress
from distilltool.said import fixed_size, unknown_preprocess
from distilltool.teacher import OnnxEmbedder, OnnxModel, resolve

SHOWN = 5  # places of a ranking named in an error
STEP = 8  # images the model is given at once
POLL = 0.2  # seconds between two looks at what another process is doing


def settle(
    model: OnnxModel,
    said: Sequence[Mapping[str, Any]],
    photos: Sequence[Photo],
    ledger: Ledger,
    budget: int | None,
    progress: Progress,
) -> Preprocess:
    """The preprocessing that the model's own answers speak for; an error with the ranking where they do not.

    At most 32 images are probed, and count as asked; their answers under what is found are kept. The outcome is
    remembered in the ledger: no model is probed twice, unless it was with too few images.
    """
    sha256 = model.file.sha256
    outcome = None
    while outcome is None:
        _wait_for_others(model, ledger, progress)
        outcome = ledger.guess(sha256, model.output)
        if outcome is None or _worth_another_try(outcome, len(photos)):
            outcome = _probe(model, said, photos, ledger, ledger.budget(sha256, budget), progress)
    if not outcome["clear"]:
        raise _unclear(model, outcome)
    found = _merged(model, said, outcome["flags"])
    flags = " ".join(f"--preprocess {flag}" for flag in outcome["flags"])
    progress.note(
        f"nothing says how {model.file.path.name} wants its images; guessed from its answers about "
        f"{outcome['images']} images: {outcome['best']} ({_lead(outcome)}). To fix it: {flags}"
    )
    return found


def _wait_for_others(model: OnnxModel, ledger: Ledger, progress: Progress) -> None:
    """Let another process finish that is probing the same teacher: its outcome serves us too."""
    if ledger.guess_elsewhere(model.file.sha256, model.output):
        progress.note("another process is probing this teacher; waiting for its outcome")
    while ledger.guess_elsewhere(model.file.sha256, model.output):
        time.sleep(POLL)


def pictures(photos: Sequence[Path]) -> list[Image.Image]:
    """Some of the images, spread over them all."""
    chosen = np.unique(np.linspace(0, len(photos) - 1, guess.MOST).astype(int))
    opened = [images.decode(photos[at]) for at in chosen]
    return [one for one in opened if not isinstance(one, str)]


def look(
    model: OnnxModel, said: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image], progress: Progress
) -> Ranking:
    """Rank the known conventions on a few images; nothing is paid for or remembered."""
    layout: Layout | None = None
    if 3 in (model.image.shape or ())[1:]:
        layout = "NHWC" if model.layout == "NHWC" else "NCHW"
    size = fixed_size(model.image) or next((tuple(one["size"]) for one in said if "size" in one), None)
    tried = guess.candidates(layout, _dtype(model), size)
    progress.begin("probing how it wants its images", 0, "images")

    def embed(preprocess: Preprocess, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedder = OnnxEmbedder(model, preprocess)
        step = model.batch or STEP
        parts = list[NDArray[np.float32]]()
        for at in range(0, len(rows), step):
            parts.append(embedder.embed(rows[at : at + step]))
            progress.advance(len(parts[-1]))
        return np.concatenate(parts)

    ranking = guess.rank(embed, tried, pictures)
    progress.end()
    return ranking


def guessed(model: OnnxModel, said: Sequence[Mapping[str, Any]], ranking: Ranking) -> Preprocess:
    """What a clear ranking comes to, below what was said."""
    return _merged(model, said, ranking.best.flags)


def _merged(model: OnnxModel, said: Sequence[Mapping[str, Any]], flags: Sequence[str]) -> Preprocess:
    """What was said, and below it the convention that flags stand for."""
    found = resolve(model, [*said, {**parse_flags(flags), "said_by": "guessed"}])
    assert found is not None, "a convention says how pixels are scaled"
    return found


def outcome_of(ranking: Ranking) -> dict[str, Any]:
    """A ranking as JSON values."""
    best = ranking.best
    return {
        "clear": ranking.clear,
        "why": ranking.why,
        "best": best.name,
        "flags": list(best.flags),
        "preprocess": best.preprocess.to_dict(),
        "margin": ranking.margin,
        "lead": ranking.lead,
        "images": ranking.images,
        "passes": ranking.passes,
        "ranking": [_place(entry) for entry in ranking.entries],
        "sides": [_place(entry) for entry in ranking.sides],
    }


def _place(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.candidate.name,
        "family": entry.candidate.family,
        "score": entry.score,
        "images": entry.images,
        "size": list(entry.candidate.preprocess.size),
        "layout": entry.candidate.preprocess.layout,
        "flags": list(entry.candidate.flags),
        "note": entry.note,
    }


def _dtype(model: OnnxModel) -> Any:
    return model.image.dtype


def _worth_another_try(outcome: Mapping[str, Any], photos: int) -> bool:
    """Whether it was not clear for want of images, and there are more of them now."""
    return not outcome["clear"] and outcome["images"] < min(photos, guess.MOST)


def _probe(
    model: OnnxModel,
    said: Sequence[Mapping[str, Any]],
    photos: Sequence[Photo],
    ledger: Ledger,
    budget: int | None,
    progress: Progress,
) -> dict[str, Any] | None:
    """Pay for a probe and make it; None where another process was quicker."""
    chosen = sorted(photos, key=lambda photo: photo.sha256)[: guess.MOST]  # as good as drawn, and the same ones again
    left = len(chosen) if budget is None else min(len(chosen), budget - ledger.spent(model.file.sha256))
    if left < guess.FEWEST:
        why = f"the budget of {budget} leaves {max(0, left)}" if left < len(chosen) else f"there are {left} here"
        raise unknown_preprocess(model.file.path.name, f", and guessing takes {guess.FEWEST} images or more ({why})")
    granted = ledger.reserve_guess(model.file.sha256, model.output, len(chosen), 0, budget, guess.FEWEST)
    if not granted:  # another process was quicker, with the probe or with the budget
        return None
    try:
        return _paid(model, said, chosen[:granted], ledger, progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"the guess was stopped: its {granted} images count as asked, nothing of it is kept"
        ) from None
    finally:
        ledger.drop_guess(model.file.sha256, model.output)  # unless an outcome stands in its place


def _paid(
    model: OnnxModel,
    said: Sequence[Mapping[str, Any]],
    chosen: Sequence[Photo],
    ledger: Ledger,
    progress: Progress,
) -> dict[str, Any]:
    """Probe with images that are paid for; the outcome, and the answers under it, are kept."""
    opened = [(photo, images.decode(photo.path)) for photo in chosen]
    good = [(photo, picture) for photo, picture in opened if not isinstance(picture, str)]
    ranking = look(model, said, [picture for _, picture in good], progress)
    outcome = outcome_of(ranking)
    if ranking.clear:
        _keep(model, said, outcome, good, ledger)
    ledger.keep_guess(model.file.sha256, model.output, len(chosen), ranking.passes, outcome)
    return outcome


def _keep(
    model: OnnxModel,
    said: Sequence[Mapping[str, Any]],
    outcome: Mapping[str, Any],
    good: Sequence[tuple[Photo, Image.Image]],
    ledger: Ledger,
) -> None:
    """Put the probed images' answers under what was found into the ledger: they are paid for already."""
    found = _merged(model, said, outcome["flags"])
    embedder = OnnxEmbedder(model, found)
    for at in range(0, len(good), STEP):
        some = good[at : at + STEP]
        vectors = embed_all(embedder, [found.prepare(picture) for _, picture in some])
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        kept = [photo.sha256 for (photo, _), ok in zip(some, finite, strict=True) if ok]
        if kept:
            ledger.answer(ledger.teacher(embedder.key), kept, vectors[finite], embedder.provider, bought=True)


def _unclear(model: OnnxModel, outcome: Mapping[str, Any]) -> DistillError:
    places = [f"{one['name']} {one['score']:.2f}" for one in outcome["ranking"][:SHOWN] if one["score"] is not None]
    seen = f", and guessing from {outcome['images']} images is not clear: {', '.join(places)} ({outcome['why']})"
    likeliest = " ".join(f"--preprocess {flag}" for flag in outcome["flags"])
    return unknown_preprocess(model.file.path.name, seen, likeliest)


def _lead(outcome: Mapping[str, Any]) -> str:
    first, *rest = outcome["ranking"]
    others = [one for one in rest if one["family"] != first["family"] and not one["note"].startswith("answers as")]
    if outcome["margin"] is None or not others:
        return "nothing else comes near"
    return f"{outcome['margin']:.1f} standard errors ahead of {others[0]['name']}"

"""Ask the teacher about images, within the budget, and keep each answer in the ledger as it comes."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from distilltool import images
from distilltool.choice import Choice
from distilltool.errors import DistillError, Interrupted
from distilltool.images import Inventory, Photo
from distilltool.interrupt import stop_gently
from distilltool.ledger import Ledger
from distilltool.progress import Progress
from distilltool.report import PlanReport, QueryReport, Skipped, TeacherReport
from distilltool.teacher import OnnxEmbedder

PROBES = 32
NOT_FINITE = "the teacher's answer is not finite"
ROW_OVERHEAD = 160  # bytes of an answer in SQLite beyond its vector: key, state, index entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one pass over some images came to."""

    queried: int
    useless: int
    skipped: tuple[Skipped, ...]
    seconds: float


def query(
    teacher: OnnxEmbedder,
    stock: Inventory,
    ledger: Ledger,
    *,
    choice: Choice,
    budget: int | None,
    plan: bool,
    batch: int,
    progress: Progress,
) -> QueryReport:
    """Ask about the images of `stock` that have no answer yet, in the order of `choice`, and report.

    budget: the most the teacher may ever be asked in this ledger, from now on; None keeps the one given last.
    plan: ask about 32 images at most and forecast.
    Raises Interrupted after Ctrl-C, with every answer kept.
    """
    began = time.perf_counter()
    number = ledger.teacher(teacher.key)
    budget = ledger.budget(teacher.file.sha256, budget)
    state = ledger.settled(number, [photo.sha256 for photo in stock.photos])
    missing = [photo for photo in choice.order if photo.sha256 not in state]
    probes = missing[: max(0, PROBES - len(state))]
    asked = ask(teacher, probes if plan else missing, ledger, number, budget, batch, progress)
    failed = [photo for photo in stock.photos if state.get(photo.sha256) == "failed"]
    skipped = (*stock.skipped, *(Skipped(path=str(p.path), reason=NOT_FINITE) for p in failed), *asked.skipped)
    cached = len(state) - len(failed)
    usable = len(stock.photos) - len(failed) - len(asked.skipped)
    pending = usable - cached - (asked.queried - asked.useless)
    spent = ledger.spent(teacher.file.sha256)
    dim = ledger.dim(number) or teacher.dim or 0
    left = pending if budget is None else max(0, min(pending, budget - spent))
    return QueryReport(
        store=str(ledger.path),
        teacher=TeacherReport(
            sha256=teacher.file.sha256, dim=dim, output=teacher.output, preprocess=teacher.preprocess.to_dict()
        ),
        images=usable,
        files=stock.files,
        duplicates=stock.duplicates,
        near_duplicates=choice.set_aside,
        queried=asked.queried,
        cached=cached,
        pending=pending,
        spent=spent,
        budget=budget,
        skipped=skipped,
        seconds=time.perf_counter() - began,
        plan=_forecast(asked, left, dim) if plan else None,
    )


def _forecast(asked: Asked, left: int, dim: int) -> PlanReport:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return PlanReport(
        queries=left,
        seconds=left * asked.seconds / max(1, asked.queried),
        memory_bytes=peak * (1 if sys.platform == "darwin" else 1024),
        disk_bytes=left * (4 * dim + ROW_OVERHEAD),
        probed=asked.queried,
    )


def ask(
    teacher: OnnxEmbedder,
    photos: Sequence[Photo],
    ledger: Ledger,
    number: int,
    budget: int | None,
    batch: int,
    progress: Progress,
) -> Asked:
    """Ask about these images batch by batch while threads decode the next ones; stop at the budget."""
    began = time.perf_counter()
    queried, useless, skipped = 0, list[Skipped](), list[Skipped]()
    room = len(photos) if budget is None else min(len(photos), budget - ledger.spent(teacher.file.sha256))
    if room <= 0:
        return Asked(queried=0, useless=0, skipped=(), seconds=0.0)
    progress.begin("asking the teacher", room, "images")
    ready = images.ahead(photos, lambda photo: images.prepare(photo.path, teacher.preprocess), depth=4 * batch)
    with stop_gently() as wish:
        for at in range(0, len(photos), batch):
            some = photos[at : at + batch]
            found = list(zip(some, islice(ready, len(some)), strict=True))
            skipped += [Skipped(path=str(photo.path), reason=it) for photo, it in found if isinstance(it, str)]
            good = {photo.sha256: it for photo, it in found if not isinstance(it, str)}
            claimed = ledger.claim(number, list(good), budget)
            if claimed:
                useless += _ask_batch(teacher, {sha: good[sha] for sha in claimed}, some, ledger, number)
            queried += len(claimed)
            progress.advance(len(claimed))
            if wish.wanted:
                raise Interrupted(f"{queried} new answers are in {ledger.path}; the same command goes on from there")
            if queried >= room and budget is not None:
                break
    progress.end()
    seconds = time.perf_counter() - began
    return Asked(queried=queried, useless=len(useless), skipped=(*skipped, *useless), seconds=seconds)


def _ask_batch(
    teacher: OnnxEmbedder, arrays: dict[bytes, NDArray[np.uint8]], photos: Sequence[Photo], ledger: Ledger, number: int
) -> list[Skipped]:
    """One batch, claimed already; its answers are committed before this returns. Lists answers of no use."""
    try:
        vectors = teacher.embed(np.stack(list(arrays.values())))
    except DistillError:  # it refused: no answer was given, none is counted
        ledger.release(number, list(arrays))
        raise
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    good = [sha for sha, ok in zip(arrays, finite, strict=True) if ok]
    bad = [sha for sha, ok in zip(arrays, finite, strict=True) if not ok]
    if good:
        ledger.answer(number, good, vectors[finite], teacher.provider)
    if bad:
        ledger.fail(number, bad, NOT_FINITE)
    return [Skipped(path=str(photo.path), reason=NOT_FINITE) for photo in photos if photo.sha256 in bad]

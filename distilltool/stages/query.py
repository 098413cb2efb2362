"""Ask the teacher about images, within the budget, and keep each answer in the ledger as it comes."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from distilltool import images, sanity
from distilltool.embedder import Teacher
from distilltool.errors import DistillError, Interrupted, OutOfMemory
from distilltool.images import Inventory, Photo
from distilltool.interrupt import stop_gently
from distilltool.ledger import Ledger
from distilltool.pace import Pace
from distilltool.progress import Progress
from distilltool.report import PlanReport, QueryReport, Skipped, TeacherReport

PROBES = 32
NOT_FINITE = "the teacher's answer is not finite"
AHEAD_BYTES = 2**29  # of prepared images waiting for the teacher
ROW_OVERHEAD = 160  # bytes of an answer in SQLite beyond its vector: key, state, index entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one pass over some images came to."""

    queried: int
    useless: int
    skipped: tuple[Skipped, ...]
    seconds: float


def query(
    teacher: Teacher,
    stock: Inventory,
    ledger: Ledger,
    *,
    order: Sequence[Photo],
    budget: int | None,
    plan: bool,
    batch: int | None,
    progress: Progress,
) -> QueryReport:
    """Ask about the images of `stock` that have no answer yet, in `order`, and report.

    budget: the most the teacher may ever be asked in this ledger, from now on; None keeps the one given last.
    plan: ask about 32 images at most and forecast.
    Raises Interrupted after Ctrl-C, with every answer kept.
    """
    began = time.perf_counter()
    number = ledger.teacher(teacher.key)
    budget = ledger.budget(teacher.key.sha256, budget)
    state = ledger.settled(number, [photo.sha256 for photo in stock.photos])
    missing = [photo for photo in order if photo.sha256 not in state]
    probes = missing[: max(0, PROBES - len(state))]
    asked = ask(teacher, probes if plan else missing, ledger, number, budget, batch, progress)
    failed = [photo for photo in stock.photos if state.get(photo.sha256) == "failed"]
    skipped = (*stock.skipped, *(Skipped(path=str(p.path), reason=NOT_FINITE) for p in failed), *asked.skipped)
    cached = len(state) - len(failed)
    usable = len(stock.photos) - len(failed) - len(asked.skipped)
    pending = usable - cached - (asked.queried - asked.useless)
    spent = ledger.spent(teacher.key.sha256)
    dim = ledger.dim(number) or teacher.dim or 0
    left = pending if budget is None else max(0, min(pending, budget - spent))
    return QueryReport(
        store=str(ledger.path),
        teacher=TeacherReport(
            sha256=teacher.key.sha256, dim=dim, output=teacher.key.output, preprocess=teacher.preprocess.to_dict()
        ),
        images=usable,
        files=stock.files,
        duplicates=stock.duplicates,
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
    teacher: Teacher,
    photos: Sequence[Photo],
    ledger: Ledger,
    number: int,
    budget: int | None,
    batch: int | None,
    progress: Progress,
) -> Asked:
    """Ask about these images batch by batch while threads decode the next ones; stop at the budget."""
    began = time.perf_counter()
    queried, useless, skipped = 0, list[Skipped](), list[Skipped]()
    room = len(photos) if budget is None else min(len(photos), budget - ledger.spent(teacher.key.sha256))
    if room <= 0:
        return Asked(queried=0, useless=0, skipped=(), seconds=0.0)
    pace = Pace(batch, teacher.provider, teacher.batch)
    line = _Line(teacher=teacher, ledger=ledger, number=number, pace=pace, progress=progress)
    progress.begin("asking the teacher", room, "images")
    ready = images.ahead(
        photos, lambda photo: images.prepare(photo.path, teacher.preprocess), depth=_depth(teacher, pace.largest)
    )
    with stop_gently() as wish:
        at = 0
        while at < len(photos):
            some = photos[at : at + pace.size]
            at += len(some)
            found = list(zip(some, islice(ready, len(some)), strict=True))
            skipped += [Skipped(path=str(photo.path), reason=it) for photo, it in found if isinstance(it, str)]
            good = {photo.sha256: it for photo, it in found if not isinstance(it, str)}
            claimed = ledger.claim(number, list(good), budget)
            if claimed:
                bad = line.ask({sha: good[sha] for sha in claimed})
                useless += [Skipped(path=str(photo.path), reason=NOT_FINITE) for photo in some if photo.sha256 in bad]
            queried += len(claimed)
            progress.advance(len(claimed))
            if wish.wanted:
                raise Interrupted(f"{queried} new answers are in {ledger.path}; the same command goes on from there")
            if queried >= room and budget is not None:
                break
    progress.end()
    seconds = time.perf_counter() - began
    return Asked(queried=queried, useless=len(useless), skipped=(*skipped, *useless), seconds=seconds)


def _depth(teacher: Teacher, largest: int) -> int:
    """How many prepared images to hold: four of the largest batches, as far as they are no burden on memory."""
    height, width = teacher.preprocess.size
    return max(largest, min(4 * largest, AHEAD_BYTES // (3 * height * width)))


@dataclass(kw_only=True, slots=True)
class _Line:
    """The line to the teacher: claimed images go out, answers are committed as they come back."""

    teacher: Teacher
    ledger: Ledger
    number: int
    pace: Pace
    progress: Progress
    checked: bool = False

    def ask(self, arrays: dict[bytes, NDArray[np.uint8]]) -> set[bytes]:
        """One batch, claimed already; its answers are committed before this returns. Names answers of no use."""
        waiting, bad = [list(arrays)], set[bytes]()
        try:
            while waiting:
                some = waiting.pop(0)
                began = time.perf_counter()
                try:
                    vectors = self.teacher.embed(np.stack([arrays[sha] for sha in some]))
                except (OutOfMemory, MemoryError):
                    if len(some) == 1:
                        raise
                    self.pace.too_much(len(some))
                    self.progress.note(f"{len(some)} images at once do not fit into memory; going on with half as many")
                    waiting = [some[: len(some) // 2], some[len(some) // 2 :], *waiting]
                    continue
                self.pace.went(len(some), time.perf_counter() - began)
                bad |= self._commit(some, vectors)
        except (DistillError, MemoryError):  # it refused: no answer was given, none is counted
            self.ledger.release(self.number, list(arrays))
            raise
        return bad

    def _commit(self, some: list[bytes], vectors: NDArray[np.float32]) -> set[bytes]:
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        good = [sha for sha, ok in zip(some, finite, strict=True) if ok]
        bad = [sha for sha, ok in zip(some, finite, strict=True) if not ok]
        if good:
            self.ledger.answer(self.number, good, vectors[finite], self.teacher.provider)
        if bad:
            self.ledger.fail(self.number, bad, NOT_FINITE)
        if not self.checked and len(good) >= sanity.ENOUGH:
            self.checked = True
            for sign in sanity.warnings(vectors[finite]):
                self.progress.warn(sign)
        return set(bad)

"""Ask the teacher about images, within the budget, and keep each answer in the ledger as it comes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from distilltool import images, memory, sanity
from distilltool.bought import BoughtTeacher, Matched
from distilltool.choice import Choice
from distilltool.embedder import Teacher, by_shape
from distilltool.errors import DistillError, Interrupted, OutOfMemory, Unsure
from distilltool.images import Inventory, Photo
from distilltool.interrupt import stop_gently
from distilltool.ledger import Ambiguous, Ledger, bytes_each, unsure_claims
from distilltool.pace import Pace
from distilltool.progress import Progress
from distilltool.report import PlanReport, QueryReport, Skipped, TeacherReport

PROBES = 32
NOT_FINITE = "the teacher's answer is not finite"
CHUNK = 4096  # bought answers in one transaction
AHEAD_BYTES = 2**29  # of prepared images waiting for the teacher


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
    choice: Choice,
    budget: int | None,
    plan: bool,
    batch: int | None,
    ambiguous: Ambiguous = "retry",
    price: float | None = None,
    progress: Progress,
) -> QueryReport:
    """Ask about the images of `stock` that have no answer yet, in the order of `choice`, and report.

    budget: the most the teacher may ever be asked in this ledger, from now on; None keeps the one given last.
    plan: ask about 32 images at most and forecast. ambiguous: as in `Ledger.claim`. price: of one question.
    Raises Interrupted after Ctrl-C, with every answer kept.
    """
    began = time.perf_counter()
    number = ledger.teacher(teacher.key)
    budget = ledger.budget(teacher.key.sha256, budget)
    contents = [photo.key for photo in stock.photos]
    state = ledger.settled(number, contents)
    unsure = ledger.unsure(number, contents)
    if unsure and ambiguous == "fail":
        raise unsure_claims(len(unsure))
    left_out = unsure if ambiguous == "skip" else set()
    missing = [photo for photo in choice.order if photo.key not in state and photo.key not in left_out]
    probes = missing[: max(0, PROBES - len(state))]
    asked = ask(teacher, probes if plan else missing, ledger, number, budget, batch, progress, ambiguous)
    failed = [photo for photo in stock.photos if state.get(photo.key) == "failed"]
    now = ledger.settled(number, contents)  # another process may have shared the work
    skipped = (*stock.skipped, *(Skipped(path=str(p.path), reason=NOT_FINITE) for p in failed), *asked.skipped)
    cached = len(state) - len(failed)
    usable = len(stock.photos) - len(failed) - len(asked.skipped)
    pending = max(0, usable - sum(one == "done" for one in now.values()))
    spent = ledger.spent(teacher.key.sha256)
    dim = ledger.dim(number) or teacher.dim or 0
    open_to_us = pending - len(left_out)
    left = open_to_us if budget is None else max(0, min(open_to_us, budget - spent))
    return QueryReport(
        store=str(ledger.path),
        teacher=TeacherReport(
            sha256=teacher.key.sha256, dim=dim, output=teacher.key.output, preprocess=teacher.preprocess.to_dict()
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
        plan=_forecast(asked, left, dim, price, ledger.seconds_each(number)) if plan else None,
        ambiguous=len(left_out),
        cost=None if price is None else spent * price,
    )


def bring_in(teacher: BoughtTeacher, found: Matched, stock: Inventory, ledger: Ledger) -> QueryReport:
    """Take over the answers that a file has about the images of `stock`; nobody is asked and nothing is spent."""
    began = time.perf_counter()
    number = ledger.teacher(teacher.key)
    state = ledger.settled(number, list(found.rows))
    fresh = [image for image in found.rows if image not in state]
    for at in range(0, len(fresh), CHUNK):
        some = fresh[at : at + CHUNK]
        vectors = teacher.vectors[[found.rows[image] for image in some]]
        ledger.answer(number, some, vectors, teacher.provider, bought=True)
    return QueryReport(
        store=str(ledger.path),
        teacher=TeacherReport(
            sha256=teacher.key.sha256,
            dim=teacher.dim or 0,
            output=teacher.key.output,
            preprocess=teacher.preprocess.to_dict(),
        ),
        images=len(stock.photos),
        files=stock.files,
        duplicates=stock.duplicates,
        near_duplicates=None,
        queried=0,
        cached=len(state),
        pending=len(stock.photos) - len(found.rows),
        spent=ledger.spent(teacher.key.sha256),
        budget=None,
        skipped=stock.skipped,
        seconds=time.perf_counter() - began,
        imported=len(fresh),
        unmatched=found.unmatched,
    )


def _forecast(asked: Asked, left: int, dim: int, price: float | None, earlier: float | None) -> PlanReport:
    """earlier: seconds an answer took before, for where nothing had to be asked now."""
    each = asked.seconds / asked.queried if asked.queried else earlier
    return PlanReport(
        queries=left,
        seconds=None if each is None else left * each,
        memory_bytes=memory.in_use("VmHWM"),
        disk_bytes=left * bytes_each(dim),
        probed=asked.queried,
        cost=None if price is None else left * price,
    )


def ask(
    teacher: Teacher,
    photos: Sequence[Photo],
    ledger: Ledger,
    number: int,
    budget: int | None,
    batch: int | None,
    progress: Progress,
    ambiguous: Ambiguous = "retry",
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
        photos,
        lambda photo: images.prepare(photo.path, teacher.preprocess, photo.box),
        depth=_depth(teacher, pace.largest),
    )
    with stop_gently() as wish:
        at = 0
        while at < len(photos):
            some = photos[at : at + pace.size]
            at += len(some)
            found = list(zip(some, islice(ready, len(some)), strict=True))
            skipped += [Skipped(path=str(photo.path), reason=it) for photo, it in found if isinstance(it, str)]
            good = {photo.key: it for photo, it in found if not isinstance(it, str)}
            ledger.make_sure_of_room(len(good))
            claimed = ledger.claim(number, list(good), budget, ambiguous)
            if claimed:
                bad = line.ask({sha: good[sha] for sha in claimed})
                useless += [Skipped(path=str(photo.path), reason=NOT_FINITE) for photo in some if photo.key in bad]
            queried += len(claimed)
            progress.advance(len(claimed))
            if wish.wanted:
                raise Interrupted(f"{queried} new answers are in {ledger.path}; the same command goes on from there")
            if budget is not None and (queried >= room or (not claimed and ledger.spent(teacher.key.sha256) >= budget)):
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
        """One batch, claimed already; its answers are committed before this returns. Names answers of no use.

        Images of several shapes are put to the teacher shape by shape.
        """
        keys, bad = list(arrays), set[bytes]()
        waiting = [[keys[at] for at in group] for group in by_shape(list(arrays.values()))]
        try:
            while waiting:
                some = waiting[0]
                began = time.perf_counter()
                try:
                    vectors = self.teacher.embed(np.stack([arrays[sha] for sha in some]))
                except (OutOfMemory, MemoryError):
                    if len(some) == 1:
                        raise
                    self.pace.too_much(len(some))
                    self.progress.note(f"{len(some)} images at once do not fit into memory; going on with half as many")
                    waiting[:1] = [some[: len(some) // 2], some[len(some) // 2 :]]
                    continue
                del waiting[0]  # it was asked: whatever happens to its answers, it counts
                self.pace.went(len(some), time.perf_counter() - began)
                bad |= self._commit(some, vectors)
        except Unsure:  # it may have answered, and counted it: those claims stay
            self.ledger.release(self.number, [sha for part in waiting[1:] for sha in part])
            raise
        except (DistillError, MemoryError):  # refused, or not to be kept: what was not answered is not counted
            self.ledger.release(self.number, [sha for part in waiting for sha in part])
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
        if not self.checked and not good and len(bad) >= sanity.ENOUGH:
            raise DistillError(
                f"the teacher's first {len(bad)} answers are not finite, so it is asked no more",
                "check --preprocess and --output with: distilltool inspect TEACHER IMAGES",
            )
        if not self.checked and len(good) >= sanity.ENOUGH:
            self.checked = True
            for sign in sanity.warnings(vectors[finite]):
                self.progress.warn(sign)
        return set(bad)

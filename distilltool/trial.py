"""Which student, and how it starts: judged untrained, on some of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import candidates, contest, images, imported, reference, students
from distilltool.augment import plain
from distilltool.candidates import Candidate
from distilltool.contest import Score
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.student import Student, embed
from distilltool.students import Backbone, Start

Rows = NDArray[np.float32]
NO_LIMIT = 1 << 62  # floating-point operations
KEEPS = (1.0, 0.9, 0.8)  # shares of an image's sides that are tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is chosen before training. spec, input: the student and the longer side of its images in pixels; keep: share
    of each side of an image that is looked at; centre: the features' mean is taken off; mapped: a linear map onto the
    teacher's vectors is the start, by ridge regression of this strength; reference: longer side at which the untrained
    student is its own reference, 0 for none."""

    spec: str
    input: int
    keep: float = 1.0
    centre: bool = True
    mapped: bool = False
    strength: float | None = None
    reference: int = 0

    def applied(self, recipe: Recipe) -> Recipe:
        """A recipe with this student."""
        return replace(recipe, student=replace(recipe.student, spec=self.spec, input=self.input))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A choice and how it ranks."""

    choice: Choice
    score: Score


class Trial:
    """Untrained students, judged on some of the training images."""

    def __init__(
        self,
        paths: Sequence[Path],
        vectors: NDArray[np.float32],
        held: NDArray[np.bool_],
        seen_by: Preprocess,
        recipe: Recipe,
        start: Start,
        progress: Progress,
    ) -> None:
        rows = np.flatnonzero(~held)[contest.sample(int((~held).sum()), recipe.seed)]
        self.paths = [paths[row] for row in rows]
        self.targets = vectors[rows]
        self.seen_by, self.recipe, self.start, self.progress = seen_by, recipe, start, progress

    def judge(self, backbone: Backbone) -> Choice:
        """How much of an image to look at and how to start."""
        fixed = self.recipe.student.crop_pct
        if backbone.start == "scratch":
            return Choice(spec=self.recipe.student.spec, input=self.recipe.student.input, keep=fixed or 1.0)
        found = self._best_of(backbone, self.recipe.student.spec, self.recipe.student.input)
        self.progress.note(f"untrained: {_told(found)}")
        return self._referred(backbone, found)

    def choose(self, side: int | None) -> Choice:
        """The student that ranks best untrained among those that cost a tenth of the teacher, or as `side` has it."""
        fit = self._candidates(side)
        self.progress.begin("scoring students", len(fit), "students")
        found, refused = [], []
        for one in fit:
            try:
                backbone = students.build(one.spec, replace(self.start, input=one.input))
                found.append((self._best_of(backbone, one.spec, one.input), one))
            except DistillError as error:
                refused.append(f"{one.spec}: {error.message}")
            self.progress.advance()
        self.progress.end()
        if not found:
            raise DistillError(
                f"no student is at hand{': ' + refused[0] if refused else ''}",
                "name one: --student timm:NAME, with --weights FILE.safetensors, or onnx:FILE",
            )
        found.sort(key=lambda found: -found[0].score.mean)
        for place, (scored, one) in enumerate(found):
            said = "taken" if place == 0 else "runner-up"
            self.progress.note(f"{said}: {_told(scored)}, {one.flops / 1e6:,.0f} MFLOPs an image")
        taken = found[0][0]
        spec, longer = taken.choice.spec, taken.choice.input
        return self._referred(students.build(spec, replace(self.start, input=longer)), taken)

    def _referred(self, backbone: Backbone, scored: Scored) -> Choice:
        """The choice, with the larger size at which the same network ranks better, where there is one."""
        choice, how = scored.choice, self.recipe.reference
        if not how.weight or how.input:
            return replace(choice, reference=how.input if how.weight else 0)
        best, side = contest.as_they_are(*self._looked(backbone, choice.input, choice.keep)), 0
        for larger in reference.sides(choice.input, backbone.native):
            try:
                score = contest.as_they_are(*self._looked(backbone, larger, choice.keep))
            except (AssertionError, RuntimeError):  # networks that torch or timm build for one size alone
                continue
            if score.beats(best):
                best, side = score, larger
        if side:
            self.progress.note(f"its own reference at {side} px, where it keeps {100 * best.mean:.0f} % of the top-10")
        return replace(choice, reference=side)

    def _looked(self, backbone: Backbone, side: int, keep: float) -> tuple[Rows, Rows, NDArray[np.int64]]:
        """Features at a size, the teacher's vectors and the folds."""
        size = imported.scaled(self.seen_by.size, side)
        pixels = self._pixels(size, keep)
        features = embed(Student(backbone, 0, bias=False), plain(pixels, size, keep), features=True)
        return features, self.targets, contest.folds(self.targets, self.recipe.seed)

    def _pixels(self, size: tuple[int, int], least: float) -> NDArray[np.uint8]:
        """The images judged on, whole, so large that this share of their sides is a student's image."""
        height, width = (round(one / least) for one in size)
        pixels, lost = images.load(self.paths, self.seen_by.at((height, width)))
        if lost:
            raise images.spoilt(lost[0].path, lost[0].reason)
        return pixels

    def _candidates(self, side: int | None) -> list[Candidate]:
        source, longest = self.start.source, max(self.seen_by.size)
        if source is None:
            return candidates.of_timm(NO_LIMIT, side or self.recipe.student.input, longest, self.start.fetch)
        cost = int(candidates.USUAL * candidates.total(source))
        return candidates.of_teacher(source, cost, side) + candidates.of_timm(cost, side, longest, self.start.fetch)

    def _best_of(self, backbone: Backbone, spec: str, side: int) -> Scored:
        """The best part of the image to look at, and the best way to start."""
        fixed, size = self.recipe.student.crop_pct, imported.scaled(self.seen_by.size, side)
        keeps = (fixed,) if fixed else KEEPS
        pixels = self._pixels(size, min(keeps))
        fold = contest.folds(self.targets, self.recipe.seed)
        student = Student(backbone, 0, bias=False)
        best: Scored | None = None
        for keep in keeps:
            features = embed(student, plain(pixels, size, keep), features=True)
            choice = Choice(spec=spec, input=side, keep=keep)
            scored = _start_of(features, self.targets, fold, self.recipe, choice)
            if best is None or scored.score.beats(best.score):
                best = scored
        assert best is not None
        return best


def _start_of(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    fold: NDArray[np.int64],
    recipe: Recipe,
    choice: Choice,
) -> Scored:
    """The better of the features as they are and mapped, in a space of their own; the map where it is the teacher's."""
    in_space = recipe.space == "teacher"
    as_they_are = Scored(choice=choice, score=contest.as_they_are(features, targets, fold))
    off_centre = contest.as_they_are(features, targets, fold, centre=False)
    if off_centre.beats(as_they_are.score):
        as_they_are = Scored(choice=replace(choice, centre=False), score=off_centre)
    if recipe.student.dim and not in_space:
        return as_they_are
    score = contest.mapped(features, targets, fold, gallery=in_space)
    mapped = Scored(choice=replace(choice, mapped=True, strength=score.strength), score=score)
    return mapped if in_space or score.beats(as_they_are.score) else as_they_are


def _told(scored: Scored) -> str:
    """A choice in words."""
    choice = scored.choice
    looks = "" if choice.keep == 1 else f", looking at the middle {100 * choice.keep:.0f} % of each side"
    how = ", mapped by ridge regression" if choice.mapped else ""
    return f"{choice.spec} at {choice.input} px keeps {100 * scored.score.mean:.0f} % of the top-10{how}{looks}"

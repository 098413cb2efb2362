"""Which student, and how it starts: judged untrained, on some of the training images."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool import contest, images, imported, objective, reference, sources, students
from distilltool.aim import LEVELS
from distilltool.augment import embed_plain
from distilltool.candidates import Candidate
from distilltool.contest import Contest, Gallery, Rows, Score
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.onnx_file import first_line
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.student import Student
from distilltool.students import Backbone, Start

LEAST_IMAGES = 64  # judged on, however large they are
BYTES = 3e8  # of images held at once
SHARE = 0.3  # of the time budget, after which no further student is looked at
TAPPED = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the features' variance that those of an earlier tensor may have
MAPPED = (0.4,)  # the same where a map is fitted, which takes longer and weighs them for itself
FITTED = 0.3  # of the images, that students may be fitted to at most
SPARED = contest.SAMPLE  # images that are left to judge on first: fewer cost more than narrower students gain
CERTAIN = 2  # standard errors by which the best of many must be better: of tensors, of maps, of students
KEEPS = (1.0, 0.9, 0.8)  # shares of an image's sides that are tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is chosen before training.

    spec, input: the student and the longer side of its images in pixels; keep: share of each side of an image that is
    looked at; centre: the features' mean is taken off; mapped: a linear map onto the teacher's vectors is the start;
    strength: of the ridge that fits it, or the map that comes last; level: of the aims in the teacher's space (see
    `distilltool.aim`); beside: share of the energy that the features themselves have there (`distilltool.mapped`);
    reference: longer side at which the untrained student is its own reference, 0 for none; start: where weights came
    from, "" where the student was named; tap: a tensor on the way whose pooled features stand beside the last ones, ""
    for none; gain: their length, that of the last ones being 1.
    """

    spec: str
    input: int
    keep: float = 1.0
    centre: bool = True
    mapped: bool = False
    strength: float | None = None
    level: float | None = None
    reference: int = 0
    start: str = ""
    tap: str = ""
    gain: float = 1.0
    beside: float = 0.0

    def applied(self, recipe: Recipe) -> Recipe:
        """A recipe with this student."""
        return replace(recipe, student=replace(recipe.student, spec=self.spec, input=self.input))

    def of(self, backbone: Backbone) -> Backbone:
        """A network with the features that were chosen."""
        return students.tapped(backbone, self.tap, self.gain) if self.tap else backbone


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
        fit: Sequence[Candidate] = (),
        seconds: float | None = None,
    ) -> None:
        """fit: students to choose from, none where it is named. seconds: the time budget for all of training.

        Those that are fitted are so to images that none is judged on, and that are not held out: a network fitted to
        some images ranks those better than others.
        """
        self.fit, self.seconds, self.began = fit, seconds, time.perf_counter()
        largest = max([one.input for one in fit] or [recipe.student.input]) / (recipe.student.crop_pct or min(KEEPS))
        most = max(LEAST_IMAGES, int(BYTES / (3 * largest**2)))
        free = np.flatnonzero(~held)
        if any(one.fitting for one in fit):
            wanted = max(imported.looked_at(imported.scaled(seen_by.size, one.input)) for one in fit if one.fitting)
            unasked = sorted(set(start.photos) - set(paths))
            apart = _apart(free, wanted - len(unasked), recipe.seed)
            if len(unasked) + len(apart) < imported.FEW_IMAGES:
                unasked, apart = [], apart[:0]
            start = replace(start, photos=(*unasked, *(paths[row] for row in apart)))
            free = np.setdiff1d(free, apart)
        rows = free[contest.sample(len(free), recipe.seed)]
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]
        self.paths, self.count = [paths[row] for row in rows], int((~held).sum())
        self.targets = vectors[rows]
        self.seen_by, self.recipe, self.start, self.progress = seen_by, recipe, start, progress
        self._decoded: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._made: dict[tuple[str, int], Backbone] = {}

    @cached_property
    def contest(self) -> Contest:
        """What starts are judged by; a student from scratch, and a run that goes on, need none."""
        return Contest(self.targets, contest.folds(self.targets, self.recipe.seed))

    def judge(self, backbone: Backbone) -> Choice:
        """How much of an image to look at and how to start."""
        found = self._scored(backbone, self.recipe.student.spec, self.recipe.student.input)
        if backbone.start == "scratch":
            return found.choice
        found = self._cropped(backbone, found)
        self.progress.note(f"untrained: {_told(found)}")
        tapped = self._tapped(backbone, found)
        if tapped.choice.tap:
            kept, before = 100 * tapped.score.mean, 100 * found.score.mean
            self.progress.note(f"{_beside(tapped.choice)}: {kept:.1f} %, without {before:.1f} %")
        return self._refined(backbone, tapped)

    def choose(self) -> Choice:
        """The student that ranks best untrained; one that is fitted to images only where that is certain, as those
        judged on are like them, and others are not.

        Those that the best does not beat for certain on whole images are compared again with the part of an image that
        suits each, and with what an earlier tensor of it adds: an early part of a network ranks about as well as the
        whole on smaller images, which has that part's features too.
        """
        self.progress.begin("scoring students", len(self.fit), "students")
        found, refused = list[tuple[Scored, Candidate]](), list[str]()
        for one in self.fit:
            if found and self._late(one.seconds):
                refused.append(f"{one.spec}: no time was left to score it")
                continue
            if one.fitting and not self.start.photos:
                refused.append(f"{one.spec}: there are too few images to fit it to some and judge it on others")
                continue
            try:
                backbone = self.built(one.spec, one.input)
                if self.recipe.student.dim > backbone.width:
                    raise DistillError(f"it has {backbone.width} features, fewer than --dim", "ask for a smaller --dim")
                found.append((self._scored(backbone, one.spec, one.input), one))
            except (DistillError, RuntimeError) as error:
                refused.append(f"{one.spec}: {first_line(error)}")
            self.progress.advance()
        self.progress.end()
        if not found:
            raise DistillError(
                f"none of the students at hand can be used ({'; '.join(refused)})",
                "name one: --student timm:NAME, with --weights FILE.safetensors, or onnx:FILE",
            )
        found = _surest_first(self._compared_again(found))
        for place, (scored, one) in enumerate(found):
            said = "taken" if place == 0 else "runner-up"
            cost = "" if one.ms is None else f", {one.ms:.3g} ms"
            self.progress.note(f"{said}: {_told(scored)}, {one.flops / 1e6:,.0f} MFLOPs an image{cost}")
        for one_refused in refused:
            self.progress.note(f"left out: {one_refused}")
        taken, one = found[0]
        if (ahead := _ranked(found)[0][1]) is not one:
            self.progress.note(
                f"{sources.named(ahead.spec)} is ahead by less than two standard errors, on images like those it is "
                "fitted to, and so not taken"
            )
        backbone = self.built(one.spec, one.input)
        return replace(self._refined(backbone, taken), start=backbone.start)

    def _compared_again(self, found: Sequence[tuple[Scored, Candidate]]) -> list[tuple[Scored, Candidate]]:
        """Ranked again, with the crop and the earlier tensor that help the best and those it does not beat for certain,
        and the best of those that are not fitted. Where time is short, the best alone has them."""
        (best, first), *others = _ranked(found)
        sure = next((one for _, one in ((best, first), *others) if not one.fitting), first)
        self.progress.begin("comparing the best again", len(found), "students")
        again = [(self._closer(self.built(first.spec, first.input), best), first)]
        self.progress.advance()
        for scored, one in others:
            beaten = best.score.beats(scored.score, CERTAIN) and one is not sure
            again.append((scored if beaten else self._if_it_can(scored, one), one))
            self.progress.advance()
        self.progress.end()
        return _ranked(again)

    def _if_it_can(self, scored: Scored, one: Candidate) -> Scored:
        """A student looked at closer; as it is, and said to be, where time or its network forbids."""
        why = "no time was left"
        if not self._late():
            try:
                return self._closer(self.built(one.spec, one.input), scored)
            except (DistillError, RuntimeError) as error:
                why = first_line(error)
        self.progress.note(f"{sources.named(one.spec)} is compared on whole images, without earlier features: {why}")
        return scored

    def _closer(self, backbone: Backbone, scored: Scored) -> Scored:
        """A student with the crop that suits it, and what an earlier tensor adds."""
        return self._tapped(backbone, self._cropped(backbone, scored))

    def _late(self, needed: float = 0) -> bool:
        """Whether so much of the time budget is spent, after so many seconds, that no further student is looked at."""
        return self.seconds is not None and time.perf_counter() - self.began + needed > SHARE * self.seconds

    def built(self, spec: str, side: int) -> Backbone:
        """The network of a student; the last one is kept, and narrower ones are, as they take long to build."""
        if (spec, side) not in self._made:
            self._made = {asked: made for asked, made in self._made.items() if made.fitted}
            self._made[spec, side] = students.build(spec, replace(self.start, input=side))
        return self._made[spec, side]

    def _refined(self, backbone: Backbone, scored: Scored) -> Choice:
        """The choice with what further can be decided before training."""
        return self._mapped(backbone, self._referred(backbone, scored))

    def _tapped(self, backbone: Backbone, scored: Scored) -> Scored:
        """With pooled features of an earlier tensor beside the last ones, where it ranks better so.

        Of the tensors that help, the last that the best does not beat by more than a standard error, and so its least
        share: what is near to the features as they are held up better on images of other kinds.
        """
        choice = scored.choice
        if backbone.start == "scratch":  # says nothing at any depth
            return scored
        try:
            found = students.on_the_way(backbone) if self.recipe.student.taps else ()
            if not found:
                return scored
            student = Student(students.with_taps(backbone, found), 0, bias=False)
        except (DistillError, RuntimeError) as error:  # what can do without is no reason to stop
            self.progress.note(f"no features are taken on the way: {first_line(error)}")
            return scored
        features = self._seen(student, choice.input, choice.keep)
        last, *earlier = np.split(features, np.cumsum([backbone.width, *(one.width for one in found[:-1])]), axis=1)
        last = unit(last)
        better = list[list[Scored]]()  # for each tensor that helps, from the last, the shares at which it does
        for one, rows in zip(reversed(found), reversed(earlier), strict=True):
            tried, at_one = list[Scored](), unit(rows)
            for share in MAPPED if choice.mapped else TAPPED:
                gain = contest.balanced(last, at_one, share)
                score = self._score_as(np.concatenate([last, gain * at_one], axis=1), choice)
                if score.beats(scored.score, CERTAIN):
                    with_it = replace(choice, tap=one.tensor, gain=gain)
                    tried.append(Scored(choice=with_it, score=score))
            better += [tried] if tried else []
        if not better:
            return scored
        most = _best(_best(tried) for tried in better)
        shares = next(tried for tried in better if not most.score.beats(_best(tried).score))
        return next(one for one in shares if not _best(shares).score.beats(one.score))

    def _score_as(self, features: Rows, choice: Choice) -> Score:
        """How features rank, compared as it was chosen."""
        if not choice.mapped:
            return self.contest.as_they_are(features, centre=choice.centre)
        assert choice.strength is not None
        return self.contest.mapped(
            features,
            galleries=_galleries(self.recipe),
            strengths=(choice.strength,),
            levels=(choice.level,),
        )

    def _mapped(self, backbone: Backbone, choice: Choice) -> Choice:
        """With how features are mapped into the teacher's space, where that is done last.

        Strength and level are those that rank the teacher's gallery best, and of levels that none beats by more than a
        standard error the highest: folds of these images are more alike than images to come. The ridge weighs as much
        against all images as it did against those it was chosen on. Of the shares for the features themselves the
        largest is taken that no other beats by more than two standard errors, both galleries counted.
        """
        if not objective.mapped_last(self.recipe):
            return choice
        features = self._features(choice.of(backbone), choice, choice.input)
        maps = self.contest.maps(features, galleries=("teacher",))
        first = max(maps, key=lambda one: one.mean)
        best = max((one for one in maps if not first.beats(one)), key=lambda one: (LEVELS.index(one.level), one.mean))
        assert best.strength is not None
        found = self.contest.beside(features, best.strength, best.level)
        most = max(found.values(), key=lambda one: one.mean)
        share = max(share for share, one in found.items() if not most.beats(one, CERTAIN))
        kept = f"{100 * best.mean:.0f} % of the top-10 of the teacher's gallery"
        self.progress.note(f"mapped into the teacher's space, untrained, it finds {kept}")
        fitted = len(self.targets) * (1 - 1 / contest.FOLDS) / self.count
        return replace(choice, strength=best.strength * fitted, level=best.level, beside=share)

    def _referred(self, backbone: Backbone, scored: Scored) -> Choice:
        """The choice, with the larger size at which the same network ranks better, where there is one."""
        choice, how = scored.choice, self.recipe.reference
        if not (how.weight or self.recipe.unasked.share) or not backbone.native or backbone.start == "scratch":
            return choice
        if how.input:
            return replace(choice, reference=how.input)
        backbone = choice.of(backbone)
        best, side = self._seen_at(backbone, choice, choice.input), 0
        for larger in reference.sides(choice.input, backbone.native):
            try:
                score = self._seen_at(backbone, choice, larger)
            except (AssertionError, RuntimeError):  # networks that torch or timm build for one size alone
                continue
            if score.beats(best):
                best, side = score, larger
        if side:
            self.progress.note(f"untrained on larger images, of {side} px: {100 * best.mean:.0f} %")
        return replace(choice, reference=side)

    def _seen_at(self, backbone: Backbone, choice: Choice, side: int) -> Score:
        """How the features rank at a size."""
        return self.contest.as_they_are(self._features(backbone, choice, side), centre=choice.centre)

    def _features(self, backbone: Backbone, choice: Choice, side: int) -> Rows:
        """What a network makes of the images judged on, (N, F)."""
        return self._seen(Student(backbone, 0, bias=False), side, choice.keep)

    def _seen(self, student: Student, side: int, keep: float) -> Rows:
        size = imported.scaled(self.seen_by.size, side)
        parts = [embed_plain(student, pixels, size, keep, features=True) for pixels in self._pixels(size)]
        return np.concatenate(parts)

    def _pixels(self, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        """The images judged on, whole, so large that the smallest share that is tried is a student's image.

        Those of one size are kept for the next question; images larger than the students' are not, where they would
        take too much.
        """
        if size in self._decoded:
            yield self._decoded[size]
            return
        height, width = (round(one / min(self._keeps)) for one in size)
        some = len(self.paths) if 3 * height * width * len(self.paths) <= BYTES else LEAST_IMAGES
        for at in range(0, len(self.paths), some):
            pixels, lost = images.load(self.paths[at : at + some], self.seen_by.at((height, width)))
            if lost:
                raise images.spoilt(lost[0].path, lost[0].reason)
            if some >= len(self.paths):
                self._decoded = {size: pixels}
            yield pixels

    @property
    def _keeps(self) -> tuple[float, ...]:
        """Shares of an image's sides to try."""
        fixed = self.recipe.student.crop_pct
        return (fixed,) if fixed else KEEPS

    def _scored(self, backbone: Backbone, spec: str, side: int) -> Scored:
        """How a student ranks untrained; from nothing none does, and nothing is chosen by it."""
        if backbone.start != "scratch":
            return self._at(backbone, spec, side, self._keeps[0])
        choice = Choice(spec=spec, input=side, keep=self.recipe.student.crop_pct or 1.0)
        return Scored(choice=choice, score=Score(overlap=np.zeros(len(self.targets))))

    def _cropped(self, backbone: Backbone, scored: Scored) -> Scored:
        """The best part of the image to look at."""
        best, choice = scored, scored.choice
        for keep in self._keeps[1:]:
            smaller = self._at(backbone, choice.spec, choice.input, keep)
            if smaller.score.beats(best.score):
                best = smaller
        return best

    def _at(self, backbone: Backbone, spec: str, side: int, keep: float) -> Scored:
        """The best way to start, looking at this share of an image's sides."""
        features = self._seen(Student(backbone, 0, bias=False), side, keep)
        return _start_of(features, self.contest, self.recipe, Choice(spec=spec, input=side, keep=keep))


def _apart(free: NDArray[np.int64], wanted: int, seed: int) -> NDArray[np.int64]:
    """Rows that students are fitted to, of those that are not held out: as many as are wanted, or a share, and only of
    what those that judge leave over."""
    count = max(0, min(wanted, int(FITTED * len(free)), len(free) - SPARED))
    return np.sort(np.random.default_rng((seed, 10)).permutation(free)[:count])


def _start_of(features: NDArray[np.float32], held: Contest, recipe: Recipe, choice: Choice) -> Scored:
    """The better of the features as they are and mapped, in a space of their own; the map where it is the teacher's."""
    as_they_are = Scored(choice=choice, score=held.as_they_are(features))
    off_centre = held.as_they_are(features, centre=False)
    if off_centre.beats(as_they_are.score):
        as_they_are = Scored(choice=replace(choice, centre=False), score=off_centre)
    if recipe.student.dim or objective.mapped_last(recipe):
        return as_they_are
    score = held.mapped(features, galleries=_galleries(recipe))
    mapped = Scored(choice=replace(choice, mapped=True, strength=score.strength, level=score.level), score=score)
    return mapped if recipe.space == "teacher" or score.beats(as_they_are.score, CERTAIN) else as_they_are


def _galleries(recipe: Recipe) -> tuple[Gallery, ...]:
    """What the vectors of a student that is mapped before training are put to."""
    return ("own", "teacher") if recipe.space == "teacher" else ("own",)


def _ranked(found: Iterable[tuple[Scored, Candidate]]) -> list[tuple[Scored, Candidate]]:
    return sorted(found, key=lambda one: -one[0].score.mean)


def _surest_first(ranked: Sequence[tuple[Scored, Candidate]]) -> list[tuple[Scored, Candidate]]:
    """The best first, unless it is fitted and one that is not is about as good."""
    sure = [one for one in ranked if not one[1].fitting]
    if not sure or all(ranked[0][0].score.beats(scored.score, CERTAIN) for scored, _ in sure):
        return list(ranked)
    return [sure[0], *(one for one in ranked if one is not sure[0])]


def _best(found: Iterable[Scored]) -> Scored:
    return max(found, key=lambda one: one.score.mean)


def _told(scored: Scored) -> str:
    """A choice in words."""
    choice = scored.choice
    looks = "" if choice.keep == 1 else f", looking at the middle {100 * choice.keep:.0f} % of each side"
    how = ", mapped by ridge regression" if choice.mapped else ""
    kept = f"keeps {100 * scored.score.mean:.0f} % of the top-10"
    tapped = f", {_beside(choice)}" if choice.tap else ""
    return f"{sources.named(choice.spec)} at {choice.input} px {kept}{how}{looks}{tapped}"


def _beside(choice: Choice) -> str:
    """What an earlier tensor is there for, in words."""
    return f"with features of {choice.tap} beside its last"

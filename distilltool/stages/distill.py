"""Train a student from the ledger's answers."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import (
    aim,
    images,
    imported,
    memory,
    metrics,
    objective,
    onnx_export,
    provenance,
    reference,
    ridge,
    search,
    sources,
    students,
    tracking,
    train,
)
from distilltool.augment import embed_plain, embed_view, let_go, plain, taken
from distilltool.candidates import Candidate
from distilltool.choice import Describe
from distilltool.embedder import Teacher, unit
from distilltool.errors import DistillError, Exit
from distilltool.images import Photo, workers
from distilltool.mapped import Map
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe, Space, unread
from distilltool.report import DistillReport, Fidelity, Interval, StudentReport, to_json
from distilltool.rundir import RunDir, check_room, read_json, write_array, write_bytes, write_json
from distilltool.scores import Scores, as_fidelity, averaged, fidelity_scores, gain, worse
from distilltool.student import FORM, Student, StudentCard, TorchEmbedder, embed, own_space_id, to_pixels
from distilltool.students import Backbone, Start
from distilltool.tracking import RunLog
from distilltool.train import Data, Outcome, batching
from distilltool.trial import Choice, Trial
from distilltool.weights import load_weights, read_weights, save_weights

MIN_IMAGES = 32
LEAST_SEEN = 0.25  # share of an image's sides
MIN_HELD = 24
MAX_HELD = 1000
DESCRIBED = 64  # images described at once
LET_GO = 256  # images written to the cache before their memory is given back
VIEWS = 3  # altered views of each image, beside the plain one, that a map into the teacher's space is fitted on
VIEWED = 4000  # images beyond which there are none
POOR = 0.7  # overlap below which advice is given
TOLD = 0.03  # of overlap learned on images trained on, below which training has hardly begun
LOST = 0.12  # of overlap learned on images trained on alone: twice the images bring a quarter of it (docs/LOG.md)
SEEN = 1000  # images trained on whose vectors are kept
TIMED = 32  # images by which it is told how long that will take
TRAINED = 10  # times as long as looking at an image takes a step of training on it, roughly
MOST_KEEPING = 0.1  # of the time budget that is set aside for it
CALIBRATED = 128  # images trained on that ranges of 8 bits can be taken from
CALIBRATION = 16  # batches from which a fresh network's batch-norm statistics are taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The images the teacher has answered about. vectors: (N, E) at length 1; unasked: images of the folder that it was
    not asked about; sha256: over the answers as they came (`provenance.of_answers`)."""

    photos: tuple[Photo, ...]
    vectors: NDArray[np.float32]
    skipped: int
    queries: dict[str, int]
    unasked: tuple[Photo, ...] = ()
    sha256: str = ""


def check(recipe: Recipe) -> None:
    """Fail on what is wrong with a recipe before anything is asked or trained."""
    objective.check_losses(recipe, recipe.space == "teacher")
    if 0 < recipe.student.crop_pct < LEAST_SEEN:
        raise DistillError(
            f"student.crop_pct={recipe.student.crop_pct} leaves too little of an image",
            f"use {LEAST_SEEN} to 1, or 0 to have it chosen",
        )
    if recipe.space == "teacher" and recipe.student.dim:
        raise DistillError(
            "--dim and the teacher's space exclude each other: its vectors have its dimension",
            "leave --dim and --dims away, or use --set space=own",
        )


def in_space(recipe: Recipe, space: str) -> Recipe:
    """The recipe in the space that is asked for."""
    for known in get_args(Space):
        if space == known:
            return objective.in_space(recipe, known)
    raise DistillError(f"there is no space {space!r}", f"use {' or '.join(get_args(Space))}", Exit.USAGE)


def check_student(recipe: Recipe, backbone: Backbone) -> None:
    """Fail on vectors longer than the features they are made of."""
    if recipe.student.dim > backbone.width:
        raise DistillError(
            f"--dim {recipe.student.dim} is more than the {backbone.width} features of {recipe.student.spec}",
            f"use --dim {backbone.width} or less",
        )


def check_answers(answered: Answered) -> None:
    """Fail on answers too few to learn from."""
    if len(answered.photos) < MIN_IMAGES:
        raise DistillError(
            f"the teacher has answered about {len(answered.photos)} images, a student needs {MIN_IMAGES} or more",
            "give more images or a larger --budget",
        )


@memory.freed_kept()
def distill(
    teacher: Teacher,
    answered: Answered,
    recipe: Recipe,
    run: RunDir,
    backbone: Backbone | None,
    start: Start,
    *,
    isolate: bool,
    seconds: float | None,
    fit: Sequence[Candidate] = (),
    changes: Sequence[str] = (),
    trackers: Sequence[str] = (),
    progress: Progress,
) -> DistillReport:
    """Train into `run`, which `RunDir.begin` has opened; returns the report that its manifest keeps.

    backbone: the student's, None where it is to be chosen by what ranks best untrained. start: where weights come from;
    fit: students to choose from. isolate: the teacher's file is not to be trusted by later commands on this run either.
    seconds: wall time for training as a whole, caching and evaluation included. changes: keys of the recipe that were
    set, as `key=value`; those that this student does not read are named. trackers: which are told of it.
    """
    began = time.perf_counter()
    torch.set_num_threads(workers())
    write_json(run.environment, environment())
    recipe = _with_share(recipe, answered, run, progress)
    if backbone is not None:
        _say_start(backbone.start, recipe.student.spec, start.fetch, progress)
    held = _split(run, answered, recipe)
    paths = [photo.path for photo in answered.photos]

    trial = Trial(paths, answered.vectors, held, teacher.preprocess, recipe, start, progress, fit, seconds)
    choice = _settled(run, trial.choose if backbone is None else partial(trial.judge, backbone))
    if backbone is None:
        recipe = choice.applied(recipe)
        backbone = trial.built(choice.spec, choice.input)
        if backbone.start != choice.start:
            raise DistillError(
                f"the run {run.root} began from {choice.start}, which is gone", "start it anew with --restart"
            )
        _say_start(backbone.start, choice.spec, start.fetch, progress)
    del trial  # and the images it looked at
    batches = batching(recipe, int((~held).sum()), backbone.start != "scratch")[1]
    _say_unread(changes, backbone.start, choice, batches, progress)
    backbone = choice.of(backbone)
    size = imported.scaled(teacher.preprocess.size, recipe.student.input)
    data = _gather(answered, held, teacher.preprocess, size, choice.keep, recipe.augment.crop, run, progress)
    if choice.mapped or recipe.space == "teacher":
        data = replace(data, aim=aim.fit(torch.from_numpy(data.targets), (choice.level,))[choice.level])
    data = _with_reference(data, backbone, answered, held, teacher.preprocess, choice, recipe, run, seconds, progress)
    data = _with_unasked(data, backbone, answered, teacher.preprocess, choice, recipe, run, seconds, progress)
    if seconds is not None and time.perf_counter() - began > seconds / 2:
        progress.warn("more than half of the time budget went into getting ready: give it longer with --time-budget")
    mapped_last = objective.mapped_last(recipe)
    trained_by = replace(recipe, space="own") if mapped_last else recipe
    student = _make_student(backbone, trained_by, choice, data, run, progress)
    if backbone.architecture is None and not run.checkpoint.exists():
        onnx_export.check_exports(student, size)  # found out now, not after an hour of training
    untrained = None
    if mapped_last:
        untrained, took = _mapped_start(student, choice, data, recipe, run)
        seconds = None if seconds is None else max(0.0, seconds - took)  # as long again is needed at the end
    learned = [photo for photo, out in zip(answered.photos, held.tolist(), strict=True) if not out]
    how = teacher.preprocess.at(size, choice.keep)
    if seconds is not None:
        seconds -= min(MOST_KEEPING * seconds, _keeping_takes(student, data, how, learned))
    with RunLog(run, trackers, progress) as log:
        outcome = train.train(
            student,
            data,
            trained_by,
            run,
            finetune=backbone.start != "scratch",
            seconds=seconds,
            spent=time.perf_counter() - began,
            log=log,
            progress=progress,
        )
        if untrained is not None:
            outcome = _mapped(student, untrained, choice, data, recipe, run, outcome, progress)
        if not outcome.unasked:
            data = replace(data, unasked=None)  # the time was over before their turn came
        report = _report(student, backbone.start, answered, data, recipe, run, outcome)
        _keep_vectors(student, how, learned, data, recipe.seed, run, progress)
        _finish(student, teacher, recipe, choice, run, report, answered, held, isolate, backbone.architecture)
        log.finish(tracking.figures(to_json(report)))
    return report


def describer(backbone: Backbone, seen_by: Preprocess, longer: int, progress: Progress) -> Describe | None:
    """What a pretrained student makes of images, for choosing which to ask about.

    None where it starts from scratch, and where it is the teacher itself, which would be asked unmetered.

    seen_by: the teacher's preprocessing. longer: side of the student's images, in pixels.
    """
    if backbone.start == "scratch" or backbone.whole:
        return None

    def describe(photos: Sequence[Photo]) -> NDArray[np.float32]:
        student = Student(backbone, 0, bias=False)
        torch.set_num_threads(workers())
        how = seen_by.at(imported.scaled(seen_by.size, longer))
        blank = np.zeros((*how.size, 3), np.uint8)  # what cannot be read any more is found out when it is asked about
        ready = images.ahead(photos, lambda photo: images.prepare(photo.path, how))
        found = (blank if isinstance(one, str) else one for one in ready)
        parts = [np.zeros((0, student.dim), np.float32)]
        progress.begin("describing the images", len(photos), "images")
        while some := list(islice(found, DESCRIBED)):
            parts.append(embed(student, np.stack(some)))
            progress.advance(len(some))
        progress.end()
        return np.concatenate(parts)

    return describe


def _say_start(start: str, spec: str, fetch: str, progress: Progress) -> None:
    if start != "scratch":
        progress.note(f"the student {spec} starts from {start}")
        return
    why, mend = "its pretrained weights could not be fetched", "give weights with --weights FILE.safetensors"
    if fetch == "cached":
        why, mend = "no pretrained weights on this machine", f"{mend}, or --student {spec} to fetch them"
    progress.warn(f"{spec} starts from scratch: {why}; a pretrained student keeps far more ({mend})")


def _split(run: RunDir, answered: Answered, recipe: Recipe) -> NDArray[np.bool_]:
    """Which images this run holds out, (N,); decided once, so that a continued run holds out the same."""
    if run.split.exists():
        kept = set(read_json(run.split))
        return np.array([photo.sha256.hex() in kept for photo in answered.photos])
    held = hold_out(answered.vectors, recipe.validation, recipe.seed)
    write_json(run.split, [photo.sha256.hex() for photo, out in zip(answered.photos, held, strict=True) if out])
    return held


def hold_out(vectors_NE: NDArray[np.float32], share: float, seed: int) -> NDArray[np.bool_]:
    """Which images to hold out, (N,): whole clusters of the teacher's vectors, so that they are unlike the rest."""
    count = len(vectors_NE)
    wanted = min(max(MIN_HELD, round(share * count)), MAX_HELD, count // 2)
    assigned = search.clusters(vectors_NE, max(4, count // 20), seed)
    order = np.random.default_rng((seed, 4)).permutation(assigned.max() + 1)
    held = np.zeros(count, bool)
    for cluster in order:
        members = assigned == cluster
        if held.sum() + members.sum() <= 1.2 * wanted:
            held |= members
        if held.sum() >= wanted:
            break
    if held.sum() < wanted // 2:  # one cluster holds nearly all: nothing to tell apart
        held[np.random.default_rng((seed, 5)).permutation(count)[:wanted]] = True
    return held


def _gather(
    answered: Answered,
    held: NDArray[np.bool_],
    seen_by: Preprocess,
    size: tuple[int, int],
    keep: float,
    crop: float,
    run: RunDir,
    progress: Progress,
) -> Data:
    """Decode every image once: training images at caching size onto disk, held-out ones at working size."""
    height, width = (round(side / (keep * max(crop, 0.8))) for side in size)  # the smallest usual crop is not enlarged
    trained = [photo for photo, out in zip(answered.photos, held, strict=True) if not out]
    validated = [photo for photo, out in zip(answered.photos, held, strict=True) if out]
    pixels = _cache(run.pixels, trained, seen_by.at((height, width)), progress)
    held_pixels, lost = images.load([photo.path for photo in validated], seen_by.at(size, keep))
    if lost:
        raise images.spoilt(lost[0].path, lost[0].reason)
    return Data(
        pixels=pixels,
        targets=answered.vectors[~held],
        held_pixels=held_pixels,
        held_targets=answered.vectors[held],
        names=tuple(str(photo.path) for photo in trained),
        keep=keep,
    )


def _cache(path: Path, photos: Sequence[Photo], preprocess: Preprocess, progress: Progress) -> NDArray[np.uint8]:
    """All images prepared, (N, S, S, 3) uint8 in a mapped file that is made once."""
    shape = (len(photos), *preprocess.size, 3)
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.shape == shape:
            return kept
    check_room(path, int(np.prod(shape)))

    def write(fresh: Path) -> None:
        mapped = np.lib.format.open_memmap(fresh, "w+", np.uint8, shape)
        progress.begin("decoding images", len(photos), "images")
        ready = images.ahead(photos, lambda photo: images.prepare(photo.path, preprocess))
        for at, found in enumerate(ready):
            if isinstance(found, str):
                raise images.spoilt(str(photos[at].path), found)
            mapped[at] = found
            if at % LET_GO == 0:
                let_go(mapped)
            progress.advance()
        mapped.flush()
        progress.end()

    write_bytes(path, write)
    made: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return made


def _settled(run: RunDir, choose: Callable[[], Choice]) -> Choice:
    """What was chosen before training; once a run, so that a continued one is made of the same."""
    if not run.choice.exists():
        write_json(run.choice, asdict(choose()))
    return Choice(**read_json(run.choice))


def _say_unread(changes: Sequence[str], start: str, choice: Choice, batches: int, progress: Progress) -> None:
    """Name the keys that were set and make no difference to this student. batches: of a step."""
    pretrained = start != "scratch"
    if keys := unread(changes, pretrained):
        which = "starts from pretrained weights" if pretrained else "starts from nothing"
        instead = " (anchor_finetune and optimiser.lr_finetune are read)" if pretrained else ""
        progress.warn(f"nothing reads --set {', '.join(keys)}: the student {which}{instead}")
    if pretrained and not choice.reference and any(change.startswith("reference.") for change in changes):
        why = "the student's network is the teacher, or ranks these no better on larger images"
        progress.warn(f"nothing reads --set reference: {why}")
    if pretrained and batches == 1 and any(change.startswith("schedule.memory") for change in changes):
        progress.warn("nothing reads --set schedule.memory: a step is one batch, looked at once")


def _with_reference(
    data: Data,
    backbone: Backbone,
    answered: Answered,
    held: NDArray[np.bool_],
    seen_by: Preprocess,
    choice: Choice,
    recipe: Recipe,
    run: RunDir,
    seconds: float | None,
    progress: Progress,
) -> Data:
    """The data, and what the untrained student makes of larger views where it is its own reference."""
    if not (choice.reference and recipe.reference.weight):
        return data
    photos = [photo for photo, out in zip(answered.photos, held, strict=True) if not out]
    student = _untrained(backbone)
    larger = seen_by.at(imported.scaled(seen_by.size, choice.reference))
    made = reference.known(run.reference, student, photos, larger, recipe, choice.keep, seconds, progress)
    return replace(data, reference=made, centred=choice.centre)


def _with_share(recipe: Recipe, answered: Answered, run: RunDir, progress: Progress) -> Recipe:
    """The recipe, without a share for images that nobody was asked about where they cannot teach; a run that goes on
    keeps to what it began with."""
    there, needy = len(answered.unasked), objective.needs_answers(recipe)
    known = run.unasked_list.exists()
    if known and recipe.unasked.share and not needy:
        return recipe
    if there and recipe.unasked.share and not run.checkpoint.exists():
        if not needy and there >= reference.LEAST:
            return recipe
        _say_unused(there, f"the loss {needy} needs the teacher's answer" if needy else "they are too few", progress)
    return replace(recipe, unasked=replace(recipe.unasked, share=0.0))


def _with_unasked(
    data: Data,
    backbone: Backbone,
    answered: Answered,
    seen_by: Preprocess,
    choice: Choice,
    recipe: Recipe,
    run: RunDir,
    seconds: float | None,
    progress: Progress,
) -> Data:
    """The data, and images that nobody was asked about, where what the untrained student makes of larger ones ranks
    better."""
    if not recipe.unasked.share:
        return data
    if not choice.reference:
        why = "its own network ranks these no better on larger images"
        if backbone.start == "scratch":
            why = "the student starts from nothing"
        elif backbone.whole:
            why = "the student is the teacher, and would ask itself"
        _say_unused(len(answered.unasked), why, progress)
        return data
    larger = seen_by.at(imported.scaled(seen_by.size, choice.reference))
    student, there = _untrained(backbone), answered.unasked
    if not run.unasked_list.exists():
        passes = recipe.schedule.epochs if seconds is None else _passes_that_fit(student, data, seconds)
        if passes <= recipe.unasked.after:
            why = f"there is time for {passes:.0f} passes over the others, and they come after {recipe.unasked.after:g}"
            _say_unused(len(there), why, progress)
            return data
    found = reference.unasked(run, student, there, data, larger, recipe, choice.centre, seconds, progress)
    if found is None:
        _say_unused(len(there), "too few are unlike the held-out ones, or could be read in time", progress)
    else:
        by = f"by what the untrained student makes of them at {choice.reference} px"
        progress.note(f"{len(found.names):,} images nobody was asked about teach too, {by}")
    return replace(data, unasked=found)


def _passes_that_fit(student: Student, data: Data, seconds: float) -> float:
    """About how often training goes through its images in a time budget, by how long it takes to look at some."""
    some = data.held_pixels[:TIMED]
    each = TRAINED * _takes(lambda: embed(student, some)) / len(some)
    return seconds / (each * len(data.pixels))


def _takes(call: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls: the first warms up, and another program may interrupt any."""
    each = list[float]()
    for _ in range(3):
        began = time.perf_counter()
        call()
        each.append(time.perf_counter() - began)
    return min(each)


def _say_unused(count: int, why: str, progress: Progress) -> None:
    progress.note(f"{count:,} images nobody was asked about do not teach: {why}")


def _untrained(backbone: Backbone) -> Student:
    """The network before training, ready to look at images."""
    return Student(backbone, 0, bias=False).to(_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _make_student(
    backbone: Backbone, recipe: Recipe, choice: Choice, data: Data, run: RunDir, progress: Progress
) -> Student:
    """Backbone and head; what maps into the teacher's space starts from its closed-form solution."""
    width = data.targets.shape[1]
    maps = choice.mapped or recipe.space == "teacher"
    dim = width if maps else recipe.student.dim
    student = Student(backbone, dim, bias=maps)
    anchor = recipe.anchor if backbone.start == "scratch" else recipe.anchor_finetune
    if anchor:
        student.anchor = torch.nn.Linear(backbone.width, width)
    student.to(_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.checkpoint.exists():  # everything below would be overwritten
        return student
    if backbone.start == "scratch":
        _calibrate(student, data.pixels, data.size, data.keep, recipe.seed)
    features = torch.from_numpy(embed_plain(student, data.pixels, data.size, data.keep, features=True))
    if choice.centre:
        with torch.no_grad():
            student.centre.copy_(features.mean(dim=0))
    features, targets = features - student.centre.detach().cpu(), torch.from_numpy(data.targets)
    if maps:
        strengths = (choice.strength,) if choice.strength else ridge.STRENGTHS
        assert data.aim is not None
        head = ridge.ridge(features, data.aim(targets), strengths)
        progress.note(f"closed-form head: ridge {head.strength:.2g}, leave-one-out cosine {head.cosine:.3f}")
        _fill(student.linear, head)
    if student.anchor is not None:
        _fill(student.anchor, ridge.ridge(features, targets))
    if dim and not maps:
        with torch.no_grad():
            student.linear.weight.copy_(ridge.principal(features, dim))
    return student


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mapped:
    """A map into the teacher's space, and how it ranks held-out images: against the student's gallery, against the
    teacher's."""

    head: ridge.Head
    own: Scores
    theirs: Scores

    @property
    def both(self) -> Scores:
        """The mean of both galleries."""
        return averaged((self.own, self.theirs))


def _mapped_start(student: Student, choice: Choice, data: Data, recipe: Recipe, run: RunDir) -> tuple[_Mapped, float]:
    """The untrained student in the teacher's space, and the seconds it took to map and to judge it."""
    began = time.perf_counter()
    if run.checkpoint.exists():  # a run that goes on: the student is still to be loaded
        student.load_state_dict(read_weights(run.start), strict=False)
    found = _fitted(student, choice, data, recipe)
    return found, time.perf_counter() - began


def _mapped(
    student: Student,
    untrained: _Mapped,
    choice: Choice,
    data: Data,
    recipe: Recipe,
    run: RunDir,
    outcome: Outcome,
    progress: Progress,
) -> Outcome:
    """Map what was trained in a space of its own into the teacher's; where it ranks worse than untrained, the start is
    put back."""
    last = _fitted(student, choice, data, recipe) if outcome.kept_step else untrained
    if outcome.kept_step and worse(last.both, untrained.both):
        student.load_state_dict(read_weights(run.start))
        last, outcome = untrained, replace(outcome, kept_step=0, start_share=1.0)
    beside = f", {100 * choice.beside:.0f} % of it the features themselves" if choice.beside else ""
    progress.note(f"mapped into the teacher's space: ridge {last.head.strength:.2g}{beside}")
    student.map_by(last.head.weight, last.head.bias)
    return replace(
        outcome,
        fidelity=as_fidelity(last.own),
        undistilled=as_fidelity(untrained.own),
        gain=gain(last.both, untrained.both),
        to_teacher=(as_fidelity(untrained.theirs), as_fidelity(last.theirs)),
    )


def _fitted(student: Student, choice: Choice, data: Data, recipe: Recipe) -> _Mapped:
    """The closed-form map of a student's features, fitted on some views of each image, and judged."""
    assert data.aim is not None
    parts = [embed_plain(student, data.pixels, data.size, data.keep, features=True)]
    views = range(min(VIEWS, VIEWED // len(data.pixels)))
    look = partial(embed_view, student, data.pixels, data.size, data.keep, recipe.augment, recipe.seed)
    parts += [look(number) for number in views]
    centre = student.centre.detach().cpu()
    alike = [one + (parts[0] - one).mean(axis=0) for one in parts]  # or what views have in common draws to a hub
    features, targets = torch.from_numpy(np.concatenate(alike)) - centre, torch.from_numpy(data.targets)
    strength = choice.strength or ridge.ridge(features[: len(targets)], data.aim(targets)).strength
    head = Map(features, targets.repeat(len(parts), 1), data.aim, strength).at(choice.beside)
    held = torch.from_numpy(embed(student, data.held_pixels, features=True)) - centre
    vectors = unit((held @ head.weight.T + head.bias).numpy())
    k = metrics.reach(len(vectors))
    own, theirs = (fidelity_scores(data.held_targets, vectors, k, one) for one in (vectors, data.held_targets))
    return _Mapped(head=head, own=own, theirs=theirs)


@torch.no_grad()
def _fill(layer: torch.nn.Linear, head: ridge.Head) -> None:
    layer.weight.copy_(head.weight)
    assert layer.bias is not None
    layer.bias.copy_(head.bias)


@torch.no_grad()
def _calibrate(student: Student, pixels: NDArray[np.uint8], size: tuple[int, int], keep: float, seed: int) -> None:
    """Give a fresh network the batch-norm statistics of these images, so that it means something before training."""
    norms = [m for m in student.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average of the batches to come
    student.train()
    device = student.factor.device
    rows = np.random.default_rng((seed, 6)).permutation(len(pixels))[: CALIBRATION * 32]
    for at in range(0, len(rows) - len(rows) % 2, 32):
        student(to_pixels(plain(taken(pixels, np.sort(rows[at : at + 32])), size, keep)).to(device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def _report(
    student: Student,
    start: str,
    answered: Answered,
    data: Data,
    recipe: Recipe,
    run: RunDir,
    outcome: Outcome,
) -> DistillReport:
    made = StudentReport(
        spec=sources.named(recipe.student.spec),
        params=sum(p.numel() for p in student.parameters()),
        dim=student.dim,
        input=data.size,
        space=recipe.space,
        start=start,
    )
    return DistillReport(
        run=str(run.root),
        recipe=recipe.name,
        student=made,
        queries=answered.queries,
        images={
            "train": len(data.pixels),
            "validation": len(data.held_pixels),
            "unasked": len(data.unasked.names) if data.unasked is not None else 0,
            "skipped": answered.skipped,
        },
        steps=outcome.state.step,
        best_step=outcome.kept_step,
        start_share=outcome.start_share,
        soup=outcome.runs,
        seconds=outcome.state.seconds,
        k=outcome.k,
        fidelity=outcome.fidelity,
        undistilled=outcome.undistilled,
        nested={str(dim): one for dim, one in outcome.nested.items()},
        seen={"undistilled": outcome.seen[0], "distilled": outcome.seen[1]},
        gain=outcome.gain,
        to_teacher=dict(zip(("undistilled", "distilled"), outcome.to_teacher or (), strict=False)),
        verdict=_verdict(outcome, made),
        seed=recipe.seed,
    )


def _verdict(outcome: Outcome, made: StudentReport) -> str:
    """What was reached, in words, and what is to be done about it, from what was measured."""
    kept, first, state = outcome.fidelity.overlap_at_10, outcome.undistilled.overlap_at_10, outcome.state
    half = (kept.high - kept.low) / 2
    said = (
        f"keeps {100 * kept.value:.0f} ± {100 * half:.0f} % of the teacher's top-{outcome.k} on held-out images "
        f"(undistilled {100 * first.value:.0f} %)"
    )
    if outcome.to_teacher is not None:
        there, then = (one.overlap_at_10.value for one in reversed(outcome.to_teacher))
        said += f", {100 * there:.0f} % of it in the teacher's own gallery (undistilled {100 * then:.0f} %)"
    if outcome.kept_step == 0:
        return f"{said}; training did not improve it: {_advice(outcome, made)}"
    if outcome.gain.overlap_at_10.low <= 0:
        within = "that is within the noise of the undistilled student"
        if outcome.gain.divergence.high >= 0:
            return f"{said}; {within}: {_advice(outcome, made)}"
        order, before = outcome.fidelity.spearman.value, outcome.undistilled.spearman.value
        said += f"; of the ten nearest {within}, though it is nearer to all of the teacher's similarities beyond chance"
        said += f" (Spearman {before:.2f} → {order:.2f})" if outcome.gain.spearman.low > 0 else ""
    if state.best_step >= 0.9 * state.step and not state.lap:  # of averaged runs the last look is the best as a rule
        return f"{said}; still improving at the end: give it longer with --time-budget"
    poor = f"; {_advice(outcome, made)}" if kept.value < POOR else ""
    which = "" if outcome.kept_step == state.step else f"; best at step {outcome.kept_step}"
    return f"{said}{which}; step {state.step}: {outcome.stopped}{poor}"


def _means(made: StudentReport) -> str:
    """What would make a student such as this one able to do more."""
    if made.start == "scratch":
        return "pretrained weights, a larger network or a larger --input"
    kind = made.spec.partition(":")[0]
    settings = sources.asked(made.spec) if kind in ("teacher", "onnx") else {}
    if kind == "teacher" and not settings:
        return "a larger --input or a larger --target"
    more = "a later cut" if "cut" in settings else "more width" if "width" in settings else "a larger network"
    return f"a larger --input, {more} or a larger --target"


def _advice(outcome: Outcome, made: StudentReport) -> str:
    """What limits the student: what it does not learn of the images it is trained on, or what of that it does not do on
    others. The latter is for more images to mend, the former for a student that can do more, or for time."""
    before, after = outcome.seen
    others = outcome.fidelity.overlap_at_10.value - outcome.undistilled.overlap_at_10.value
    learned = (
        f"{round(100 * (after - before)):+d} points on images it was trained on, to {round(100 * after)} %, "
        f"{round(100 * others):+d} on others"
    )
    missed, lost = 1 - after, after - before - others
    if lost > max(TOLD, missed):
        return f"{learned}: more images would help most"
    if after - before < TOLD:
        mend = "give it longer" if outcome.runs == 1 else "a larger soup.steps"
        rate = "lr" if made.start == "scratch" else "lr_finetune"
        return f"{learned}: it hardly learned: {mend}, or a larger optimiser.{rate} with --set"
    images = "; more images would help too" if lost > LOST else ""
    return f"{learned}: the student itself limits: {_means(made)}{images}"


def _keeping_takes(student: Student, data: Data, how: Preprocess, trained: Sequence[Photo]) -> float:
    """Seconds that `_keep_vectors` will take, by a few images: it embeds while others are decoded."""
    some, files = data.held_pixels[:TIMED], [photo.path for photo in trained[:TIMED]]
    each = _takes(lambda: embed(student, some)) / len(some)
    file = _takes(lambda: images.load_each(files, how)) / max(1, len(files))
    return max(each, file) * min(SEEN, len(trained)) + each * len(data.held_pixels)


def _keep_vectors(
    student: Student,
    how: Preprocess,
    trained: Sequence[Photo],
    data: Data,
    seed: int,
    run: RunDir,
    progress: Progress,
) -> None:
    """Write the student's vectors, by which `eval --drift` tells how unlike the images it learned from others are, and
    which images these were.

    Images are prepared from their files, as `eval` prepares them: what training has cached is of another size.
    """
    for path, hashes in (
        (run.trained, [photo.sha256 for photo in trained]),
        (run.trained_unasked, data.unasked.hashes if data.unasked is not None else ()),
    ):
        write_array(path, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32))
    chosen = np.sort(np.random.default_rng((seed, 7)).permutation(len(trained))[:SEEN]).tolist()
    ready = images.ahead([trained[row].path for row in chosen], lambda path: images.prepare(path, how))
    parts = [np.zeros((0, student.dim), np.float32)]
    progress.begin("embedding images trained on", len(chosen), "images")
    while some := list(islice(ready, DESCRIBED)):
        rows = [one for one in some if not isinstance(one, str)]
        parts += [embed(student, np.stack(rows))] if rows else []
        progress.advance(len(some))
    progress.end()
    kept = np.concatenate(parts)
    if len(kept) < len(chosen):
        lost = f"{len(chosen) - len(kept):,} of {len(chosen):,} images trained on cannot be read any more"
        progress.warn(f"{lost}: eval --drift goes by the others" if len(kept) > 1 else f"{lost}: no eval --drift")
    write_array(run.seen, kept.astype(np.float16))
    write_array(run.unseen, embed(student, data.held_pixels).astype(np.float16))


def _finish(
    student: Student,
    teacher: Teacher,
    recipe: Recipe,
    choice: Choice,
    run: RunDir,
    report: DistillReport,
    answered: Answered,
    held: NDArray[np.bool_],
    isolate: bool,
    architecture: bytes | None,
) -> None:
    """Write weights, card and, last, the manifest; then drop what only training needed."""
    size = imported.scaled(teacher.preprocess.size, recipe.student.input)
    in_space = recipe.space == "teacher"
    save_weights(run.weights, student)
    if architecture is not None:
        write_bytes(run.architecture, lambda fresh: _write(fresh, architecture))
    card = StudentCard(
        spec=sources.named(recipe.student.spec),
        input=size,
        dim=student.dim,
        head=student.dim if student.has_head else 0,
        bias=student.has_head and student.linear.bias is not None,
        space=recipe.space,
        space_id=teacher.space_id if in_space else own_space_id(student),
        start=report.student.start,
        params=report.student.params,
        preprocess=teacher.preprocess.at(size, choice.keep),
        form=FORM,
        dims=recipe.student.dims,
    )
    write_json(run.card, {**asdict(card), "preprocess": card.preprocess.to_dict()})
    write_array(run.answers, answered.vectors[held])
    paths = [str(photo.path.resolve()) for photo, out in zip(answered.photos, held, strict=True) if out]
    seen = [str(photo.path.resolve()) for photo, out in zip(answered.photos, held, strict=True) if not out]
    write_json(
        run.manifest,
        {
            "report": to_json(report),
            "teacher": {
                "path": teacher.where,
                "sha256": teacher.key.sha256,
                "output": teacher.key.output,
                "pool": teacher.key.pool,
                "bytes": teacher.size_bytes,
                "space_id": teacher.space_id,
                "preprocess": teacher.preprocess.to_dict(),
                "isolate": isolate,
            },
            "held_out": paths,
            "calibration": [seen[at] for at in np.linspace(0, len(seen) - 1, min(len(seen), CALIBRATED)).astype(int)],
            "weights_sha256": images.digest(run.weights),
            "recipe": recipe.to_dict(),
            "sha256": _made_from(run, answered, recipe),
        },
    )
    run.tidy()


def _made_from(run: RunDir, answered: Answered, recipe: Recipe) -> dict[str, str]:
    """Hashes of images, answers and recipe, by their names in `provenance.OVER`."""
    unasked = [one.tobytes() for one in np.load(run.trained_unasked, allow_pickle=False)]
    return {
        "images": provenance.of_images([photo.sha256 for photo in answered.photos]),
        **({"unasked": provenance.of_images(unasked)} if unasked else {}),
        "answers": answered.sha256,
        "recipe": provenance.of_recipe(recipe.to_dict()),
    }


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def finished(run: RunDir) -> DistillReport:
    """The report of a finished run."""
    values = read_json(run.manifest)["report"]

    def fidelity(one: dict[str, Any]) -> Fidelity:
        return Fidelity(overlap_at_10=Interval(**one["overlap@10"]), spearman=Interval(**one["spearman"]))

    student = StudentReport(**{**values["student"], "input": tuple(values["student"]["input"])})
    return DistillReport(
        **{
            **values,
            "student": student,
            "fidelity": fidelity(values["fidelity"]),
            "undistilled": fidelity(values["undistilled"]),
            "nested": {dim: fidelity(one) for dim, one in values.get("nested", {}).items()},
        }
    )


def load_student(run: RunDir) -> TorchEmbedder:
    """A finished run's student, ready to embed."""
    values = read_json(run.card)
    preprocess = Preprocess.from_dict(values.pop("preprocess"))
    card = StudentCard(**imported.frozen(values), preprocess=preprocess)
    if run.architecture.exists():
        backbone = students.rebuilt(run.architecture, card.start)
    else:
        backbone = students.build(card.spec, Start(input=max(card.input), seed=0))
    if card.form != FORM:
        raise DistillError(f"the run {run.root} was made by an earlier version", "run distill again, with --restart")
    student = Student(backbone, card.head, card.bias)
    try:
        load_weights(run.weights, student)
    except RuntimeError:
        raise DistillError(f"the weights in {run.root} do not fit its student", imported.REMADE) from None
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TorchEmbedder(student, card, run.name)


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("distilltool", "torch", "timm", "onnx", "onnxruntime", "faiss-cpu", "numpy", "pillow")
    versions: dict[str, str] = {}
    for name in packages:
        versions[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), "platform": platform.platform(), "threads": workers(), **versions}

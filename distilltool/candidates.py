"""Students that could be made at a given cost: early parts of the teacher, its network with fewer channels, and small
pretrained networks at hand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from distilltool import images, imported, latency, students, trainable
from distilltool.defaults import OPSET
from distilltool.errors import DistillError, NoStudent
from distilltool.onnx_export import to_onnx
from distilltool.progress import Progress
from distilltool.runtime import open_session
from distilltool.sources import AUTO, Source
from distilltool.student import Student
from distilltool.students import Start
from distilltool.target import USUAL, Target, below, largest, parse
from distilltool.trainable import Cut

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)  # of the teacher's work, at which it is cut
WIDTHS = (0.7, 0.5)  # of its channels, that a narrower one keeps
FITTING = 1.5e12  # floating-point operations that may go into making one
PACE = 1.2e-10  # seconds of a core that one takes there: measured with a ResNet50, more where layers are thin
LEAST = 64  # pixels of the longer side below which photographs say little
SMALL = ("mobilenetv4_conv_small", "mobilenetv3_large_100", "repvit_m0_9", "resnet18")  # of timm, tried where at hand
NATIVE = 224  # pixels of the longer side of their images
SECONDS = 0.4  # that a network is timed at one size


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A student that could be made. input: longer side of its images in pixels. flops: of one image; ms: of one
    inference at batch 1 in onnxruntime, None where nobody asked. fitting: operations that making it takes, where its
    weights are fitted to images, as nobody named it, and it is to be told from others."""

    spec: str
    input: int
    flops: int
    ms: float | None = None
    fitting: float = 0

    @property
    def seconds(self) -> float:
        """How long making it takes, about."""
        return self.fitting * PACE / images.workers()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sought:
    """What students are sought for. spec: of the one that is named, or auto; goal: None for a tenth of the teacher's
    work, or whatever there is where the teacher is no file; side: the longer side of their images where it is asked
    for; dim: length of their vectors, 0 for their own width."""

    spec: str
    goal: Target | None = None
    side: int | None = None
    dim: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Network:
    """A network that takes images of any size. flops: of one image whose longer side is `longest`, which it is not to
    look at more than; wide: those of the network that it is made of by leaving channels out."""

    spec: str
    flops: int
    longest: int
    wide: int = 0


def at_hand(sought: Sought, teacher: Source | None, start: Start, progress: Progress) -> tuple[Candidate, ...]:
    """Students that keep to a target, each at the largest images that do, before anything is paid for. Narrower ones
    come last: making one takes longer than scoring any other.

    teacher: None where it is no file that can be read. Raises DistillError where there is no such student.
    """
    goal, named = sought.goal or parse(USUAL), sought.spec != AUTO
    refused, found = list[str](), list[Candidate]()
    try:
        cost = limit(sought.goal, teacher)
    except DistillError as error:
        if sought.goal is not None:
            raise
        refused.append(error.message)  # a teacher that cannot be read: whatever network there is
        cost, teacher = float("inf"), None
    networks = [_network(sought.spec, sought.side, start)] if named else _networks(teacher, start, refused)
    if not named and not any(one.spec.startswith("timm:") for one in networks):
        _say_absent(start, progress)
    progress.begin("looking for students", len(networks), "students")
    rate = 0.0  # milliseconds an operation, of the network before
    for one in networks:
        try:
            fit = _fitted(one, sought, cost, start, rate)
            rate = rate if fit is None or fit.ms is None else fit.ms / fit.flops
        except DistillError as error:
            if named:
                raise
            refused.append(f"{one.spec}: {error.message}")
        else:
            found += [fit] if fit is not None else []
        progress.advance()
    progress.end()
    if not found:
        size = f" at {sought.side} px" if sought.side else ""
        why = "".join(f" ({one})" for one in refused)
        raise NoStudent(
            f"no student is at hand that keeps to {goal.text}{size}{why}",
            "name one: --student timm:NAME, with --weights FILE.safetensors, or onnx:FILE; or allow more with --target",
        )
    return tuple(found)


def _say_absent(start: Start, progress: Progress) -> None:
    """Networks that are small by design keep more than parts of a large one, so it is said where there are none."""
    if start.fetch == "online":
        progress.warn(
            "the weights of small pretrained networks could not be fetched: parts of the teacher alone are tried"
        )
        return
    progress.note(
        "no small pretrained network is on this machine; they often keep more than parts of the teacher: --fetch gets "
        "some from their hub, or name one with --student"
    )


def limit(goal: Target | None, teacher: Source | None) -> float:
    """The most one image may cost, in floating-point operations or milliseconds."""
    if goal is not None and not goal.share:
        return goal.limit
    if teacher is not None:
        return (goal or parse(USUAL)).limit * total(teacher)
    if goal is None:
        return float("inf")
    raise DistillError(
        f"--target {goal.text} is a share of the teacher's work, and this teacher is no file that can be read here",
        'write what one image may cost: "flops<100M" or "p50<5ms"',
    )


def total(source: Source) -> int:
    """Floating-point operations of a file for one image, up to its embedding."""
    return _cuts(source)[-1].flops


@lru_cache(maxsize=1)  # asked for the total and for the parts of one file
def _cuts(source: Source) -> Sequence[Cut]:
    model = trainable.read_whole(source.path)
    found = trainable.cuts(model, source.output, source.preprocess.size)
    if not found:
        raise DistillError(f"{source.name} cannot be read up to {source.output}", "name a student with --student")
    return found


def _networks(teacher: Source | None, start: Start, refused: list[str]) -> list[_Network]:
    """What there is to choose from, whatever it costs."""
    found = list(_of_timm(start))
    if teacher is not None:
        try:
            found = [*_of_teacher(teacher), *found, *_narrower(teacher, start, refused)]
        except DistillError as error:
            refused.append(f"{teacher.name}: {error.message}")
    return found


def _of_teacher(source: Source) -> list[_Network]:
    """The teacher's own network, whole and cut short."""
    found, longest = _cuts(source), max(source.preprocess.size)
    whole = found[-1]
    made = [_Network(spec="teacher", flops=whole.flops, longest=longest)]
    cuts = {one.name: one for share in SHARES if (one := _nearest(found, share)) is not None and one is not whole}
    made += [_Network(spec=f"teacher:cut={one.name}", flops=one.flops, longest=longest) for one in cuts.values()]
    return made


def _narrower(source: Source, start: Start, refused: list[str]) -> Iterator[_Network]:
    """The teacher's own network with fewer channels."""
    longest, wide = max(source.preprocess.size), total(source)
    for width in WIDTHS:
        spec = f"teacher:width={width:g}"
        try:
            backbone = students.build(spec, replace(start, input=longest, source=source, rough=True))
        except DistillError as error:
            refused.append(f"{spec}: {error.message}")
            return
        flops = flops_of(backbone.module, _size(longest, start))
        yield _Network(spec=spec, flops=flops, longest=longest, wide=wide)


def _nearest(found: Sequence[Cut], share: float) -> Cut | None:
    below = [one for one in found if one.share <= share + 1e-9]
    return below[-1] if below else None


def _of_timm(start: Start) -> Iterator[_Network]:
    """Small networks of timm whose pretrained weights are at hand; larger images than the teacher's tell no more."""
    longest = min(NATIVE, max(start.prepared.size) if start.prepared is not None else NATIVE)
    for name in SMALL:
        backbone = students.build(f"timm:{name}", replace(start, input=longest, source=None))
        if backbone.start != "scratch":
            flops = flops_of(backbone.module, _size(longest, start))
            yield _Network(spec=f"timm:{name}", flops=flops, longest=longest)


def _network(spec: str, side: int | None, start: Start) -> _Network:
    """The network that is named."""
    longest = side or (max(start.prepared.size) if start.prepared is not None else NATIVE)
    backbone = students.build(spec, replace(start, input=longest, rough=True))
    return _Network(spec=spec, flops=flops_of(backbone.module, _size(longest, start)), longest=longest)


def _fitted(one: _Network, sought: Sought, cost: float, start: Start, rate: float) -> Candidate | None:
    """A network at the largest images at which it keeps to the target; None where it does at none.

    rate: about how many milliseconds an operation takes, 0 where nobody knows.
    """

    def flops(side: int) -> int:
        return round(one.flops * (side / one.longest) ** 2)

    goal = sought.goal if sought.goal is not None and sought.goal.measure == "p50" else None

    def measure(side: int) -> float:
        if goal is None:
            return flops(side)
        return milliseconds(_untrained(one.spec, side, sought.dim, start), _size(side, start), goal.threads)

    most = sought.side or one.longest
    first = below(one.longest * (cost / (rate * one.flops)) ** 0.5) if rate and goal is not None else most
    found = largest(measure, cost, sought.side or LEAST, most, first)
    if found is None:
        return None
    side, spent = found
    size = _size(side, start)
    fitting = one.wide * (side / one.longest) ** 2 * imported.looked_at(size)
    if fitting > FITTING:
        return None
    return Candidate(spec=one.spec, input=side, flops=flops(side), ms=None if goal is None else spent, fitting=fitting)


def _untrained(spec: str, side: int, dim: int, start: Start) -> Student:
    return Student(students.build(spec, replace(start, input=side, rough=True)), dim, bias=False)


def _size(side: int, start: Start) -> tuple[int, int]:
    return imported.scaled(start.prepared.size if start.prepared is not None else (side, side), side)


def milliseconds(student: Student, size: tuple[int, int], threads: int) -> float:
    """Median time of one inference at batch 1. size: height and width."""
    return float(np.median(latency.alone(runner(student, size, threads), SECONDS).samples) * 1000)


def runner(student: Student, size: tuple[int, int], threads: int) -> Callable[[], Any]:
    """One inference of the exported student in onnxruntime, of one image of this height and width."""
    session = open_session(to_onnx(student, size, OPSET).SerializeToString(), threads)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    return lambda: session.run(None, {"images": pixels})


def flops_of(module: torch.nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of a network for one image of this height and width."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops())

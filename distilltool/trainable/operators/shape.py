"""Shapes: what reads them, what computes with them, what changes them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.numbers import read
from distilltool.trainable.operators.arithmetic import as_numbers, number
from distilltool.trainable.operators.convolution import both_ends
from distilltool.trainable.registry import operator
from distilltool.trainable.regroup import freed
from distilltool.trainable.values import NotFree, Number, Sizes, Unsupported, Value


@operator("Shape")
def shape(b: Builder, op: Op) -> Value:
    """Sides as numbers, those that never change as constants."""
    sides = b.sizes(op.value(0))
    start, end = op.attribute("start", 0), op.attribute("end", None)
    return Sizes(numbers=sides[start:end])


@operator("Size")
def size(b: Builder, op: Op) -> Value:
    """How many numbers a tensor holds."""
    made: Number = 1
    for one in b.sizes(op.value(0)):
        made = number(b, functions.times, one, made)
    return Sizes(numbers=(made,), scalar=True)


@operator("Reshape")
def reshape(b: Builder, op: Op) -> Value:
    """Reshape; sides baked in for a fixed batch or image are set free."""
    wanted: Sequence[Number] = op.attribute("shape") if op.attribute("shape") is not None else op.numbers(1, "shape")
    value = op.value(0)
    if isinstance(value, Sizes) and len(wanted) < 2:
        return Sizes(numbers=value.numbers, scalar=not wanted, real=value.real)
    x = b.tensor(value)
    zero_is_zero = bool(op.attribute("allowzero", 0))
    sides = [
        b.sizes(x)[at] if isinstance(one, int) and one == 0 and not zero_is_zero else one
        for at, one in enumerate(wanted)
    ]
    return reshaped(b, x, sides)


def reshaped(b: Builder, x: Tensor | fx.Node, sides: Sequence[Number]) -> Value:
    """A tensor in a shape of numbers, one of them -1 at most."""
    before, there = b.shape(x), b.other_shape(x)
    if before == there or math.prod(before) == 0:
        plain: Value = b.emit(torch.reshape, x, tuple(sides))
        return plain
    here: list[Any] = [b.probe(one).here if isinstance(one, fx.Node) else one for one in sides]
    if -1 in here:
        rest = -math.prod(here)
        here[here.index(-1)] = math.prod(before) // max(rest, 1)
    if math.prod(here) != math.prod(before):
        raise NotFree("a Reshape does not fit the declared size")
    made: list[Any] = []
    for found, one in zip(freed(before, there, here), sides, strict=True):
        if isinstance(one, fx.Node) or not isinstance(found, tuple | None):
            made.append(one if isinstance(one, fx.Node) else found)
        else:
            made.append(_of_axes(b, x, found) if found is not None else -1)
    made = _one_left(b, made)
    reshaped: Value = b.emit(torch.reshape, x, tuple(made))
    return reshaped


def _of_axes(b: Builder, x: Any, axes: tuple[int, ...]) -> Number:
    made: Number = 1
    for axis in axes:
        made = number(b, functions.times, b.sizes(x)[axis], made)
    return made


def _one_left(b: Builder, sides: list[Any]) -> list[Any]:
    """-1 once: where no side is left open, the last that moves may be."""
    if sides.count(-1) > 1:
        raise NotFree("a Reshape splits two sides that are to be free")
    moving = [at for at, one in enumerate(sides) if isinstance(one, fx.Node)]
    if -1 not in sides and moving:
        sides[moving[-1]] = -1
    return sides


@operator("Flatten")
def flatten(b: Builder, op: Op) -> Value:
    """Two axes: those before `axis` and the rest."""
    x = op.tensor(0)
    rank = b.rank(x)
    axis = int(op.attribute("axis", 1))
    axis = axis + rank if axis < 0 else axis
    if axis == 1:
        usual: Value = b.emit(torch.flatten, x, 1) if rank > 1 else b.emit(torch.unsqueeze, x, 1)
        return usual
    sides = b.sizes(x)
    lead: Number = 1
    for one in sides[:axis]:
        lead = number(b, functions.times, one, lead)
    made: Value = b.emit(torch.reshape, x, (lead, -1))
    return made


@operator("Squeeze")
def squeeze(b: Builder, op: Op) -> Value:
    """Drop sides of 1: those named, or all that are 1 at any size."""
    value, axes = op.value(0), op.axes(1)
    if isinstance(value, Sizes):
        return Sizes(numbers=value.numbers, scalar=True, real=value.real) if len(value.numbers) == 1 else value
    if axes is None:
        both = zip(b.shape(value), b.other_shape(value), strict=True)
        axes = [at for at, sides in enumerate(both) if sides == (1, 1)]
    rank = b.rank(value)
    axes = [one % rank for one in axes]
    if any(b.shape(value)[one] != 1 for one in axes):
        raise Unsupported("it drops a side that is not 1")
    if any(b.other_shape(value)[one] != 1 for one in axes):
        raise NotFree("a Squeeze drops a side that is to be free")
    made: Value = b.emit(torch.squeeze, value, tuple(axes))
    return made


@operator("Unsqueeze")
def unsqueeze(b: Builder, op: Op) -> Value:
    """Add sides of 1."""
    value, axes = op.value(0), op.axes(1) or []
    if isinstance(value, Sizes) and value.scalar and axes in ([0], [-1]):
        return Sizes(numbers=value.numbers, real=value.real)
    made: Any = b.tensor(value)
    rank = b.rank(made) + len(axes)
    for axis in sorted(one % rank for one in axes):
        made = b.emit(torch.unsqueeze, made, axis)
    return made  # type: ignore[no-any-return]


@operator("Transpose")
def transpose(b: Builder, op: Op) -> Value:
    """A view with the axes in another order; nothing is copied."""
    x = op.tensor(0)
    order = [int(one) for one in op.attribute("perm", list(range(b.rank(x)))[::-1])]
    if order == sorted(order):
        return x
    made: Value = b.emit(torch.permute, x, order)
    return made


@operator("Concat")
def concat(b: Builder, op: Op) -> Value:
    """Join along an axis; what is the same for every image of a batch that was fixed to one is repeated."""
    values = [op.value(at) for at in range(len(op.inputs)) if op.has(at)]
    if any(isinstance(one, Sizes) for one in values):
        numbers = [as_numbers(one) for one in values]
        if all(one is not None for one in numbers):
            known = [one for one in numbers if one is not None]
            return Sizes(numbers=tuple(n for one in known for n in one.numbers), real=any(one.real for one in known))
    tensors = [b.tensor(one) for one in values]
    axis = int(op.attribute("axis", 1))
    made: Value = b.emit(torch.cat, _alike(b, tensors, axis % b.rank(tensors[0])), axis)
    return made


def _alike(b: Builder, tensors: list[Any], axis: int) -> list[Any]:
    """Tensors repeated along the first axis where that is 1 at any size and the others' is the batch."""
    firsts = [(b.shape(one)[0], b.other_shape(one)[0]) if b.rank(one) else (0, 0) for one in tensors]
    free = [at for at, (here, there) in enumerate(firsts) if here == 1 and there != 1]
    if axis == 0 or not free:
        return tensors
    batch = b.size(tensors[free[0]], 0)
    return [
        b.emit(torch.Tensor.expand, _held(b, one), (batch, *([-1] * (b.rank(one) - 1)))) if sides == (1, 1) else one
        for one, sides in zip(tensors, firsts, strict=True)
    ]


def _held(b: Builder, x: Any) -> fx.Node:
    return b.hold(x) if isinstance(x, Tensor) else x


@operator("Split")
def split(b: Builder, op: Op) -> list[Value]:
    """Parts along an axis: of given sizes, or as equal as can be."""
    value, axis = op.value(0), int(op.attribute("axis", 0))
    sizes = op.attribute("split")
    sizes = list(sizes) if sizes is not None else (list(op.numbers(1, "split")) if op.has(1) else None)
    count = int(op.attribute("num_outputs", 0)) or len(op.node.output)
    x = b.tensor(value)
    whole = b.shape(x)[axis]
    if sizes is None:
        if whole != b.other_shape(x)[axis]:
            raise NotFree("a Split into equal parts")
        each = -(-whole // count)
        sizes = [min(each, whole - at * each) for at in range(count)]
    if isinstance(value, Sizes):
        ends = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
        return [Sizes(numbers=value.numbers[i:j], real=value.real) for i, j in zip(ends, ends[1:], strict=False)]
    made = b.emit(torch.split, x, list(sizes), axis)
    return [b.item(made, at) for at in range(len(sizes))]


@operator("Slice")
def cut(b: Builder, op: Op) -> Value:
    """Slice, also of the numbers of a shape."""
    value = op.value(0)
    if op.attribute("starts") is not None:
        starts, ends = list(op.attribute("starts")), list(op.attribute("ends"))
        axes, steps = list(op.attribute("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = list(op.numbers(1, "starts")), list(op.numbers(2, "ends"))
        axes = [int(one) for one in op.constant(3, "axes")] if op.has(3) else list(range(len(starts)))
        steps = [int(one) for one in op.constant(4, "steps")] if op.has(4) else [1] * len(starts)
    fixed = not any(isinstance(one, fx.Node) for one in (*starts, *ends))
    if isinstance(value, Sizes):
        if not fixed or len(axes) != 1:
            raise Unsupported("it cuts a shape at a place computed from the image")
        far = [None if abs(one) >= functions.FAR else one for one in (starts[0], ends[0])]
        return Sizes(numbers=value.numbers[far[0] : far[1] : steps[0]], real=value.real)
    x = b.tensor(value)
    kept = [at for at in range(len(axes)) if not _takes_all(b, x, axes[at], starts[at], ends[at], steps[at])]
    if not kept:
        return x
    starts, ends, axes, steps = ([one[at] for at in kept] for one in (starts, ends, axes, steps))
    made: Value = b.emit(functions.slice_along, x, tuple(starts), tuple(ends), axes, steps)
    return made


def _takes_all(b: Builder, x: Any, axis: int, start: Number, end: Number, step: int) -> bool:
    """Whether a Slice takes a whole axis; so it does of a batch or side that was fixed, set free."""
    whole = b.shape(x)[axis]
    known = isinstance(start, int) and isinstance(end, int)
    return known and step == 1 and start in (0, -whole) and end >= whole  # type: ignore[operator]


@operator("Expand")
def expand(b: Builder, op: Op) -> Value:
    """Broadcast to a shape; a side of 1 asked for leaves what is there."""
    wanted = list(op.numbers(1, "shape"))
    x = op.tensor(0)
    here = b.shape(x)
    rank = max(len(here), len(wanted))
    sides = [1] * (rank - len(here)) + list(here)
    wanted = [1] * (rank - len(wanted)) + wanted
    asked = [
        -1 if at >= rank - len(here) and isinstance(one, int) and (one == 1 or one == sides[at]) else one
        for at, one in enumerate(wanted)
    ]
    if not isinstance(x, fx.Node) and any(isinstance(one, fx.Node) for one in asked):
        x = b.hold(x)
    made: Value = b.emit(torch.Tensor.expand, x, tuple(asked))
    return made


@operator("Tile")
def tile(b: Builder, op: Op) -> Value:
    """Repeat along each axis."""
    repeats = op.numbers(1, "repeats")
    x = op.tensor(0)
    made: Value = b.emit(torch.Tensor.repeat, x, tuple(repeats))
    return made


MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Pad")
def pad(b: Builder, op: Op) -> Value:
    """Pad; negative numbers cut off."""
    x = op.tensor(0)
    rank, mode = b.rank(x), op.attribute("mode", "constant")
    given = op.attribute("pads")
    pads: Sequence[Any] = [int(one) for one in given] if given is not None else op.numbers(1, "pads")
    axes = [int(one) % rank for one in op.constant(3, "axes")] if op.has(3) else list(range(rank))
    if any(isinstance(one, fx.Node) for one in pads):
        raise Unsupported("its pads are computed from the image's size")
    whole = [0] * 2 * rank
    for at, axis in enumerate(axes):
        whole[axis], whole[rank + axis] = int(pads[at]), int(pads[len(axes) + at])
    if not any(whole):
        return x
    if mode == "constant":
        value = op.attribute("value", 0.0)
        value = op.constant(2, "value").item() if op.has(2) else value
        made: Value = b.emit(F.pad, x, both_ends(whole), "constant", value)
        return made
    return _mirrored(b, x, whole, MODES[mode])


def _mirrored(b: Builder, x: Any, whole: list[int], mode: str) -> Value:
    """Padding with what is at the edge: torch has it for the last axes alone."""
    rank = len(whole) // 2
    first = next(axis for axis in range(rank) if whole[axis] or whole[rank + axis])
    spatial = rank - first
    if spatial > 3:
        raise Unsupported(f"mode {mode} along the batch")
    lead = max(rank - spatial - 2, 0) if rank - spatial > 2 else 0
    if lead or rank - spatial < 1:
        raise Unsupported(f"mode {mode} of {rank} axes")
    made: Value = b.emit(F.pad, x, both_ends(whole)[: 2 * spatial], mode)
    return made


@operator("ConstantOfShape")
def constant_of_shape(b: Builder, op: Op) -> Value:
    """One number everywhere."""
    sides, held = op.numbers(0, "shape"), op.attribute("value")
    value = read(held).reshape(()) if held is not None else torch.tensor(0.0)
    if held is None or not any(isinstance(one, fx.Node) for one in sides):
        made: Value = b.emit(torch.full, tuple(sides), value.item(), dtype=value.dtype)
        return made
    later: Value = b.emit(torch.Tensor.expand, b.hold(value), tuple(sides))
    return later


@operator("Range")
def count_up(b: Builder, op: Op) -> Value:
    """Numbers from start to limit by steps."""
    ends: list[Any] = [op.numbers(at, "ends")[0] for at in range(3)]
    if not any(isinstance(one, fx.Node) for one in ends):
        made: Value = torch.arange(*ends, dtype=op.constant(0, "start").dtype)
        return made
    later: Value = b.emit(functions.count_up, *ends, b.image)
    return later


@operator("DepthToSpace")
def depth_to_space(b: Builder, op: Op) -> Value:
    """Channels become places."""
    block, first = int(op.attribute("blocksize")), op.attribute("mode", "DCR")
    made: Value = b.emit(functions.depth_to_space, op.tensor(0), block, first)
    return made


@operator("SpaceToDepth")
def space_to_depth(b: Builder, op: Op) -> Value:
    """Places become channels."""
    block, first = int(op.attribute("blocksize")), op.attribute("mode", "DCR")
    made: Value = b.emit(functions.space_to_depth, op.tensor(0), block, first)
    return made


@operator("Trilu")
def triangle(b: Builder, op: Op) -> Value:
    """The upper or lower triangle."""
    diagonal = int(op.constant(1, "diagonal")) if op.has(1) else 0
    made: Value = b.emit(torch.triu if op.attribute("upper", 1) else torch.tril, op.tensor(0), diagonal)
    return made

"""Sums, means and extremes over axes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.operators.arithmetic import number
from distilltool.trainable.registry import operator
from distilltool.trainable.regroup import BATCH
from distilltool.trainable.values import NotFree, Number, Sizes, Value

REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": functions.reduce_l1,
    "ReduceL2": functions.reduce_l2,
    "ReduceLogSum": functions.log_sum,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceProd": functions.product,
    "ReduceSumSquare": functions.sum_of_squares,
}


@operator(*REDUCE)
def reduce(b: Builder, op: Op) -> Value:
    """Reduce one or several axes; without axes all of them, or none where the node says so."""
    value = op.value(0)
    if isinstance(value, Sizes) and op.kind in ("ReduceProd", "ReduceSum"):
        return _of_numbers(b, op, value)
    x, axes = b.tensor(value), op.axes(1)
    if not axes:
        if op.attribute("noop_with_empty_axes", 0):
            return x
        axes = list(range(b.rank(x)))
    keep = bool(op.attribute("keepdims", 1))
    axes = _without_batch(b, x, axes, keep)
    made: Value = b.emit(REDUCE[op.kind], x, axes, keep) if axes else x
    return made


def _without_batch(b: Builder, x: Any, axes: list[int], keep: bool) -> list[int]:
    """Axes less the batch of a graph fixed to one image: set free, each image is still reduced by itself."""
    here, there = b.shape(x), b.other_shape(x)
    batch = [axis for axis in axes if (here[axis], there[axis]) == (1, BATCH)]
    if batch and not keep:
        raise NotFree("a reduction over the batch")
    return [axis for axis in axes if axis not in batch]


def _of_numbers(b: Builder, op: Op, value: Sizes) -> Sizes:
    made: Number = 1 if op.kind == "ReduceProd" else 0
    known = [one for one in value.numbers if not isinstance(one, fx.Node)]
    made = math.prod(known) if op.kind == "ReduceProd" else sum(known)
    for one in value.numbers:
        if isinstance(one, fx.Node):
            made = number(b, functions.times if op.kind == "ReduceProd" else functions.plus, one, made)
    return Sizes(numbers=(made,), scalar=not op.attribute("keepdims", 1), real=value.real)


@operator("ArgMax", "ArgMin")
def extreme(b: Builder, op: Op) -> Value:
    """Where the extreme stands."""
    made: Value = b.emit(
        functions.extreme_place,
        op.tensor(0),
        int(op.attribute("axis", 0)),
        bool(op.attribute("keepdims", 1)),
        bool(op.attribute("select_last_index", 0)),
        op.kind == "ArgMax",
    )
    return made


@operator("TopK")
def top(b: Builder, op: Op) -> tuple[Value, Value]:
    """The largest or smallest numbers and their places."""
    count = op.numbers(1, "count")[0] if op.has(1) else int(op.attribute("k"))
    largest = bool(op.attribute("largest", 1))
    made = b.emit(functions.top, op.tensor(0), count, int(op.attribute("axis", -1)), largest)
    return b.item(made, 0), b.item(made, 1)


@operator("CumSum")
def cumulative_sum(b: Builder, op: Op) -> Value:
    """Running sums."""
    axis = int(op.constant(1, "axis"))
    made: Value = b.emit(
        functions.cumulative_sum,
        op.tensor(0),
        axis,
        bool(op.attribute("exclusive", 0)),
        bool(op.attribute("reverse", 0)),
    )
    return made

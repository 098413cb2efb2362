"""Picking by index, and its opposite."""

from typing import Any

import torch
from torch import Tensor, fx

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.operators.shape import reshaped
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Sizes, Unsupported, Value


@operator("Gather")
def gather(b: Builder, op: Op) -> Value:
    """Places of one axis; one place alone is a view, the numbers of a shape stay numbers."""
    value, index, axis = op.value(0), op.tensor(1), int(op.attribute("axis", 0))
    if isinstance(index, Tensor):
        if isinstance(value, Sizes) and index.ndim < 2:
            picked = tuple(value.numbers[int(at)] for at in index.reshape(-1))
            return Sizes(numbers=picked, scalar=index.ndim == 0, real=value.real)
        if index.ndim == 0 and isinstance(value, fx.Node):
            one: Value = b.emit(torch.select, value, axis, int(index))
            return one
        if isinstance(value, fx.Node) and index.tolist() == list(range(b.shape(value)[axis])):
            return value  # all of a batch that was fixed
        if isinstance(value, fx.Node) and _is_restored(b, value, index):
            return reshaped(b, value.args[0], list(index.shape))  # type: ignore[arg-type]
    made: Value = b.emit(functions.gather, b.tensor(value), index, axis)
    return made


def _is_restored(b: Builder, value: fx.Node, index: Tensor) -> bool:
    """Whether a Gather gives a flattened tensor a shape again, as torch.as_strided is written."""
    flat = value.target is torch.reshape and b.rank(value) == 1 and index.numel() == b.shape(value)[0]
    return flat and bool((index.reshape(-1) == torch.arange(index.numel())).all())


@operator("GatherElements")
def gather_elements(b: Builder, op: Op) -> Value:
    """torch.gather."""
    made: Value = b.emit(functions.gather_elements, op.tensor(0), op.tensor(1), int(op.attribute("axis", 0)))
    return made


@operator("GatherND")
def gather_nd(b: Builder, op: Op) -> Value:
    """Places along several axes at once."""
    made: Value = b.emit(functions.gather_nd, op.tensor(0), op.tensor(1), int(op.attribute("batch_dims", 0)))
    return made


@operator("ScatterElements")
def scatter_elements(b: Builder, op: Op) -> Value:
    """torch.scatter."""
    if op.attribute("reduction", "none") != "none":
        raise Unsupported("its reduction")
    made: Value = b.emit(
        functions.scatter_elements, op.tensor(0), op.tensor(1), op.tensor(2), int(op.attribute("axis", 0))
    )
    return made


@operator("OneHot")
def one_hot(b: Builder, op: Op) -> Value:
    """An axis with one number set."""
    depth, values = int(op.constant(1, "depth")), op.constant(2, "values").reshape(-1)
    off, on = (values[at].item() for at in (0, 1))
    made: Value = b.emit(functions.one_hot, op.tensor(0), depth, off, on, int(op.attribute("axis", -1)))
    return made


@operator("NonZero")
def nonzero(b: Builder, op: Op) -> Value:
    """Places of what is not zero, of a constant."""
    found: Any = op.constant(0, "input")
    return torch.stack(torch.nonzero(found, as_tuple=True)) if found.ndim else torch.nonzero(found.reshape(1)).T

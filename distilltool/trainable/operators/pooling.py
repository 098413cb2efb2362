"""Pooling, over windows and over everything."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import MAX_POOLS, POOLS, average_pool_uneven, dilated_average_pool, lp_pool
from distilltool.trainable.operators.convolution import both_ends, explicit_pads, padded
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value


def _window(op: Op) -> tuple[list[int], list[int]]:
    kernel = [int(one) for one in op.attribute("kernel_shape")]
    return kernel, [int(one) for one in op.attribute("strides", [1] * len(kernel))]


@operator("MaxPool")
def max_pool(b: Builder, op: Op) -> Value:
    """MaxPool without its places."""
    op.first_output_only()
    kernel, strides = _window(op)
    dilations = [int(one) for one in op.attribute("dilations", [1] * len(kernel))]
    x, padding = padded(b, op, op.tensor(0), kernel, -math.inf)
    if any(2 * pad > wide for pad, wide in zip(padding, kernel, strict=True)):
        x = b.emit(torch.nn.functional.pad, x, both_ends(padding + padding), "constant", -math.inf)
        padding = [0] * len(kernel)
    ceil = bool(op.attribute("ceil_mode", 0))
    made: Value = b.emit(MAX_POOLS[len(kernel)], x, kernel, strides, padding, dilations, ceil)
    return made


@operator("AveragePool")
def average_pool(b: Builder, op: Op) -> Value:
    """AveragePool."""
    kernel, strides = _window(op)
    x, pads = op.tensor(0), explicit_pads(b, op, op.tensor(0), kernel)
    ceil, count = bool(op.attribute("ceil_mode", 0)), bool(op.attribute("count_include_pad", 0))
    dilations = [int(one) for one in op.attribute("dilations", [1] * len(kernel))]
    if pads is None:
        raise Unsupported("SAME padding by strides while the image's size is free")
    rank = len(kernel)
    even = pads[:rank] == pads[rank:] and all(2 * p <= wide for p, wide in zip(pads[:rank], kernel, strict=True))
    if any(one != 1 for one in dilations):
        if ceil and _ends_early(b, op.tensor(0), kernel, strides, dilations, pads):
            raise Unsupported("dilations with ceil_mode")
        made: Value = b.emit(dilated_average_pool, x, kernel, strides, dilations, both_ends(pads), count)
    elif even:
        made = b.emit(POOLS[rank], x, kernel, strides, pads[:rank], ceil, count)
    else:
        made = b.emit(average_pool_uneven, x, kernel, strides, both_ends(pads), ceil, count)
    return made


def _ends_early(
    b: Builder, x: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> bool:
    """Whether the last window does not end where the input does, so that ceil_mode adds one."""
    rank = len(kernel)
    return any(
        (shape[2 + at] + pads[at] + pads[rank + at] - (kernel[at] - 1) * dilations[at] - 1) % strides[at]
        for shape in (b.shape(x), b.other_shape(x))
        for at in range(rank)
    )


@operator("LpPool")
def norm_pool(b: Builder, op: Op) -> Value:
    """LpPool."""
    kernel, strides = _window(op)
    pads = explicit_pads(b, op, op.tensor(0), kernel)
    if pads is None or op.attribute("ceil_mode", 0) or any(one != 1 for one in op.attribute("dilations", [1])):
        raise Unsupported("ceil_mode, dilations or SAME padding by strides")
    made: Value = b.emit(lp_pool, op.tensor(0), float(op.attribute("p", 2)), kernel, strides, both_ends(pads))
    return made


def _places(b: Builder, x: Any) -> Sequence[int]:
    return list(range(2, b.rank(x)))


@operator("GlobalAveragePool")
def global_average_pool(b: Builder, op: Op) -> Value:
    """The mean over all places."""
    made: Value = b.emit(torch.mean, op.tensor(0), _places(b, op.tensor(0)), True)
    return made


@operator("GlobalMaxPool")
def global_max_pool(b: Builder, op: Op) -> Value:
    """The largest over all places."""
    made: Value = b.emit(torch.amax, op.tensor(0), _places(b, op.tensor(0)), True)
    return made


@operator("GlobalLpPool")
def global_norm_pool(b: Builder, op: Op) -> Value:
    """The p-norm over all places."""
    x = op.tensor(0)
    made: Value = b.emit(torch.linalg.vector_norm, x, float(op.attribute("p", 2)), _places(b, x), True)
    return made

"""Convolutions, with constant weights as torch's layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import pad_same, same_pads
from distilltool.trainable.layers import filled
from distilltool.trainable.operators.activation import activated
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value

LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TURNED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def window(op: Op, rank: int, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    _same_kernel(op, kernel)
    return list(op.attribute("strides", [1] * rank)), list(op.attribute("dilations", [1] * rank))


def _same_kernel(op: Op, kernel: Sequence[int]) -> None:
    if list(op.attribute("kernel_shape", list(kernel))) != list(kernel):
        raise Unsupported("its kernel_shape is not its weight's")


def both_ends(pads: Sequence[int]) -> list[int]:
    """ONNX's padding (all begins, then all ends) as F.pad takes it: the last axis first, begin and end in turn."""
    rank = len(pads) // 2
    return [side for axis in reversed(range(rank)) for side in (int(pads[axis]), int(pads[rank + axis]))]


def explicit_pads(b: Builder, op: Op, x: Value, kernel: Sequence[int]) -> list[int] | None:
    """Padding as ONNX's begins and ends; None where it follows from a size that changes."""
    rank = len(kernel)
    strides, dilations = op.attribute("strides", [1] * rank), op.attribute("dilations", [1] * rank)
    kind = op.attribute("auto_pad", "NOTSET")
    if kind in ("NOTSET", ""):
        return [int(one) for one in op.attribute("pads", [0] * 2 * rank)]
    if kind == "VALID":
        return [0] * 2 * rank
    here, there = (same_pads(shape[2:], kernel, strides, dilations) for shape in (b.shape(x), b.other_shape(x)))
    if here != there or b.shape(x)[2:] != b.other_shape(x)[2:] and any(step != 1 for step in strides):
        return None
    less, more = [one // 2 for one in here], [one - one // 2 for one in here]
    return less + more if kind == "SAME_UPPER" else more + less


def padded(b: Builder, op: Op, x: Any, kernel: Sequence[int], value: float = 0.0) -> tuple[Any, list[int]]:
    """What is left to pad evenly, after padding as far as the two ends of an axis differ."""
    rank = len(kernel)
    pads = explicit_pads(b, op, x, kernel)
    if pads is None:
        strides, dilations = op.attribute("strides", [1] * rank), op.attribute("dilations", [1] * rank)
        upper = op.attribute("auto_pad") == "SAME_UPPER"
        return b.emit(pad_same, x, list(kernel), list(strides), list(dilations), upper, value), [0] * rank
    if pads[:rank] == pads[rank:] and min(pads) >= 0:
        return x, pads[:rank]
    return b.emit(F.pad, x, both_ends(pads), "constant", value), [0] * rank


@operator("Conv", "com.microsoft.FusedConv")
def conv(b: Builder, op: Op) -> Value:
    """Conv; FusedConv adds a tensor and an activation."""
    x, weight = op.tensor(0), op.tensor(1)
    bias = op.tensor(2) if op.has(2) else None
    shape = b.shape(weight)
    kernel, rank = shape[2:], len(shape) - 2
    if rank not in LAYERS:
        raise Unsupported(f"it works along {rank} axes")
    strides, dilations = window(op, rank, kernel)
    x, padding = padded(b, op, x, kernel)
    groups = int(op.attribute("group", 1))
    if isinstance(x, fx.Node) and isinstance(weight, Tensor) and not isinstance(bias, fx.Node):
        with torch.device("meta"):
            layer = LAYERS[rank](
                shape[1] * groups, shape[0], kernel, strides, padding, dilations, groups, bias is not None
            )
        made: Value = b.layer(filled(layer, weight, bias), op.name, x)
    else:
        made = b.emit(FUNCTIONS[rank], x, weight, bias, strides, padding, dilations, groups)
    made = b.emit(torch.add, made, op.tensor(3)) if op.has(3) else made
    return activated(b, op, made)


@operator("ConvTranspose")
def conv_transpose(b: Builder, op: Op) -> Value:
    """ConvTranspose; where the two ends are padded differently, by cutting off."""
    x, weight = op.tensor(0), op.tensor(1)
    bias = op.tensor(2) if op.has(2) else None
    shape = b.shape(weight)
    kernel, rank = shape[2:], len(shape) - 2
    if rank not in TURNED or not isinstance(weight, Tensor) or isinstance(bias, fx.Node):
        raise Unsupported("its weight is computed from the image" if rank in TURNED else f"it works along {rank} axes")
    strides, dilations = window(op, rank, kernel)
    extra = [int(one) for one in op.attribute("output_padding", [0] * rank)]
    pads = _cut_off(b, op, x, kernel)
    groups = int(op.attribute("group", 1))
    even = pads[:rank] == pads[rank:] and min(pads) >= 0
    with torch.device("meta"):
        layer = TURNED[rank](
            shape[0],
            shape[1] * groups,
            kernel,
            strides,
            pads[:rank] if even else 0,
            extra,
            groups,
            bias is not None,
            dilations,
        )
    layer = filled(layer, weight, bias)
    if not isinstance(x, fx.Node):
        x = b.hold(x)
    made: Value = b.layer(layer, op.name, x)
    return made if even else b.emit(F.pad, made, [-one for one in both_ends(pads)])


def _cut_off(b: Builder, op: Op, x: Value, kernel: Sequence[int]) -> list[int]:
    """Begins and ends that a transposed convolution leaves out."""
    rank = len(kernel)
    kind, wanted = op.attribute("auto_pad", "NOTSET"), op.attribute("output_shape")
    if kind == "VALID":
        return [0] * 2 * rank
    if wanted is None and kind in ("NOTSET", ""):
        return [int(one) for one in op.attribute("pads", [0] * 2 * rank)]
    strides, dilations = window(op, rank, kernel)
    extra = op.attribute("output_padding", [0] * rank)
    total = []
    for axis in range(rank):
        full = (kernel[axis] - 1) * dilations[axis] + 1 + extra[axis]
        if wanted is None:
            total.append(full - strides[axis])
        else:
            total.append(strides[axis] * (b.shape(x)[2 + axis] - 1) + full - list(wanted)[-rank:][axis])
    if wanted is not None and b.shape(x)[2:] != b.other_shape(x)[2:]:
        raise Unsupported("its output_shape is fixed while the image's is not")
    if min(total) < 0 and wanted is None:
        total = [max(one, 0) for one in total]
    less, more = [one // 2 for one in total], [one - one // 2 for one in total]
    return less + more if kind == "SAME_UPPER" else more + less

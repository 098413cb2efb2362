"""Normalisations."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.layers import NORMS, filled
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value


@operator("BatchNormalization")
def batch_norm(b: Builder, op: Op) -> Value:
    """BatchNormalization with the statistics it holds, which stay as they are unless unfrozen."""
    x, rest = op.tensor(0), [op.constant(at, "statistics") for at in range(1, 5)]
    if op.attribute("training_mode", 0) or not isinstance(x, fx.Node) or b.rank(x) not in NORMS:
        raise Unsupported("training_mode" if op.attribute("training_mode", 0) else "its input")
    layer = NORMS[b.rank(x)](len(rest[0]), eps=float(op.attribute("epsilon", 1e-5)))
    layer = filled(layer, rest[0], rest[1])
    layer.running_mean, layer.running_var = (one.detach().float().clone() for one in rest[2:])
    return b.layer(layer, op.name, x)


@operator("LayerNormalization")
def layer_norm(b: Builder, op: Op) -> Value:
    """LayerNormalization, its first output."""
    op.first_output_only()
    x, weight = op.tensor(0), op.tensor(1)
    bias = op.tensor(2) if op.has(2) else None
    axis = int(op.attribute("axis", -1)) % b.rank(x)
    return normalised(b, op.name, x, list(b.shape(x)[axis:]), weight, bias, float(op.attribute("epsilon", 1e-5)))


def normalised(b: Builder, name: str, x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Value:
    """A layer where its numbers are constants of the shape that is normalised over, else the function."""
    known = isinstance(weight, Tensor) and isinstance(bias, Tensor | None) and list(weight.shape) == shape
    if isinstance(x, fx.Node) and known and (bias is None or list(bias.shape) == shape):
        layer = nn.LayerNorm(shape, eps, bias=bias is not None)
        return b.layer(filled(layer, weight, bias), name, x)
    axes = list(range(-len(shape), 0))
    made: Value = b.emit(torch.mul, b.emit(functions.normalise_over, x, axes, eps), weight)
    return made if bias is None else _added(b, made, bias)


def _added(b: Builder, x: Value, bias: Any) -> Value:
    made: Value = b.emit(torch.add, x, bias)
    return made


SKIPPED_EPSILON = 1e-12  # where the attribute is absent; unlike every other normalisation's


@operator("com.microsoft.SkipLayerNormalization")
def skip_layer_norm(b: Builder, op: Op) -> list[Value | None]:
    """LayerNormalization of x + skip + bias; the fourth output is that sum."""
    summed = _summed(b, op, 4)
    bias = op.tensor(3) if op.has(3) else None
    eps = float(op.attribute("epsilon", SKIPPED_EPSILON))
    made = normalised(b, op.name, summed, [b.shape(summed)[-1]], op.tensor(2), bias, eps)
    return [made, None, None, summed]


@operator("com.microsoft.SkipSimplifiedLayerNormalization")
def skip_rms_norm(b: Builder, op: Op) -> list[Value | None]:
    """RMSNormalization of x + skip + bias; the fourth output is that sum."""
    summed = _summed(b, op, 3)
    made = b.emit(functions.rms_norm, summed, op.tensor(2), -1, float(op.attribute("epsilon", SKIPPED_EPSILON)))
    return [made, None, None, summed]


def _summed(b: Builder, op: Op, bias: int) -> Any:
    """x + skip, and a bias where that input is there."""
    summed = b.emit(torch.add, op.tensor(0), op.tensor(1))
    return b.emit(torch.add, summed, op.tensor(bias)) if op.has(bias) else summed


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(b: Builder, op: Op) -> Value:
    """Normalisation by the root of the mean square."""
    op.first_output_only()
    eps = float(op.attribute("epsilon", 1e-5))
    made: Value = b.emit(functions.rms_norm, op.tensor(0), op.tensor(1), int(op.attribute("axis", -1)), eps)
    return made


@operator("InstanceNormalization")
def instance_norm(b: Builder, op: Op) -> Value:
    """InstanceNormalization."""
    eps = float(op.attribute("epsilon", 1e-5))
    made: Value = b.emit(functions.instance_norm, op.tensor(0), op.tensor(1), op.tensor(2), eps)
    return made


@operator("GroupNormalization")
def group_norm(b: Builder, op: Op) -> Value:
    """GroupNormalization; up to opset 20 with one scale for each group."""
    x, weight, bias = op.tensor(0), op.tensor(1), op.tensor(2)
    groups, eps = int(op.attribute("num_groups")), float(op.attribute("epsilon", 1e-5))
    channels = b.shape(x)[1]
    if b.shape(weight)[0] == groups != channels:
        weight = b.emit(torch.repeat_interleave, weight, channels // groups)
        bias = b.emit(torch.repeat_interleave, bias, channels // groups)
    if isinstance(x, fx.Node) and isinstance(weight, Tensor) and isinstance(bias, Tensor):
        return b.layer(filled(nn.GroupNorm(groups, channels, eps), weight, bias), op.name, x)
    made: Value = b.emit(F.group_norm, x, groups, weight, bias, eps)
    return made


@operator("LpNormalization")
def lp_norm(b: Builder, op: Op) -> Value:
    """Vectors of length 1."""
    made: Value = b.emit(functions.lp_normalise, op.tensor(0), int(op.attribute("p", 2)), int(op.attribute("axis", -1)))
    return made


@operator("MeanVarianceNormalization")
def mean_variance(b: Builder, op: Op) -> Value:
    """Zero mean and unit variance over axes."""
    axes = [int(one) for one in op.attribute("axes", [0, 2, 3])]
    if 0 in axes:
        raise Unsupported("it normalises over the batch")
    made: Value = b.emit(functions.standardise, op.tensor(0), axes)
    return made


@operator("LRN")
def local_response(b: Builder, op: Op) -> Value:
    """Local response normalisation across channels."""
    numbers = [float(op.attribute(name, usual)) for name, usual in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))]
    made: Value = b.emit(functions.local_response, op.tensor(0), int(op.attribute("size")), *numbers)
    return made

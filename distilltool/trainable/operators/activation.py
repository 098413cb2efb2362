"""Activations."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import one_hot_largest, relu6, softmax_flat
from distilltool.trainable.layers import filled
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value

PLAIN: dict[str, Any] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Erf": torch.erf,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
}


@operator(*PLAIN)
def plain(b: Builder, op: Op) -> Value:
    """Those without attributes."""
    made: Value = b.emit(PLAIN[op.kind], op.tensor(0))
    return made


SELU = (1.6732632423543772, 1.0507009873554805)  # Klambauer et al. 2017; as torch has it
# those with parameters, in the order in which FusedConv lists them, each with its default
PARAMETERS: dict[str, dict[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "ThresholdedRelu": {"alpha": 1.0},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 1.0},
    "Selu": {"alpha": SELU[0], "gamma": SELU[1]},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
}
BY_ALPHA: dict[str, Any] = {"LeakyRelu": F.leaky_relu, "Elu": F.elu, "Celu": F.celu}


@operator(*PARAMETERS)
def parametric(b: Builder, op: Op) -> Value:
    """Those with attributes."""
    numbers = [float(op.attribute(name, usual)) for name, usual in PARAMETERS[op.kind].items()]
    return _applied(b, op.kind, op.tensor(0), numbers)


def _applied(b: Builder, kind: str, x: Any, numbers: Sequence[float]) -> Value:
    """An activation by its name, with torch's own function where the parameters are the usual ones."""
    made: Value
    if kind in PLAIN:
        made = b.emit(PLAIN[kind], x)
    elif kind in BY_ALPHA:
        made = b.emit(BY_ALPHA[kind], x, numbers[0])
    elif kind == "ThresholdedRelu":
        made = b.emit(F.threshold, x, numbers[0], 0.0)
    elif kind == "Selu":
        usual = all(math.isclose(one, known, rel_tol=1e-6) for one, known in zip(numbers, SELU, strict=True))
        made = b.emit(F.selu, x) if usual else b.emit(torch.mul, b.emit(F.elu, x, numbers[0]), numbers[1])
    elif kind == "HardSigmoid" and math.isclose(numbers[0], 1 / 6, rel_tol=1e-6) and numbers[1] == 0.5:
        made = b.emit(F.hardsigmoid, x)
    elif kind == "HardSigmoid":
        made = b.emit(torch.clamp, b.emit(torch.add, b.emit(torch.mul, x, numbers[0]), numbers[1]), 0.0, 1.0)
    else:
        made = b.emit(relu6, x) if list(numbers) == [0.0, 6.0] else b.emit(torch.clamp, x, *numbers)
    return made


def activated(b: Builder, op: Op, x: Value) -> Value:
    """The activation that a fused operator carries; its parameters in a list (FusedConv) or one by one (FusedGemm)."""
    kind = op.attribute("activation", "")
    if not kind:
        return x
    names = {"Clip": ("min", "max")}.get(kind) or tuple(PARAMETERS.get(kind, ()))
    if kind not in PLAIN and not names:
        raise Unsupported(f"its activation {kind}")
    single = [op.attribute(f"activation_{name}") for name in names]
    numbers = [float(one) for one in op.attribute("activation_params", single) if one is not None]
    if len(numbers) != len(names):
        raise Unsupported(f"its activation {kind} has {len(numbers)} parameters, not {len(names)}")
    return _applied(b, kind, x, numbers)


@operator("PRelu")
def prelu(b: Builder, op: Op) -> Value:
    """PRelu: a layer where there is one slope or one for each channel."""
    x, slope = op.tensor(0), op.tensor(1)
    shape = b.shape(x)
    if isinstance(x, fx.Node) and isinstance(slope, Tensor):
        sides = list(slope.shape)
        by_channel = (
            len(shape) > 1
            and slope.numel() == shape[1]
            and sides[-len(shape) + 1 :] == [shape[1]] + [1] * (len(shape) - 2)
        )
        if slope.numel() == 1 or by_channel:
            with torch.device("meta"):
                layer = nn.PReLU(slope.numel())
            return b.layer(filled(layer, slope.reshape(-1), None), op.name, x)
    below = b.emit(torch.mul, b.emit(torch.clamp, x, None, 0.0), slope)
    made: Value = b.emit(torch.add, b.emit(F.relu, x), below)
    return made


@operator("Gelu", "com.microsoft.Gelu")
def gelu(b: Builder, op: Op) -> Value:
    """Gelu."""
    made: Value = b.emit(F.gelu, op.tensor(0), approximate=op.attribute("approximate", "none"))
    return made


@operator("com.microsoft.FastGelu", "com.microsoft.BiasGelu")
def biased_gelu(b: Builder, op: Op) -> Value:
    """GELU of x + bias, by tanh in FastGelu."""
    x = b.emit(torch.add, op.tensor(0), op.tensor(1)) if op.has(1) else op.tensor(0)
    made: Value = b.emit(F.gelu, x, approximate="tanh" if op.kind == "FastGelu" else "none")
    return made


@operator("Swish", "com.microsoft.QuickGelu")
def swish(b: Builder, op: Op) -> Value:
    """x · sigmoid(alpha · x)."""
    x, alpha = op.tensor(0), float(op.attribute("alpha", 1.0 if op.kind == "Swish" else 1.702))
    if alpha == 1:
        usual: Value = b.emit(F.silu, x)
        return usual
    made: Value = b.emit(torch.mul, x, b.emit(torch.sigmoid, b.emit(torch.mul, x, alpha)))
    return made


@operator("Shrink")
def shrink(b: Builder, op: Op) -> Value:
    """x moved towards zero by the bias, zero within lambd of it."""
    x, bias, lambd = op.tensor(0), float(op.attribute("bias", 0.0)), float(op.attribute("lambd", 0.5))
    moved = b.emit(torch.sub, x, b.emit(torch.mul, b.emit(torch.sign, x), bias))
    made: Value = b.emit(torch.mul, moved, b.emit(torch.gt, b.emit(torch.abs, x), lambd))
    return made


@operator("Softmax", "LogSoftmax")
def softmax(b: Builder, op: Op) -> Value:
    """Softmax and LogSoftmax; before opset 13 over all axes from the one named on."""
    x, log = op.tensor(0), op.kind == "LogSoftmax"
    rank, new = b.rank(x), op.opset >= 13
    axis = int(op.attribute("axis", -1 if new else 1)) % max(rank, 1)
    if (
        new
        or all(side == 1 for side in b.shape(x)[axis + 1 :])
        and b.other_shape(x)[axis + 1 :] == b.shape(x)[axis + 1 :]
    ):
        made: Value = b.emit(F.log_softmax if log else F.softmax, x, axis)
    else:
        made = b.emit(softmax_flat, x, axis, log)
    return made


@operator("Hardmax")
def hardmax(b: Builder, op: Op) -> Value:
    """1 at the first largest number."""
    axis = int(op.attribute("axis", -1 if op.opset >= 13 else 1)) % b.rank(op.tensor(0))
    made: Value = b.emit(one_hot_largest, op.tensor(0), axis)
    return made

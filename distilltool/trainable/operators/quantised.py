"""Quantised graphs read as floating point: weights dequantised, activations as the numbers they stand for.

Rounding is left out. What saturation does is kept where it is an activation: a range that begins at zero cuts what is
below, as ReLU, and one that ends at six, as ReLU6, in the graphs of converters that fold those into the quantisation.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import relu6
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value

RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767)}
NOT_NEGATIVE = {"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "MaxPool", "AveragePool", "GlobalAveragePool"}
SIX = 0.01  # how near to 6 the end of a range is that stands for ReLU6, as a share


@operator("QuantizeLinear")
def quantise(b: Builder, op: Op) -> Value:
    """Nothing, or the activation that saturation stands for."""
    b.read_as_float.add(op.node.output[0])
    x, scale = op.tensor(0), op.constant(1, "scale")
    if not isinstance(x, fx.Node) and not op.has(2):
        zero: Tensor = torch.tensor(0, dtype=torch.uint8)
    else:
        zero = op.constant(2, "zero point") if op.has(2) else torch.tensor(0, dtype=torch.uint8)
    if zero.dtype not in RANGES or zero.numel() != 1 or scale.numel() != 1:
        if scale.numel() != 1:
            return x
        raise Unsupported("its type")
    low, high = RANGES[zero.dtype]
    maker = b.graph.maker.get(op.node.input[0])
    if int(zero) != low or (maker is not None and maker.op_type in NOT_NEGATIVE):
        return x
    six = abs((high - int(zero)) * float(scale) - 6) <= 6 * SIX
    made: Value = b.emit(relu6 if six else F.relu, x)
    return made


@operator("DequantizeLinear")
def dequantise(b: Builder, op: Op) -> Value:
    """Weights and the image's bytes as what they stand for; anything else is that already."""
    if op.node.input[0] in b.read_as_float:
        return op.value(0)
    if op.attribute("block_size", 0):
        raise Unsupported("its block_size")
    x, scale = op.tensor(0), op.constant(1, "scale")
    zero = op.constant(2, "zero point") if op.has(2) else torch.zeros((), dtype=torch.int64)
    if scale.numel() > 1:
        axis = int(op.attribute("axis", 1)) % b.rank(x)
        sides = [-1 if at == axis else 1 for at in range(b.rank(x))]
        scale, zero = scale.reshape(sides), zero.reshape(sides) if zero.numel() > 1 else zero
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    offset = zero.float()
    if isinstance(x, fx.Node):
        made: Any = b.emit(torch.Tensor.float, x)
        made = b.emit(torch.sub, made, offset.item() if offset.numel() == 1 else offset)
        image: Value = b.emit(torch.mul, made, scale.item() if scale.numel() == 1 else scale)
        return image
    return (x.float() - offset) * scale

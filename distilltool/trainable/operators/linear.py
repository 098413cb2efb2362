"""Matrix products, with constant weights as torch's linear layers."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.layers import filled
from distilltool.trainable.operators.activation import activated
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value


def linear(b: Builder, name: str, x: fx.Node, weight_IO: Tensor, bias: Tensor | None) -> Value:
    """x · weight + bias as a layer; weight (inputs, outputs)."""
    inputs, outputs = weight_IO.shape
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias is not None)
    return b.layer(filled(layer, weight_IO.T, bias), name, x)


@operator("MatMul")
def matmul(b: Builder, op: Op) -> Value:
    """MatMul."""
    x, y = op.tensor(0), op.tensor(1)
    if isinstance(x, fx.Node) and isinstance(y, Tensor) and y.ndim == 2 and b.is_real(y):
        return linear(b, op.name, x, y, None)
    made: Value = b.emit(torch.matmul, x, y)
    return made


@operator("com.microsoft.FusedMatMul")
def fused_matmul(b: Builder, op: Op) -> Value:
    """MatMul of turned matrices, times a number."""
    x, y = op.tensor(0), op.tensor(1)
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        raise Unsupported("transBatchA or transBatchB")
    x = b.emit(torch.transpose, x, -1, -2) if op.attribute("transA", 0) else x
    y = b.emit(torch.transpose, y, -1, -2) if op.attribute("transB", 0) else y
    alpha = float(op.attribute("alpha", 1.0))
    made = b.emit(torch.matmul, x, y)
    found: Value = made if alpha == 1 else b.emit(torch.mul, made, alpha)
    return found


@operator("Gemm", "com.microsoft.FusedGemm")
def gemm(b: Builder, op: Op) -> Value:
    """Gemm; FusedGemm adds an activation."""
    x, y = op.tensor(0), op.tensor(1)
    z = op.tensor(2) if op.has(2) else None
    alpha, beta = float(op.attribute("alpha", 1.0)), float(op.attribute("beta", 1.0))
    x = b.emit(torch.transpose, x, 0, 1) if op.attribute("transA", 0) else x
    y = b.emit(torch.transpose, y, 0, 1) if op.attribute("transB", 0) else y
    if isinstance(x, fx.Node) and isinstance(y, Tensor) and (z is None or _is_bias(z, y.shape[1])):
        bias = None if z is None else torch.as_tensor(z).reshape(-1).expand(y.shape[1]) * beta
        return activated(b, op, linear(b, op.name, x, y * alpha, bias))
    made: Any = b.emit(torch.matmul, x, y)
    made = made if alpha == 1 else b.emit(torch.mul, made, alpha)
    if z is not None:
        made = b.emit(torch.add, made, z if beta == 1 else b.emit(torch.mul, z, beta))
    return activated(b, op, made)


def _is_bias(z: Any, outputs: int) -> bool:
    """Whether an addend is one number for each output."""
    return isinstance(z, Tensor) and z.numel() in (1, outputs) and (z.ndim < 2 or z.shape[-1] == z.numel())


@operator("Einsum")
def einsum(b: Builder, op: Op) -> Value:
    """Einsum, by its equation."""
    equation = op.attribute("equation").replace(" ", "")
    made: Value = b.emit(torch.einsum, equation, *[op.tensor(at) for at in range(len(op.inputs))])
    return made

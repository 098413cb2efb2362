"""Arithmetic, comparisons and conversions, on tensors and on the numbers of shapes."""

import math
import operator as python
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, fx
from torch.nn import functional as F

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import mean_of, relu6, same_kind, whole_div
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Number, Sizes, Unsupported, Value

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
DTYPES: dict[int, torch.dtype] = {
    **dict.fromkeys(FLOATS, torch.float32),  # everything is computed in float32
    TensorProto.BOOL: torch.bool,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
}
ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Max": max,
    "Min": min,
    "Equal": python.eq,
    "Less": python.lt,
    "Greater": python.gt,
}


BINARY: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Div": python.truediv,
    "Equal": python.eq,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}


@operator(*BINARY)
def binary(b: Builder, op: Op) -> Value:
    """Two operands, broadcast."""
    left, right = op.value(0), op.value(1)
    if isinstance(left, Sizes) or isinstance(right, Sizes):
        found = _on_numbers(b, op.kind, left, right)
        if found is not None:
            return found
    x, y = b.tensor(left), b.tensor(right)
    if op.attribute("broadcast", 0) and op.opset < 7:
        y = _aligned(b, x, y, op.attribute("axis"))
    function = BINARY[op.kind]
    if op.kind == "Div" and not b.is_real(x):
        function = whole_div
    elif op.kind not in ("And", "Or", "Xor"):
        x, y = _plain(b, x, y), _plain(b, y, x)
    made: Value = b.emit(function, x, y)
    return made


def _plain(b: Builder, x: Any, other: Any) -> Any:
    """A constant of one number as that number, where the other operand alone makes the shape."""
    alone = isinstance(x, Tensor) and isinstance(other, fx.Node) and x.numel() == 1
    return x.item() if alone and x.ndim <= b.rank(other) else x


def _aligned(b: Builder, x: Any, y: Any, axis: int | None) -> Any:
    """The second operand as operators of opset 6 and before broadcast it: its axes stand from `axis` on."""
    if axis is None:
        return y
    missing = b.rank(x) - axis % b.rank(x) - b.rank(y)
    return b.emit(torch.reshape, y, (*b.shape(y), *([1] * missing)))


def as_numbers(value: Value) -> Sizes | None:
    """A value as numbers, where it is one: constants of at most one axis are."""
    if isinstance(value, Sizes):
        return value
    if isinstance(value, Tensor) and value.ndim < 2:
        real = value.dtype.is_floating_point
        return Sizes(numbers=tuple(value.reshape(-1).tolist()), scalar=value.ndim == 0, real=real)
    return None


def _on_numbers(b: Builder, kind: str, left: Value, right: Value) -> Value | None:
    x, y = as_numbers(left), as_numbers(right)
    real = bool(x and x.real)
    function = ON_NUMBERS.get(kind) or ({"Div": python.truediv if real else python.floordiv}.get(kind))
    if x is None or y is None or function is None:
        return None
    if kind in ("Max", "Min", "Equal", "Less", "Greater") and any(
        isinstance(n, fx.Node) for n in (*x.numbers, *y.numbers)
    ):
        return _same_sides(b, kind, x, y)
    count = max(len(x.numbers), len(y.numbers))
    if len(x.numbers) not in (1, count) or len(y.numbers) not in (1, count):
        return None
    pairs = zip(_spread(x, count), _spread(y, count), strict=True)
    numbers = tuple(number(b, function, one, other) for one, other in pairs)
    if kind in ("Equal", "Less", "Greater"):
        made = torch.tensor(numbers)
        return made.reshape(()) if x.scalar and y.scalar else made
    return Sizes(numbers=numbers, scalar=x.scalar and y.scalar, real=real)


def _spread(x: Sizes, count: int) -> Sequence[Number]:
    return x.numbers * count if len(x.numbers) == 1 else x.numbers


def _same_sides(b: Builder, kind: str, x: Sizes, y: Sizes) -> Value | None:
    """Whether sides are equal, where each is known now or never is what it is compared with: no side is -1."""
    count = max(len(x.numbers), len(y.numbers))
    if kind != "Equal":
        return None
    found = []
    for one, other in zip(_spread(x, count), _spread(y, count), strict=True):
        free = isinstance(one, fx.Node) or isinstance(other, fx.Node)
        if free and one is not other and not any(isinstance(n, int) and n < 0 for n in (one, other)):
            return None
        found.append(one is other if free else one == other)
    made = torch.tensor(found)
    return made.reshape(()) if x.scalar and y.scalar else made


def number(b: Builder, function: Callable[..., Any], *args: Number) -> Number:
    """A number computed of numbers, now if it can be."""
    if not any(isinstance(one, fx.Node) for one in args):
        now: Number = function(*args)
        return now
    later: Number = b.emit(function, *args)
    return later


UNARY: dict[str, Callable[..., Any]] = {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}
UNARY_NUMBERS: dict[str, Callable[..., Any]] = {
    "Neg": python.neg,
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Abs": abs,
}


@operator(*UNARY)
def unary(b: Builder, op: Op) -> Value:
    """One operand."""
    x = op.value(0)
    if isinstance(x, Sizes) and op.kind in UNARY_NUMBERS:
        made = tuple(number(b, UNARY_NUMBERS[op.kind], one) for one in x.numbers)
        return Sizes(numbers=made, scalar=x.scalar, real=x.real)
    found: Value = b.emit(UNARY[op.kind], b.tensor(x))
    return found


@operator("IsInf")
def is_infinite(b: Builder, op: Op) -> Value:
    """IsInf, of either sign or of one."""
    x, up, down = op.tensor(0), op.attribute("detect_positive", 1), op.attribute("detect_negative", 1)
    made: Value = b.emit(torch.isinf if up and down else torch.isposinf if up else torch.isneginf, x)
    return made


@operator("Pow")
def power(b: Builder, op: Op) -> Value:
    """Pow; the result has the base's type."""
    x, y = op.tensor(0), op.tensor(1)
    if isinstance(y, Tensor) and y.numel() == 1 and isinstance(x, fx.Node) and b.is_real(x):
        exponent = float(y)
        square: Value = b.emit(torch.square, x) if exponent == 2 else b.emit(torch.pow, x, exponent)
        return square
    made = b.emit(torch.pow, x, y)
    kept: Value = made if b.is_real(x) else b.emit(torch.Tensor.to, made, b.probe(x).here.dtype)
    return kept


@operator("Mod")
def modulo(b: Builder, op: Op) -> Value:
    """Mod, with the divisor's sign or, by fmod, the dividend's."""
    made: Value = b.emit(torch.fmod if op.attribute("fmod", 0) else torch.remainder, op.tensor(0), op.tensor(1))
    return made


@operator("Min", "Max", "Sum", "Mean")
def several(b: Builder, op: Op) -> Value:
    """Any number of operands, broadcast."""
    values = [op.value(at) for at in range(len(op.inputs))]
    if len(values) == 2 and any(isinstance(one, Sizes) for one in values):
        counted = _on_numbers(b, op.kind, *values)
        if counted is not None:
            return counted
    tensors = [b.tensor(one) for one in values]
    if op.kind == "Mean":
        mean: Value = b.emit(mean_of, *tensors)
        return mean
    function = {"Min": torch.minimum, "Max": torch.maximum, "Sum": torch.add}[op.kind]
    made: Any = tensors[0]
    for one in tensors[1:]:
        made = b.emit(function, made, one)
    found: Value = made if len(tensors) > 1 else b.emit(torch.clone, made)
    return found


@operator("Clip")
def clip(b: Builder, op: Op) -> Value:
    """Clip; between 0 and 6 it is ReLU6, from 0 on ReLU."""
    x, ends = op.tensor(0), [_end(op, 1, "min"), _end(op, 2, "max")]
    if not isinstance(x, fx.Node) or any(isinstance(one, fx.Node) for one in ends):
        made: Value = b.emit(torch.clamp, x, *ends) if ends != [None, None] else x
    elif b.is_real(x) and ends[0] == 0 and ends[1] in (6, None):
        made = b.emit(relu6 if ends[1] else F.relu, x)
    elif ends == [None, None]:
        made = x
    else:
        made = b.emit(torch.clamp, x, *ends)
    return made


def _end(op: Op, at: int, name: str) -> Any:
    """An end of Clip: an attribute up to opset 6, an input later; the largest float is none."""
    found = op.attribute(name)
    if found is None and op.has(at):
        found = op.tensor(at)
        found = found.item() if isinstance(found, Tensor) else found
    return None if isinstance(found, float) and abs(found) > 3e38 else found


@operator("Where")
def where(b: Builder, op: Op) -> Value:
    """Where, also of the numbers of a shape."""
    condition, x, y = op.value(0), op.value(1), op.value(2)
    if isinstance(condition, Tensor) and condition.ndim < 2 and (isinstance(x, Sizes) or isinstance(y, Sizes)):
        left, right = as_numbers(x), as_numbers(y)
        if left is not None and right is not None:
            count = max(condition.numel(), len(left.numbers), len(right.numbers))
            asked = condition.reshape(-1).expand(count).tolist()
            picked = zip(asked, _spread(left, count), _spread(right, count), strict=True)
            numbers = tuple(one if yes else other for yes, one, other in picked)
            return Sizes(numbers=numbers, scalar=left.scalar and right.scalar, real=left.real)
    made: Value = b.emit(torch.where, b.tensor(condition), b.tensor(x), b.tensor(y))
    return made


@operator("Cast")
def cast(b: Builder, op: Op) -> Value:
    """Cast; every floating-point type is float32 here."""
    kind = int(op.attribute("to"))
    if kind not in DTYPES:
        raise Unsupported(f"it converts to {TensorProto.DataType.Name(kind)}")
    x = op.value(0)
    if isinstance(x, Sizes) and kind != TensorProto.BOOL:
        real = kind in FLOATS
        numbers = x.numbers if real or not x.real else tuple(number(b, math.trunc, one) for one in x.numbers)
        return Sizes(numbers=numbers, scalar=x.scalar, real=real)
    made = b.tensor(x)
    if b.probe(made).here.dtype == DTYPES[kind]:
        return made
    if op.node.input[0] in b.read_as_float:
        return made
    found: Value = b.emit(torch.Tensor.to, made, DTYPES[kind])
    return found


@operator("CastLike")
def cast_like(b: Builder, op: Op) -> Value:
    """A tensor as the type of another."""
    made: Value = b.emit(same_kind, op.tensor(0), op.tensor(1))
    return made

"""Read an ONNX graph without running it: who makes which tensor, of what shape, at what cost, and how to cut it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

Shape = tuple[int | str | None, ...]
SMALL = 4096  # bytes up to which a constant is read while reasoning; shapes and scales are smaller
LARGE, FAR = 2**20, 2**62  # whole numbers between them are no side, axis or index, and no "to the end" either
MAX_NODES = 50_000  # beyond it no network that embeds images, but a file that means harm

# operators that only rearrange, convert or drop numbers
MOVES = {
    "Identity",
    "Cast",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Dropout",
    "Transpose",
    "QuantizeLinear",
    "DequantizeLinear",
}


# what a constant may pass before it is used: none of them changes its numbers
RESHAPES = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
AS_IT_IS = {"Identity", "Cast", "DequantizeLinear", "Transpose"}  # and a weight, which then may be turned
CHAIN = 8  # nodes on such a way


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A tensor of the graph. shape: numbers, names of free axes, None where nothing is known of an axis; the whole
    shape is None where not even the number of axes is known. dtype: as numpy names it."""

    name: str
    shape: Shape | None
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one image costs. flops: two for each multiply-add of convolutions and matrix products.

    complete: whether the shapes of all of these were known.
    """

    flops: int
    complete: bool


class Graph:
    """One model's graph, functions inlined, weights left out. Every walk is a loop: a hostile graph cannot nest it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = _inlined(model)
        graph = self.model.graph
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(graph.node)
        self.weights: dict[str, onnx.TensorProto] = {one.name: one for one in graph.initializer}
        self.maker: dict[str, onnx.NodeProto] = {out: node for node in self.nodes for out in node.output if out}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            if node.op_type == "Constant" and len(node.output) == 1 and (tensor := held(node)) is not None:
                self.weights.setdefault(node.output[0], tensor)
        known = {one.name for one in graph.initializer}
        self.inputs = tuple(_value(one) for one in graph.input if one.name not in known)
        self.outputs = tuple(_value(one) for one in graph.output)

    def constant(self, name: str) -> NDArray[Any] | None:
        """A small constant's value, also one that was quantised; None where the tensor is no small constant."""
        for _ in range(CHAIN):
            if name in self.weights:
                return _small(self.weights[name])
            node = self.maker.get(name)
            if node is None or not node.input:
                return None
            if node.op_type == "DequantizeLinear":
                return self._dequantised(node)
            if node.op_type not in RESHAPES:
                return None
            name = str(node.input[0])
        return None

    def _dequantised(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        parts = [_small(self.weights[name]) if name in self.weights else None for name in node.input if name]
        if not parts or any(part is None for part in parts):
            return None
        values = [np.asarray(part, np.float64) for part in parts]
        if len(values) < 2 or values[1].size != 1:
            return None
        shifted: NDArray[Any] = (values[0] - (values[2] if len(values) > 2 else 0)) * values[1]
        return shifted

    def weight_dims(self, name: str) -> tuple[int, ...] | None:
        """Dimensions of a weight, also one that is dequantised, converted or transposed on the way; else None."""
        turned: list[list[int]] = []
        for _ in range(CHAIN):
            if name in self.weights:
                dims = tuple(self.weights[name].dims)
                for perm in reversed(turned):
                    if perm and sorted(perm) != list(range(len(dims))):
                        return None
                    dims = tuple(dims[at] for at in perm) if perm else dims[::-1]
                return dims
            node = self.maker.get(name)
            if node is None or not node.input or node.op_type not in AS_IT_IS:
                return None
            if node.op_type == "Transpose":
                turned.append(list(self.attribute(node, "perm", [])))
            name = str(node.input[0])
        return None

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        """An attribute's value, or the default where the node does not carry it."""
        return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)

    def ancestry(self, name: str) -> set[str]:
        """Every tensor that a tensor is computed from, itself included."""
        seen, waiting = set[str](), [name]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            node = self.maker.get(one)
            if node is not None:
                waiting += [*(each for each in node.input if each), *_captured(node)]
        return seen

    def needed_inputs(self, name: str) -> list[Value]:
        """Those of the graph's inputs that a tensor depends on."""
        seen = self.ancestry(name)
        return [one for one in self.inputs if one.name in seen]

    def shapes(self, image: str, size: tuple[int, int] | None, layout: str) -> dict[str, Value]:
        """Shapes of all tensors but weights, for one image (or the graph's own fixed batch) of this size, as far as
        they can be inferred."""
        bare = onnx.ModelProto()
        bare.CopyFrom(_bare(self.model))
        for one in bare.graph.input:
            _fix(one, image, size, layout)
        try:
            inferred = shape_inference.infer_shapes(
                bare, check_type=False, strict_mode=False, data_prop=not self._multiplies()
            )
        except Exception:  # a graph that is wrong in itself: what is declared is all there is to know
            inferred = bare
        graph = inferred.graph
        known = (*graph.input, *graph.value_info, *graph.output)
        return {one.name: _value(one) for one in known if one.name not in self.weights}

    def _multiplies(self) -> bool:
        """Whether a large whole number goes into the computation of shapes: onnx, when it follows numbers through the
        graph, writes a list as long as every vector that it learns the length of."""
        for name, tensor in self.weights.items():
            if tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and math.prod(tensor.dims) <= SMALL:
                value = _small(tensor)
                if value is not None and ((abs(value) >= LARGE) & (abs(value) < FAR)).any():
                    if any(node.op_type != "Slice" for node in self.users.get(name, [])):
                        return True
        return False

    def cost(self, output: str, shapes: Mapping[str, Value]) -> Cost:
        """Floating-point operations that an output takes, with these shapes."""
        needed = self.ancestry(output)
        total, complete = 0, True
        for node in self.nodes:
            if any(out in needed for out in node.output):
                macs = self._macs(node, shapes)
                total, complete = total + (macs or 0), complete and macs is not None
        return Cost(flops=2 * total, complete=complete)

    def _macs(self, node: onnx.NodeProto, shapes: Mapping[str, Value]) -> int | None:
        """Multiply-adds of one node; None where a shape is missing."""
        kind = node.op_type
        if kind not in COUNTED:
            return 0
        operands = [self._dims(name, shapes) for name in node.input]
        made = self._dims(node.output[0], shapes) if node.output else None
        if kind == "Einsum":
            return _einsum(str(self.attribute(node, "equation", b"").decode()), operands)
        if kind in ("Attention", "MultiHeadAttention"):
            return _attention(operands, made) if node.domain in ("", "ai.onnx") else None
        at = WEIGHT_AT.get(kind, 1)
        weight = operands[at] if len(operands) > at else None
        if weight is None:
            return None
        if kind == "ConvTranspose":
            return math.prod(operands[0]) * math.prod(weight[1:]) if operands[0] is not None else None
        if made is None:
            return None
        if "Conv" in kind:
            return math.prod(made) * math.prod(weight[1:])
        if len(weight) < 2:
            return math.prod(made) * math.prod(weight)
        return math.prod(made) * (weight[-1] if self.attribute(node, "transB", 0) else weight[-2])

    def _dims(self, name: str, shapes: Mapping[str, Value]) -> tuple[int, ...] | None:
        """A tensor's dimensions, all of them known, else None."""
        if (known := self.weight_dims(name)) is not None:
            return known
        shape = shapes[name].shape if name in shapes else None
        if shape is None or not all(isinstance(side, int) for side in shape):
            return None
        return tuple(side for side in shape if isinstance(side, int))

    def cut(self, output: str) -> onnx.ModelProto:
        """The part of the model that computes one tensor, with that tensor as its only output."""
        needed = self.ancestry(output)
        model = onnx.ModelProto()
        model.CopyFrom(_without_graph(self.model))
        graph, old = model.graph, self.model.graph
        graph.name = old.name or "cut"
        graph.node.extend(node for node in self.nodes if any(out in needed for out in node.output))
        graph.initializer.extend(one for one in old.initializer if one.name in needed)
        graph.sparse_initializer.extend(old.sparse_initializer)
        graph.input.extend(one for one in old.input if one.name in needed)
        declared = {one.name: one for one in (*old.output, *old.value_info)}
        graph.output.append(declared.get(output, onnx.ValueInfoProto(name=output)))
        return model


WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
COUNTED = {
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "FusedConv",
    "Gemm",
    "QGemm",
    "FusedGemm",
    "MatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "FusedMatMul",
    "Einsum",
    "Attention",
    "MultiHeadAttention",
}


def _einsum(equation: str, operands: Sequence[tuple[int, ...] | None]) -> int | None:
    """Multiply-adds of a product of two tensors: one for each combination of all its indices."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(operands) != 2 or len(terms) != 2 or "..." in equation:
        return 0 if len(operands) == 1 else None
    sizes: dict[str, int] = {}
    for term, dims in zip(terms, operands, strict=True):
        if dims is None or len(dims) != len(term):
            return None
        sizes |= dict(zip(term, dims, strict=True))
    return math.prod(sizes.values())


def _attention(operands: Sequence[tuple[int, ...] | None], made: tuple[int, ...] | None) -> int | None:
    """Multiply-adds of the operator of opset 23: queries times keys, then weights times values."""
    queries, keys = (operands[0], operands[1]) if len(operands) > 1 else (None, None)
    if queries is None or keys is None or made is None:
        return None
    return (math.prod(queries) + math.prod(made)) * keys[-2]


def held(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor a Constant node holds, in whichever way it is written."""
    for one in node.attribute:
        if one.name == "value":
            tensor: TensorProto = one.t
            return tensor
        if one.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = TensorProto.FLOAT if "float" in one.name else TensorProto.INT64
            value = np.asarray(helper.get_attribute_value(one))
            tensor = helper.make_tensor(node.output[0], kind, value.shape, value.ravel().tolist())
            return tensor
    return None


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor a graph holds: initializers, constants, and those of the graphs inside its nodes."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield from one.initializer
        for sparse in one.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in one.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                waiting += [attribute.g, *attribute.graphs]


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in the model's initializers and constants, scales and shapes included."""
    found = 0
    for tensor in tensors(model.graph):
        found += math.prod(tensor.dims) if tensor.dims else int(tensor.data_type != 0)
    return found


def dtype_name(element: int) -> str:
    """An ONNX element type as numpy names it."""
    try:
        return str(helper.tensor_dtype_to_np_dtype(element)).lower()
    except (KeyError, ValueError, TypeError):
        return f"type {element}"


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without local functions, which exporters wrap layers in."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception:  # a model that is wrong in itself: onnxruntime will say so
        return model


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.tensor_type
    shape: Shape | None = None
    if kind.HasField("shape"):
        shape = tuple(
            side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else side.dim_param or None
            for side in kind.shape.dim
        )
    return Value(name=info.name, shape=shape, dtype=dtype_name(kind.elem_type))


def _small(tensor: onnx.TensorProto) -> NDArray[Any] | None:
    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > SMALL:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception:  # its bytes do not fit its shape: no constant to reason with
        return None


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the bytes of its large weights: shapes are inferred from types and dimensions."""
    bare = _without_graph(model)
    bare.ClearField("functions")
    graph, old = bare.graph, model.graph
    graph.name = old.name
    graph.node.extend(old.node)
    graph.input.extend(old.input)
    graph.output.extend(old.output)
    graph.value_info.extend(old.value_info)
    declared = {one.name for one in old.input}
    for tensor in old.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bare


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    bare.opset_import.extend(model.opset_import)
    bare.metadata_props.extend(model.metadata_props)
    bare.functions.extend(model.functions)
    return bare


def _fix(info: onnx.ValueInfoProto, image: str, size: tuple[int, int] | None, layout: str) -> None:
    """Give the free axes of an input numbers: one image of this size, one of anything else."""
    for place, side in enumerate(info.type.tensor_type.shape.dim):
        if side.HasField("dim_value") and side.dim_value > 0:
            continue
        number = 1
        if info.name == image and size is not None:
            height = 2 if layout == "NCHW" else 1
            number = size[place - height] if place in (height, height + 1) else (3 if place in (1, 3) else 1)
        side.Clear()
        side.dim_value = number


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """Names that graphs inside a node use from outside, and more: what is not there is harmless."""
    waiting = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    while waiting:
        graph = waiting.pop()
        for inner in graph.node:
            yield from inner.input
            waiting += [one for attribute in inner.attribute for one in (attribute.g, *attribute.graphs)]
        yield from (one.name for one in graph.output)


def sides(shape: Sequence[int | str | None] | None) -> list[int | str | None]:
    """The axes after the first that hold more than one number."""
    return [side for side in (shape or ())[1:] if side != 1]

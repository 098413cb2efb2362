"""Small ONNX models that mean harm: each costs its reader nothing to write and everything to run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NODE = helper.make_node
TEN = 2**10
PRE = ("scale=1/255",)


def model(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """(N, 3, 8, 8) → the mean of each channel times ones, (N, 8), as the tensor `start`, then the nodes given."""
    held = {"places": np.array([2, 3]), "ones": np.ones((3, 8), np.float32), **(constants or {})}
    first = [
        NODE("ReduceMean", ["images", "places"], ["mean"], keepdims=0),
        NODE("MatMul", ["mean", "ones"], ["start"]),
    ]
    graph = helper.make_graph(
        [*first, *nodes],
        "bomb",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def plain() -> onnx.ModelProto:
    """One that harms nobody."""
    return model([NODE("Identity", ["start"], ["embedding"])])


def _added(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any]) -> onnx.ModelProto:
    """What the nodes put into `big`, its largest number added to the embedding."""
    rest = [
        NODE("Cast", ["big"], ["cast"], to=TensorProto.FLOAT),
        NODE("ReduceMax", ["cast"], ["largest"], keepdims=0),
        NODE("Add", ["start", "largest"], ["embedding"]),
    ]
    return model([*nodes, *rest], constants)


def constant_of_shape() -> onnx.ModelProto:
    """2^40 zeros."""
    return _added([NODE("ConstantOfShape", ["sides"], ["big"])], {"sides": np.array([TEN**2, TEN**2])})


def expand() -> onnx.ModelProto:
    """A vector repeated 2^40 times."""
    return _added([NODE("Expand", ["start", "sides"], ["big"])], {"sides": np.array([TEN**2, TEN**2, 1, 8])})


def tile() -> onnx.ModelProto:
    """The same, by another operator."""
    return _added([NODE("Tile", ["start", "times"], ["big"])], {"times": np.array([TEN**2, TEN**2])})


def count() -> onnx.ModelProto:
    """The numbers from 0 to 2^40."""
    ends = {"from": np.array(0), "to": np.array(TEN**4), "step": np.array(1)}
    return _added([NODE("Range", ["from", "to", "step"], ["big"])], ends)


def count_computed() -> onnx.ModelProto:
    """The numbers from 0 to 2^39, a product of numbers that are harmless each."""
    nodes = [
        NODE("Shape", ["images"], ["shape"]),
        NODE("Gather", ["shape", "first"], ["n"]),
        *(NODE("Mul", [one, "many"], [two]) for one, two in (("n", "a"), ("a", "b"), ("b", "to"))),
        NODE("Range", ["from", "to", "step"], ["big"]),
    ]
    return _added(nodes, {"from": np.array(0), "step": np.array(1), "first": np.array(0), "many": np.array(2**13)})


def grow(numbers: int) -> onnx.ModelProto:
    """So many float32 numbers for each image, their count made at run time, where no reader can see it."""
    nodes = [
        NODE("Shape", ["images"], ["shape"]),
        NODE("Gather", ["shape", "first"], ["n"]),
        NODE("Mul", ["n", "factor"], ["sides"]),
        NODE("ConstantOfShape", ["sides"], ["big"], value=numpy_helper.from_array(np.ones(1, np.float32))),
    ]
    return _added(nodes, {"first": np.array([0]), "factor": np.array([numbers])})


def loop(turns: int | None) -> onnx.ModelProto:
    """A loop of so many turns, None without end."""
    body = helper.make_graph(
        [NODE("Add", ["seen", "one"], ["more"]), NODE("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("more", 1, None)],
    )
    constants: dict[str, Any] = {"true": np.array(True), "one": np.array(1, np.float32)}
    if turns is not None:
        constants["turns"] = np.array(turns)
    start = ["turns" if turns is not None else "", "true", "start"]
    return model([NODE("Loop", start, ["embedding"], body=body)], constants)


def laughs(levels: int) -> onnx.ModelProto:
    """Functions that call the next one twice each: 2^levels nodes once they are unfolded."""
    found = model([NODE("f0", ["start"], ["embedding"], domain="ha")])
    found.opset_import.append(helper.make_opsetid("ha", 1))
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ha", 1)]
    for level in range(levels):
        nodes = [NODE("Identity", ["a"], ["c"])]
        if level < levels - 1:
            nodes = [NODE(f"f{level + 1}", [one], [two], domain="ha") for one, two in ("ab", "bc")]
        found.functions.append(helper.make_function("ha", f"f{level}", ["a"], ["c"], nodes, imports))
    return found


def chain(nodes: int) -> onnx.ModelProto:
    """So many nodes one after the other."""
    names = ["start", *(f"t{at}" for at in range(nodes - 1)), "embedding"]
    return model([NODE("Identity", [one], [two]) for one, two in zip(names, names[1:], strict=False)])


def axes(number: int) -> onnx.ModelProto:
    """A tensor that declares so many axes."""
    found = plain()
    shape = found.graph.value_info.add(name="start").type.tensor_type
    shape.elem_type = TensorProto.FLOAT
    for _ in range(number):
        shape.shape.dim.add(dim_value=1)
    return found


def weight_axes(number: int) -> onnx.ModelProto:
    """A weight of so many axes of 2^62 each."""
    found = plain()
    found.graph.initializer.add(name="huge", data_type=TensorProto.FLOAT).dims.extend([2**62] * number)
    return found


def nested(levels: int) -> bytes:
    """A model whose If holds an If holds an If; written by hand, as no library nests so deep."""

    def field(number: int, content: bytes) -> bytes:
        length, size = bytearray(), len(content)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes([*length, size]) + content

    graph = field(2, b"inner") + field(1, field(2, b"z") + field(4, b"Identity"))
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(2, b"inner") + field(1, field(2, b"z") + field(4, b"If") + field(5, attribute))
    return b"\x08\x09" + field(7, graph)

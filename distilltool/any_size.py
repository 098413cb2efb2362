"""A graph that takes decoded images of any height and width: the resizing in front of a student, inside its file."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from distilltool.errors import DistillError
from distilltool.onnx_file import opset_of
from distilltool.preprocess import Preprocess

FILTERS = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
PILLOW_CUBIC = -0.5  # ONNX counts on -0.75 where nothing is said
PREFIX = "resize."  # of the names in front, so that none is the student's


def any_size(model: onnx.ModelProto, how: Preprocess) -> onnx.ModelProto:
    """Resizing as `how` says, then the student: `images` (N, H, W, 3) uint8 with N, H, W free → its embedding.

    model: takes `images` of `how.size`. Pixels are filtered as Pillow does, antialiased and rounded to bytes. A
    stretched cut is resized as a whole and cut then: the same where its margins are whole pixels of the result, else
    with the nearest that are. Raises DistillError for filters that ONNX does not have.
    """
    check_filter(how)
    front = _front(how, opset_of(model), model.ir_version)
    student = onnx.ModelProto.FromString(model.SerializeToString())
    _rename(student, {"images": "resized"})
    joined = compose.merge_models(front, student, io_map=[("resized", "resized")])
    _rename(joined, {"decoded": "images"})
    return joined


def whole_sides(how: Preprocess) -> list[int]:
    """Height and width in pixels that a whole image is resized to, so that `how.size` is a stretched cut's middle.

    Rounded so that the margins are whole pixels: where the cut lies is exact, how large it is nearly.
    """
    return [side + 2 * round((side / how.crop_pct - side) / 2) for side in how.size]


def check_filter(how: Preprocess) -> None:
    """Raise DistillError where ONNX cannot resize as the preprocessing does."""
    if how.interpolation not in FILTERS:
        raise DistillError(
            f"ONNX cannot resize by {how.interpolation}", f"--image any needs {', '.join(FILTERS)} in the preprocessing"
        )


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give inputs of the graph other names."""
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _front(how: Preprocess, opset: int, ir_version: int) -> onnx.ModelProto:
    """From images of any size to (N, height, width, 3) uint8."""
    height, width = how.size
    numbers: dict[str, NDArray[Any]] = {
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "axes": np.array([2, 3]),
        "end": np.array([height, width]),
    }
    nodes = [
        helper.make_node("Transpose", ["decoded"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["wide"], to=TensorProto.FLOAT),
        *_target(how, numbers),
        helper.make_node("Shape", ["wide"], ["first_two"], start=0, end=2),
        helper.make_node("Concat", ["first_two", "sizes"], ["four"], axis=0),  # onnxruntime turns `axes` round wrongly
        helper.make_node(
            "Resize",
            ["wide", "", "", "four"],
            ["smooth"],
            mode=FILTERS[how.interpolation],
            antialias=int(how.interpolation != "nearest"),
            cubic_coeff_a=PILLOW_CUBIC,
        ),
        *_cut(numbers),
        helper.make_node("Round", ["middle"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["bounded"]),
        helper.make_node("Cast", ["bounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["resized"], perm=[0, 2, 3, 1]),
    ]
    for at, node in enumerate(nodes):
        node.name = f"{PREFIX}{node.op_type}_{at}"
        node.input[:], node.output[:] = ([_own(name) for name in names] for names in (node.input, node.output))
    taken = helper.make_tensor_value_info("decoded", TensorProto.UINT8, ["batch", "height", "width", 3])
    given = helper.make_tensor_value_info("resized", TensorProto.UINT8, ["batch", height, width, 3])
    held = [numpy_helper.from_array(value, _own(name)) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "resize", [taken], [given], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def _own(name: str) -> str:
    return name if name in ("", "decoded", "resized") else PREFIX + name


def _target(how: Preprocess, numbers: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """Nodes that make `sizes`, what the whole image is resized to: fixed, or its shorter side fixed."""
    if how.resize == "stretch":
        numbers["sizes"] = np.array(whole_sides(how))
        return []
    numbers["short"] = np.array([how.resize_to or min(how.size)])
    return [
        helper.make_node("Shape", ["wide"], ["sides"], start=2, end=4),
        helper.make_node("ReduceMin", ["sides"], ["shorter"], keepdims=1),
        helper.make_node("Mul", ["sides", "short"], ["scaled"]),
        helper.make_node("Div", ["scaled", "shorter"], ["sizes"]),  # of integers: rounded down, as in deploy.py
    ]


def _cut(numbers: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """Nodes that cut `middle`, as large as the student's images, out of `smooth`."""
    numbers["half"] = np.array([0.5], np.float32)
    return [
        helper.make_node("Shape", ["smooth"], ["made"], start=2, end=4),
        helper.make_node("Sub", ["made", "end"], ["spare"]),
        helper.make_node("Cast", ["spare"], ["spare_wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["spare_wide", "half"], ["margin"]),
        helper.make_node("Round", ["margin"], ["margin_whole"]),  # halves to even, as Python does in deploy.py
        helper.make_node("Cast", ["margin_whole"], ["first"], to=TensorProto.INT64),
        helper.make_node("Add", ["first", "end"], ["last"]),
        helper.make_node("Slice", ["smooth", "first", "last", "axes"], ["middle"]),
    ]

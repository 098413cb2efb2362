"""Small real inputs for tests: photographs drawn by code, and ONNX teachers whose answers numpy can compute too."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from distilltool.errors import DistillError
from distilltool.runtime import DEVICES, open_session

Output = Literal["vector", "column", "map", "tokens"]
PATCH = 4  # side of the patches the teacher looks at; image sides must be multiples of it
HIDDEN = 12
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def loaded(path: Path) -> ModuleType:
    """A script that is no part of the package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def drawn(number: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> Image.Image:
    """An RGB picture of (width, height): a colour gradient with a few shapes on it, another one for each number."""
    rng = np.random.default_rng((seed, number))
    width, height = size
    corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - across) + corners[0, 1] * across
    bottom = corners[1, 0] * (1 - across) + corners[1, 1] * across
    image = Image.fromarray((top * (1 - down) + bottom * down).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        wide, high = (int(rng.integers(2, max(3, side // 2))) for side in size)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - wide // 2, y - high // 2, x + wide // 2, y + high // 2), fill=colour)
    return image


def photo_folder(
    root: Path,
    count: int,
    *,
    size: tuple[int, int] = (48, 40),
    endings: Sequence[str] = ("jpg", "png"),
    seed: int = 0,
) -> list[Path]:
    """Write `count` different pictures into `root`, in turn of each ending."""
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = root / f"photo{number:04d}.{endings[number % len(endings)]}"
        drawn(number, size, seed).save(path)
        paths.append(path)
    return sorted(paths)


def class_folders(root: Path, *, classes: int, each: int, seed: int = 1) -> list[Path]:
    """Write folders of pictures that share their colours and differ in detail: (classes · each) files."""
    paths = []
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        ground = drawn(label, seed=seed)
        for number in range(each):
            path = folder / f"photo{number:04d}.png"
            Image.blend(ground, drawn(1000 * (label + 1) + number, seed=seed), 0.35).save(path)
            paths.append(path)
    return paths


def weights(dim: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The teacher's two layers: patches to features (HIDDEN, 3, PATCH, PATCH), features to vector (dim, HIDDEN)."""
    rng = np.random.default_rng((7, seed))
    first = rng.normal(0, 0.3, (HIDDEN, 3, PATCH, PATCH)).astype(np.float32)
    return first, rng.normal(0, 1, (dim, HIDDEN)).astype(np.float32)


def teacher_map(input_NCHW: NDArray[Any], *, dim: int = 16, seed: int = 0) -> NDArray[np.float64]:
    """What the teacher's map holds for an input, (N, dim, H / PATCH, W / PATCH), computed by numpy alone."""
    first, second = weights(dim, seed)
    count, _, height, width = input_NCHW.shape
    patches = input_NCHW.astype(np.float64).reshape(count, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    hidden = np.maximum(np.einsum("nchawb,kcab->nkhw", patches, first.astype(np.float64)), 0)
    found: NDArray[np.float64] = np.einsum("nkhw,dk->ndhw", hidden, second.astype(np.float64))
    return found


def onnx_teacher(
    path: Path,
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    dtype: Literal["float32", "float16", "uint8"] = "float32",
    batch: str | int = "N",
    size: tuple[int, int] | None = (32, 32),
    dim: int = 16,
    output: Output = "vector",
    outputs: Sequence[str] = ("embedding",),
    external: bool = False,
    metadata: Mapping[str, str] | None = None,
    normalise: bool = False,
    extra_input: bool = False,
    seed: int = 0,
) -> Path:
    """Write a small ONNX model: convolution of patches, ReLU, 1×1 convolution, mean; see `teacher_map`.

    size: (height, width), None leaves it free. outputs: each is the first one times its place, counted from 1.
    external: weights in `path`.data. normalise: vectors of length 1.
    """
    real = np.float16 if dtype == "float16" else np.float32
    first, second = weights(dim, seed)
    constants = {"first": first.astype(real), "second": second[:, :, None, None].astype(real)}
    nodes = [
        *_head(layout, dtype),
        helper.make_node("Conv", ["pixels", "first"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Relu", ["patches"], ["hidden"]),
        helper.make_node("Conv", ["hidden", "second"], ["map"]),
        *_tail(layout, output, constants),
        *([helper.make_node("LpNormalization", ["shaped"], ["answer"], axis=1, p=2)] if normalise else []),
    ]
    answer = "answer" if normalise else "shaped"
    for place, name in enumerate(outputs):
        constants[f"times_{place}"] = np.array(place + 1, real)
        nodes.append(helper.make_node("Mul", [answer, f"times_{place}"], [name]))
    sides: list[Any] = list(size) if size else ["height", "width"]
    shape = [batch, 3, *sides] if layout == "NCHW" else [batch, *sides, 3]
    inputs = [helper.make_tensor_value_info("images", ELEMENT[dtype], shape)]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch]))
        nodes.append(helper.make_node("Identity", ["mask"], ["unused"]))
    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    returned = [helper.make_tensor_value_info(name, kind, _shape(batch, size, dim, output, layout)) for name in outputs]
    graph = helper.make_graph(
        nodes, "teacher", inputs, returned, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.name}.data" if external else None,
        size_threshold=0,
    )
    return path


def _head(layout: str, dtype: str) -> list[onnx.NodeProto]:
    """From the input to (N, 3, H, W) numbers."""
    turned = "images" if layout == "NCHW" else "turned"
    nodes = [] if layout == "NCHW" else [helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2])]
    if dtype == "uint8":
        return [*nodes, helper.make_node("Cast", [turned], ["pixels"], to=TensorProto.FLOAT)]
    return [*nodes, helper.make_node("Identity", [turned], ["pixels"])]


def _tail(layout: str, output: Output, constants: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """From the map, (N, D, h, w), to the shape of the output."""
    if output == "map":
        perm = [0, 1, 2, 3] if layout == "NCHW" else [0, 2, 3, 1]
        return [helper.make_node("Transpose", ["map"], ["shaped"], perm=perm)]
    if output == "tokens":
        constants["flat"] = np.array([0, 0, -1], np.int64)
        reshape = helper.make_node("Reshape", ["map", "flat"], ["rows"])
        return [reshape, helper.make_node("Transpose", ["rows"], ["shaped"], perm=[0, 2, 1])]
    mean = helper.make_node("GlobalAveragePool", ["map"], ["mean"])
    return [mean, helper.make_node("Flatten" if output == "vector" else "Identity", ["mean"], ["shaped"])]


def _shape(batch: str | int, size: tuple[int, int] | None, dim: int, output: Output, layout: str) -> list[Any]:
    """The declared shape of an output."""
    places: list[Any] = [side // PATCH for side in size] if size else ["h", "w"]
    if output == "map":
        return [batch, dim, *places] if layout == "NCHW" else [batch, *places, dim]
    if output == "tokens":
        return [batch, places[0] * places[1] if size else "tokens", dim]
    return [batch, dim, 1, 1] if output == "column" else [batch, dim]


def devices() -> list[str]:
    """Devices beside the processor that a small model really runs on here; being built for one is not enough."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    found = []
    for one, provider in DEVICES.items():
        if one == "cpu" or provider not in ort.get_available_providers():
            continue
        try:
            open_session(model, 1, one, wholly=True)
            found.append(one)
        except DistillError:
            continue
    return found

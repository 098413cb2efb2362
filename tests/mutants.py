"""Spoilt ONNX files and images from a fixed seed: bytes flipped and cut, fields deleted, shapes blown up."""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from builders import drawn, onnx_teacher
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, PngImagePlugin

Rng = np.random.Generator
WILD = (0, -1, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
OPERATORS = (
    "Add Mul MatMul Gemm Conv Relu Softmax Reshape Transpose Concat Slice Gather Expand Tile Pad Resize Cast Flatten "
    "Squeeze Unsqueeze ReduceMean GlobalAveragePool MaxPool AveragePool BatchNormalization LayerNormalization Identity "
    "ConstantOfShape Shape Range Loop If Scan TopK NonZero OneHot QuantizeLinear DequantizeLinear Einsum LSTM Split"
).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One spoilt file: what was done to what, and its bytes."""

    name: str
    content: bytes


def models(folder: Path) -> dict[str, bytes]:
    """Sound models of many kinds of nodes, by name, the smallest that can be spoilt in every way."""
    found = {
        "vector": onnx_teacher(folder / "vector.onnx"),
        "nhwc": onnx_teacher(folder / "nhwc.onnx", layout="NHWC", output="column", normalise=True),
        "half": onnx_teacher(folder / "half.onnx", dtype="float16", batch=2),
        "bytes": onnx_teacher(folder / "bytes.onnx", dtype="uint8", size=None),
        "tokens": onnx_teacher(folder / "tokens.onnx", output="tokens"),
    }
    made = {name: path.read_bytes() for name, path in found.items()}
    made["busy"] = busy_model().SerializeToString()
    return made


def busy_model() -> onnx.ModelProto:
    """A model with the operators whose shapes and attributes do most harm: Slice, Pad, Resize, Gather, If, Loop."""
    rng = np.random.default_rng(0)
    then = helper.make_graph(
        [helper.make_node("Relu", ["b"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    body = helper.make_graph(
        [
            helper.make_node("Add", ["seen", "one"], ["more"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("more", 1, None)],
    )
    nodes = [
        helper.make_node("Slice", ["images", "starts", "ends", "axes"], ["cropped"]),
        helper.make_node("Pad", ["cropped", "pads"], ["padded"]),
        helper.make_node("Resize", ["padded", "", "scales"], ["grown"], mode="linear"),
        helper.make_node("Conv", ["grown", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], group=1, dilations=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "s", "m", "v"], ["bn"], epsilon=1e-5),
        helper.make_node("MaxPool", ["bn"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["p"], ["ps"]),
        helper.make_node("Gather", ["ps", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero1"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["p", "target"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "two"], ["b"], keepdims=0),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["three", "yes", "chosen"], ["looped"], body=body),
        helper.make_node("QuantizeLinear", ["looped", "scale", "point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["dq"]),
        helper.make_node("Split", ["dq"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["right", "left"], ["joined"], axis=1),
        helper.make_node("Gemm", ["joined", "fc", "bias"], ["embedding"], transB=1),
    ]
    constants: dict[str, Any] = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([30, 30], np.int64),
        "axes": np.array([2, 3], np.int64),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "scales": np.array([1, 1, 1.5, 1.5], np.float32),
        "w": rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "g": np.ones(8, np.float32),
        "s": np.zeros(8, np.float32),
        "m": np.zeros(8, np.float32),
        "v": np.ones(8, np.float32),
        "zero": np.array(0, np.int64),
        "zero1": np.array([0], np.int64),
        "rest": np.array([8, -1], np.int64),
        "two": np.array([2], np.int64),
        "yes": np.array(True),
        "three": np.array(3, np.int64),
        "one": np.array(1, np.float32),
        "scale": np.array(0.05, np.float32),
        "point": np.array(128, np.uint8),
        "fc": rng.normal(0, 1, (16, 8)).astype(np.float32),
        "bias": np.zeros(16, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "busy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def onnx_mutants(sources: dict[str, bytes], count: int, seed: int) -> Iterator[Mutant]:
    """`count` spoilt models: every way in turn over every source."""
    ways = [*BYTES, *FIELDS]
    names = sorted(sources)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        source, way = names[number % len(names)], ways[(number // len(names)) % len(ways)]
        content = sources[source]
        if way in BYTES:
            content = way(content, rng)
        else:
            model = onnx.load_from_string(content)
            for _ in range(int(rng.integers(1, 4))):
                FIELDS[FIELDS.index(way)](model, rng)
            content = model.SerializeToString()
        yield Mutant(name=f"{number:04d}-{source}-{way.__name__}", content=content)


def flipped(content: bytes, rng: Rng) -> bytes:
    """A few bytes changed, half the time in the first 500, where the structure is."""
    spoilt = bytearray(content)
    reach = len(spoilt) if rng.random() < 0.5 else min(len(spoilt), 500)
    for at in rng.integers(0, reach, int(rng.integers(1, 12))):
        spoilt[at] = rng.integers(0, 256)
    return bytes(spoilt)


def bits(content: bytes, rng: Rng) -> bytes:
    """A few single bits turned: numbers change a little, names by one letter."""
    spoilt = bytearray(content)
    for at in rng.integers(0, len(spoilt), int(rng.integers(1, 30))):
        spoilt[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(spoilt)


def cut(content: bytes, rng: Rng) -> bytes:
    """The end is missing."""
    return content[: int(rng.integers(0, len(content)))]


def spliced(content: bytes, rng: Rng) -> bytes:
    """A piece is left out, or put in twice."""
    start, end = sorted(int(one) for one in rng.integers(0, len(content), 2))
    return content[:start] + content[end:] if rng.random() < 0.5 else content[:end] + content[start:]


def numbers_blown(content: bytes, rng: Rng) -> bytes:
    """A varint somewhere becomes the largest there is."""
    at = int(rng.integers(0, len(content)))
    return content[:at] + b"\xff" * int(rng.integers(1, 10)) + b"\x7f" + content[at + 1 :]


def pick(items: Sequence[Any], rng: Rng) -> Any:
    """One of some things, None of none."""
    return items[int(rng.integers(0, len(items)))] if len(items) else None


def messages(model: onnx.ModelProto) -> list[Any]:
    """Every message in the model, itself included."""
    found, waiting = [], [model]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for field, value in one.ListFields():
            if field.message_type is not None:
                waiting += list(value) if field.is_repeated else [value]
    return found


def field_deleted(model: onnx.ModelProto, rng: Rng) -> None:
    """A field of any message is gone."""
    one = pick([each for each in messages(model) if each.ListFields()], rng)
    if one is not None:
        one.ClearField(pick(one.ListFields(), rng)[0].name)


def item_moved(model: onnx.ModelProto, rng: Rng) -> None:
    """An item of a repeated field is doubled, removed or moved."""
    lists = [
        value for each in messages(model) for field, value in each.ListFields() if field.is_repeated and len(value)
    ]
    items = pick(lists, rng)
    if items is None:
        return
    one = copy.deepcopy(items[int(rng.integers(0, len(items)))])
    if rng.random() < 0.5:
        del items[int(rng.integers(0, len(items)))]
    if rng.random() < 0.7:
        items.append(one)


def scalar_wild(model: onnx.ModelProto, rng: Rng) -> None:
    """A number anywhere becomes one of the numbers that break things."""
    places = [
        (each, field)
        for each in messages(model)
        for field, _ in each.ListFields()
        if not field.is_repeated and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_INT32, field.CPPTYPE_FLOAT)
    ]
    place = pick(places, rng)
    if place is None:
        return
    one, field = place
    if field.cpp_type == field.CPPTYPE_FLOAT:
        setattr(one, field.name, float(pick((0.0, -1.0, 1e38, float("nan"), float("inf")), rng)))
    else:
        small = [value for value in WILD if field.cpp_type == field.CPPTYPE_INT64 or abs(value) < 2**31]
        setattr(one, field.name, int(pick(small, rng)))


def list_wild(model: onnx.ModelProto, rng: Rng) -> None:
    """A number in a list of numbers: strides, pads, axes, dimensions of weights."""
    lists = [
        value
        for each in messages(model)
        for field, value in each.ListFields()
        if field.is_repeated and field.cpp_type == field.CPPTYPE_INT64 and len(value)
    ]
    numbers = pick(lists, rng)
    if numbers is not None:
        numbers[int(rng.integers(0, len(numbers)))] = int(pick(WILD, rng))


def shape_blown(model: onnx.ModelProto, rng: Rng) -> None:
    """A declared axis becomes huge, nothing or negative."""
    graph = model.graph
    shaped = [one for one in (*graph.input, *graph.output, *graph.value_info) if one.type.tensor_type.shape.dim]
    one = pick(shaped, rng)
    if one is not None:
        pick(one.type.tensor_type.shape.dim, rng).dim_value = int(pick(WILD, rng))


def constant_wild(model: onnx.ModelProto, rng: Rng) -> None:
    """A number inside a constant: where to slice, how to reshape, how often to loop."""
    small = [one for one in model.graph.initializer if one.raw_data and one.data_type == TensorProto.INT64]
    tensor = pick(small or list(model.graph.initializer), rng)
    if tensor is None:
        return
    if tensor.data_type == TensorProto.INT64:
        values = np.frombuffer(tensor.raw_data, np.int64).copy()
        values[int(rng.integers(0, len(values)))] = int(pick(WILD, rng))
        tensor.raw_data = values.tobytes()
    elif tensor.raw_data:
        tensor.raw_data = flipped(tensor.raw_data, rng)


def bytes_and_shape(model: onnx.ModelProto, rng: Rng) -> None:
    """A weight holds fewer or more bytes than its shape and type say."""
    tensor = pick(model.graph.initializer, rng)
    if tensor is None:
        return
    turn = rng.random()
    if turn < 0.35:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(0, len(tensor.raw_data) + 1))]
    elif turn < 0.7:
        tensor.data_type = int(rng.integers(0, 24))
    else:
        tensor.dims.append(int(pick(WILD, rng)))


def operator_changed(model: onnx.ModelProto, rng: Rng) -> None:
    """A node does something else with the same inputs."""
    node = pick(model.graph.node, rng)
    if node is not None:
        node.op_type = pick(OPERATORS, rng)


def rewired(model: onnx.ModelProto, rng: Rng) -> None:
    """A node reads or writes another tensor: circles, types and shapes that do not fit."""
    node, other = pick(model.graph.node, rng), pick(model.graph.node, rng)
    if node is None or other is None:
        return
    names = [*other.input, *other.output, *(one.name for one in model.graph.initializer), ""]
    side = node.input if rng.random() < 0.7 and node.input else node.output
    if len(side):
        side[int(rng.integers(0, len(side)))] = pick(names, rng)


def types_changed(model: onnx.ModelProto, rng: Rng) -> None:
    """An input, output or cast has another element type."""
    one = pick([*model.graph.input, *model.graph.output], rng)
    if one is not None:
        one.type.tensor_type.elem_type = int(rng.integers(0, 24))
    casts = [each for node in model.graph.node for each in node.attribute if each.name == "to"]
    if casts and rng.random() < 0.5:
        pick(casts, rng).i = int(rng.integers(-1, 30))


def versions_changed(model: onnx.ModelProto, rng: Rng) -> None:
    """Another version of the format or of the operators."""
    model.ir_version = int(pick((0, 1, 3, 9, 12, 99), rng))
    for one in model.opset_import:
        one.version = int(pick((0, 1, 6, 7, 11, 13, 18, 21, 99, -1), rng))


def external_added(model: onnx.ModelProto, rng: Rng) -> None:
    """A weight claims to lie in a file."""
    tensor = pick(model.graph.initializer, rng)
    if tensor is None:
        return
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", pick(("../secret", "/etc/passwd", "weights", "a/../../b", "C:\\x", "*/_ORT_MEM_ADDR_/*"), rng)),
        ("offset", str(pick(WILD, rng))),
        ("length", str(pick(WILD, rng))),
    ):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")


BYTES: tuple[Callable[[bytes, Rng], bytes], ...] = (flipped, bits, cut, spliced, numbers_blown)
FIELDS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    field_deleted,
    item_moved,
    scalar_wild,
    list_wild,
    shape_blown,
    constant_wild,
    bytes_and_shape,
    operator_changed,
    rewired,
    types_changed,
    versions_changed,
    external_added,
)


def pictures() -> dict[str, bytes]:
    """Sound small images of every format and of the variants whose decoders differ."""
    ways: dict[str, tuple[str, str, dict[str, Any]]] = {
        "jpg": ("JPEG", "RGB", {}),
        "progressive.jpg": ("JPEG", "RGB", {"progressive": True}),
        "cmyk.jpg": ("JPEG", "CMYK", {}),
        "png": ("PNG", "RGB", {}),
        "palette.png": ("PNG", "P", {}),
        "deep.png": ("PNG", "I;16", {}),
        "webp": ("WEBP", "RGB", {}),
        "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
        "bmp": ("BMP", "RGB", {}),
        "palette.bmp": ("BMP", "P", {}),
        "tif": ("TIFF", "RGB", {}),
        "lzw.tif": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        "deflate.tif": ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": ("TIFF", "RGB", {"compression": "jpeg"}),
        "fax.tif": ("TIFF", "1", {"compression": "group4"}),
        "gif": ("GIF", "P", {}),
        "moving.gif": ("GIF", "P", {"save_all": True, "append_images": [drawn(3, (30, 24)).convert("P")]}),
    }
    found = {}
    for name, (kind, mode, options) in ways.items():
        image = drawn(1, (30, 24))
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "maker"
        extra: dict[str, Any] = {} if kind in ("BMP", "GIF") or mode == "1" else {"exif": exif}
        if kind == "PNG":
            extra["pnginfo"] = PngImagePlugin.PngInfo()
            extra["pnginfo"].add_text("Comment", "some text " * 9, zip=True)
        stream = io.BytesIO()
        image.save(stream, kind, **options, **extra)
        found[name] = stream.getvalue()
    return found


def image_mutants(count: int, seed: int) -> Iterator[Mutant]:
    """`count` spoilt images of every format in turn."""
    sources = pictures()
    names = sorted(sources)
    ways = (flipped, headed, cut, spliced, bits, grown)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        source, way = names[number % len(names)], ways[(number // len(names)) % len(ways)]
        yield Mutant(name=f"{number:04d}-{way.__name__}.{source}", content=way(sources[source], rng))


def headed(content: bytes, rng: Rng) -> bytes:
    """Bytes changed in the header alone, where sizes and tables are."""
    spoilt = bytearray(content)
    for at in rng.integers(0, min(len(spoilt), 64), int(rng.integers(1, 5))):
        spoilt[at] = rng.integers(0, 256)
    return bytes(spoilt)


def grown(content: bytes, rng: Rng) -> bytes:
    """Two or four bytes in the header become the largest number: sides, offsets, counts."""
    at, wide = int(rng.integers(4, min(len(content), 120))), int(pick((2, 4), rng))
    return content[:at] + b"\xff" * wide + content[at + wide :]

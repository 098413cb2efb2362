"""Every shape of file that must work, from small graphs in code against numpy, and the end of every kind of network."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import HIDDEN, PATCH, onnx_teacher, teacher_map, weights
from onnx import TensorProto, helper, numpy_helper

from distilltool import preprocess
from distilltool.anatomy import dissect
from distilltool.errors import DistillError
from distilltool.onnx_file import read_file
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
PRE = ("scale=1/255", "mean=0.4,0.5,0.6", "std=0.2,0.25,0.3")
PLAIN = ("scale=1", "mean=0", "std=1")
Arrays = dict[str, np.ndarray]
node, value = helper.make_node, helper.make_tensor_value_info
FLOAT, HALF, BYTES, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Arrays | None = None,
    opset: int = 17,
) -> Path:
    """Write a checked model."""
    held = [numpy_helper.from_array(np.asarray(one), name) for name, one in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
    return path


def pixels(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Prepared images, (count, H, W, 3) uint8."""
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def fed(rows_NHWC: np.ndarray) -> np.ndarray:
    """What a network with PRE is fed, (N, 3, H, W)."""
    return ((rows_NHWC / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def hidden(input_NCHW: np.ndarray) -> np.ndarray:
    """The features in front of the teacher's last layer, (N, HIDDEN, h, w), by numpy."""
    first, _ = weights(16, 0)
    count, _, height, width = input_NCHW.shape
    patches = input_NCHW.reshape(count, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    return np.maximum(np.einsum("nchawb,kcab->nkhw", patches, first), 0)


def opened(path: Path, *pre: str, **options: Any) -> OnnxEmbedder:
    return open_teacher(path, TeacherOptions(preprocess=pre or PRE, **options))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, how to open it, images, and the vectors it must give."""

    path: Path
    rows: np.ndarray
    wanted: np.ndarray
    options: TeacherOptions = TeacherOptions(preprocess=PRE)
    near: float = 1e-4


def plain(folder: Path, count: int = 5, size: tuple[int, int] = (32, 32), near: float = 1e-4, **shape: Any) -> Case:
    """The teacher of builders.py in some shape."""
    rows = pixels(count, size)
    path = onnx_teacher(folder / "t.onnx", **shape)
    return Case(path=path, rows=rows, wanted=teacher_map(fed(rows)).mean(axis=(2, 3)), near=near)


def uint8(folder: Path) -> Case:
    rows = pixels(3)
    wanted = teacher_map(rows.transpose(0, 3, 1, 2)).mean(axis=(2, 3))
    return Case(
        path=onnx_teacher(folder / "t.onnx", dtype="uint8", layout="NHWC"),
        rows=rows,
        wanted=wanted,
        options=TeacherOptions(),
    )


def free_size(folder: Path) -> Case:
    case = plain(folder, size=(24, 40))
    return replace(
        case,
        path=onnx_teacher(folder / "t.onnx", size=None),
        options=TeacherOptions(preprocess=(*PRE, "size=24x40")),
    )


def size_from_sidecar(folder: Path) -> Case:
    said = {"image_mean": MEAN.tolist(), "image_std": STD.tolist(), "size": {"height": 24, "width": 40}}
    case = replace(plain(folder, size=(24, 40)), options=TeacherOptions())
    onnx_teacher(case.path, size=None)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return case


def rounded(values: np.ndarray, scale: float, zero: int, kind: type) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear leave of numbers."""
    limits = np.iinfo(kind)
    return (np.clip(np.rint(values / scale) + zero, limits.min, limits.max) - zero) * scale


def quantised(folder: Path) -> Case:
    """QDQ: input, weights and features go through integers, as quantisers write it."""
    first, second = weights(16, 0)
    constants = {
        "s_in": np.float32(0.03),
        "z_in": np.uint8(120),
        "first": np.clip(np.rint(first / 0.01), -127, 127).astype(np.int8),
        "s_first": np.float32(0.01),
        "s_hid": np.float32(0.05),
        "z_hid": np.uint8(0),
        "second": np.clip(np.rint(second / 0.03), -127, 127).astype(np.int8)[:, :, None, None],
        "s_second": np.float32(0.03),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s_in", "z_in"], ["xq"]),
        node("DequantizeLinear", ["xq", "s_in", "z_in"], ["xd"]),
        node("DequantizeLinear", ["first", "s_first"], ["w1"]),
        node("Conv", ["xd", "w1"], ["c"], strides=[PATCH, PATCH]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "s_hid", "z_hid"], ["rq"]),
        node("DequantizeLinear", ["rq", "s_hid", "z_hid"], ["rd"]),
        node("DequantizeLinear", ["second", "s_second"], ["w2"]),
        node("Conv", ["rd", "w2"], ["m"]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    path = save(
        folder / "t.onnx", nodes, [value("x", FLOAT, ["N", 3, 32, 32])], [value("y", FLOAT, ["N", 16])], constants
    )
    rows = pixels(3)
    patches = rounded(fed(rows), 0.03, 120, np.uint8).reshape(3, 3, 8, PATCH, 8, PATCH)
    one = np.maximum(np.einsum("nchawb,kcab->nkhw", patches, constants["first"] * 0.01), 0)
    two = np.einsum("nkhw,dk->nd", rounded(one, 0.05, 0, np.uint8), constants["second"][..., 0, 0] * 0.03) / 64
    return Case(path=path, rows=rows, wanted=two, near=2e-3)  # onnxruntime may round a tie the other way


def external_per_tensor(folder: Path) -> Case:
    case = plain(folder)
    model = onnx.load(case.path)
    onnx.save_model(model, case.path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(read_file(case.path).external) == 3
    return case


def as_hubs_keep_it(folder: Path) -> Path:
    """A model of two files in a cache of Hugging Face's layout: names are links to blobs, a sidecar one folder up."""
    whole = onnx_teacher(folder / "whole" / "model.onnx", external=True)
    snapshot, blobs = folder / "models--a--b/snapshots/abc", folder / "models--a--b/blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    whole.rename(blobs / "111aa")
    whole.with_name("model.onnx.data").rename(blobs / "222bb")
    (blobs / "333cc").write_text(json.dumps({"image_mean": MEAN.tolist(), "image_std": STD.tolist(), "size": 32}))
    (snapshot / "onnx/model.onnx").symlink_to("../../../blobs/111aa")
    (snapshot / "onnx/model.onnx.data").symlink_to("../../../blobs/222bb")
    (snapshot / "preprocessor_config.json").symlink_to("../../blobs/333cc")
    return snapshot / "onnx/model.onnx"


def hub_cache(folder: Path, output: str | None = None) -> Case:
    rows = pixels(3)
    return Case(
        path=as_hubs_keep_it(folder),
        rows=rows,
        wanted=teacher_map(fed(rows)).mean(axis=(2, 3)),
        options=TeacherOptions(output=output),
    )


def several_outputs(folder: Path) -> Case:
    case = plain(folder, outputs=("scores", "embedding", "third"))
    return replace(case, wanted=2 * case.wanted)


def pooled(folder: Path, output: str, pool: str) -> Case:
    case = plain(folder, output=output, dim=24, size=(32, 32))
    found = teacher_map(fed(case.rows), dim=24).reshape(5, 24, -1)
    wanted = {
        "cls": found[:, :, 0],
        "avg": found.mean(axis=2),
        "max": found.max(axis=2),
        "gem": (np.maximum(found, 1e-6) ** 3).mean(axis=2) ** (1 / 3),
    }[pool]
    return replace(case, wanted=wanted, options=TeacherOptions(preprocess=PRE, pool=pool), near=1e-3)


def with_settings(folder: Path, given: Sequence[str]) -> Case:
    """A boolean that adds 1 to the image and a number that the vectors are multiplied by."""
    model = onnx.load(onnx_teacher(folder / "plain.onnx", outputs=("before",)))
    graph = model.graph
    graph.input.extend([value("training", TensorProto.BOOL, []), value("gain", FLOAT, ["N"])])
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph.node.extend(
        [
            node("Cast", ["training"], ["added"], to=FLOAT),
            node("Add", ["before", "added"], ["shifted"]),
            node("Unsqueeze", ["gain", "axis"], ["column"]),
            node("Mul", ["shifted", "column"], ["vector"]),
        ]
    )
    graph.output[0].name = "vector"
    onnx.checker.check_model(model)
    onnx.save_model(model, folder / "t.onnx")
    rows = pixels(3)
    on = "training=true" in given
    return Case(
        path=folder / "t.onnx",
        rows=rows,
        wanted=2.5 * (teacher_map(fed(rows)).mean(axis=(2, 3)) + on),
        options=TeacherOptions(preprocess=PRE, inputs=tuple(given)),
    )


def two_towers(folder: Path, outputs: Sequence[str], scaled: str = "scores") -> Path:
    """A CLIP-like graph: images and tokens to unit vectors of 16, their products times a temperature.

    outputs: of image_embeds, text_embeds, logits_per_image, logits_per_text. scaled: what the temperature multiplies.
    """
    first, second = weights(16, 0)
    rng = np.random.default_rng(2)
    constants = {
        "first": first,
        "second": second.T.copy(),
        "words": rng.normal(size=(100, 16)).astype(np.float32),
        "t": np.float32(4.6),
        "axis": np.array([1], np.int64),
        "mask_axis": np.array([2], np.int64),
    }
    image = "image_embeds" if scaled == "scores" else "warm"
    nodes = [
        node("Conv", ["pixel_values", "first"], ["c"], strides=[PATCH, PATCH]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "second"], ["projected"]),
        node("ReduceL2", ["projected"], ["length"], axes=[1], keepdims=1),
        node("Div", ["projected", "length"], ["image_embeds"]),
        node("Gather", ["words", "input_ids"], ["tokens"]),
        node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        node("Unsqueeze", ["mask", "mask_axis"], ["mask3"]),
        node("Mul", ["tokens", "mask3"], ["masked"]),
        node("ReduceMean", ["masked"], ["text"], axes=[1], keepdims=0),
        node("ReduceL2", ["text"], ["text_length"], axes=[1], keepdims=1),
        node("Div", ["text", "text_length"], ["text_embeds"]),
        node("Exp", ["t"], ["temperature"]),
        node("Mul", ["image_embeds", "temperature"], ["warm"]),
        node("Transpose", [image], ["turned"], perm=[1, 0]),
        node("MatMul", ["text_embeds", "turned"], ["products"]),
        node("Mul" if scaled == "scores" else "Max", ["products", "temperature"], ["logits_per_text"]),
        node("Transpose", ["logits_per_text"], ["logits_per_image"], perm=[1, 0]),
    ]
    kinds = {
        "image_embeds": ["N", 16],
        "text_embeds": ["T", 16],
        "logits_per_text": ["T", "N"],
        "logits_per_image": ["N", "T"],
    }
    return save(
        folder / "clip.onnx",
        nodes,
        [
            value("input_ids", INT64, ["T", "length"]),
            value("pixel_values", FLOAT, ["N", 3, 32, 32]),
            value("attention_mask", INT64, ["T", "length"]),
        ],
        [value(name, FLOAT, kinds[name]) for name in outputs],
        constants,
    )


def image_side(folder: Path, outputs: Sequence[str], scaled: str = "scores") -> Case:
    rows = pixels(3)
    vectors = teacher_map(fed(rows)).mean(axis=(2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= 1 if scaled == "scores" else np.exp(np.float32(4.6))
    return Case(path=two_towers(folder, outputs, scaled), rows=rows, wanted=vectors)


TOWERS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
CASES: dict[str, Callable[[Path], Case]] = {
    "NHWC": lambda at: plain(at, layout="NHWC"),
    "uint8": uint8,
    "float16": lambda at: plain(at, dtype="float16", near=2e-2),
    "batch fixed to 1": lambda at: plain(at, batch=1),
    "batch fixed to 4 with a remainder": lambda at: plain(at, count=7, batch=4),
    "dynamic height and width": free_size,
    "size from a sidecar": size_from_sidecar,
    "QDQ": quantised,
    "external data in one file": lambda at: plain(at, external=True),
    "external data per tensor": external_per_tensor,
    "a hub's cache": hub_cache,
    "a hub's cache, cut": lambda at: hub_cache(at, "shaped"),
    "several outputs": several_outputs,
    "tokens, cls": lambda at: pooled(at, "tokens", "cls"),
    "tokens, mean": lambda at: pooled(at, "tokens", "avg"),
    "tokens, max": lambda at: pooled(at, "tokens", "max"),
    "map, avg": lambda at: pooled(at, "map", "avg"),
    "map, max": lambda at: pooled(at, "map", "max"),
    "map, GeM": lambda at: pooled(at, "map", "gem"),
    "settings, off": lambda at: with_settings(at, ("training=false", "gain=2.5")),
    "settings, on": lambda at: with_settings(at, ("gain=2.5", "training=true")),
    "CLIP": lambda at: image_side(at, TOWERS),
    "CLIP, logits alone": lambda at: image_side(at, TOWERS[:2]),
    "CLIP, one logit, image scaled": lambda at: image_side(at, TOWERS[1:2], "image"),
}


@pytest.mark.parametrize("name", CASES)
def test_shape(tmp_path: Path, name: str) -> None:
    """Each shape opens without more being said than it must, and gives numpy's vectors, one per image."""
    case = CASES[name](tmp_path)
    teacher = open_teacher(case.path, case.options)
    got = teacher.embed(case.rows)
    assert got.shape == case.wanted.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, case.wanted, atol=case.near * np.abs(case.wanted).max(), rtol=case.near)
    assert teacher.dim == case.wanted.shape[1]
    again = open_teacher(case.path, case.options)
    assert (again.key, again.space_id) == (teacher.key, teacher.space_id), "the same file is the same teacher"


def test_a_hub_cache_is_the_same_teacher_as_its_files(tmp_path: Path) -> None:
    """The hash is of contents, wherever links lead; the sidecar above `onnx` is read."""
    linked = as_hubs_keep_it(tmp_path)
    copied = onnx_teacher(tmp_path / "copy" / "model.onnx", external=True)
    assert read_file(linked).sha256 == read_file(copied).sha256
    assert open_teacher(linked).preprocess.source == "sidecar preprocessor_config.json"


@pytest.mark.parametrize("output", [None, "shaped"])
def test_weights_linked_from_another_disk(tmp_path: Path, output: str | None) -> None:
    """The model a plain file, its weights a link to elsewhere: onnxruntime refuses that by path, we do not."""
    path = onnx_teacher(tmp_path / "here" / "t.onnx", external=True)
    (tmp_path / "there").mkdir()
    data = path.with_name("t.onnx.data").rename(tmp_path / "there" / "weights.bin")
    path.with_name("t.onnx.data").symlink_to(data)
    rows = pixels(2)
    got = opened(path, output=output).embed(rows)
    np.testing.assert_allclose(got, teacher_map(fed(rows)).mean(axis=(2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("0.1", "0.1"),
        ("1", "1"),
        ("1.0000001", "1.0000001"),
        ("1.0000002", "1.0000002"),
        ("16777215", "1.6777215e+07"),
        ("1e-30", "1e-30"),
        ("0.3333333333", "0.33333334"),
    ],
)
def test_a_setting_is_written_down_to_its_last_digit(tmp_path: Path, given: str, written: str) -> None:
    """Settings that the model tells apart are told apart in the ledger, and reopen as what they were."""
    path = with_settings(tmp_path, ()).path
    teacher = opened(path, inputs=("training=false", f"gain={given}"))
    assert teacher.output == f"vector?gain={written}&training=False"
    again = opened(path, inputs=("training=false", f"gain={written}"))
    assert again.key == teacher.key
    np.testing.assert_array_equal(again.embed(pixels(2)), teacher.embed(pixels(2)))


def test_settings_are_part_of_the_answer(tmp_path: Path) -> None:
    """Another value, another answer; a value that is missing is asked for by the flag that gives it."""
    path = with_settings(tmp_path, ()).path
    keys = {opened(path, inputs=(f"training={on}", "gain=1")).key for on in ("true", "false")}
    assert len(keys) == 2
    with pytest.raises(DistillError, match="--input training=false"):
        opened(path, inputs=("gain=1",))
    with pytest.raises(DistillError, match="does not fit"):
        opened(path, inputs=("training=false", "gain=1,2"))
    with pytest.raises(DistillError, match="no input 'train'"):
        opened(path, inputs=("train=false",))
    inner = opened(path, output="before")
    assert inner.output == "before", "what does not depend on a setting wants none"


def test_clip_says_what_was_taken(tmp_path: Path) -> None:
    """By name where there is an output, else by where the image side ends."""
    assert opened(two_towers(tmp_path, TOWERS)).output == "image_embeds"
    alone = opened(two_towers(tmp_path, TOWERS[:2]))
    assert alone.output == "image_embeds" and "image alone" in alone.why
    with pytest.raises(DistillError, match="does not depend on the image"):
        opened(alone.file.path, output="text_embeds")
    with pytest.raises(DistillError, match=r"input_ids.*--tensors"):
        opened(alone.file.path, output="logits_per_image")


@pytest.mark.parametrize(
    "shapes",
    [
        [("left", ["N", 3, 32, 32]), ("right", ["N", 3, 32, 32])],
        [("both", ["N", 6, 32, 32])],
        [("both", ["N", 2, 3, 32, 32])],
        [("a", ["N", 32, 32, 3]), ("b", ["N", 32, 32, 3])],
    ],
)
def test_pair_scorer_is_said_to_be_one(tmp_path: Path, shapes: list[tuple[str, list[Any]]]) -> None:
    """A model that wants two images is named for what it is, in one line."""
    names = [name for name, _ in shapes]
    joined = [node("Sub", names, ["d"])] if len(names) == 2 else [node("Identity", names, ["d"])]
    axes = list(range(1, len(shapes[0][1])))
    path = save(
        tmp_path / "t.onnx",
        [*joined, node("ReduceMean", ["d"], ["score"], axes=axes, keepdims=0)],
        [value(name, FLOAT, shape) for name, shape in shapes],
        [value("score", FLOAT, ["N"])],
    )
    with pytest.raises(DistillError, match="pair scorer") as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert dissect(path, TeacherOptions()).kind == "pair scorer"


def test_axes_that_are_names_alone(tmp_path: Path) -> None:
    """Hugging Face exports name every axis and fix none; where the channels are is told by the name."""
    for shape, layout in (
        (["batch_size", "num_channels", "height", "width"], "NCHW"),
        (["batch_size", "height", "width", "num_channels"], "NHWC"),
    ):
        model = onnx.load(onnx_teacher(tmp_path / "t.onnx", size=None, layout=layout))
        model.graph.input[0].CopyFrom(value("images", FLOAT, shape))
        onnx.save_model(model, tmp_path / "t.onnx")
        rows = pixels(2)
        got = opened(tmp_path / "t.onnx", *PRE, "size=32").embed(rows)
        np.testing.assert_allclose(got, teacher_map(fed(rows)).mean(axis=(2, 3)), atol=1e-4, rtol=1e-4)


def hugging_face_vit(path: Path, outputs: Sequence[str]) -> Path:
    """Tokens after a layer normalisation as last_hidden_state, the first one squashed as pooler_output."""
    first, second = weights(16, 0)
    constants = {
        "first": np.concatenate([first, first[:4]]),
        "flat": np.array([0, 16, -1], np.int64),
        "ones": np.ones(16, np.float32),
        "zero": np.array(0, np.int64),
        "dense": second[:, :16].repeat(2, 1)[:, :16].copy(),
    }
    nodes = [
        node("Conv", ["pixel_values", "first"], ["c"], strides=[PATCH, PATCH]),
        node("Reshape", ["c", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
        node("LayerNormalization", ["turned", "ones"], ["last_hidden_state"]),
        node("Gather", ["last_hidden_state", "zero"], ["cls"], axis=1),
        node("Gemm", ["cls", "dense", "ones"], ["pooled"]),
        node("Tanh", ["pooled"], ["pooler_output"]),
    ]
    shapes = {"last_hidden_state": ["N", "T", 16], "pooler_output": ["N", 16]}
    axes = ["batch_size", "num_channels", "height", "width"]
    return save(
        path,
        nodes,
        [value("pixel_values", FLOAT, axes)],
        [value(one, FLOAT, shapes[one]) for one in outputs],
        constants,
    )


def test_hugging_face_vit(tmp_path: Path) -> None:
    """The pooled vector where there is one; tokens alone are an error that offers the poolings."""
    both = hugging_face_vit(tmp_path / "both.onnx", ("last_hidden_state", "pooler_output"))
    teacher = opened(both, *PRE, "size=32")
    assert (teacher.output, teacher.pool, teacher.dim) == ("pooler_output", "none", 16)
    tokens = opened(both, *PRE, "size=32", output="last_hidden_state", pool="cls")
    alone = hugging_face_vit(tmp_path / "alone.onnx", ("last_hidden_state",))
    with pytest.raises(DistillError, match=r"last_hidden_state .*token map.*--pool .*cls") as caught:
        opened(alone, *PRE, "size=32")
    assert "avg" in caught.value.fix
    rows = pixels(2)
    cls = opened(alone, *PRE, "size=32", pool="cls").embed(rows)
    np.testing.assert_allclose(cls, tokens.embed(rows), rtol=1e-5, atol=1e-6)
    average = opened(alone, *PRE, "size=32", pool="avg").embed(rows)
    assert average.shape == (2, 16) and not np.allclose(average, cls, atol=1e-2)


# ---- the end of a network: scores are cut off, embeddings are not ----


@dataclass(frozen=True, kw_only=True)
class End:
    """The last nodes, from `f` (N, HIDDEN) or `r` (N, HIDDEN, 8, 8) to `y`, and their weights."""

    nodes: list[onnx.NodeProto]
    constants: Arrays
    width: int


def linear(kind: str, width: int, then: Sequence[str] = (), bias: bool = True, before: Sequence[str] = ()) -> End:
    """A last layer of `kind` after `before`, followed by `then`."""
    rng = np.random.default_rng(width)
    matrix = rng.normal(size=(HIDDEN, width)).astype(np.float32)
    shift = rng.normal(size=width).astype(np.float32)
    constants: Arrays = {"w": matrix, **({"b": shift} if bias else {})}
    nodes, at = list[onnx.NodeProto](), "f"
    for place, one in enumerate(before):
        nodes.append(node(one, [at], [f"before{place}"]))
        at = f"before{place}"
    if kind == "gemm":
        nodes.append(node("Gemm", [at, "w", *(["b"] if bias else [])], ["l"]))
    elif kind == "gemm turned":
        constants["w"] = matrix.T.copy()
        nodes.append(node("Gemm", [at, "w", *(["b"] if bias else [])], ["l"], transB=1))
    elif kind == "turned in the graph":
        constants["w"] = matrix.T.copy()
        nodes += [node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("Gemm", [at, "wt", "b"], ["l"])]
    elif kind == "matmul":
        nodes += [node("MatMul", [at, "w"], ["m"]), *([node("Add", ["b", "m"], ["l"])] if bias else [])]
        at = "l" if bias else "m"
        nodes += [] if bias else [node("Identity", ["m"], ["l"])]
    elif kind == "constants":
        nodes += [node("Constant", [], [f"{one}c"], value=numpy_helper.from_array(constants[one])) for one in "wb"]
        nodes.append(node("Gemm", [at, "wc", "bc"], ["l"]))
        constants = {}
    elif kind == "1x1":
        constants["w"] = matrix.T[:, :, None, None].copy()
        nodes += [
            node("Conv", ["r", "w", "b"], ["m"]),
            node("Relu", ["m"], ["mr"]),
            node("GlobalAveragePool", ["mr"], ["g"]),
            node("Flatten", ["g"], ["l"]),
        ]
    elif kind == "1x1 of a pooled map":
        constants["w"] = matrix.T[:, :, None, None].copy()
        nodes += [node("Conv", ["p", "w", "b"], ["m"]), node("Flatten", ["m"], ["l"])]
    elif kind == "whole map":
        constants["w"] = np.repeat(np.repeat(matrix.T[:, :, None, None], 8, 2), 8, 3) / 64
        nodes += [node("Conv", ["r", "w", "b"], ["m"]), node("Flatten", ["m"], ["l"])]
    elif kind == "QDQ":
        constants |= {
            "w": np.clip(np.rint(matrix / 0.03), -127, 127).astype(np.int8),
            "b": np.rint(shift / 0.0006).astype(np.int32),
            "sw": np.float32(0.03),
            "sb": np.float32(0.0006),
            "sx": np.float32(0.02),
            "zx": np.uint8(0),
            "sy": np.float32(0.2),
            "zy": np.uint8(128),
        }
        nodes += [
            node("QuantizeLinear", [at, "sx", "zx"], ["xq"]),
            node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
            node("DequantizeLinear", ["w", "sw"], ["wd"]),
            node("DequantizeLinear", ["b", "sb"], ["bd"]),
            node("Gemm", ["xd", "wd", "bd"], ["g"]),
            node("QuantizeLinear", ["g", "sy", "zy"], ["gq"]),
            node("DequantizeLinear", ["gq", "sy", "zy"], ["l"]),
        ]
    at = "l"
    for place, one in enumerate(then):
        nodes.append(node(one, [at], [f"then{place}"], **({"axis": 1} if one in ("Softmax", "LogSoftmax") else {})))
        at = f"then{place}"
    return End(nodes=[*nodes, node("Identity", [at], ["y"])], constants=constants, width=width)


def two_heads() -> End:
    """The average of two classifiers that read the same features, as distilled networks have it."""
    rng = np.random.default_rng(3)
    constants: Arrays = {
        one: rng.normal(size=(HIDDEN, 1000) if one[0] == "w" else 1000).astype(np.float32)
        for one in ("w1", "w2", "b1", "b2")
    }
    nodes = [
        node("Gemm", ["f", "w1", "b1"], ["l1"]),
        node("MatMul", ["f", "w2"], ["m2"]),
        node("Add", ["m2", "b2"], ["l2"]),
        node("Add", ["l1", "l2"], ["l"]),
        node("Div", ["l", "two"], ["y"]),
    ]
    return End(nodes=nodes, constants={**constants, "two": np.float32(2)}, width=1000)


def network(path: Path, end: End, half: bool = False) -> Path:
    """Patches, ReLU (`r`), mean (`p`), flat (`f`), then an end; input `x`, output `y`: names that say nothing."""
    first, _ = weights(16, 0)
    kind = np.float16 if half else np.float32
    constants = {
        name: one.astype(kind) if one.dtype == np.float32 else one
        for name, one in {**end.constants, "first": first}.items()
    }
    nodes = [
        node("Conv", ["x", "first"], ["c"], strides=[PATCH, PATCH]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        *end.nodes,
    ]
    element = HALF if half else FLOAT
    inputs, outputs = [value("x", element, ["N", 3, 32, 32])], [value("y", element, ["N", end.width])]
    return save(path, nodes, inputs, outputs, constants)


def tokens_scored() -> End:
    """A classifier on every token, whose scores are averaged."""
    rng = np.random.default_rng(4)
    constants = {
        "w": rng.normal(size=(HIDDEN, 1000)).astype(np.float32),
        "b": rng.normal(size=1000).astype(np.float32),
        "rows": np.array([0, HIDDEN, -1], np.int64),
    }
    nodes = [
        node("Reshape", ["r", "rows"], ["t"]),
        node("Transpose", ["t"], ["tokens"], perm=[0, 2, 1]),
        node("MatMul", ["tokens", "w"], ["m"]),
        node("Add", ["m", "b"], ["l"]),
        node("ReduceMean", ["l"], ["y"], axes=[1], keepdims=0),
    ]
    return End(nodes=nodes, constants=constants, width=1000)


HEADS: dict[str, End] = {
    **{f"gemm {classes}": linear("gemm", classes) for classes in (5, 10, 100, 365, 1000, 1001, 21841)},
    "gemm turned": linear("gemm turned", 1000),
    "turned in the graph": linear("turned in the graph", 1000),
    "matmul and add": linear("matmul", 1000),
    "weights in constants": linear("constants", 1000),
    "no bias": linear("gemm", 1000, bias=False),
    "matmul, no bias": linear("matmul", 1000, bias=False),
    "softmax": linear("gemm", 1000, ["Softmax"]),
    "log-softmax": linear("matmul", 1000, ["LogSoftmax"]),
    "softmax over 512": linear("gemm", 512, ["Softmax"]),
    "sigmoid": linear("gemm", 14, ["Sigmoid"]),
    "sigmoid of one": linear("gemm", 1, ["Sigmoid"]),
    "dropout in front": linear("gemm", 1000, before=["Dropout"]),
    "1x1 convolution, then mean": linear("1x1", 1000, ["Softmax"]),
    "1x1 convolution of the mean": linear("1x1 of a pooled map", 1001),
    "convolution over the whole map": linear("whole map", 1000),
    "QDQ": linear("QDQ", 1000),
    "two heads": two_heads(),
    "mean of the scores of tokens": tokens_scored(),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", HEADS)
def test_classifier_gives_its_penultimate_layer(tmp_path: Path, name: str, half: bool) -> None:
    """Scores are nobody's embedding: what the last layer reads is taken instead, and said."""
    if half and name in ("QDQ", "weights in constants"):
        pytest.skip("QuantizeLinear of opset 17 takes no float16; those constants are float32")
    path = network(tmp_path / "t.onnx", HEADS[name], half)
    teacher = opened(path)
    rows = pixels(3)
    wanted = hidden(fed(rows)).mean(axis=(2, 3))
    off = 2e-2 if half else (1.1e-2 if name == "QDQ" else 1e-4)
    np.testing.assert_allclose(teacher.embed(rows), wanted, atol=off, rtol=off)
    assert "last" in teacher.why and "y" in teacher.why
    assert dissect(path, TeacherOptions()).kind == "classifier"
    asked = opened(path, output="y")
    assert asked.embed(rows).shape == (3, HEADS[name].width), "what is asked for is given all the same"
    again = opened(path, output=teacher.output, pool=teacher.pool if teacher.pool != "none" else None)
    np.testing.assert_array_equal(again.embed(rows), teacher.embed(rows))


def places_scored(path: Path) -> Path:
    """A classifier on every place of a map 16×8 that a Reshape laid out channels last, as Swin is traced."""
    first, _ = weights(16, 0)
    classes = np.random.default_rng(4).normal(size=(HIDDEN, 1000)).astype(np.float32)
    shapes = {"rows": np.array([0, HIDDEN, 128], np.int64), "places": np.array([0, 16, 8, HIDDEN], np.int64)}
    nodes = [
        node("Conv", ["x", "first"], ["c"], strides=[PATCH, PATCH]),
        node("Relu", ["c"], ["r"]),
        node("Reshape", ["r", "rows"], ["t"]),
        node("Transpose", ["t"], ["tokens"], perm=[0, 2, 1]),
        node("Reshape", ["tokens", "places"], ["map"]),
        node("MatMul", ["map", "classes"], ["l"]),
        node("ReduceMean", ["l"], ["y"], axes=[1, 2], keepdims=0),
    ]
    constants = {"first": first, "classes": classes, **shapes}
    return save(path, nodes, [value("x", FLOAT, ["N", 3, 64, 32])], [value("y", FLOAT, ["N", 1000])], constants)


def test_a_choice_reopened_by_name_gives_the_same_vectors(tmp_path: Path) -> None:
    """What is recorded of a choice, its name and pooling, must lead back to the same layout of the map."""
    path, rows = places_scored(tmp_path / "t.onnx"), pixels(3, (64, 32))
    chosen = opened(path)
    again = opened(path, output=chosen.output, pool=chosen.pool)
    assert (chosen.key, chosen.space_id, chosen.dim) == (again.key, again.space_id, again.dim)
    wanted = hidden(fed(rows)).mean(axis=(2, 3))
    for teacher in (chosen, again):
        np.testing.assert_allclose(teacher.embed(rows), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["avg", "max", "cls", "gem"])
def test_the_pooling_asked_for_holds_in_front_of_a_classifier_too(tmp_path: Path, pool: str) -> None:
    """A map in front of the scores is averaged as the graph does, unless something else is asked for."""
    rows = pixels(3, (64, 32))
    teacher = opened(places_scored(tmp_path / "t.onnx"), pool=pool)
    places = hidden(fed(rows)).reshape(3, HIDDEN, -1)
    wanted = {
        "avg": places.mean(axis=2),
        "max": places.max(axis=2),
        "cls": places[:, :, 0],
        "gem": (np.maximum(places, 1e-6) ** 3).mean(axis=2) ** (1 / 3),
    }[pool]
    assert teacher.pool == pool and f"pooled by {pool}" in teacher.why
    np.testing.assert_allclose(teacher.embed(rows), wanted, atol=1e-3, rtol=1e-3)


def ending(*nodes: onnx.NodeProto, width: int = 512, **constants: Any) -> End:
    """A projection `l` to `width` with a bias, and what comes after it."""
    end = linear("gemm", width)
    return End(nodes=[*end.nodes[:-1], *nodes], constants={**end.constants, **constants}, width=width)


class Calibration:
    """What a quantiser measures ranges on: eight images, once."""

    def __init__(self) -> None:
        self.left = [{"x": fed(pixels(8)).astype(np.float32)}]

    def get_next(self) -> Arrays | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("head", ["gemm 1000", "softmax", "1x1 convolution of the mean"])
@pytest.mark.parametrize("how", ["QDQ", "dynamic", "QOperator"])
def test_classifier_as_onnxruntime_quantises_it(tmp_path: Path, how: str, head: str) -> None:
    """Quantised files of all three kinds: the penultimate layer, or an error; never scores, never raw bytes."""
    from onnxruntime import quantization

    source, path = network(tmp_path / "f.onnx", HEADS[head]), tmp_path / "q.onnx"
    if how == "dynamic":
        quantization.quantize_dynamic(str(source), str(path))
    else:
        kind = quantization.QuantFormat[how]
        quantization.quantize_static(str(source), str(path), Calibration(), quant_format=kind)
    if how == "QOperator":
        with pytest.raises(DistillError, match="no output is an embedding"):
            opened(path)
        return
    rows = pixels(3)
    wanted = hidden(fed(rows)).mean(axis=(2, 3))
    teacher = opened(path)
    np.testing.assert_allclose(teacher.embed(rows).reshape(3, -1), wanted, atol=0.03 * wanted.max())
    assert dissect(path, TeacherOptions()).kind == "classifier" and "last layer" in teacher.why


EMBEDDERS: dict[str, End] = {
    **{f"linear {width}": linear("gemm", width) for width in (64, 128, 256, 512, 768, 1024)},
    "matmul and add 512": linear("matmul", 512),
    "no bias 300": linear("gemm", 300, bias=False),
    "LpNormalization": ending(node("LpNormalization", ["l"], ["y"], axis=1), width=1000),
    "divided by its length": ending(
        node("ReduceL2", ["l"], ["n"], axes=[1], keepdims=1), node("Div", ["l", "n"], ["y"]), width=1000
    ),
    "batch normalisation": ending(
        node("BatchNormalization", ["l", "one", "nil", "nil", "one"], ["y"]),
        width=500,
        one=np.ones(500, np.float32),
        nil=np.zeros(500, np.float32),
    ),
    "tanh": ending(node("Tanh", ["l"], ["y"]), width=48),
    "relu": ending(node("Relu", ["l"], ["y"]), width=1000),
    "features alone": End(nodes=[node("Identity", ["f"], ["y"])], constants={}, width=HIDDEN),
}


def test_a_softmax_is_never_the_embedding(tmp_path: Path) -> None:
    """Also where the layer before it is none that is known: an error rather than probabilities."""
    end = ending(node("Relu", ["l"], ["a"]), node("Softmax", ["a"], ["y"], axis=1), width=512)
    with pytest.raises(DistillError, match=r"no output is an embedding: y \(probabilities\)"):
        opened(network(tmp_path / "t.onnx", end))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embedder_is_not_cut(tmp_path: Path, name: str) -> None:
    """A projection to the width of an embedding, or one that is normalised after, is the embedding."""
    path = network(tmp_path / "t.onnx", EMBEDDERS[name])
    teacher = opened(path)
    assert (teacher.output, teacher.dim) == ("y", EMBEDDERS[name].width)
    assert dissect(path, TeacherOptions()).kind == "embedder"


def test_output_cuts_at_any_tensor(tmp_path: Path) -> None:
    """By name, with its own pooling; a slip of the pen is answered with the names near it."""
    path = network(tmp_path / "t.onnx", linear("gemm", 1000))
    rows = pixels(2)
    got = opened(path, output="c", pool="avg").embed(rows)
    first, _ = weights(16, 0)
    patches = fed(rows).reshape(2, 3, 8, PATCH, 8, PATCH)
    np.testing.assert_allclose(got, np.einsum("nchawb,kcab->nk", patches, first) / 64, atol=1e-4, rtol=1e-4)
    with pytest.raises(DistillError, match="feature map.*--pool"):
        opened(path, output="c")
    model = onnx.load(onnx_teacher(tmp_path / "n.onnx", outputs=("embedding",)))
    onnx.save_model(model, tmp_path / "n.onnx")
    with pytest.raises(DistillError, match="near it are .*hidden"):
        opened(tmp_path / "n.onnx", output="hiden")


# ---- preprocessing inside the graph ----

CLIP_LIKE = (preprocess.CLIP_MEAN, preprocess.CLIP_STD)
IMAGENET = (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD)
HALVES = ((0.5,) * 3, (0.5,) * 3)
ZERO_ONE = ((0.0,) * 3, (1.0,) * 3)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first nodes, from `x` to `pixels` (N, 3, 32, 32), with the normalisation of 0–1 they end in."""

    nodes: list[onnx.NodeProto]
    constants: Arrays
    to: tuple[Sequence[float], Sequence[float]]
    scale: float
    channels: str = "RGB"
    dtype: int = FLOAT
    layout: str = "NCHW"


def column(values: Sequence[float], times: float = 1.0) -> np.ndarray:
    return (np.asarray(values, np.float32) * np.float32(times)).reshape(1, 3, 1, 1)


def arithmetic(*steps: tuple[str, Any], **said: Any) -> Head:
    """A chain of Add, Sub, Mul, Div with constants, and of Cast and Transpose, from `x`."""
    nodes, constants, at = list[onnx.NodeProto](), dict[str, np.ndarray](), "x"
    for place, (kind, what) in enumerate(steps):
        to = f"step{place}"
        if kind in ("Cast", "Transpose"):
            nodes.append(node(kind, [at], [to], **what))
        elif kind == "Split":
            parts = [f"{to}{one}" for one in "rgb"]
            nodes += [node("Split", [at], parts, axis=1, num_outputs=3), node("Concat", parts[::-1], [to], axis=1)]
        elif kind == "Gather":
            constants[f"k{place}"] = np.array([2, 1, 0], np.int64)
            nodes.append(node("Gather", [at, f"k{place}"], [to], axis=what))
        elif kind == "Slice":
            names = [f"k{place}{one}" for one in range(4)]
            constants |= dict(zip(names, (np.array([v], np.int64) for v in (-1, -(2**40), what, -1)), strict=True))
            nodes.append(node("Slice", [at, *names], [to]))
        elif kind == "Gathers":
            constants |= {f"k{place}{one}": np.array([one], np.int64) for one in range(3)}
            parts = [f"{to}{one}" for one in range(3)]
            nodes += [node("Gather", [at, f"k{place}{one}"], [parts[one]], axis=1) for one in range(3)]
            nodes.append(node("Concat", parts[::-1], [to], axis=1))
        else:
            constants[f"k{place}"] = np.asarray(what, np.float32)
            nodes.append(node(kind, [at, f"k{place}"], [to]))
        at = to
    return Head(nodes=[*nodes, node("Identity", [at], ["pixels"])], constants=constants, **said)


BGR = tuple(preprocess.IMAGENET_MEAN[::-1]), tuple(preprocess.IMAGENET_STD[::-1])
STARTS: dict[str, Head] = {
    "x / 255": arithmetic(("Div", 255.0), to=ZERO_ONE, scale=1.0),
    "x * (1 / 255)": arithmetic(("Mul", 1 / 255), to=ZERO_ONE, scale=1.0),
    "(x - 127.5) / 127.5": arithmetic(("Sub", 127.5), ("Div", 127.5), to=HALVES, scale=1.0),
    "x / 127.5 - 1": arithmetic(("Div", 127.5), ("Add", -1.0), to=HALVES, scale=1.0),
    "2 x - 1": arithmetic(("Mul", 2.0), ("Sub", 1.0), to=HALVES, scale=1 / 255),
    "ImageNet of 0-255": arithmetic(
        ("Sub", column(IMAGENET[0], 255)), ("Div", column(IMAGENET[1], 255)), to=IMAGENET, scale=1.0
    ),
    "ImageNet of 0-1": arithmetic(
        ("Sub", column(IMAGENET[0])), ("Div", column(IMAGENET[1])), to=IMAGENET, scale=1 / 255),
    "/ 255, then ImageNet": arithmetic(
        ("Div", 255.0), ("Sub", column(IMAGENET[0])), ("Div", column(IMAGENET[1])), to=IMAGENET, scale=1.0
    ),
    "CLIP of 0-1": arithmetic(
        ("Sub", column(CLIP_LIKE[0])), ("Div", column(CLIP_LIKE[1])), to=CLIP_LIKE, scale=1 / 255),
    "cast first": arithmetic(
        ("Cast", {"to": TensorProto.DOUBLE}), ("Cast", {"to": FLOAT}), ("Div", 255.0), to=ZERO_ONE, scale=1.0
    ),
    "NHWC turned first": arithmetic(
        ("Transpose", {"perm": [0, 3, 1, 2]}),
        ("Sub", column(IMAGENET[0], 255)),
        ("Div", column(IMAGENET[1], 255)),
        to=IMAGENET,
        scale=1.0,
        layout="NHWC",
    ),
    "NHWC turned last": arithmetic(
        ("Sub", np.asarray(IMAGENET[0]) * 255),
        ("Div", np.asarray(IMAGENET[1]) * 255),
        ("Transpose", {"perm": [0, 3, 1, 2]}),
        to=IMAGENET,
        scale=1.0,
        layout="NHWC",
    ),
    **{
        f"reversed by {how}, then ImageNet": arithmetic(
            (how, 1), ("Sub", column(IMAGENET[0], 255)), ("Div", column(IMAGENET[1], 255)),
            to=IMAGENET, scale=1.0, channels="BGR",
        )
        for how in ("Split", "Gather", "Slice", "Gathers")
    },
    "ImageNet, then reversed": arithmetic(
        ("Sub", column(IMAGENET[0], 255)), ("Div", column(IMAGENET[1], 255)), ("Gather", 1), to=BGR, scale=1.0
    ),
    "reversed, then ImageNet backwards": arithmetic(
        ("Split", 1), ("Sub", column(BGR[0], 255)), ("Div", column(BGR[1], 255)), to=BGR, scale=1.0
    ),
    "uint8, reversed, then ImageNet": arithmetic(
        ("Cast", {"to": FLOAT}), ("Gather", 1), ("Sub", column(IMAGENET[0], 255)), ("Div", column(IMAGENET[1], 255)),
        to=IMAGENET, scale=1.0, channels="BGR", dtype=BYTES,
    ),
}  # fmt: skip


def with_head(path: Path, head: Head) -> Path:
    """The teacher of builders.py behind a head."""
    first, second = weights(16, 0)
    shape = ["N", 3, 32, 32] if head.layout == "NCHW" else ["N", 32, 32, 3]
    nodes = [
        *head.nodes,
        node("Conv", ["pixels", "first"], ["c"], strides=[PATCH, PATCH]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "second"], ["m"]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    constants = {**head.constants, "first": first, "second": second[:, :, None, None]}
    return save(path, nodes, [value("x", head.dtype, shape)], [value("y", FLOAT, ["N", 16])], constants, opset=18)


@pytest.mark.parametrize("name", STARTS)
def test_preprocessing_inside_the_graph_is_read(tmp_path: Path, name: str) -> None:
    """Nothing said, the graph alone: the network behind its head sees what it was trained on, channels included."""
    head = STARTS[name]
    teacher = open_teacher(with_head(tmp_path / "t.onnx", head))
    found = teacher.preprocess
    assert found.source.startswith("graph")
    assert (found.scale, found.channels, found.layout) == (pytest.approx(head.scale), head.channels, head.layout)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    rows = pixels(3)
    seen = rows[..., ::-1] if head.to is BGR else rows  # what the network itself was trained on
    inside = ((seen / 255 - np.asarray(head.to[0])) / np.asarray(head.to[1])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(teacher.embed(rows), teacher_map(inside).mean(axis=(2, 3)), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "steps",
    [
        (("Mul", column((1.7, 0.3, 2.2))), ("Add", column((0.1, -0.4, 0.2)))),
        (("Mul", 1.01),),
        (("Add", 0.003),),
        (("Mul", 3.0),),
        (("Sub", column((0.1, 0.1, 0.1))), ("Div", column((0.9, 0.8, 0.7)))),
    ],
    ids=["per channel", "near one", "a hair", "three", "no convention"],
)
def test_a_learned_scale_is_no_preprocessing(tmp_path: Path, steps: Any) -> None:
    """Numbers of no known convention say nothing: the user is asked."""
    path = with_head(tmp_path / "t.onnx", arithmetic(*steps, to=ZERO_ONE, scale=1.0))
    with pytest.raises(DistillError, match="nothing says how"):
        open_teacher(path)


SIDEWAYS = {"perm": [0, 3, 1, 2]}
MIRRORS: dict[str, Head] = {
    "Slice along the width": arithmetic(("Slice", 3), to=ZERO_ONE, scale=1.0),
    "Slice along the height": arithmetic(("Slice", 2), to=ZERO_ONE, scale=1.0),
    "Slice along the width, from the end": arithmetic(("Slice", -1), to=ZERO_ONE, scale=1.0),
    "NHWC turned, then the width": arithmetic(
        ("Transpose", SIDEWAYS), ("Slice", 3), to=ZERO_ONE, scale=1.0, layout="NHWC"
    ),
    "NHWC, then turned": arithmetic(("Slice", 2), ("Transpose", SIDEWAYS), to=ZERO_ONE, scale=1.0, layout="NHWC"),
}


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirror_is_no_reversal_of_channels(tmp_path: Path, name: str) -> None:
    """The same operators along a side of the image say nothing of its channels."""
    teacher = opened(with_head(tmp_path / "t.onnx", MIRRORS[name]))
    assert teacher.preprocess.channels == "RGB"
    rows = pixels(2)
    across = "height" not in name
    inside = fed(rows[:, :, ::-1] if across else rows[:, ::-1])
    np.testing.assert_allclose(teacher.embed(rows), teacher_map(inside).mean(axis=(2, 3)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "steps",
    [
        (("Slice", 3), ("Transpose", SIDEWAYS)),
        (("Transpose", SIDEWAYS), ("Slice", 1)),
        (("Gather", -1), ("Transpose", SIDEWAYS)),
        (("Transpose", SIDEWAYS), ("Split", 1)),
        (("Transpose", SIDEWAYS), ("Gathers", 1)),
    ],
    ids=["Slice", "turned, Slice", "Gather", "turned, Split", "turned, Gathers"],
)
def test_the_axis_of_the_channels_is_followed_through_a_transposition(tmp_path: Path, steps: Any) -> None:
    """Channels last, reversed before or after they are brought to the front."""
    head = arithmetic(*steps, to=ZERO_ONE, scale=1.0, layout="NHWC")
    teacher = opened(with_head(tmp_path / "t.onnx", head))
    assert teacher.preprocess.channels == "BGR"


# ---- real files, where they are at hand ----

REAL = {  # file: flags, batch, dtype, layout, size, output, dimensions
    "squeezenet1.0_nhwc_batch1": (["tf"], 1, "float32", "NHWC", (224, 224), "concat_62", 512),
    "mobilefacenet": (["scale=1", "mean=127.5", "std=128"], 1, "float32", "NCHW", (112, 112), "output", 128),
    "mobilenet_edgetpu_uint8_qdq": ([], None, "uint8", "NHWC", (224, 224), "embedding", 1280),
    "mobilenet_v1_embedder_uint8_qdq": ([], None, "uint8", "NHWC", (224, 224), "embedding", 1024),
    "mobilenet_edgetpu_fp32": (["tf"], None, "float32", "NHWC", (224, 224), "embedding", 1280),
    "squeezenet1.1_fp16_caffe": (["caffe"], 1, "float16", "NCHW", (224, 224), "fire9/concat_1", 512),
    "squeezenet1.1_three_outputs": (["imagenet"], None, "float32", "NCHW", (224, 224), "embedding", 512),
    "person_reid_0287": ([], 1, "float32", "NHWC", (256, 128), "Identity:0", 256),
    "mobilenetv2_fp32": (["imagenet"], None, "float32", "NCHW", (224, 224), "embedding", 1280),
}


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
@pytest.mark.parametrize("name", REAL)
def test_real_file(name: str) -> None:
    """Each opens as it is, chooses its embedding, and gives every image a vector of its own whatever the batch."""
    flags, batch, dtype, layout, size, output, dim = REAL[name]
    teacher = open_teacher(DATA / f"models/{name}.onnx", TeacherOptions(preprocess=tuple(flags)))
    found = teacher.preprocess
    assert (teacher.batch, found.dtype, found.layout, found.size) == (batch, dtype, layout, size)
    assert (teacher.output, found.channels) == (output, "BGR" if name[:3] == "per" or "caffe" in name else "RGB")
    rows = pixels(3, size)
    got = teacher.embed(rows)
    assert got.shape == (3, dim) == (3, teacher.dim)
    alone = np.concatenate([teacher.embed(rows[at : at + 1]) for at in range(3)])
    np.testing.assert_allclose(got, alone, atol=1e-3 * np.abs(alone).max())
    assert len(np.unique(got.round(4), axis=0)) == 3


# ---- larger than a protobuf ----

TWO_GB_ROWS, TWO_GB_DIM = 1_100_000, 512


def over_two_gb(path: Path) -> np.ndarray:
    """A model whose table of 2.25 GB is one sparse file, zeros but for its last 256 rows, which it returns."""
    size = 4 * TWO_GB_ROWS * TWO_GB_DIM
    table = TensorProto(
        name="table", data_type=FLOAT, dims=[TWO_GB_ROWS, TWO_GB_DIM], data_location=TensorProto.EXTERNAL
    )
    for key, said in (("location", "big.data"), ("offset", "0"), ("length", str(size))):
        table.external_data.add(key=key, value=said)
    nodes = [
        node("ReduceMax", ["x"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        node("Cast", ["brightest"], ["number"], to=INT64),
        node("Add", ["number", "first"], ["row"]),
        node("Gather", ["table", "row"], ["y"], axis=0),
    ]
    first = numpy_helper.from_array(np.array(TWO_GB_ROWS - 256, np.int64), "first")
    graph = helper.make_graph(
        nodes, "g", [value("x", FLOAT, ["N", 3, 8, 8])], [value("y", FLOAT, ["N", TWO_GB_DIM])], [table, first]
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    last = np.random.default_rng(0).normal(size=(256, TWO_GB_DIM)).astype(np.float32)
    with path.with_name("big.data").open("wb") as stream:
        stream.seek(size - last.nbytes)
        stream.write(last.tobytes())
    return last


@pytest.mark.slow
def test_over_two_gb(tmp_path: Path) -> None:
    """By path, its weights beside it: opened, hashed whole, run, and cut, without holding it in Python's memory."""
    last = over_two_gb(tmp_path / "big.onnx")
    rows = np.zeros((3, 8, 8, 3), np.uint8)
    rows[:, 4, 4, 1] = [7, 200, 255]
    teacher = opened(tmp_path / "big.onnx", *PLAIN)
    assert teacher.file.size_bytes > 2**31
    np.testing.assert_array_equal(teacher.embed(rows), last[[7, 200, 255]])
    assert dissect(tmp_path / "big.onnx", TeacherOptions()).problem is None

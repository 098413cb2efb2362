"""Opening ONNX files as teachers: shapes, dtypes, outputs, pooling, and every way a file can be wrong."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from builders import Output, onnx_teacher, photo_folder, teacher_map
from onnx import TensorProto, helper, numpy_helper

from distilltool import images
from distilltool import teacher as tool
from distilltool.errors import DistillError
from distilltool.onnx_file import read_file
from distilltool.teacher import OnnxEmbedder, TeacherOptions, channels_last, to_vectors

PRE = ("scale=1/255", "mean=0.4,0.5,0.6", "std=0.2,0.25,0.3")
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
GEM = 3.0


def open_teacher(path: Path, **said: Any) -> OnnxEmbedder:
    """Open with options as keywords."""
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return tool.open_teacher(path, TeacherOptions(**said))


def pixels(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Prepared images, (count, H, W, 3) uint8."""
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def numbers(images_NHWC: np.ndarray) -> np.ndarray:
    """What a teacher with PRE is fed, (N, 3, H, W), by plain arithmetic."""
    return ((images_NHWC / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def answers(images_NHWC: np.ndarray, **options: Any) -> np.ndarray:
    """The vectors that a teacher with PRE must give."""
    return teacher_map(numbers(images_NHWC), **options).mean(axis=(2, 3))


@pytest.mark.parametrize("output", ["vector", "column"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts_and_dtypes(
    tmp_path: Path,
    layout: Literal["NCHW", "NHWC"],
    dtype: Literal["float32", "float16"],
    output: Output,
) -> None:
    """Whatever the graph takes, the vectors are those that numpy computes."""
    path = onnx_teacher(tmp_path / "t.onnx", layout=layout, dtype=dtype, output=output, dim=20, seed=3)
    teacher = open_teacher(path, preprocess=PRE)
    assert (teacher.preprocess.layout, teacher.preprocess.dtype) == (layout, dtype)
    assert (teacher.dim, teacher.provider, teacher.name) == (20, "CPUExecutionProvider", "t")
    rows = pixels(5)
    got = teacher.embed(rows)
    assert got.shape == (5, 20) and got.dtype == np.float32
    off = 1e-4 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(got, answers(rows, dim=20, seed=3), atol=off, rtol=off)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_input_needs_nothing_said(tmp_path: Path, layout: Literal["NCHW", "NHWC"]) -> None:
    """A graph that takes bytes says itself how it is fed."""
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx", dtype="uint8", layout=layout))
    assert teacher.preprocess.source.startswith("graph")
    assert (teacher.preprocess.dtype, teacher.preprocess.size) == ("uint8", (32, 32))
    rows = pixels(3)
    wanted = teacher_map(rows.transpose(0, 3, 1, 2)).mean(axis=(2, 3))
    np.testing.assert_allclose(teacher.embed(rows), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("batch", "count"), [(1, 3), (4, 4), (4, 7), (4, 2), ("N", 6)])
def test_batches(tmp_path: Path, batch: int | str, count: int) -> None:
    """A fixed batch is filled up and the filling is cut off; every image keeps its own vector."""
    path = onnx_teacher(tmp_path / "t.onnx", batch=batch)
    rows = pixels(count)
    got = open_teacher(path, preprocess=PRE).embed(rows)
    np.testing.assert_allclose(got, answers(rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flags", [["size=24x40"], ["size=64"]])
def test_free_size_follows_the_flag(tmp_path: Path, flags: list[str]) -> None:
    """A graph of free size runs at the size asked for."""
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx", size=None), preprocess=[*PRE, *flags])
    rows = pixels(2, teacher.preprocess.size)
    assert teacher.preprocess.size == ((24, 40) if "x" in flags[0] else (64, 64))
    np.testing.assert_allclose(teacher.embed(rows), answers(rows), atol=1e-4, rtol=1e-4)


def test_free_size_is_224_where_nothing_is_said(tmp_path: Path) -> None:
    """The usual size of training."""
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx", size=None), preprocess=["imagenet"])
    assert (teacher.preprocess.size, teacher.preprocess.resize_to) == ((224, 224), 256)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
def test_pooling_a_map(tmp_path: Path, pool: str, layout: Literal["NCHW", "NHWC"]) -> None:
    """Maps are pooled over their places, never over their channels."""
    path = onnx_teacher(tmp_path / "t.onnx", output="map", layout=layout, dim=24, size=(32, 24))
    teacher = open_teacher(path, preprocess=PRE, pool=pool)
    rows = pixels(3, (32, 24))
    places = teacher_map(numbers(rows), dim=24)
    wanted = {
        "avg": places.mean(axis=(2, 3)),
        "max": places.max(axis=(2, 3)),
        "gem": (np.maximum(places, 1e-6) ** GEM).mean(axis=(2, 3)) ** (1 / GEM),
    }[pool]
    assert teacher.dim == 24
    np.testing.assert_allclose(teacher.embed(rows), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("pool", ["cls", "avg", "max"])
def test_pooling_tokens(tmp_path: Path, pool: str) -> None:
    """The first token, or all of them."""
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx", output="tokens", dim=24), preprocess=PRE, pool=pool)
    rows = pixels(3)
    tokens = teacher_map(numbers(rows), dim=24).reshape(3, 24, -1)
    wanted = {"cls": tokens[:, :, 0], "avg": tokens.mean(axis=2), "max": tokens.max(axis=2)}[pool]
    assert teacher.dim == 24
    np.testing.assert_allclose(teacher.embed(rows), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("output", ["map", "tokens"])
def test_unpooled_output_is_an_error_that_names_the_flag(tmp_path: Path, output: Output) -> None:
    """Nothing is pooled behind the user's back."""
    path = onnx_teacher(tmp_path / "t.onnx", output=output)
    with pytest.raises(DistillError, match="--pool"):
        open_teacher(path, preprocess=PRE)


@pytest.mark.parametrize(
    ("outputs", "wanted", "chosen", "why"),
    [
        (("embedding",), None, "embedding", "only output"),
        (("logits", "features"), None, "features", "name"),
        (("features", "image_embeds"), None, "image_embeds", "name"),
        (("class_probs", "inner", "code"), None, "inner", "one vector per image"),
        (("embedding", "other"), "other", "other", "asked for"),
    ],
)
def test_choice_of_output(tmp_path: Path, outputs: tuple[str, ...], wanted: str | None, chosen: str, why: str) -> None:
    """One output is taken, by a rule that `why` tells; the vectors come from that one."""
    path = onnx_teacher(tmp_path / "t.onnx", outputs=outputs)
    teacher = open_teacher(path, preprocess=PRE, output=wanted)
    assert teacher.output == chosen
    assert why in teacher.why
    rows = pixels(2)
    wanted_rows = answers(rows) * (outputs.index(chosen) + 1)
    np.testing.assert_allclose(teacher.embed(rows), wanted_rows, atol=1e-3, rtol=1e-3)


def test_identity_of_answers(tmp_path: Path) -> None:
    """Another output, pooling or preprocessing is another answer; who said it is not."""
    path = onnx_teacher(tmp_path / "t.onnx", outputs=("embedding", "other"))
    base = open_teacher(path, preprocess=PRE)
    same = open_teacher(path, preprocess=[*PRE, "layout=NCHW"])
    assert (same.key.sha256, same.key.output, same.key.preprocess) == (
        base.key.sha256,
        base.key.output,
        base.key.preprocess,
    )
    assert same.space_id == base.space_id
    assert open_teacher(path, preprocess=PRE, output="other").space_id != base.space_id
    assert open_teacher(path, preprocess=["imagenet"]).key != base.key
    assert open_teacher(path, preprocess=PRE, pool="avg").key == base.key, "a vector is not pooled: no second price"
    tokens = onnx_teacher(tmp_path / "tokens.onnx", output="tokens")
    keys = {open_teacher(tokens, preprocess=PRE, pool=how).key for how in ("avg", "max", "cls")}
    assert len(keys) == 3


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(2, 5, 5, 12), (2, 12, 5, 5)])
def test_the_channels_of_a_map_are_found_whatever_the_input_is_laid_out_as(
    shape: tuple[int, ...], layout: str, rng: np.random.Generator
) -> None:
    """Two equal sides are the places, whichever layout the input has."""
    found = rng.normal(size=shape)
    places = (1, 2) if shape[1] == shape[2] else (2, 3)
    np.testing.assert_allclose(
        to_vectors(found, "avg", channels_last(shape, layout)), found.mean(axis=places), rtol=1e-5
    )


def test_hash_covers_external_data(tmp_path: Path) -> None:
    """Weights beside the model are part of it: other weights, another teacher."""
    path = onnx_teacher(tmp_path / "t.onnx", external=True)
    data = tmp_path / "t.onnx.data"
    rows, before = pixels(2), read_file(path)
    assert before.size_bytes == path.stat().st_size + data.stat().st_size
    np.testing.assert_allclose(open_teacher(path, preprocess=PRE).embed(rows), answers(rows), atol=1e-4, rtol=1e-4)
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    assert read_file(path).sha256 != before.sha256
    content[40] ^= 1
    data.write_bytes(content)
    assert read_file(path).sha256 == before.sha256


def test_hash_covers_external_data_of_constants(tmp_path: Path) -> None:
    """Weights may also stand in Constant nodes."""
    inside = onnx.load(onnx_teacher(tmp_path / "inside.onnx"))
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in inside.graph.initializer]
    del inside.graph.initializer[:]
    nodes += list(inside.graph.node)
    del inside.graph.node[:]
    inside.graph.node.extend(nodes)
    path = tmp_path / "t.onnx"
    onnx.save_model(
        inside, path, save_as_external_data=True, location="t.data", size_threshold=0, convert_attribute=True
    )
    data = tmp_path / "t.data"
    assert data.stat().st_size > 1000
    before = read_file(path)
    rows = pixels(2)
    np.testing.assert_allclose(open_teacher(path, preprocess=PRE).embed(rows), answers(rows), atol=1e-4, rtol=1e-4)
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    assert read_file(path).sha256 != before.sha256


def test_embedding_is_the_same_from_files(tmp_path: Path) -> None:
    """Decoded files go through the same numbers as arrays."""
    paths = photo_folder(tmp_path / "photos", 4)
    teacher = open_teacher(onnx_teacher(tmp_path / "t.onnx"), preprocess=PRE)
    loaded, skipped = images.load(paths, teacher.preprocess)
    assert not skipped
    np.testing.assert_allclose(teacher.embed(loaded), answers(loaded), atol=1e-4, rtol=1e-4)


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    """Images of another size or type are a fault of the caller."""
    teacher: OnnxEmbedder = open_teacher(onnx_teacher(tmp_path / "t.onnx"), preprocess=PRE)
    for rows in (pixels(2, (32, 28)), pixels(2).astype(np.float32)):
        with pytest.raises(ValueError, match="want uint8"):
            teacher.embed(rows)


def graph_with_input(path: Path, kind: int, shape: list[Any]) -> Path:
    """A model that returns its input, of any type and shape."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save_model(model, path)
    return path


def custom_operator(path: Path) -> Path:
    """A model that onnxruntime cannot run."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mystery", ["x"], ["y"], domain="somewhere")],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(np.ones(1, np.float32), "unused")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somewhere", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_failing_while_running(tmp_path: Path) -> None:
    """A free size that the graph cannot hold shows with the first batch, as an error that names the size."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "rows"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 3, "h", "w"])],
        [value("y", TensorProto.FLOAT, ["N", 192])],
        [numpy_helper.from_array(np.array([0, 192], np.int64), "rows")],
    )
    path = tmp_path / "t.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    assert open_teacher(path, preprocess=[*PRE, "size=8"]).embed(pixels(2, (8, 8))).shape == (2, 192)
    with pytest.raises(DistillError, match=r"16x16.*size="):
        open_teacher(path, preprocess=[*PRE, "size=16"]).embed(pixels(2, (16, 16)))


def wrong(kind: str, folder: Path) -> Path:
    """A file that cannot be a teacher."""
    path = folder / "wrong.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    elif kind == "text":
        path.write_text("This is a text about models.\n" * 20)
    elif kind == "empty":
        path.touch()
    elif kind == "half":
        path.write_bytes(onnx_teacher(folder / "whole.onnx").read_bytes()[:700])
    elif kind == "no data":
        onnx_teacher(path, external=True)
        (folder / "wrong.onnx.data").unlink()
    elif kind == "grey":
        graph_with_input(path, TensorProto.FLOAT, ["N", 1, 28, 28])
    elif kind == "text input":
        graph_with_input(path, TensorProto.INT64, ["N", 77])
    elif kind == "double":
        graph_with_input(path, TensorProto.DOUBLE, ["N", 3, 8, 8])
    elif kind == "custom operator":
        custom_operator(path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "there is no file"),
        ("folder", "is a folder"),
        ("pointer", "git lfs pull"),
        ("text", "no ONNX model"),
        ("empty", "no ONNX model"),
        ("half", "no ONNX model"),
        ("no data", r"wrong\.onnx\.data"),
        ("grey", "1 channels"),
        ("text input", "does not take one image batch"),
        ("double", "double"),
        ("custom operator", "onnxruntime cannot run"),
    ],
)
def test_wrong_files(tmp_path: Path, kind: str, says: str) -> None:
    """Each is an error of one line that says what and how."""
    path = wrong(kind, tmp_path)
    with pytest.raises(DistillError) as caught:
        open_teacher(path, preprocess=["imagenet"])
    assert re.search(says, str(caught.value))
    assert caught.value.fix and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing says how"),
        ({"preprocess": ["size=32"]}, "nothing says how"),
        ({"preprocess": ["imagenet", "size=64"]}, "takes images of 32x32"),
        ({"preprocess": ["imagenet"], "output": "nope"}, "no tensor 'nope'"),
        ({"preprocess": ["imagenet"], "pool": "mean"}, "no pooling 'mean'"),
    ],
)
def test_wrong_wishes(teacher: Path, options: dict[str, Any], says: str) -> None:
    """What was asked for must fit the file; silence on preprocessing is an error with the choices in it."""
    with pytest.raises(DistillError) as caught:
        open_teacher(teacher, **options)
    assert says in str(caught.value) and caught.value.fix


def test_silence_lists_the_choices(teacher: Path) -> None:
    """The error names every preset."""
    with pytest.raises(DistillError) as caught:
        open_teacher(teacher)
    for name in ("imagenet", "clip", "tf", "caffe", "--preprocess"):
        assert name in caught.value.fix


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    """Metadata of the name we use, but not ours, is an error and no traceback."""
    path = onnx_teacher(tmp_path / "t.onnx", metadata={"distilltool.preprocess": "not json"})
    with pytest.raises(DistillError):
        open_teacher(path)


@pytest.mark.parametrize("folder", ["", "onnx"])
def test_sidecars_are_found(tmp_path: Path, folder: str) -> None:
    """Beside the model, or above a folder called onnx as hubs lay it out."""
    path = onnx_teacher(tmp_path / folder / "t.onnx")
    text = '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 32, "width": 32}}'
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    (tmp_path / "preprocessor_config.json").write_text(text)
    found = open_teacher(path).preprocess
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.source == "sidecar preprocessor_config.json"

"""`inspect`: what it says of a file, the signs that vectors make no sense, and the exit code."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import onnx_teacher, photo_folder
from onnx import TensorProto, helper
from test_shapes import TOWERS, End, ending, linear, network, node, save, two_towers, value
from typer.testing import CliRunner

import distilltool
from distilltool import guess
from distilltool.anatomy import dissect
from distilltool.cli import app
from distilltool.report import InspectReport
from distilltool.sanity import warnings
from distilltool.teacher import TeacherOptions

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
PRE = ("scale=1/255", "mean=0.4,0.5,0.6", "std=0.2,0.25,0.3")
FLOAT = TensorProto.FLOAT


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, words)], env={"COLUMNS": "80"})


def test_report_of_an_embedder(tmp_path: Path) -> None:
    """Every field says what is in the file."""
    path = onnx_teacher(tmp_path / "t.onnx", external=True, size=None, outputs=("embedding", "probs"))
    found = distilltool.inspect(path, preprocess=[*PRE, "size=64x32"], tensors=True)
    data = tmp_path / "t.onnx.data"
    assert found.bytes == path.stat().st_size + data.stat().st_size and found.external == ("t.onnx.data",)
    assert (found.kind, found.opset, found.ir_version, found.domains) == ("embedder", 17, 9, {"ai.onnx": 17})
    image = found.inputs[0]
    assert (image.role, image.layout, image.dtype) == ("image", "NCHW", "float32")
    assert image.dynamic == ("batch", "height", "width") and image.shape == ("N", 3, "height", "width")
    assert [one.role for one in found.outputs] == ["embedding", "logits"]
    assert (found.embedding, found.dim, found.pool) == ("embedding", 16, "none") and "its name" in found.why
    assert found.size == (64, 32) and found.provider == "CPUExecutionProvider" and found.problem is None
    # patches: 16 x 8 of 4 x 4 x 3 to 12, then 12 to 16; two FLOPs each
    assert found.flops == 2 * (16 * 8 * 48 * 12 + 16 * 8 * 12 * 16)
    assert found.params == 12 * 48 + 16 * 12 + 2
    assert found.preprocess is not None and found.preprocess["source"].startswith("flag") and found.description
    assert found.ms_per_image is not None and found.ms_per_image > 0 and found.images == 0
    assert found.tensors is not None
    assert {"hidden", "embedding"} <= {one.name for one in found.tensors}
    assert distilltool.inspect(path, preprocess=PRE).tensors is None


def test_flops_are_of_one_image(tmp_path: Path) -> None:
    """A graph of a fixed batch of 4 costs each image what one of a free batch does."""
    counts = {
        batch: dissect(onnx_teacher(tmp_path / f"{batch}.onnx", batch=batch), TeacherOptions()).flops
        for batch in ("N", 1, 4)
    }
    assert len(set(counts.values())) == 1 and counts["N"] == 2 * (64 * 48 * 12 + 64 * 12 * 16)


@pytest.mark.parametrize(
    ("operator", "flops"),
    [("matmul", 2 * 49 * 8 * 49), ("einsum", 2 * 49 * 8 * 49), ("gemm", 2 * 8 * 20), ("grouped", 2 * 49 * 8 * 9)],
)
def test_flops_of_operators(tmp_path: Path, operator: str, flops: int) -> None:
    """Products of two computed tensors count as those with weights do; a grouped convolution counts its groups once."""
    constants = {"w": np.ones((8, 3, 1, 1), np.float32), "flat": np.array([0, 8, -1], np.int64)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Reshape", ["c", "flat"], ["t"])]  # (N, 8, 49)
    if operator in ("matmul", "einsum"):
        nodes += [node("Transpose", ["t"], ["u"], perm=[0, 2, 1])]
        product = node("MatMul", ["u", "t"], ["p"])
        nodes += [product if operator == "matmul" else node("Einsum", ["u", "t"], ["p"], equation="bij,bjk->bik")]
    elif operator == "gemm":
        constants["g"] = np.ones((20, 8), np.float32)
        nodes += [node("ReduceMean", ["t"], ["m"], axes=[2], keepdims=0), node("Gemm", ["m", "g"], ["p"], transB=1)]
    else:
        constants["g"] = np.ones((8, 1, 3, 3), np.float32)
        nodes += [node("Conv", ["c", "g"], ["p"], group=8, pads=[1, 1, 1, 1])]
    axes = {"matmul": [2], "einsum": [2], "gemm": None, "grouped": [2, 3]}[operator]
    width = {"matmul": 49, "einsum": 49, "gemm": 20, "grouped": 8}[operator]
    nodes += [node("ReduceMean", ["p"], ["y"], axes=axes, keepdims=0) if axes else node("Identity", ["p"], ["y"])]
    path = save(
        tmp_path / "t.onnx", nodes, [value("x", FLOAT, ["N", 3, 7, 7])], [value("y", FLOAT, ["N", width])], constants
    )
    found = dissect(path, TeacherOptions())
    assert found.flops == 2 * 49 * 3 * 8 + flops and found.counted


def test_tensors_of_a_classifier(tmp_path: Path) -> None:
    """Candidates in order of computation, scores left out, each one good for --output."""
    path = network(tmp_path / "t.onnx", linear("gemm", 1000, ["Softmax"]))
    found = distilltool.inspect(path, preprocess=PRE, tensors=True)
    assert (found.kind, found.embedding) == ("classifier", "f") and found.tensors is not None
    names = [one.name for one in found.tensors]
    assert names[-1] == "f" and "r" in names and not {"l", "then0", "y"} & set(names)
    for one in found.tensors:
        pool = "avg" if one.role == "feature map" else None
        again = distilltool.inspect(path, preprocess=PRE, output=one.name, pool=pool)
        assert again.problem is None and again.embedding == one.name and again.dim == 12


def test_tensors_of_two_towers(tmp_path: Path) -> None:
    """The text branch is no candidate; its inputs are said to be text."""
    found = distilltool.inspect(two_towers(tmp_path, TOWERS[:2]), preprocess=PRE, tensors=True)
    assert found.problem is None and found.embedding == "image_embeds" and found.tensors is not None
    names = {one.name for one in found.tensors}
    assert "image_embeds" in names and not {"tokens", "text", "text_embeds"} & names
    assert {one.name: one.role for one in found.inputs} == {
        "input_ids": "text",
        "pixel_values": "image",
        "attention_mask": "text",
    }


# ---- signs that vectors make no sense, each from a graph that has the fault ----


def constant(width: int = 64) -> End:
    end = linear("gemm", width)
    nodes = [node("Mul", ["f", "nothing"], ["z"]), node("Gemm", ["z", "w", "b"], ["y"])]
    return End(nodes=nodes, constants={**end.constants, "nothing": np.float32(0)}, width=width)


def hardly(width: int = 64) -> End:
    """A fixed vector, and a tenth of its length that the image decides."""
    rng = np.random.default_rng(0)
    return ending(
        node("LpNormalization", ["l"], ["u"], axis=1),
        node("Mul", ["u", "tenth"], ["v"]),
        node("Add", ["v", "fixed"], ["y"]),
        width=width,
        tenth=np.float32(1.0),
        fixed=rng.normal(0, 0.7, width).astype(np.float32),
    )


FAULTS: dict[str, tuple[End, str]] = {
    "constant": (constant(), "nearly constant"),
    "NaN": (
        ending(node("Sub", ["l", "high"], ["s"]), node("Sqrt", ["s"], ["y"]), width=64, high=np.float32(1)),
        "NaN or Inf",
    ),
    "saturated": (
        ending(node("Mul", ["l", "much"], ["s"]), node("Tanh", ["s"], ["y"]), width=64, much=np.float32(3)),
        "saturated",
    ),
    "dead": (
        ending(node("Mul", ["l", "mask"], ["y"]), width=64, mask=(np.arange(64) % 4 > 0).astype(np.float32)),
        "dimensions are the same",
    ),
    "hardly": (hardly(), "hardly depends on the image"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_vectors_are_warned_of(tmp_path: Path, name: str) -> None:
    """inspect and query say it in a line; a sound model is said to be sound."""
    end, sign = FAULTS[name]
    photo_folder(tmp_path / "imgs", 24, size=(32, 32))
    found = distilltool.inspect(network(tmp_path / "t.onnx", end), tmp_path / "imgs", preprocess=PRE)
    assert found.problem is None and found.images == 24
    assert any(sign in one for one in found.warnings), found.warnings
    assert name == "NaN" or len(found.warnings) == 1, found.warnings


def test_a_sound_model_is_not_warned_of(tmp_path: Path) -> None:
    photo_folder(tmp_path / "imgs", 24, size=(32, 32))
    path = onnx_teacher(tmp_path / "t.onnx", dim=64)
    assert distilltool.inspect(path, tmp_path / "imgs", preprocess=PRE).warnings == ()
    shown = run(path, tmp_path / "imgs", *(word for one in PRE for word in ("--preprocess", one)))
    assert shown.exit_code == 0 and "sound on 24 images" in shown.stderr


def test_signs_in_numbers(rng: np.random.Generator) -> None:
    """Zeros, the limit of float16, and codes of ±1, which are no fault."""
    rows = rng.normal(size=(32, 64)).astype(np.float32)
    assert warnings(rows) == []
    assert warnings(np.sign(rows)) == []
    assert warnings(np.maximum(rows, 0)) == []
    assert "all zeros" in warnings(np.where(np.arange(32)[:, None] < 3, 0, rows))[0]
    assert "float16" in warnings(np.where(rows > 2, np.float32(65504), rows))[0]
    assert warnings(rows[:3] * 0) == [], "too few to say anything of how they differ"


def test_what_stands_in_the_way_is_exit_code_1(tmp_path: Path) -> None:
    """The report is still shown, in tables of 80 columns, and the problem in one line; JSON carries it too."""
    value_of = helper.make_tensor_value_info
    boxes = save(
        tmp_path / "d.onnx",
        [node("Reshape", ["x", "to"], ["boxes"])],
        [value_of("x", FLOAT, ["N", 3, 8, 8])],
        [value_of("boxes", FLOAT, ["N", 48, 4])],
        {"to": np.array([0, 48, 4], np.int64)},
    )
    shown = run(boxes)
    assert shown.exit_code == 1 and "detector" in shown.stderr and "no output is an embedding" in shown.stderr
    assert max(len(line) for line in shown.stderr.splitlines() if not line.startswith("error")) <= 80
    found: dict[str, Any] = json.loads(run(boxes, "--json", "--quiet").stdout)
    assert found["kind"] == "detector" and found["embedding"] is None and "--output" in found["problem"]
    assert run(onnx_teacher(tmp_path / "t.onnx")).exit_code == 0
    assert run(tmp_path / "nothing.onnx").exit_code == 1


def test_numbers_for_each_place_are_no_tokens(tmp_path: Path) -> None:
    """Of a detector whose places follow from the image's size no pooling is offered; a layer before them is taken."""
    path = save(
        tmp_path / "t.onnx",
        [node("Relu", ["x"], ["inner"]), node("Reshape", ["inner", "flat"], ["output0"])],
        [value("x", FLOAT, ["N", 3, "height", "width"])],
        [value("output0", FLOAT, ["N", 48, "places"])],
        {"flat": np.array([0, 48, -1], np.int64)},
    )
    found = distilltool.inspect(path, preprocess=[*PRE, "size=32"])
    assert found.kind == "detector" and found.embedding is None
    assert found.problem is not None and "--output" in found.problem and "--pool" not in found.problem
    asked = distilltool.inspect(path, preprocess=[*PRE, "size=32"], output="inner", pool="avg")
    assert asked.problem is None and (asked.embedding, asked.dim) == ("inner", 3)


def test_a_folder_that_tells_nothing_is_not_asked_for_again(tmp_path: Path) -> None:
    """The warning says that these images do not tell, not that images would."""
    path = onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 32, size=(32, 32))
    assert f"{guess.FEWEST} images or more" in str(distilltool.inspect(path).warnings)
    found = distilltool.inspect(path, tmp_path / "imgs")
    assert found.guess is not None and not found.guess["clear"]
    assert "these images do not tell" in str(found.warnings)


def test_a_custom_operator_is_said(tmp_path: Path) -> None:
    """By its domain, which is not one that onnxruntime has."""
    model = onnx.load(onnx_teacher(tmp_path / "t.onnx"))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Magic", "my.company"
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    onnx.save_model(model, tmp_path / "t.onnx")
    found: InspectReport = distilltool.inspect(tmp_path / "t.onnx", preprocess=PRE)
    assert found.problem is not None and "Magic" in found.problem and "my.company" in found.problem
    assert "\n" not in found.problem and found.domains["my.company"] == 1


def test_free_size_is_tried_at_the_size_that_was_said(tmp_path: Path) -> None:
    """Without a word on scaling it still runs, at --preprocess size=."""
    path = save(
        tmp_path / "t.onnx",
        [node("Reshape", ["x", "flat"], ["y"])],
        [value("x", FLOAT, ["N", 3, "height", "width"])],
        [value("y", FLOAT, ["N", 3 * 40 * 24])],
        {"flat": np.array([0, 3 * 40 * 24], np.int64)},
    )
    found = distilltool.inspect(path, preprocess=["size=40x24"])
    assert found.size == (40, 24) and found.problem is None and found.preprocess is None
    assert any("nothing says how" in one for one in found.warnings)


# ---- the real files ----

REAL = {
    "mobilefacenet": ["scale=1", "mean=127.5", "std=128"],
    "mobilenet_edgetpu_fp32": ["tf"],
    "mobilenet_edgetpu_uint8_qdq": [],
    "mobilenet_v1_embedder_uint8_qdq": [],
    "mobilenetv2_fp32": ["imagenet"],
    "person_reid_0287": [],
    "resnet50v2_stage3": ["imagenet"],
    "squeezenet1.0_nhwc_batch1": ["tf"],
    "squeezenet1.1_fp16_caffe": ["caffe"],
    "squeezenet1.1_three_outputs": ["imagenet"],
}
here = pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 photographs, as links."""
    root = tmp_path_factory.mktemp("real")
    for path in sorted((DATA / "caltech/train").glob("*.jpg"))[:: 2077 // 64][:64]:
        (root / path.name).symlink_to(path)
    return root


@here
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_models_are_sound(name: str, photographs: Path) -> None:
    """With their true preprocessing none is warned of."""
    found = distilltool.inspect(DATA / f"models/{name}.onnx", photographs, preprocess=REAL[name])
    assert found.problem is None and found.images == 64
    assert found.warnings == ()


@here
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("custom_op", "no image model", "com.microsoft.extensions"),
        ("ultraface_detector", "detector", "no output is an embedding"),
    ],
)
def test_real_files_that_are_no_embedders(name: str, kind: str, says: str) -> None:
    found = distilltool.inspect(DATA / f"not_embedders/{name}.onnx", preprocess=["imagenet"])
    assert found.kind == kind and found.problem is not None and says in found.problem


@here
@pytest.mark.real
def test_real_constant_model_is_flagged(photographs: Path) -> None:
    found = distilltool.inspect(DATA / "not_embedders/constant_resnet50.onnx", photographs, preprocess=["imagenet"])
    assert any("nearly constant" in one or "zeros" in one for one in found.warnings), found.warnings


@here
@pytest.mark.real
def test_real_pointer_is_said() -> None:
    with pytest.raises(distilltool.DistillError, match="git lfs pull"):
        distilltool.inspect(DATA / "not_embedders/lfs_pointer.onnx")

"""Precisions beside float32: every file in the folder is tried on a network that convolves and one that attends, and
what `export` ships of them is what passes its gates."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from test_chain import run, run_dir, work  # noqa: F401  fixtures

import distilltool
from distilltool import latency, precisions, quantising, students, variants
from distilltool.errors import DistillError
from distilltool.onnx_export import to_onnx
from distilltool.precisions import FP32, Given
from distilltool.report import Interval, Speedup
from distilltool.rundir import read_json
from distilltool.student import Student
from distilltool.students import Start
from distilltool.teacher import TeacherOptions
from distilltool.variants import Judged, Sample, Wanted

SIZE = 64
NETWORKS = {"convolves": "timm:mobilenetv3_small_050", "attends": "timm:vit_tiny_patch16_224"}
NOTHING = Interval(value=0.0, low=0.0, high=0.0)


def smooth(count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures with structure, (N, SIZE, SIZE, 3)."""
    rough = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(rough, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    return (255 * large).byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module", params=NETWORKS, ids=list(NETWORKS))
def graph(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """A student with a head, exported."""
    backbone = students.build(NETWORKS[request.param], Start(input=SIZE, seed=0))
    torch.manual_seed(1)
    return to_onnx(Student(backbone, 32, bias=True).eval(), (SIZE, SIZE), 20)


def given(graph: onnx.ModelProto, folder: Path, **changed: Any) -> Given:
    """What a precision is made from."""
    pixels = smooth(32, 3)

    def batches() -> Iterator[NDArray[np.uint8]]:
        return (pixels[at : at + 8] for at in range(0, len(pixels), 8))

    settled = {"leave": quantising.around(graph), "saturates": False, "symmetric": False}
    values: dict[str, Any] = {"batches": batches, "folder": folder, **settled, **changed}
    return Given(model=graph, **values)


def vectors(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a graph makes of pixels."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"images": pixels})[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in precisions.names() if name != FP32])
def test_every_precision_keeps_the_vectors_nearly(name: str, graph: onnx.ModelProto, tmp_path: Path) -> None:
    """Float32 of length 1 at every batch, near those of the float32 graph, in a smaller file."""
    made = precisions.find(name)(given(graph, tmp_path))
    onnx.checker.check_model(made)
    pixels = smooth(16, 9)
    plain, altered = vectors(graph, pixels), vectors(made, pixels)
    assert altered.dtype == np.float32 and altered.shape == plain.shape
    assert np.linalg.norm(altered, axis=1) == pytest.approx(1, abs=1e-3)
    assert (plain * altered).sum(axis=1).min() > 0.97
    assert not np.array_equal(plain, altered)
    assert made.ByteSize() < graph.ByteSize()
    assert vectors(made, pixels[:1]) == pytest.approx(altered[:1], abs=0.02)


@pytest.mark.slow
def test_pixels_and_length_stay_in_float32(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """What comes before the first and behind the last layer is left alone: no 8 bits between head and embedding."""
    left = quantising.around(graph)
    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert {"Cast", "ReduceL2", "Div"} <= {kinds[name] for name in left}
    assert not {"Conv", "Gemm", "MatMul"} & {kinds[name] for name in left}
    made = precisions.find("int8-static")(given(graph, tmp_path))
    kinds = [node.op_type for node in made.graph.node]
    makers = {name: node for node in made.graph.node for name in node.output}
    assert "QuantizeLinear" in kinds
    readers = [node for node in made.graph.node if "images" in node.input]
    assert readers and all(node.op_type != "QuantizeLinear" for node in readers)
    assert makers["embedding"].op_type == "Div"
    assert all(makers[name].op_type != "DequantizeLinear" for name in makers["embedding"].input if name in makers)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Numbers a graph holds, by name."""
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(("saturates", "symmetric"), [(False, False), (True, False), (True, True)])
def test_eight_bits_are_those_that_held_up(
    saturates: bool, symmetric: bool, graph: onnx.ModelProto, tmp_path: Path
) -> None:
    """Weights are signed with a scale for each channel, of 7 bits where sums saturate; activations unsigned, or signed
    around zero for a device that wants it."""
    made = precisions.find("int8-static")(given(graph, tmp_path, saturates=saturates, symmetric=symmetric))
    held = constants(made)
    activations = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    weights = [node for node in made.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held]
    weights = [node for node in weights if held[node.input[0]].ndim > 1]
    assert activations and weights
    zeros = [held[node.input[2]] for node in activations]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8 if symmetric else np.uint8)}
    assert not symmetric or not any(zero.any() for zero in zeros)
    for node in weights:
        numbers, scale = held[node.input[0]], held[node.input[1]]
        assert numbers.dtype == np.int8 and scale.ndim == 1 and len(scale) in numbers.shape
        assert (np.abs(numbers.astype(int)).max() <= 64) == saturates


@pytest.mark.slow
@pytest.mark.parametrize("saturates", [False, True])
def test_without_calibration_products_alone_are_in_eight_bits(
    saturates: bool, graph: onnx.ModelProto, tmp_path: Path
) -> None:
    """No convolution is: of them onnxruntime makes slow ones; products have a scale for each output."""
    made = precisions.find("int8-dynamic")(given(graph, tmp_path, saturates=saturates))
    kinds = [node.op_type for node in made.graph.node]
    assert "MatMulInteger" in kinds and "ConvInteger" not in kinds
    plain = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") == plain.count("Conv")
    held = constants(made)
    weights = [
        held[node.input[1]] for node in made.graph.node if node.op_type == "MatMulInteger" and node.input[1] in held
    ]
    assert weights and {one.dtype for one in weights} == {np.dtype(np.int8)}
    assert all((np.abs(one.astype(int)).max() <= 64) == saturates for one in weights)
    assert all(held[name].size > 1 for name in held if name.endswith("_scale") and "weight" in name)


@pytest.mark.slow
def test_variants_are_judged_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU makes of half precision is not what a processor makes of it."""
    backbone = students.build(NETWORKS["convolves"], Start(input=SIZE, seed=0))
    model = to_onnx(Student(backbone, 0, bias=False).eval(), (SIZE, SIZE), 20)
    asked = list[str]()

    class Opened:
        def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            found = vectors(model, images)
            return np.where(np.arange(len(found))[:, None] == 3, np.nan, found).astype(np.float32)

    def opened(file: Path, options: TeacherOptions) -> Opened:
        asked.append(options.device)
        return Opened()

    monkeypatch.setattr(variants, "open_teacher", opened)
    pixels = smooth(16, 9)
    plain = vectors(model, pixels)
    sample = Sample(student=None, paths=(), images=pixels, vectors=plain, answers=None)  # type: ignore[arg-type]
    wanted = Wanted(precisions=("fp16",), device="cuda")
    made = variants.make_variant("fp16", model, sample, plain, {}, wanted, tmp_path)
    assert asked == ["cuda"] and made.judged.reason == variants.INFINITE


@pytest.mark.slow
def test_a_stretch_of_layers_in_float32_is_nearer(tmp_path: Path) -> None:
    """The one that onnxruntime's debugging tools find: what is quantised of it is nothing, and vectors come nearer."""
    backbone = students.build(NETWORKS["convolves"], Start(input=SIZE, seed=0))
    graph = to_onnx(Student(backbone, 0, bias=False).eval(), (SIZE, SIZE), 20)
    whole, pixels = given(graph, tmp_path), smooth(16, 9)
    make = precisions.find("int8-static")
    first = make(whole)
    left = quantising.sensitive(whole, first, 0.4)
    layers = [node.name for node in graph.graph.node if node.op_type in quantising.WEIGHTED]
    chosen = [at for at, name in enumerate(layers) if name in left]
    assert len(chosen) == round(0.4 * len(layers)) and chosen == list(range(chosen[0], chosen[-1] + 1))
    mixed = make(given(graph, tmp_path, leave=(*whole.leave, *left)))
    plain = vectors(graph, pixels)
    near = [float((plain * vectors(one, pixels)).sum(axis=1).mean()) for one in (first, mixed)]
    assert near[1] > near[0]


def test_there_must_be_something_to_quantise(tmp_path: Path) -> None:
    """A graph without products is refused by name."""
    node = onnx.helper.make_node("Neg", ["images"], ["embedding"], name="only")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in node.input]
    out = [onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["N", 4])]
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value, out))
    for name in ("int8-static", "int8-dynamic"):
        with pytest.raises(DistillError, match="with weights to quantise"):
            precisions.find(name)(given(graph, tmp_path))


@pytest.mark.parametrize(
    ("gain", "share", "smaller", "ships"),
    [
        ((1.5, 1.2, 1.9), 0.3, None, True),
        ((1.5, 0.99, 1.9), 0.3, None, False),  # not certainly
        ((0.7, 0.6, 0.8), 0.3, None, False),
        ((0.7, 0.6, 0.8), 0.5, 0.6, True),  # small was asked for
        ((0.7, 0.6, 0.8), 0.7, 0.6, False),
    ],
)
def test_a_variant_must_pay(gain: tuple[float, float, float], share: float, smaller: float | None, ships: bool) -> None:
    found = Speedup(value=gain[0], low=gain[1], high=gain[2])
    reason = variants.not_worth(found, share, Wanted(smaller=smaller))
    assert (reason == "") == ships
    assert ships or f"{gain[0]:.2f} times as fast" in reason


def test_a_variant_must_rank_as_float32_does() -> None:
    """By its overlap, and by what it loses of the teacher's; without the teacher's answers by the first alone."""

    def judged(overlap: float, loss: float | None) -> Judged:
        return Judged(
            cosine_min=0.9,
            cosine_mean=0.9,
            overlap=Interval(value=overlap, low=overlap, high=overlap),
            fidelity=None if loss is None else NOTHING,
            loss=None if loss is None else Interval(value=loss, low=loss, high=loss),
            reason="",
        )

    assert variants.worse(judged(0.9, 0.01), Wanted()) == ""
    assert "0.899" in variants.worse(judged(0.899, 0.0), Wanted())
    assert "0.011" in variants.worse(judged(0.99, 0.011), Wanted())
    assert variants.worse(judged(0.99, None), Wanted()) == ""
    assert variants.worse(judged(0.99, 0.011), Wanted(max_drop=0.02)) == ""


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", ["avx2"], True),
        ("AMD64", [], True),
        ("x86_64", ["avx2", "avx512_vnni"], False),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("aarch64", [], False),
    ],
)
def test_which_processors_saturate(
    machine: str, flags: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency.platform, "machine", lambda: machine)
    monkeypatch.setattr(latency, "machine", lambda: {"vector": flags})
    assert latency.saturates() == expected


@pytest.mark.slow
def test_what_fails_a_gate_is_not_shipped(run_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    """Asked for by name it is exit 3; the float32 file ships all the same, and the reason is in the report."""
    words = ["export", str(run_dir), "--bundle", str(tmp_path / "b"), "--seconds", "1", "--json"]
    code, out, err = run(tmp_path, *words, "--precision", "fp32,int8-static", "--min-overlap", "1", "--mixed")
    assert code == 3, err
    plain, variant = json.loads(out)["variants"]
    assert (plain["status"], variant["status"]) == ("accepted", "rejected")
    assert "less than 1" in variant["reason"] and variant["left_in_float"] > 0
    assert [path.name for path in (tmp_path / "b").glob("*.onnx")] == ["student.onnx"]
    assert json.loads((tmp_path / "b" / "report.json").read_text())["variants"][1]["reason"] == variant["reason"]


@pytest.mark.slow
def test_what_is_asked_for_and_passes_ships(run_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    """Half the bytes are welcome though no time is gained; the file says what it is, and runs in deploy.py."""
    words = ["export", str(run_dir), "--bundle", str(tmp_path), "--seconds", "1", "--json", "--min-overlap", "0.3"]
    code, out, err = run(tmp_path, *words, "--precision", "fp16,int8-static", "--smaller", "1", "--max-drop", "1")
    assert code == 0, err
    found = json.loads(out)["variants"]
    assert [one["file"] for one in found] == ["student.onnx", "student.fp16.onnx", "student.int8-static.onnx"]
    for one in found[1:]:
        assert one["status"] == "accepted" and one["faster_than_fp32"]["low"] <= one["faster_than_fp32"]["high"]
        assert one["fidelity"]["value"] == pytest.approx(
            found[0]["fidelity"]["value"] - one["fidelity_loss"]["value"], abs=1e-9
        )
        said = {prop.key: prop.value for prop in onnx.load(tmp_path / one["file"]).metadata_props}
        assert said["distilltool.precision"] == one["precision"] and "distilltool.space_id" in said
    assert found[1]["bytes"] < 0.75 * found[0]["bytes"]
    card = (tmp_path / "card.md").read_text()
    assert all(one["file"] in card and one["sha256"] in card for one in found)
    images = sorted(Path(read_json(run_dir / "run.json")["held_out"][0]).parent.glob("*.jpg"))[:3]
    from distilltool import deploy

    plain, half = (deploy.Student(tmp_path / one["file"]).embed(images) for one in found[:2])
    assert (plain * half).sum(axis=1).min() > 0.99


@pytest.mark.slow
def test_a_variant_that_nobody_named_fails_no_gate(run_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    """`auto` tries 8 bits; whatever comes of it, the export is done."""
    words = ["export", str(run_dir), "--bundle", str(tmp_path), "--seconds", "1", "--min-overlap", "1"]
    code, out, err = run(tmp_path, *words, "--json")
    assert code == 0, err
    found = json.loads(out)["variants"]
    assert [one["precision"] for one in found][:2] == ["fp32", "int8-static"]
    assert not found[1]["asked"] and found[1]["status"] == "rejected"


@pytest.mark.slow
def test_what_cannot_be_made_is_said_and_the_rest_is_made(run_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["export", str(run_dir), "--bundle", str(tmp_path), "--seconds", "1"]
    code, out, err = run(tmp_path, *words, "--precision", "int8-dynamic", "--json")
    assert code == 3, err
    plain, refused = json.loads(out)["variants"]
    assert plain["status"] == "accepted"
    assert refused["status"] == "rejected" and "MatMul or Gemm" in refused["reason"] and refused["latency"] == []
    code, _, err = run(tmp_path, *words, "--precision", "int8-dynamic")
    assert code == 3 and "rejected" in err


def test_an_unknown_precision_is_wrong_usage(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "export", str(tmp_path), "--precision", "int4")
    assert code == 2 and "int8-static" in " ".join(err.split())


@pytest.mark.slow
def test_calibration_streams_images_trained_on(run_dir: Path) -> None:  # noqa: F811
    """A few at a time, none of them held out."""
    manifest = read_json(run_dir / "run.json")
    assert manifest["calibration"] and not set(manifest["calibration"]) & set(manifest["held_out"])
    sizes = [len(batch) for batch in variants.calibration(distilltool.load_student(run_dir), manifest)]
    assert max(sizes) <= variants.CALIBRATED_AT_ONCE and sum(sizes) == len(manifest["calibration"])

"""The whole chain on every device that is at hand beside the processor: what was asked for is what ran, and agrees.

On a machine that has none, pytest says so: nothing here stands in for a device. onnxruntime-gpu, -openvino or -directml
in place of onnxruntime, and a torch built for CUDA, let more of it run.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import devices, onnx_teacher, photo_folder
from servers import environment
from typer.testing import CliRunner

import distilltool
from distilltool import runtime
from distilltool.cli import app
from distilltool.energy import open_meter
from distilltool.measured import ON_DEVICE
from distilltool.runtime import DEVICES
from distilltool.weights import read_weights

HERE = devices()
PRE = ("scale=1/255", "mean=0.5", "std=0.5")
SMALL = {
    "student": "teacher:cut=hidden",
    "preprocess": PRE,
    "changes": ["schedule.epochs=2", "schedule.batch=16", "schedule.evaluations=2"],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and photographs."""
    root = tmp_path_factory.mktemp("devices")
    onnx_teacher(root / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(root / "imgs", 64)
    return root


@pytest.mark.parametrize("device", HERE)
def test_bench(work: Path, device: str) -> None:
    """Copies included, and where onnxruntime can leave arrays on the device, excluded too; nothing left to the CPU is
    counted as the device's."""
    words = [str(work / "teacher.onnx"), "--device", f"cpu,{device}", "--seconds", "3", "--json", "--quiet"]
    found = CliRunner().invoke(app, ["bench", *words])
    assert found.exit_code == 0, found.stderr
    runs = [one for one in json.loads(found.stdout)["runs"] if one["device"] == device]
    assert {one["provider"] for one in runs} == {DEVICES[device]}
    assert {one["copies"] for one in runs} == ({"included", "excluded"} if device in ON_DEVICE else {"none"})
    for one in runs:
        assert one["wholly"] <= (DEVICES["cpu"] not in one["nodes"]) and one["n"] > 0 and one["p50_ms"] > 0


@pytest.mark.parametrize("device", HERE)
def test_answers_and_export(work: Path, device: str) -> None:
    """The teacher is asked there, and what is exported is timed there."""
    asked = distilltool.query(
        work / "teacher.onnx", work / "imgs", store=work / f"{device}.sqlite", preprocess=PRE, device=device
    )
    assert asked.queried == 64
    distilltool.distill(
        work / "teacher.onnx", work / "imgs", out=work / device, store=work / f"{device}.sqlite", device=device, **SMALL
    )
    report = distilltool.export(work / device, device=device, seconds=2, precision=["fp32", "fp16"])
    plain = report.variants[0]
    assert (plain.precision, plain.status) == ("fp32", "accepted")
    assert {one.provider for one in plain.latency} == {DEVICES[device]} and plain.latency[0].speedup is not None
    assert plain.parity["cosine_min"] > 0.999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a torch that sees a CUDA device")
def test_training_on_cuda(work: Path) -> None:
    """Trained there, of use without it."""
    run = work / "trained-on-cuda"
    report = distilltool.distill(work / "teacher.onnx", work / "imgs", out=run, store=work / "cuda.sqlite", **SMALL)
    assert report.steps > 0 and np.isfinite(report.fidelity.overlap_at_10.value)
    assert all(one.device.type == "cpu" for one in read_weights(run / "student.safetensors").values())
    student = distilltool.load_student(run)
    assert next(student.student.parameters()).device.type == "cpu"
    assert np.isfinite(student.embed(np.zeros((2, *student.preprocess.size, 3), np.uint8))).all()


@pytest.mark.skipif(not {"cuda", "tensorrt"} & {*HERE}, reason="needs a GPU that onnxruntime sees")
def test_the_gpu_says_what_energy_it_takes() -> None:
    pytest.importorskip("pynvml")
    meter = open_meter("cuda")
    before = meter.read()
    assert meter.source == "NVML" and before[0] > 0 and meter.since(before) >= 0


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="has what this is to be without")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_build_for_gpus_without_one(work: Path, device: str) -> None:
    """onnxruntime would print to both streams and go on with the processor: one line says what to look at instead."""
    python = environment("gpu", Path(__file__).parent / "runtimes") / "bin/python"
    ours = [str(Path(__file__).parent.parent), *(one for one in sys.path if one)]
    words = ["distilltool", "query", str(work / "teacher.onnx"), str(work / "imgs"), "--device", device, "--json"]
    code = (
        f"import sys; sys.path += {ours!r}; sys.argv = {words!r}\n"
        "import onnxruntime; assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers()\n"
        "from distilltool.cli import main; main()"
    )
    done = subprocess.run([python, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert device in done.stderr and "nvidia-smi" in done.stderr and "or use --device cpu" in done.stderr
    assert "onnxruntime_src" not in done.stderr and sys.prefix not in done.stderr


@pytest.mark.parametrize(("dtype", "quantised"), [("float32", False), ("float16", False), ("float32", True)])
def test_tensorrt_computes_in_what_the_graph_has(dtype: str, quantised: bool) -> None:
    """Half precision where weights have it and 8 bits where there are QDQ pairs, and in neither unasked."""
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), dtype), "w")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    held = [weight, onnx.numpy_helper.from_array(np.array(1, np.float32), "s")]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    if quantised:
        nodes = [onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"])]
    values = (onnx.helper.make_tensor_value_info(name, kind, ["N", 4]) for name in ("x", "y"))
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [next(values)], [next(values)], held))
    wanted = {"trt_fp16_enable": str(int(dtype == "float16")), "trt_int8_enable": str(int(quantised))}
    found = runtime._with_helpers("TensorrtExecutionProvider", 1, model.SerializeToString())
    assert found == [("TensorrtExecutionProvider", wanted), "CUDAExecutionProvider"]

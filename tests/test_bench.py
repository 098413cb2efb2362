"""`bench`: real models in real processes, what is said of them, and how a command ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import onnx_teacher, photo_folder
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import distilltool
from distilltool import bench_text, gate, machine, measured
from distilltool.cli import _json_file, app
from distilltool.errors import DistillError
from distilltool.feeds import Wish, fed_of, feeds_of, open_subject
from distilltool.latency import EARNED
from distilltool.measure import Worker
from distilltool.report import BenchReport, to_json
from distilltool.stored import read_stored

pytestmark = pytest.mark.alone

SECONDS = "2"


def layers(path: Path, count: int, *, batch: str | int = "N", side: str | int = 32) -> Path:
    """Convolutions one after the other: the time of a run grows with their number."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(0, 0.1, (16, 3, 3, 3)).astype(np.float32), "w0")]
    nodes = [helper.make_node("Conv", ["pixels", "w0"], ["t0"], pads=[1] * 4)]
    for at in range(1, count):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.05, (16, 16, 3, 3)).astype(np.float32), f"w{at}"))
        nodes.append(helper.make_node("Conv", [f"t{at - 1}", f"w{at}"], [f"t{at}"], pads=[1] * 4))
    nodes.append(helper.make_node("GlobalAveragePool", [f"t{count - 1}"], ["answer"]))
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [batch, 16, 1, 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quick.onnx, and slow.onnx that does about four times the work."""
    folder = tmp_path_factory.mktemp("models")
    layers(folder / "quick.onnx", 4)
    layers(folder / "slow.onnx", 16)
    return folder


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.fixture(scope="module")
def slower(models: Path) -> dict[str, Any]:
    """The slow model against the quick one, by the command line."""
    found = call(models / "slow.onnx", models / "quick.onnx", "--seconds", SECONDS, "--json", "--quiet")
    assert found.exit_code == 3, found.stderr
    values: dict[str, Any] = json.loads(found.stdout)
    return values


def test_slower_is_3(slower: dict[str, Any], models: Path) -> None:
    assert slower["verdict"] == "slower" and slower["ratio"]["low"] > 1.5
    assert slower["why"] and slower["comparisons"][0]["p"] < 0.002
    assert slower["model"]["path"] == str(models / "slow.onnx")
    assert slower["model"]["opset"] == 17 and len(slower["model"]["sha256"]) == 64


def test_faster_is_0(models: Path) -> None:
    found = call(models / "quick.onnx", models / "slow.onnx", "--seconds", SECONDS)
    assert found.exit_code == 0, found.stderr
    assert "faster: 0." in found.stderr and found.stdout == ""
    assert max(len(line) for line in found.stderr.splitlines() if line[0] in "┏┃┡│└") <= 80


def test_runs_say_what_is_needed_to_judge_them(slower: dict[str, Any]) -> None:
    """Every figure agrees with the raw samples beside it."""
    assert [run["side"] for run in slower["runs"]] == ["model", "baseline"]
    for run in slower["runs"]:
        ms = np.concatenate([np.array(block) for block in run["blocks_ms"]])
        assert len(run["blocks_ms"]) >= 16 and min(map(len, run["blocks_ms"])) >= 2
        assert (run["n"], run["min_ms"]) == (len(ms), pytest.approx(ms.min()))
        assert run["p50_ms"] == pytest.approx(np.median(ms), rel=1e-4)
        assert run["mad_ms"] == pytest.approx(np.median(np.abs(ms - np.median(ms))), rel=1e-2, abs=1e-5)
        assert run["throughput"] == pytest.approx(1000 / run["p50_ms"])
        for name, percentile in (("p90_ms", 90), ("p95_ms", 95), ("p99_ms", 99)):
            wanted = np.percentile(ms, percentile) if len(ms) >= EARNED[percentile] else None
            assert run[name] == (None if wanted is None else pytest.approx(wanted, rel=1e-4))
        assert (run["provider"], run["elsewhere"], run["copies"]) == ("CPUExecutionProvider", 0, "none")
        assert run["shapes"] == {"pixels": [1, 3, 32, 32]}
        assert run["load_ms"] > 0 and run["first_ms"] > 0 and run["warm_up"]["runs"] >= 5
        assert 0 < run["memory_bytes"] < run["peak_bytes"]
    speedup, ratio = slower["runs"][0]["speedup"], slower["ratio"]
    assert speedup["value"] == pytest.approx(1 / ratio["value"]) and slower["runs"][1]["speedup"] is None
    here = slower["machine"]
    assert here["affinity"] and here["flags"] and here["processors"] and len(here["load_after"]) == 3
    assert {"quota", "governor", "onnxruntime", "numpy", "distilltool", "python", "cpu", "kernel"} <= set(here)


@pytest.fixture(scope="module")
def alone(models: Path) -> BenchReport:
    """The quick model by itself at two batch sizes; `alone.json` is its report."""
    return distilltool.bench(models / "quick.onnx", batches=[1, 2], seconds=1, out=models / "alone.json")


def test_alone_says_how_noisy(alone: BenchReport) -> None:
    assert [(run.batch, run.side) for run in alone.runs] == [(1, "model"), (2, "model")]
    assert alone.verdict is None and alone.ratio is None and alone.comparisons == ()
    assert all(run.noise is not None and run.noise.low <= run.noise.value <= run.noise.high for run in alone.runs)
    assert alone.runs[1].shapes == {"pixels": (2, 3, 32, 32)}


def test_files_for_ci(models: Path, tmp_path: Path) -> None:
    """`--json FILE` holds all of it, Markdown is appended, the report is the next one's baseline."""
    out, summary = tmp_path / "deep" / "out.json", tmp_path / "summary.md"
    summary.write_text("before\n")
    common = ("--seconds", "1", "--quiet")
    found = call(models / "quick.onnx", "--json", out, "--markdown", summary, *common, "--gate", "p50<1s")
    assert (found.exit_code, found.stdout) == (0, ""), found.stderr
    stored = json.loads(out.read_text())
    assert stored["gates"][0]["outcome"] == "holds"
    said = summary.read_text()
    assert said.startswith("before\n") and "| quick.onnx | cpu:1 | 1 |" in said and "**holds**" in said
    found = call(models / "slow.onnx", "--baseline", out, *common, "--gate", "p50<1.5x", "--gate", "p50<99x", "--json")
    values = json.loads(found.stdout)
    assert found.exit_code == 3 and [one["outcome"] for one in values["gates"]] == ["fails", "holds"]
    assert values["verdict"] == "slower" and values["baseline"]["sha256"] == stored["model"]["sha256"]
    assert values["baseline_report"] == str(out)
    gate, runs = values["gates"][0], (values["runs"][0], stored["runs"][0])
    assert gate["value"]["value"] == values["ratio"]["value"] and gate["medians"] == values["comparisons"][0]["medians"]
    assert gate["medians"]["value"] == pytest.approx(runs[0]["p50_ms"] / runs[1]["p50_ms"], rel=1e-3)
    assert (
        gate["why"].startswith(f"by mean times {gate['value']['value']:.3f} (") and "by medians, not j" in gate["why"]
    )


def test_a_report_of_another_machine_decides_nothing(alone: BenchReport, models: Path, tmp_path: Path) -> None:
    values = json.loads((models / "alone.json").read_text())
    values["machine"]["cpu"] = "another processor"
    (tmp_path / "there.json").write_text(json.dumps(values))
    found = call(models / "slow.onnx", tmp_path / "there.json", "--seconds", "1", "--gate", "p50<1.1x")
    assert found.exit_code == 4 and "another machine" in found.stderr
    assert "inconclusive" in found.stderr and "another processor" in found.stderr


def test_a_report_without_this_way_of_running_is_refused(alone: BenchReport, models: Path) -> None:
    found = call(models / "slow.onnx", models / "alone.json", "--batch", "5")
    assert found.exit_code == 1 and "--batch 1; --device cpu --threads 1 --batch 2" in found.stderr


@pytest.fixture(scope="module")
def large(models: Path) -> Path:
    """A report of a model of any size, fed 96×96; the same with more layers is `any16.onnx`."""
    layers(models / "any16.onnx", 16, side="S")
    layers(models / "any.onnx", 4, side="S")
    words = ("--shape", "pixels=Nx3x96x96", "--seconds", "1", "--json", models / "large.json", "--quiet")
    assert call(models / "any.onnx", *words).exit_code == 0
    return models / "large.json"


@pytest.mark.parametrize(
    ("name", "words", "here"),
    [
        ("any.onnx", ["--shape", "pixels=Nx3x64x64"], "pixels 1×3×64×64 float32 (drawn)"),
        ("any16.onnx", ["--shape", "pixels=Nx3x64x64"], "pixels 1×3×64×64 float32 (drawn)"),
        ("any.onnx", [], "pixels 1×3×224×224 float32 (drawn)"),
        ("any.onnx", ["--input", "pixels=0.5", "--shape", "pixels=Nx3x96x96"], "(--input pixels=0.5)"),
        ("any.onnx", ["--images", "imgs", "--preprocess", "unit", "--preprocess", "size=96"], "(images)"),
    ],
)
def test_a_report_of_what_was_fed_otherwise_is_refused(
    large: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], here: str
) -> None:
    """Smaller images are no faster model: one line says both, whatever the gate."""
    monkeypatch.chdir(large.parent)
    if "--images" in words:
        photo_folder(Path("imgs"), 3)
    found = call(name, "--baseline", large, *words, "--seconds", "1", "--gate", "p50<1.1x")
    assert found.exit_code == 1, found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "pixels 1×3×96×96 float32 (drawn)" in lines[0] and here in lines[0]


def test_a_report_of_the_same_feeds_is_compared(large: Path) -> None:
    """A file of the same inputs, fed the same; one whose inputs are its own is compared too, and that is said."""
    words = ("--baseline", large, "--seconds", "1", "--json")
    found = call(large.parent / "any16.onnx", *words, "--shape", "pixels=Nx3x96x96")
    assert json.loads(found.stdout)["verdict"] == "slower" and "different work" not in found.stderr
    found = call(large.parent / "quick.onnx", *words)
    assert json.loads(found.stdout)["verdict"] == "faster"
    assert "pixels 1×3×96×96 float32 (drawn), this would be of pixels 1×3×32×32 float32 (drawn)" in " ".join(
        found.stderr.split()
    )


def test_a_report_says_what_was_fed(large: Path) -> None:
    values = json.loads(large.read_text())
    fed = {"name": "pixels", "shape": [1, 3, 96, 96], "dtype": "float32", "source": "drawn", "said": ""}
    assert values["runs"][0]["fed"] == [fed] and values["model"]["inputs"] == ["pixels N×3×S×S float32"]
    assert values["settings"] == {
        "shapes": ["pixels=Nx3x96x96"],
        "inputs": [],
        "preprocess": [],
        "images": 0,
        "seconds": 1,
    }


def test_a_report_that_does_not_say_what_was_fed_is_refused(large: Path, tmp_path: Path) -> None:
    values = json.loads(large.read_text())
    del values["settings"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    found = call(large.parent / "any.onnx", "--baseline", tmp_path / "old.json")
    assert found.exit_code == 1 and "does not say what was fed" in found.stderr


def test_other_images_are_warned_of(models: Path, tmp_path: Path) -> None:
    """Of one shape, so that most models take as long; a warning alone."""
    subject, folders = open_subject(models / "quick.onnx"), [tmp_path / "these", tmp_path / "those"]
    for seed, folder in enumerate(folders):
        photo_folder(folder, 2, seed=seed)
    out = tmp_path / "r.json"
    report = distilltool.bench(subject.path, images_dir=folders[0], preprocess=["unit"], seconds=1, out=out)
    wishes = [Wish(preprocess=("unit",), photos=tuple(sorted(folder.iterdir()))) for folder in folders]
    said = [
        read_stored(out).check_fed(report.model, fed_of(subject, feeds_of(subject, 1, one), one), report.settings, 1)
        for one in wishes
    ]
    assert said == ["", f"{out} was fed other images"]


def test_the_action_reads_its_own_format(alone: BenchReport) -> None:
    """https://github.com/benchmark-action/github-action-benchmark: a list of {name, unit, value, range, extra}."""
    found = json.loads(json.dumps(to_json(bench_text.action(alone))))
    assert [set(one) for one in found] == [{"name", "unit", "value", "range", "extra"}] * 2
    assert found[0]["unit"] == "ms" and found[0]["value"] > 0 and len({one["name"] for one in found}) == 2


def test_gates(models: Path, tmp_path: Path) -> None:
    """Milliseconds need no baseline; a percentile that is not earned is not judged; one that fails counts most."""
    quick, out = models / "quick.onnx", tmp_path / "o.json"
    words = ("--seconds", "1", "--batch", "64", "--gate", "p99<10s")
    found = call(quick, *words, "--out", out, "--format", "github-action-benchmark")
    assert found.exit_code == 4 and "more runs than" in found.stderr
    assert json.loads(out.read_text())[0]["unit"] == "ms"
    assert call(quick, *words, "--gate", "p50<1us").exit_code == 3
    assert call(quick, "--gate", "p50<1.1x").exit_code == 2
    assert call(quick, "--gate", "p50").exit_code == 2


def test_one_run_writes_for_the_action_and_for_the_next_run(models: Path, tmp_path: Path) -> None:
    """The file for the action holds its list alone, which is no baseline."""
    listed, whole = tmp_path / "list.json", tmp_path / "main.json"
    words = ("--seconds", "1", "--out", listed, "--format", "github-action-benchmark", "--json", whole)
    found = call(models / "quick.onnx", *words)
    assert (found.exit_code, found.stdout) == (0, ""), found.stderr
    assert json.loads(listed.read_text())[0]["value"] == json.loads(whole.read_text())["runs"][0]["p50_ms"]
    assert len(read_stored(whole).runs) == 1
    with pytest.raises(DistillError, match="is no report of bench"):
        read_stored(listed)


def test_gates_are_read() -> None:
    parsed = gate.parse(" p50 <= 1.10x ")
    assert (parsed.percentile, parsed.limit, parsed.share) == (50, 1.1, True)
    assert gate.parse("p99<5us").limit == pytest.approx(0.005) and gate.parse("p90<2s").limit == 2000
    for text in ("p50<0x", "p90<1.1x", "p80<1ms", "p50>1ms", "flops<1x", "p50<5", ""):
        with pytest.raises(DistillError, match="p50<1.10x"):
            gate.parse(text)
    assert gate.outcome(parsed, 1.0, 1.09) == "holds"
    assert gate.outcome(parsed, 1.0, 1.2) == "inconclusive"
    assert gate.outcome(parsed, 1.11, 1.2) == "fails"


def test_json_takes_a_file_or_nothing() -> None:
    assert _json_file(["m.onnx", "--json", "out.json"]) == ["m.onnx", "--report", "out.json"]
    assert _json_file(["--json=out", "m.onnx"]) == ["--report", "out", "m.onnx"]
    assert _json_file(["--json", "m.onnx", "b.json"]) == ["--json", "m.onnx", "b.json"]
    assert _json_file(["m.onnx", "--json", "--quiet"]) == ["m.onnx", "--json", "--quiet"]


def test_real_images(models: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "imgs", 3)
    found = call(
        models / "quick.onnx", "--images", tmp_path / "imgs", "--preprocess", "unit", "--seconds", "1", "--json"
    )
    assert json.loads(found.stdout)["inputs"] == "3 images"
    found = call(models / "quick.onnx", "--images", tmp_path / "nowhere", "--preprocess", "unit")
    assert found.exit_code == 1 and "nowhere" in found.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.onnx"], 1, "there is no file"),
        (["text.onnx"], 1, "is no ONNX model"),
        (["quick.onnx", "nowhere.onnx"], 1, "there is no file"),
        (["quick.onnx", "nowhere.json"], 1, "cannot be read"),
        (["quick.onnx", "text.json"], 1, "is no report of bench"),
        (["quick.onnx", "--device", "cpu,abacus"], 1, "there is no device 'abacus'"),
        (["quick.onnx", "--device", "openvino"], 1, "onnxruntime-openvino"),
        (["quick.onnx", "--device", "cuda"], 1, "onnxruntime-gpu"),
        (["fixed.onnx", "--batch", "1,3"], 1, "takes batches of 3 alone, not of 1"),
        (["fixed.onnx", "fixed2.onnx"], 1, "takes batches of 3 alone, the baseline of 2"),
        (["quick.onnx", "quick.onnx", "--baseline", "quick.onnx"], 2, "named twice"),
        (["quick.onnx", "--batch", "0"], 2, "no list of whole numbers"),
        (["quick.onnx", "--format", "xml"], 2, "there is no format"),
        (["quick.onnx", "--out", "."], 1, "cannot be written"),
        (["quick.onnx", "--json", "nowhere/../text.onnx/o.json"], 1, "cannot be written"),
        (["quick.onnx", "--json", "o.json", "--format", "github-action-benchmark"], 2, "name its file with --out"),
        (["quick.onnx", "--json", "o.json", "--out", "./o.json"], 2, "written twice"),
    ],
)
def test_one_line_says_what_is_wrong(
    models: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(models)
    (models / "text.onnx").write_text("this is no model")
    (models / "text.json").write_text('{"runs": 3}')
    layers(models / "fixed.onnx", 2, batch=3)
    layers(models / "fixed2.onnx", 2, batch=2)
    found = call(*words, "--seconds", "1")
    assert found.exit_code == code, found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and said in lines[0]


def test_a_model_that_breaks_its_inputs_is_one_line(tmp_path: Path) -> None:
    """An integer beyond a table that no walk of the graph finds: the model's own failure."""
    nodes = [
        helper.make_node("Add", ["ids", "far"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "far",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N"])],
        [
            numpy_helper.from_array(np.ones(3, np.float32), "table"),
            numpy_helper.from_array(np.array([99], np.int64), "far"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "far.onnx"
    )
    found = call(tmp_path / "far.onnx")
    assert found.exit_code == 1 and found.stderr.count("error:") == 1 and "far.onnx" in found.stderr


def test_a_worker_that_dies_is_one_line(models: Path) -> None:
    subject = open_subject(models / "quick.onnx")
    worker = Worker(subject, "cpu", 1, feeds_of(subject, 1, Wish()), 1)
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(DistillError, match=r"quick\.onnx crashed in its child process \(signal 11\)"):
        worker.block(0.1, "included")
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(models: Path, number: int) -> None:
    """Ctrl-C ends with 130, a kill at once; in either case no worker stays."""
    words = ["-m", "distilltool", "bench", "quick.onnx", "slow.onnx", "--seconds", "60"]
    process = subprocess.Popen([sys.executable, *words], cwd=models, stderr=subprocess.PIPE, text=True)
    started = list[int]()
    deadline = time.monotonic() + 60
    while len(started) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        started = children(process.pid)
    assert len(started) == 3
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9), said
    assert number == signal.SIGKILL or "nothing was written" in said
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in started if Path(f"/proc/{pid}/cmdline").exists()] == []


def test_bound_arrays_give_the_same_answer(models: Path) -> None:
    """Binding as it is done on a GPU, on the CPU's memory: it runs, again and again, on what was fed."""
    subject = open_subject(models / "quick.onnx")
    feeds = feeds_of(subject, 2, Wish())
    session = ort.InferenceSession(subject.path, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    run = measured.bound(session, feeds, "cpu", binding)
    for _ in range(3):
        run()
    assert np.allclose(binding.copy_outputs_to_cpu()[0], session.run(None, feeds)[0])


GROWS = """
import mmap
from distilltool import memory

def grown(before):
    return memory.in_use("VmHWM") - before >> 20

memory.forget_peak()
before = memory.in_use("VmHWM")
with mmap.mmap(-1, 64 << 20) as taken:
    for at in range(0, len(taken), mmap.PAGESIZE):
        taken[at] = 1
    print(grown(before))
print(grown(before))
memory.forget_peak()
print(grown(before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_memory_grows_with_what_is_taken() -> None:
    """In a process of its own, as it is measured: one that has run for long holds memory that it may use again."""
    done = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True)
    within, after, forgotten = map(int, done.stdout.split())
    assert 60 <= within <= 72 and 60 <= after <= 72 and forgotten < 8


def test_linked_weights_are_timed(tmp_path: Path) -> None:
    """The files of a hub's cache, whose weights are links."""
    onnx_teacher(tmp_path / "blobs" / "m.onnx", external=True)
    (tmp_path / "hub").mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "hub" / name).symlink_to(tmp_path / "blobs" / name)
    assert distilltool.bench(tmp_path / "hub" / "m.onnx", seconds=1).runs[0].n >= 32


@pytest.mark.skipif(Path("/sys/class/powercap").exists(), reason="this machine may count energy")
def test_energy_that_nobody_counts(models: Path) -> None:
    """It is said, and the times come all the same."""
    report = distilltool.bench(models / "quick.onnx", seconds=1, energy=True)
    assert report.runs[0].joules is None and report.energy is not None and "no RAPL" in report.energy


def test_machines_are_told_apart() -> None:
    here = machine.facts()
    assert machine.differences(here, json.loads(json.dumps(to_json(here)))) == []
    assert machine.differences(here, {**here, "cpu": "x", "load": [9, 9, 9]}) == [
        f"processor: x there, {here['cpu']} here"
    ]
    pinned = {**here, "affinity": [0, 1, 2, 3, 8], "quota": None, "onnxruntime": "1.22.0"}
    free = {**here, "affinity": list(range(64)), "quota": 1.5, "onnxruntime": "1.23.0"}
    assert machine.differences(free, pinned) == [
        "processors it may use: 0-3 8 there, 0-63 here",
        "processors' worth of time it may use: unlimited or unknown there, 1.5 here",
        "onnxruntime: 1.22.0 there, 1.23.0 here",
    ]


def test_names_of_others_do_not_break_the_table(models: Path, tmp_path: Path) -> None:
    """A file's name is text, in a terminal and in Markdown."""
    odd = tmp_path / "a|b[red]\x1b[31m.onnx"
    odd.write_bytes((models / "quick.onnx").read_bytes())
    report = distilltool.bench(odd, seconds=1, markdown=tmp_path / "s.md", out=tmp_path / "o.json")
    assert isinstance(report, BenchReport) and bench_text.conclusion(report) == ""
    assert "a\\|b\\[red\\]" in (tmp_path / "s.md").read_text() and "\x1b" not in (tmp_path / "s.md").read_text()
    assert read_stored(tmp_path / "o.json").model.path == str(odd)

"""What is said of a report of `bench`, without one being made: the table fits, nothing in it is cut."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from distilltool import bench_text, show
from distilltool.report import BenchComparison, BenchFile, BenchReport, BenchRun, Interval

NAMES = {"model": "student.int8-static.calibrated.onnx", "baseline": "a-rather-long-name-of-a-teacher.float32.onnx"}
EVEN = Interval(value=1.0, low=0.99, high=1.01)
EIGHTH = Interval(value=0.123, low=0.12, high=0.126)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def made(device: str, *, ratio: Interval = EIGHTH, batch: int = 128) -> BenchReport:
    """A model beside a baseline, with and without copies where the device has both."""
    ways = ("included", "excluded") if device in ("cuda", "tensorrt") else ("none",)
    files = [
        BenchFile(path=f"some/folder/{name}", sha256="0" * 64, bytes=1, opset=17, ir_version=9, inputs=())
        for name in NAMES.values()
    ]
    comparisons = [
        BenchComparison(
            device=device,
            threads=16,
            batch=batch,
            copies=copies,
            ratio=ratio,
            medians=ratio,
            noise=EVEN,
            widened=ratio,
            p=0.0,
            verdict="faster",
            why="because",
        )
        for copies in ways
    ]
    return BenchReport(
        model=files[0],
        baseline=files[1],
        baseline_report=None,
        runs=tuple(run(device, copies, side, batch) for copies in ways for side in NAMES),
        comparisons=tuple(comparisons),
        gates=(),
        ratio=ratio,
        verdict="faster",
        why="because",
        tolerance=0.05,
        inputs="",
        settings={},
        energy=None,
        machine={},
        created="",
        seconds=1.0,
    )


def run(device: str, copies: str, side: str, batch: int) -> BenchRun:
    return BenchRun(
        model=NAMES[side],
        side=side,
        device=device,
        provider=PROVIDERS.get(device, f"{device}ExecutionProvider"),
        threads=16,
        batch=batch,
        copies=copies,
        elsewhere=0.0,
        nodes={},
        wholly=True,
        shapes={},
        fed=(),
        n=100,
        min_ms=1.0,
        p50_ms=12345.6 if side == "baseline" else 12.34,
        p90_ms=23456.7,
        p95_ms=None,
        p99_ms=None,
        mad_ms=0.1,
        throughput=1234567.8,
        speedup=None,
        warm_up={"seconds": 0.5, "runs": 9},
        load_ms=10.0,
        first_ms=10.0,
        memory_bytes=1,
        peak_bytes=2,
        joules=None,
        noise=EVEN,
        blocks_ms=((1.0,),),
    )


def shown(report: BenchReport, width: int) -> str:
    """What a terminal that wide is sent."""
    one, text = show.Show(json=False, quiet=False), io.StringIO()
    one._console = Console(width=width, file=text, force_terminal=True, color_system=None)
    one.result(report)
    return text.getvalue()


@pytest.mark.parametrize("device", ["cpu", "cuda", "tensorrt", "openvino"])
@pytest.mark.parametrize("ratio", [0.0123, 0.123, 1.2, 12.3, 123.4])
def test_the_table_is_whole_at_80_columns(device: str, ratio: float) -> None:
    report = made(device, ratio=Interval(value=ratio, low=ratio * 0.98, high=ratio * 1.02))
    text = shown(report, 80)
    table = [line for line in text.splitlines() if line and line[0] in "┏┃┡│└"]
    assert table and max(map(len, table)) <= 80
    for name in NAMES.values():
        assert name in text
    for row in bench_text.lettered(report):
        for cell in (row[0], *row[2:], *row[1].split()):
            assert any(cell in line for line in table), cell
    assert f"A: {NAMES['model']}\nB: {NAMES['baseline']} (baseline)\n" in text


def test_a_narrow_terminal_cuts_nothing() -> None:
    """The terminal itself breaks the lines."""
    text = shown(made("tensorrt"), 50)
    assert "0.123 (0.120 to 0.126)" in text and "12,346" in text and NAMES["baseline"] in text


def test_files_of_one_name_are_told_apart() -> None:
    report = made("cpu")
    assert report.baseline is not None
    report = replace(
        report,
        model=replace(report.model, path="new/m.onnx"),
        baseline=replace(report.baseline, path="old/m.onnx"),
        runs=tuple(replace(one, model="m.onnx") for one in report.runs),
    )
    assert bench_text.names(report) == ["A: new/m.onnx", "B: old/m.onnx (baseline)"]
    assert [row[0] for row in bench_text.rows(report)] == ["new/m.onnx", "old/m.onnx (baseline)"]


def test_a_stored_baseline_is_named() -> None:
    report = replace(made("cpu"), baseline_report="main.json")
    report = replace(report, runs=report.runs[:1])
    assert bench_text.names(report) == [f"A: {NAMES['model']}", f"baseline: {NAMES['baseline']}, from main.json"]


def test_what_ran_elsewhere_is_said() -> None:
    """In the lines below the table and in Markdown: the share, or that nobody knows it; else nothing."""
    report = made("cuda")
    nodes = {"CUDAExecutionProvider": 88, "CPUExecutionProvider": 12}
    ran = [
        replace(report.runs[0], elsewhere=0.12, nodes=nodes, wholly=False),
        replace(report.runs[1], elsewhere=None, wholly=False),
        replace(report.runs[2], elsewhere=None, wholly=True),
        report.runs[3],
    ]
    report = replace(report, runs=tuple(ran))
    lines = bench_text.details(report)
    assert "12 % of its nodes ran elsewhere (CPUExecutionProvider 12)" in lines[0]
    assert "onnxruntime does not say which" in lines[1]
    assert not any("elsewhere" in line for line in lines[2:])
    for said in (bench_text.markdown(report), shown(report, 200)):
        assert "12 % of its nodes ran elsewhere" in said and "onnxruntime does not say which" in said
    assert bench_text.elsewhere("X", {"X": 0, "Y": 9}, 1.0, wholly=False).startswith("100 % of")
    assert bench_text.elsewhere("X", {"X": 999, "Y": 1}, 0.001, wholly=False).startswith("0.1 % of")
    assert lines[0].startswith(f"{NAMES['model']} (cuda:16 +copies, batch 128): CUDAExecutionProvider")

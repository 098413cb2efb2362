"""What others rely on, frozen: commands, flags, JSON fields, exit codes, what is stamped on a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import class_folders, onnx_teacher, photo_folder
from typer.main import get_command
from typer.testing import CliRunner

import distilltool
from distilltool.cli import app
from distilltool.errors import Exit

MODEL_FLAGS = {"--preprocess", "--output", "--pool", "--input", "--device", "--isolate"}
TEACHER_FLAGS = MODEL_FLAGS | {"--batch"}
TERMS = {"--max-cost", "--price-per-query", "--ambiguous", "--timeout"}
BLACK_BOX = TERMS | {"--import", "--teacher-url"}
COMMON = {"--json", "--quiet", "-q"}
FLAGS = {
    "query": TEACHER_FLAGS | COMMON | BLACK_BOX | {"--store", "--budget", "--plan", "--select"},
    "distill": TEACHER_FLAGS
    | COMMON
    | BLACK_BOX
    | {
        "--out",
        "--recipe",
        "--student",
        "--weights",
        "--fetch",
        "--dim",
        "--dims",
        "--target",
        "--pareto",
        "--space",
        "--time-budget",
        "--set",
        "--seed",
        "--restart",
        "--log",
        "--budget",
        "--store",
        "--select",
    },
    "eval": TEACHER_FLAGS
    | COMMON
    | TERMS
    | {"--data", "--teacher", "--protocol", "--store", "--gate"}
    | {"--html", "--csv", "--markdown", "--vectors", "--log", "--binary", "--index", "--drift"}
    | {"--scales", "--flip", "--combine", "--whiten", "--whiten-dim"},
    "export": COMMON
    | {"--bundle", "--teacher", "--opset", "--threads", "--seconds", "--isolate"}
    | {"--precision", "--min-overlap", "--max-drop", "--smaller", "--mixed", "--device", "--vectors", "--image"},
    "verify": COMMON,
    "bench": COMMON
    | {
        "--preprocess",
        "--input",
        "--baseline",
        "--batch",
        "--threads",
        "--device",
        "--seconds",
        "--tolerance",
        "--gate",
        "--images",
        "--shape",
        "--energy",
        "--out",
        "--report",
        "--format",
        "--markdown",
    },
    "inspect": MODEL_FLAGS | COMMON | {"--tensors", "--guess-preprocess"},
    "recipes": COMMON,
    "ledger show": COMMON | {"--store"},
    "ledger verify": COMMON | {"--store", "--images"},
    "ledger export": COMMON | {"--store", "--images", "--teacher", "--number"},
}
LEDGER_TEACHER = {
    "number",
    "sha256",
    "name",
    "output",
    "pool",
    "preprocess",
    "source",
    "dim",
    "done",
    "failed",
    "claimed",
    "asked",
    "spent",
    "budget",
    "first",
    "last",
    "bytes",
}
LEDGER_VERIFY = {
    "store",
    "teachers",
    "done",
    "failed",
    "claimed",
    "abandoned",
    "faults",
    "coverage",
    "seconds",
}
TEACHER = {"sha256", "dim", "output", "preprocess"}
INTERVAL = {"value", "low", "high"}
QUERY = {
    "store",
    "teacher",
    "images",
    "files",
    "duplicates",
    "near_duplicates",
    "queried",
    "cached",
    "pending",
    "spent",
    "budget",
    "skipped",
    "seconds",
    "plan",
    "imported",
    "unmatched",
    "ambiguous",
    "cost",
}
DISTILL = {
    "run",
    "recipe",
    "student",
    "queries",
    "images",
    "steps",
    "best_step",
    "start_share",
    "soup",
    "seconds",
    "k",
    "fidelity",
    "undistilled",
    "verdict",
    "seed",
    "nested",
    "seen",
    "gain",
    "to_teacher",
}
INSPECT = {
    "path",
    "sha256",
    "bytes",
    "external",
    "kind",
    "opset",
    "ir_version",
    "domains",
    "inputs",
    "outputs",
    "tensors",
    "embedding",
    "why",
    "pool",
    "dim",
    "preprocess",
    "description",
    "params",
    "flops",
    "size",
    "provider",
    "ms_per_image",
    "images",
    "skipped",
    "problem",
    "warnings",
    "guess",
}
TENSOR = {"name", "shape", "dtype", "role", "why", "layout", "dynamic"}
EVAL = {"data", "queries", "gallery", "protocol", "models", "skipped", "teacher_queries", "conventions", "seconds"} | {
    "gates",
    "differences",
    "worst",
    "classes",
    "verdict",
    "views",
    "whitening",
}
VIEWS = {"scales", "flip", "combine", "power", "count"}
MODEL = {"name", "dim", "space", "metrics", "fidelity", "retention", "asymmetric", "reverse", "nested"} | {
    "binary",
    "indexes",
    "drift",
}
INDEX = {"index", "k", "queries", "gallery", "settings", "build_seconds", "bytes", "points", "reason"}
POINT = {"settings", "recall", "metrics", "n", "p50_ms", "p90_ms", "p95_ms", "batch", "threads", "qps"}
DRIFT = {"trained", "held_out", "queries", "seen", "span", "nearest", "near", "far", "farthest", "unlike", "fails"} | {
    "ask",
    "verdict",
}
DISTANCE = {"limit", "median", "held_out_median", "beyond", "correlation", "adjusted", "groups"}
METRICS = {"map", "map@r", "recall@1", "recall@5", "recall@10"}
EXPORT = {"bundle", "variants", "teacher", "machine", "evaluations", "sources", "seconds"}
VARIANT = {"precision", "file", "bytes", "sha256", "opset", "status", "reason", "parity", "overlap@10", "latency"} | {
    "fidelity",
    "fidelity_loss",
    "faster_than_fp32",
    "left_in_float",
    "asked",
    "image",
}
LATENCY = {
    "device",
    "provider",
    "threads",
    "batch",
    "n",
    "min_ms",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "throughput",
    "speedup",
}
BENCH = {
    "model",
    "baseline",
    "baseline_report",
    "runs",
    "comparisons",
    "gates",
    "ratio",
    "verdict",
    "why",
    "tolerance",
    "inputs",
    "settings",
    "energy",
    "machine",
    "created",
    "seconds",
}
BENCH_WAY = {"device", "threads", "batch", "copies"}
BENCH_RUN = (
    LATENCY
    | BENCH_WAY
    | {
        "model",
        "side",
        "elsewhere",
        "nodes",
        "wholly",
        "shapes",
        "fed",
        "mad_ms",
        "warm_up",
        "load_ms",
        "first_ms",
        "memory_bytes",
        "peak_bytes",
        "joules",
        "noise",
        "blocks_ms",
    }
)


def test_commands_and_flags() -> None:
    found = {
        name: {flag for one in command.params for flag in one.opts if flag.startswith("-")} - {"--help", "-h"}
        for name, command in commands(get_command(app))
    }
    assert found == FLAGS


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def test_exit_codes() -> None:
    assert {one.name: int(one) for one in Exit} == {
        "DONE": 0,
        "FIX": 1,
        "USAGE": 2,
        "GATE": 3,
        "NOISY": 4,
        "INTERRUPTED": 130,
    }


def test_python_functions() -> None:
    for name in ("inspect", "query", "distill", "evaluate", "export", "bench", "load_student", "DistillError"):
        assert callable(getattr(distilltool, name))
    assert (Path(distilltool.__file__).parent / "py.typed").exists()


def test_wrong_usage_is_2() -> None:
    assert CliRunner().invoke(app, ["query"]).exit_code == Exit.USAGE
    assert CliRunner().invoke(app, ["query", "--nope"]).exit_code == Exit.USAGE


def call(*words: object) -> dict[str, Any]:
    """Run a command with --json: exactly one JSON object on stdout."""
    result = CliRunner().invoke(app, [*map(str, words), "--json", "--quiet"])
    assert result.exit_code == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_json_fields_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 4)
    call("query", "t.onnx", "imgs", "--preprocess", "scale=1/255")
    found = call("ledger", "show")
    assert set(found) == {"store", "version", "bytes", "teachers", "guesses"}
    assert set(found["teachers"][0]) == LEDGER_TEACHER
    found = call("ledger", "verify", "--images", "imgs")
    assert set(found) == LEDGER_VERIFY
    assert set(found["coverage"][0]) == {"sha256", "output", "known", "unanswered", "orphans"}
    found = call("ledger", "export", "answers.parquet")
    assert set(found) == {"store", "file", "format", "teachers", "rows", "bytes", "seconds"}


def test_json_fields_of_inspect(tmp_path: Path) -> None:
    path = onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 8)
    found = call("inspect", path, tmp_path / "imgs", "--tensors", "--preprocess", "imagenet", "--preprocess", "size=32")
    assert set(found) == INSPECT
    for one in (*found["inputs"], *found["outputs"], *found["tensors"]):
        assert set(one) == TENSOR
    assert found["images"] == 8 and found["preprocess"]["source"].startswith("flag")


def test_json_fields_of_bench(tmp_path: Path) -> None:
    path = onnx_teacher(tmp_path / "t.onnx")
    words = ["bench", path, path, "--json", "--quiet", "--seconds", "1", "--gate", "p50<9x"]
    found = json.loads(CliRunner().invoke(app, [*map(str, words)]).stdout)
    assert set(found) == BENCH
    file = {"path", "sha256", "bytes", "opset", "ir_version", "inputs"}
    assert set(found["model"]) == set(found["baseline"]) == file
    assert set(found["runs"][0]["fed"][0]) == {"name", "shape", "dtype", "source", "said"}
    assert set(found["settings"]) == {"shapes", "inputs", "preprocess", "images", "seconds"}
    assert [set(run) for run in found["runs"]] == [BENCH_RUN] * 2
    assert set(found["ratio"]) == set(found["runs"][0]["speedup"]) == set(found["runs"][0]["noise"]) == INTERVAL
    assert set(found["comparisons"][0]) == BENCH_WAY | {
        "ratio",
        "medians",
        "noise",
        "widened",
        "p",
        "verdict",
        "why",
    }
    assert set(found["gates"][0]) == BENCH_WAY | {"gate", "value", "medians", "outcome", "why"}
    assert found["verdict"] in ("faster", "slower", "same", "inconclusive")


@pytest.mark.slow
def test_json_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 40)
    class_folders(tmp_path / "labelled", classes=3, each=4)
    pre = ["--preprocess", "scale=1/255", "--preprocess", "mean=0.5", "--preprocess", "std=0.5"]
    found = call("query", "t.onnx", "imgs", "--plan", *pre)
    assert set(found) == QUERY and set(found["teacher"]) == TEACHER
    assert set(found["plan"]) == {"queries", "seconds", "memory_bytes", "disk_bytes", "probed", "cost"}
    assert found["teacher"]["preprocess"]["source"].startswith("flag")
    found = call(
        "distill",
        "t.onnx",
        "imgs",
        *pre,
        "--student",
        "timm:test_efficientnet",
        "--input",
        "32",
        "--set",
        "schedule.epochs=1",
        "--recipe",
        "regression",
        "--out",
        "run",
    )
    assert set(found) == DISTILL
    assert set(found["student"]) == {"spec", "params", "dim", "input", "space", "start"}
    assert set(found["queries"]) == {"new", "cached", "spent"}
    assert set(found["images"]) == {"train", "validation", "unasked", "skipped"}
    assert set(found["fidelity"]) == set(found["undistilled"]) == {"overlap@10", "spearman"}
    assert set(found["fidelity"]["overlap@10"]) == INTERVAL
    found = call("eval", "run", "--data", "labelled", "--binary", "--index", "flat,ivf-pq", "--drift")
    assert set(found) == EVAL and set(found["models"][1]) == MODEL
    assert set(found["views"]) == VIEWS and found["whitening"] is None
    student = found["models"][1]
    assert set(student["binary"]) == MODEL and [set(one) for one in student["indexes"]] == [INDEX, INDEX]
    assert set(student["indexes"][0]["points"][0]) == POINT
    assert set(student["drift"]) == DRIFT and set(student["drift"]["span"]) == DISTANCE
    assert set(student["drift"]["nearest"]["groups"][0]) == {"low", "high", "queries", "overlap"}
    assert set(student["drift"]["farthest"][0]) == {"path", "distance", "overlap"}
    assert set(student["metrics"]) == set(student["retention"]) == METRICS
    assert set(student["fidelity"]) == {"overlap@10", "spearman"}
    assert set(student["asymmetric"]) == set(student["reverse"]) == METRICS | {"overlap@10"}
    found = call("export", "run", "--seconds", "1")
    assert set(found) == EXPORT and set(found["variants"][0]) == VARIANT
    assert set(found["sources"]) == {"images", "answers", "recipe"}
    assert set(found["variants"][0]["parity"]) == {"cosine_min", "cosine_mean"}
    assert set(found["variants"][0]["latency"][0]) == LATENCY
    assert set(found["teacher"]["latency"][0]) == LATENCY
    assert set(json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)) == {"recipes"}

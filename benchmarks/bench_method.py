"""Whether `bench` can be believed: false verdicts, differences found, and its medians beside another loop's.

    python benchmarks/bench_method.py --json benchmarks/results/bench_method.json
    python benchmarks/bench_method.py --runs 2 --seconds 3 --rounds 2       # that it works, in a few minutes

Four questions. `same`: a model against a copy of itself, again and again, while another program burns every processor
on and off; a verdict of faster or slower is false. `slower`: the same against a graph with 15 % more of the same
layers, under the same noise; slower is right. `stored`: both again, each against a report of the first model that was
made just before under other noise of the same kind; faster and slower of a copy are false. `loop`: the median of
`bench` without noise beside that of `LOOP` below, thirty lines that know nothing of distilltool, in a fresh process,
in turns.

How much slower the second graph really is, is measured by that loop too, before anything else: layers are added until
the ratio of the two is nearest to 1.15.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import distilltool
from distilltool import machine
from distilltool.report import BenchReport

WANTED = 1.15
LAYERS, CHANNELS, SIDE = 80, 16, 20  # a few milliseconds on one thread; a layer more is 1.25 %
ARMS = ["loop", "same", "slower", "stored"]
ON, OFF = 0.6, 0.9  # seconds that the noise lasts and rests, on average


def graph(path: Path, layers: int) -> Path:
    """Equal convolutions one after the other: time grows with their number."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.05, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32) for _ in range(layers)]
    nodes = [helper.make_node("Conv", [f"t{at}", f"w{at}"], [f"t{at + 1}"], pads=[1, 1, 1, 1]) for at in range(layers)]
    nodes.append(helper.make_node("GlobalAveragePool", [f"t{layers}"], ["answer"]))
    made = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", CHANNELS, 1, 1])],
        [numpy_helper.from_array(one, f"w{at}") for at, one in enumerate(weights)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


LOOP = """
import sys, time
import numpy as np, onnxruntime as ort

def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

def run(one, feeds):
    began = time.perf_counter()
    one.run(None, feeds)
    return time.perf_counter() - began

paths, seconds = sys.argv[2:], float(sys.argv[1])
sessions = [session(path) for path in paths]
inputs = [one.get_inputs()[0] for one in sessions]
shapes = [[side if isinstance(side, int) else 1 if at == 0 else 224 for at, side in enumerate(i.shape)] for i in inputs]
feeds = [{i.name: np.random.rand(*shape).astype(np.float32)} for i, shape in zip(inputs, shapes)]
times = [[] for _ in sessions]
end = time.perf_counter() + 1
while time.perf_counter() < end:
    for one, feed in zip(sessions, feeds):
        one.run(None, feed)
end = time.perf_counter() + seconds
while time.perf_counter() < end:
    for one, feed, found in zip(sessions, feeds, times):
        one.run(None, feed) if len(sessions) > 1 else None
        found.append(run(one, feed))
print(*[1000 * sorted(found)[len(found) // 2] for found in times])
"""


def loop(seconds: float, *models: Path) -> list[float]:
    """Medians in milliseconds, by the loop above in a fresh process."""
    words = [sys.executable, "-c", LOOP, str(seconds), *map(str, models)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [float(word) for word in said.split()]


def calibrated(folder: Path, base: Path, seconds: float) -> tuple[Path, float]:
    """The graph whose time is nearest to 1.15 of the base's, and its ratio as the loop measures it (five times)."""
    found = dict[int, float]()
    more = round(LAYERS * (WANTED - 1))
    while more not in found:
        other = graph(folder / f"more{more}.onnx", LAYERS + more)
        pairs = [loop(seconds, base, other) for _ in range(5)]
        found[more] = statistics.median(slow / quick for quick, slow in pairs)
        more += 1 if found[more] < WANTED else -1
    best = min(found, key=lambda one: abs(found[one] - WANTED))
    return folder / f"more{best}.onnx", found[best]


BURN = f"""
import random, sys, time
rng = random.Random(int(sys.argv[1]))
while True:
    end = time.perf_counter() + rng.expovariate(1 / {ON})
    while time.perf_counter() < end:
        sum(range(1000))
    time.sleep(rng.expovariate(1 / {OFF}))
"""


@contextmanager
def noise(seed: int) -> Iterator[None]:
    """A program that burns each processor on and off, and is gone afterwards."""
    burners = [
        subprocess.Popen([sys.executable, "-c", BURN, str(seed * 1000 + at)])
        for at in range(machine.facts()["processors"])
    ]
    try:
        yield
    finally:
        for one in burners:
            one.kill()
            one.wait()


def told(report: BenchReport) -> dict[str, Any]:
    """What is kept of one run."""
    one = report.comparisons[0]
    ratio, bias = one.ratio, one.noise
    return {
        "verdict": one.verdict,
        "ratio": [round(value, 4) for value in (ratio.value, ratio.low, ratio.high)],
        "itself": [round(value, 4) for value in (bias.value, bias.low, bias.high)],
        "p": one.p,
    }


def judged(model: Path, base: Path, args: argparse.Namespace, first: int) -> list[dict[str, Any]]:
    """So many comparisons under noise."""
    found = []
    for number in range(args.runs):
        with noise(first + number):
            found.append(told(distilltool.bench(model, base, seconds=args.seconds)))
        print(f"{model.name}: {number + 1} of {args.runs}: {found[-1]}", flush=True)
    return found


def judged_apart(model: Path, base: Path, args: argparse.Namespace, first: int) -> list[dict[str, Any]]:
    """So many comparisons with an earlier report, each of the two measurements under noise of its own."""
    found, report = [], base.with_suffix(".json")
    for number in range(args.runs):
        with noise(first + 2 * number):
            distilltool.bench(base, seconds=args.seconds, whole=report)
        with noise(first + 2 * number + 1):
            found.append(told(distilltool.bench(model, report, seconds=args.seconds)))
        print(f"{model.name} against a report: {number + 1} of {args.runs}: {found[-1]}", flush=True)
    return found


def of_a_copy(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each verdict was given, where faster and slower are false."""
    counts = Counter(one["verdict"] for one in runs)
    return {"counts": counts, "false": counts["faster"] + counts["slower"], "runs": runs}


def of_the_slower(runs: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """How often each verdict was given, where slower is right."""
    counts = Counter(one["verdict"] for one in runs)
    return {**about, "counts": counts, "found": counts["slower"], "runs": runs}


def beside_the_loop(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of `bench` and of the loop, taken in turns, the order drawn anew each time."""
    pairs = []
    for _ in range(args.rounds):
        order, found = random.sample(["bench", "loop"], 2), dict[str, float]()
        for name in order:
            if name == "loop":
                found[name] = loop(args.seconds / 2, model)[0]
            else:
                found[name] = distilltool.bench(model, seconds=args.seconds).runs[0].p50_ms
        pairs.append(found)
        print(f"{model.name}: {found}", flush=True)
    ratio = statistics.median(one["bench"] / one["loop"] for one in pairs)
    return {
        "model": model.name,
        "pairs_ms": pairs,
        "bench / loop": round(ratio, 4),
        "within 3 %": abs(ratio - 1) < 0.03,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of bench and loop")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each bench, as its --seconds")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="further ONNX files for the loop")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args, began = parsed(), time.perf_counter()
    results: dict[str, Any] = {
        "command": " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv[1:]),
        "machine": machine.facts(),
    }
    with tempfile.TemporaryDirectory() as name:
        base = graph(Path(name) / "base.onnx", LAYERS)
        copy = graph(Path(name) / "copy.onnx", LAYERS)
        if "loop" in args.arms:
            results["loop"] = [beside_the_loop(one, args) for one in (base, *args.models)]
        if "same" in args.arms:
            runs = judged(copy, base, args, 0)
            results["same"] = of_a_copy(runs)
        if {"slower", "stored"} & {*args.arms}:
            other, ratio = calibrated(Path(name), base, min(args.seconds / 2, 5))
            print(f"the slower graph takes {ratio:.3f} of the base's time", flush=True)
            about = {"by the loop": round(ratio, 4), "layers": other.stem}
        if "slower" in args.arms:
            runs = judged(other, base, args, 1000)
            results["slower"] = of_the_slower(runs, about)
        if "stored" in args.arms:
            results["stored"] = {
                "same": of_a_copy(judged_apart(copy, base, args, 2000)),
                "slower": of_the_slower(judged_apart(other, base, args, 3000), about),
            }
    results["seconds"] = round(time.perf_counter() - began)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({arm: _short(results[arm]) for arm in args.arms}, indent=1))


def _short(found: Any) -> Any:
    if isinstance(found, list):
        return {one["model"]: one["bench / loop"] for one in found}
    return {
        name: _short(value) if name in ("same", "slower") and isinstance(value, dict) else value
        for name, value in found.items()
        if name != "runs"
    }


if __name__ == "__main__":
    main()

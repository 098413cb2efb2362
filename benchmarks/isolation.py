"""What `--isolate` costs: batches through a child process against the same in this one, in alternating blocks.

    python benchmarks/isolation.py MODEL.onnx [--batch 32] [--rounds 24] [--json OUT]

Prints the ratio of the times of a batch, isolated over plain (median of the rounds and its quartiles), and the seconds
that opening takes longer. The two give the same vectors, which is checked.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from distilltool.latency import machine
from distilltool.preprocess import Preprocess
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher


def opened(path: Path, isolate: bool) -> tuple[OnnxEmbedder, float]:
    """The model, and the seconds that opening it took."""
    began = time.perf_counter()
    options = TeacherOptions(isolate=isolate)
    known = Preprocess(size=(224, 224), scale=1 / 255)
    return open_teacher(path, options, known=known), time.perf_counter() - began


def seconds(model: OnnxEmbedder, rows: np.ndarray) -> float:
    began = time.perf_counter()
    model.embed(rows)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a float32 NCHW model that takes 224x224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    (plain, plain_open), (isolated, isolated_open) = opened(args.model, False), opened(args.model, True)
    rows = np.random.default_rng(0).integers(0, 256, (args.batch, 224, 224, 3), dtype=np.uint8)
    assert np.array_equal(plain.embed(rows), isolated.embed(rows))
    ratios = []
    for turn in range(args.rounds):
        first, second = (plain, isolated) if turn % 2 == 0 else (isolated, plain)
        taken = {id(model): seconds(model, rows) for model in (first, second)}
        ratios.append(taken[id(isolated)] / taken[id(plain)])
    low, middle, high = (float(one) for one in np.quantile(ratios, (0.25, 0.5, 0.75)))
    result = {
        "model": args.model.name,
        "batch": args.batch,
        "rounds": args.rounds,
        "ratio": {"median": middle, "quartiles": [low, high]},
        "opening_seconds": {"plain": plain_open, "isolated": isolated_open},
        "machine": machine(),
    }
    print(f"isolated / plain: {middle:.3f} ({low:.3f} to {high:.3f}); opening {isolated_open - plain_open:+.2f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

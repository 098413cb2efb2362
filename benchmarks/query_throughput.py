"""How much of onnxruntime's own speed `query` reaches: decoding, hashing and ledger included, in one run.

    python benchmarks/query_throughput.py TEACHER IMAGES --preprocess tf --json benchmarks/results/query_throughput.json

Alternates rounds of (a) the teacher on arrays already in memory and (b) `query` from image files into a fresh ledger,
on the same images and with the same batch size, and prints the ratio of their medians with its range.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from distilltool import images
from distilltool.choice import Choice
from distilltool.latency import machine
from distilltool.ledger import Ledger
from distilltool.progress import Silent
from distilltool.stages.query import query
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher


def in_memory(teacher: OnnxEmbedder, arrays: np.ndarray, batch: int) -> float:
    """Images a second of onnxruntime alone, inputs laid out beforehand."""
    fed = [teacher.preprocess.feed(arrays[at : at + batch]) for at in range(0, len(arrays), batch)]
    began = time.perf_counter()
    for one in fed:
        teacher.model.run(one)
    return len(arrays) / (time.perf_counter() - began)


def from_files(teacher: OnnxEmbedder, paths: list[Path], folder: Path, batch: int, turn: int) -> float:
    """Images a second of the whole query stage into a ledger that knows nothing yet."""
    with Ledger.open(folder / f"{turn}.sqlite") as ledger:
        began = time.perf_counter()
        stock = images.take_stock(paths)
        report = query(
            teacher,
            stock,
            ledger,
            choice=Choice(order=stock.photos),
            budget=None,
            plan=False,
            batch=batch,
            progress=Silent(),
        )
        assert report.queried == len(paths), report
        return len(paths) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--preprocess", action="append", default=[])
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    teacher = open_teacher(args.teacher, TeacherOptions(preprocess=tuple(args.preprocess)))
    paths = images.find(args.images)[: args.count]
    arrays, _ = images.load(paths, teacher.preprocess)
    rates: dict[str, list[float]] = {"in_memory": [], "query": []}
    with tempfile.TemporaryDirectory() as folder:
        in_memory(teacher, arrays[:64], args.batch)
        for turn in range(args.rounds):
            rates["in_memory"].append(in_memory(teacher, arrays, args.batch))
            rates["query"].append(from_files(teacher, paths, Path(folder), args.batch, turn))
    ratios = np.array(rates["query"]) / np.array(rates["in_memory"])
    found = {
        "teacher": args.teacher.name,
        "images": len(paths),
        "batch": args.batch,
        "rates": rates,
        "ratio": {"median": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max())},
        "machine": machine(),
    }
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

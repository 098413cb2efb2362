"""Exact search of a gallery as large as a file, and figures of a set as large as Stanford Online Products.

    python benchmarks/search_scale.py --work WORK --json benchmarks/results/search_scale.json

A gallery of made vectors of length 1 lies in a mapped file. Our search of that file and faiss's own
(`IndexFlatIP.search`, for which the vectors are copied into the index before the clock runs) take turns in one process,
in another order each round, for the same queries; the answers are compared. Memory is asked for in a process for each,
while it works: `own` is what is resident without the pages of mapped files. Figures are those of a set of made vectors
around the centre of their class, each image a query to all others, by whole rankings.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from memory import peak
from numpy.typing import NDArray

from distilltool import machine, metrics
from distilltool.metrics import Task
from distilltool.search import Gallery
from distilltool.truth import Figure, recalls

BLOCK = 50_000
SIZES = ("gallery", "dim", "queries", "k", "images", "classes")
PARTS = ("memory_gb", "metrics", "search", "small")
ALIKE = 4.0  # cosine of two images of a class over the standard deviation of that of two others
FIGURES = (Figure(measure="map"), Figure(measure="map@r"), Figure(measure="r-precision"), *recalls(1, 10, 100, 1000))


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """At length 1."""
    scaled: NDArray[np.float32] = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return scaled


def made(path: Path, count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """A mapped file of random vectors of length 1, (count, dim); what is there stays."""
    if not path.exists():
        partly = path.with_suffix(".part")
        file = np.lib.format.open_memmap(partly, "w+", np.float32, (count, dim))
        for at in range(0, count, BLOCK):
            rows = min(BLOCK, count - at)
            rng = np.random.default_rng((seed, at))
            file[at : at + rows] = unit(rng.standard_normal((rows, dim), np.float32))
        file.flush()
        partly.rename(path)
    found: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return found


def classes(images: int, count: int) -> NDArray[np.int64]:
    """A class for each image, 2 to 12 images each, as many classes as said; the mean is that of the set."""
    rng = np.random.default_rng(5)
    sizes = 2 + rng.multinomial(images - 2 * count, np.full(count, 1 / count))
    return np.repeat(np.arange(count, dtype=np.int64), sizes)


def products(path: Path, labels_N: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """A mapped file of vectors around the centres of their classes, (N, dim); what is there stays."""
    if not path.exists():
        rng = np.random.default_rng(6)
        centres = unit(rng.standard_normal((int(labels_N.max()) + 1, dim), np.float32))[labels_N]
        spread = np.float32((dim**0.5 / ALIKE - 1) ** 0.5)  # whose cosine is 1 / (1 + spread²)
        np.save(path, unit(centres + spread * unit(rng.standard_normal(centres.shape, np.float32))))
    found: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def search(gallery_GD: NDArray[np.float32], queries_QD: NDArray[np.float32], k: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way in each round, the ratio of ours to faiss's, and the share of answers that are the same."""
    index = faiss.IndexFlatIP(gallery_GD.shape[1])
    for at in range(0, len(gallery_GD), BLOCK):
        index.add(np.ascontiguousarray(gallery_GD[at : at + BLOCK]))
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: Gallery(gallery_GD).nearest(queries_QD, k).ids,
        "index": lambda: index.search(queries_QD, k)[1],
    }
    answers = {name: way() for name, way in ways.items()}  # warm: the file is in the page cache from now on
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            seconds[name].append(timed(ways[name])[0])
    ratio = np.array(seconds["ours"]) / np.array(seconds["index"])
    return {
        "seconds": {name: [round(one, 4) for one in values] for name, values in seconds.items()},
        "ratio": {"median": float(np.median(ratio)), "low": float(ratio.min()), "high": float(ratio.max())},
        "same answers": float((np.sort(answers["ours"], axis=1) == np.sort(answers["index"], axis=1)).mean()),
    }


def figures(vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> dict[str, Any]:
    """Means of the figures of an image set in which each asks for all others, and the seconds they took."""
    every = np.arange(len(vectors_ND), dtype=np.int64)
    task = Task(query=every, gallery=every, labels=labels_N, figures=FIGURES)
    ranking, found = timed(lambda: metrics.labelled(task, vectors_ND, vectors_ND))
    nearest, _ = timed(lambda: metrics.neighbours(task, vectors_ND, vectors_ND, 10))
    means = {name: float(np.nanmean(values)) for name, values in found.items()}
    return {"ranking_seconds": ranking, "nearest_10_seconds": nearest, "figures": means}


def alone(args: argparse.Namespace) -> None:
    """One piece of work in this process, for the sake of its memory; figures go to a file."""
    if args.alone == "metrics":
        labels = classes(args.images, args.classes)
        found = figures(products(args.work / f"products-{args.images}-{args.dim}.npy", labels, args.dim), labels)
        (args.work / "figures.json").write_text(json.dumps(found))
        return
    gallery, queries = vectors_of(args)
    if args.alone == "ours":
        Gallery(gallery).nearest(queries, args.k)
    elif args.alone == "index":
        index = faiss.IndexFlatIP(args.dim)
        index.add(gallery)
        index.search(queries, args.k)


def vectors_of(args: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mapped gallery, and the queries in memory."""
    gallery = made(args.work / f"gallery-{args.gallery}-{args.dim}.npy", args.gallery, args.dim, 1)
    queries = made(args.work / f"queries-{args.queries}-{args.dim}.npy", args.queries, args.dim, 2)
    return gallery, np.ascontiguousarray(queries)


def memory(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Most that one piece of work holds, in GB."""
    sizes = [f"--{one}={getattr(args, one)}" for one in ("work", *SIZES)]
    return {key: round(value, 3) for key, value in peak([sys.executable, __file__, "--alone", name, *sizes]).items()}


def part(args: argparse.Namespace, name: str) -> Any:
    """One part of the results."""
    if name == "memory_gb":
        return {one: memory(args, one) for one in ("none", "ours", "index")}
    if name == "metrics":
        held = memory(args, "metrics")
        return {**json.loads((args.work / "figures.json").read_text()), "memory_gb": held}
    gallery, queries = vectors_of(args)
    if name == "search":
        return search(gallery, queries, args.k, args.rounds)
    return {
        rows: search(np.ascontiguousarray(gallery[:rows]), queries, args.k, 4 * args.rounds) for rows in args.galleries
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the made vectors, some 2.2 GB")
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_502)
    parser.add_argument("--classes", type=int, default=11_316)
    parser.add_argument("--galleries", type=int, nargs="+", default=[1000, 10_000], help="of the part `small`")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS, help="others stay as they are in --json")
    parser.add_argument("--alone", choices=["none", "ours", "index", "metrics"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.alone:
        alone(args)
        return
    vectors_of(args)
    sizes = {one: getattr(args, one) for one in SIZES}
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else sizes
    if any(result[one] != size for one, size in sizes.items()):
        raise SystemExit(f"{args.json} holds results of other sizes")
    for name in args.parts:
        result[name] = {"machine": machine.facts(), "threads": faiss.omp_get_max_threads(), **part(args, name)}
        print(name, json.dumps({key: value for key, value in result[name].items() if key != "machine"}), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Make a small world in the layout of the paper's experiment, so that docs/REPRODUCE.md can be tried in minutes.

    python examples/roxford_miniature.py miniature

Below the folder lie, made of drawn things and under the names that the real ones have: a checkpoint of
cnnimageretrieval-pytorch with random weights (ResNet18; --architecture resnet101 for the whole network), images and
lists of retrieval-SfM-120k, and Revisited Oxford and Paris with their ground truth. What comes out of it says nothing
of the real thing: it shows that the commands run.
"""

import argparse
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate
import numpy as np
import torch
from export_retrieval_sfm import convolutions
from retrieval_sfm_subset import place
from torch import nn

CHECKPOINT = "retrievalSfM120k-resnet101-gem-b80fb85.pth"
TRAIN, VALIDATION, WHITEN = 40, 4, 280  # images
PLACES, VIEWS, QUERIES = 6, 5, 4  # of a benchmark: things, photographs of each, and things asked about
SIZES = ((128, 96), (96, 128), (120, 90))


def checkpoint(path: Path, architecture: str) -> None:
    """Random weights and settings under the names that the public file has."""
    torch.manual_seed(0)
    features = nn.Sequential(*convolutions(architecture))
    for layer in features.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics of a network that has seen images
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    state = OrderedDict((f"features.{name}", value) for name, value in features.state_dict().items())
    state["pool.p"] = torch.tensor([2.92])
    with torch.inference_mode():
        dim = features.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    rng = np.random.default_rng(0)
    whitening = {"m": rng.normal(0, 0.01, (dim, 1)), "P": rng.normal(0, 1, (dim, dim))}
    meta = {
        "architecture": architecture,
        "local_whitening": False,
        "pooling": "gem",
        "regional": False,
        "whitening": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "outputdim": dim,
        "Lw": {"retrieval-SfM-120k": {"ss": whitening, "ms": whitening}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": meta, "state_dict": state}, path)


def photograph(path: Path, thing: int, view: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(generate.render_jpeg(thing, view, SIZES[(thing + view) % len(SIZES)]))


def retrieval_sfm(root: Path) -> None:
    """Images named by a hash, without an ending, and the lists of them."""

    def made(numbers: range) -> list[str]:
        cids = [hashlib.sha256(f"sfm/{number}".encode()).hexdigest()[:26] for number in numbers]
        for number, cid in zip(numbers, cids, strict=True):
            photograph(place(root, cid), number // 4, number % 4)
        return cids

    counts = iter(np.cumsum([0, TRAIN, VALIDATION, WHITEN]).tolist())
    first = next(counts)
    parts = list[list[str]]()
    for last in counts:
        parts.append(made(range(first, last)))
        first = last

    def listed(cids: list[str]) -> dict[str, Any]:
        clusters = [at // 4 for at in range(len(cids))]
        return {"cids": cids, "cluster": clusters, "qidxs": [0], "pidxs": [1]}

    train, validation, whiten = map(listed, parts)
    (root / f"{root.name}.pkl").write_bytes(pickle.dumps({"train": train, "val": validation}))
    (root / f"{root.name}-whiten.pkl").write_bytes(pickle.dumps(whiten))


def revisited(root: Path, first: int) -> None:
    """A benchmark of things from number `first`: of each that is asked about two photographs are easy, one is hard, one
    is junk, and the last is the query with its box."""
    database, queries, truth = list[str](), list[str](), list[dict[str, Any]]()
    for at in range(PLACES):
        names = [f"place_{at:02d}_{view:06d}" for view in range(VIEWS)]
        for view, name in enumerate(names):
            photograph(root / "jpg" / f"{name}.jpg", first + at, view)
        start = len(database)
        database += names if at >= QUERIES else names[:-1]
        if at < QUERIES:
            width, height = SIZES[(first + at + VIEWS - 1) % len(SIZES)]
            box = [0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height]
            queries.append(names[-1])
            truth.append({"bbx": box, "easy": [start, start + 1], "hard": [start + 2], "junk": [start + 3]})
    made = {"gnd": truth, "imlist": database, "qimlist": queries}
    (root / f"gnd_{root.name}.pkl").write_bytes(pickle.dumps(made, protocol=2))


def parts(root: Path, architecture: str) -> Iterator[str]:
    """Make everything, and say what."""
    checkpoint(root / "networks" / CHECKPOINT, architecture)
    yield f"networks/{CHECKPOINT}: {architecture} with random weights"
    retrieval_sfm(root / "train" / "retrieval-SfM-120k")
    yield f"train/retrieval-SfM-120k: {TRAIN + VALIDATION + WHITEN} images"
    for name, first in (("roxford5k", 10_000), ("rparis6k", 10_020)):
        revisited(root / "test" / name, first)
        yield f"test/{name}: {QUERIES} queries, {PLACES * VIEWS - QUERIES} images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--architecture", default="resnet18")
    args = parser.parse_args()
    for line in parts(args.root, args.architecture):
        print(line)


if __name__ == "__main__":
    main()

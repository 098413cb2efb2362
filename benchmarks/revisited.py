"""The published check of the Revisited Oxford and Paris protocols: somebody else's features, their figures.

    python benchmarks/revisited.py roxford5k DATA/roxford5k roxford5k_resnet_rsfm120k_gem.mat

DATA/roxford5k holds gnd_roxford5k.pkl; no image is needed. The features are those that revisitop's example downloads
(ResNet101-GeM; Q: D × 70 queries, X: D × database), or a .npz with the same two arrays. Figures are percent; where they
differ from those that revisitop's README tells by more than it rounds, the script ends with exit 1.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilltool.datasets import Dataset, open_dataset
from distilltool.metrics import Task, labelled

NAMES = ("map", "mp@1", "mp@5", "mp@10")
PUBLISHED = {  # https://github.com/filipradenovic/revisitop, README.md
    "roxford5k": {
        "easy": (84.81, 97.06, 92.06, 86.49),
        "medium": (64.67, 97.14, 90.67, 84.67),
        "hard": (38.47, 81.43, 63.00, 53.00),
    },
    "rparis6k": {
        "easy": (92.12, 100.00, 97.14, 96.14),
        "medium": (77.20, 100.00, 98.86, 98.14),
        "hard": (56.32, 94.29, 90.29, 89.14),
    },
}
ROUNDING = 0.0051


def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of the queries (Q, D) and of the database (N, D)."""
    if path.suffix == ".mat":
        from scipy.io import loadmat

        found = loadmat(path, variable_names=["Q", "X"])
    else:
        found = np.load(path, allow_pickle=False)
    return np.asarray(found["Q"], np.float32).T, np.asarray(found["X"], np.float32).T


def figures(dataset: Dataset, queries_QD: NDArray[np.float32], database_ND: NDArray[np.float32]) -> dict[str, float]:
    """What the protocol reports of these vectors."""
    task = Task(
        query=np.flatnonzero(dataset.query),
        gallery=np.flatnonzero(dataset.gallery),
        labels=None,
        truth=dataset.truth,
        figures=dataset.figures,
    )
    vectors = np.concatenate([queries_QD, database_ND])
    if len(vectors) != len(dataset.paths):
        sys.exit(f"{len(vectors)} features for {len(dataset.paths)} images")
    return {name: float(np.nanmean(values)) for name, values in labelled(task, vectors, vectors).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(PUBLISHED))
    parser.add_argument("folder", type=Path)
    parser.add_argument("features", type=Path)
    args = parser.parse_args()
    found = figures(open_dataset(args.folder, args.name), *read(args.features))
    rows = [
        {"figure": f"{name}-{level}", "found": round(100 * found[f"{name}-{level}"], 2), "published": published}
        for level, values in PUBLISHED[args.name].items()
        for name, published in zip(NAMES, values, strict=True)
    ]
    print(json.dumps(rows, indent=1))
    if any(abs(row["found"] - row["published"]) > ROUNDING for row in rows):
        sys.exit("these are not the published figures: other features, or a fault")


if __name__ == "__main__":
    main()

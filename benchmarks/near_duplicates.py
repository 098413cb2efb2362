"""How well repeats of a picture are told from other pictures.

    python benchmarks/near_duplicates.py TRAIN OTHER --json benchmarks/results/near_duplicates.json

Found: the share of altered copies that are matched with their photograph, one copy a kind and photograph of TRAIN.
False: pairs of a photograph of TRAIN and one of OTHER, whose classes are different ones, that are matched.
Set aside: photographs of TRAIN itself that look like another one; those are real repeats for the most part.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from planted import CHANGES, altered

from distilltool import deploy, images, near, search
from distilltool.near import Distinct, Marks

RADII = (16, 20, 24, 28, 32, 36)
ALIKE = (-1.0, 0.8, 0.85, 0.9)  # -1: the hash alone


def marked(paths: list[Path]) -> Marks:
    """Marks of files, as `query` takes them."""
    return near.joined(list(images.ahead(paths, lambda path: near.mark(deploy.open_rgb(path, near.FINE)))))


def copies(paths: list[Path], kind: str) -> Marks:
    """Marks of one altered copy of each file."""

    def one(row: int) -> Marks:
        data = altered(paths[row], kind, np.random.default_rng((row, len(kind))))
        with Image.open(io.BytesIO(data)) as image:
            return near.mark(image.convert("RGB"))

    return near.joined(list(images.ahead(range(len(paths)), one)))


def found(originals: Marks, altered_ones: Marks, radius: int, alike: float) -> float:
    """Share of copies that match the photograph in their own row."""
    differing = np.unpackbits(originals.codes ^ altered_ones.codes, axis=1).sum(axis=1)
    likeness = (originals.thumbs * altered_ones.thumbs).sum(axis=1)
    return round(float(((differing <= radius) & (likeness >= alike)).mean()), 4)


def confused(train: Marks, other: Marks, radius: int, alike: float) -> int:
    """Pairs of different classes that match."""
    pairs = search.within(other.codes, train.codes, radius)
    likeness = np.einsum("pt,pt->p", other.thumbs[pairs.query], train.thumbs[pairs.gallery])
    return int((likeness >= alike).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    paths, others = images.find(args.train), images.find(args.other)
    began = time.perf_counter()
    train = marked(paths)
    seconds = time.perf_counter() - began
    other = marked(others)
    made = {kind: copies(paths, kind) for kind in CHANGES}
    result = {
        "radius": near.RADIUS,
        "alike": near.ALIKE,
        "found": {kind: found(train, some, near.RADIUS, near.ALIKE) for kind, some in made.items()},
        "pairs of different classes": len(paths) * len(others),
        "false pairs": confused(train, other, near.RADIUS, near.ALIKE),
        "photographs": len(paths),
        "set aside": int(Distinct().add(train).sum()),
        "milliseconds a photograph": round(1000 * seconds / len(paths), 2),
        "alternatives": [
            {
                "radius": radius,
                "alike": alike,
                "cropped found": found(train, made["cropped"], radius, alike),
                "brightened found": found(train, made["brightened"], radius, alike),
                "false pairs": confused(train, other, radius, alike),
            }
            for radius in RADII
            for alike in ALIKE
        ],
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

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

from distilltool import deploy, images, near
from distilltool.near import Distinct, Marks


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


def found(originals: Marks, altered_ones: Marks) -> float:
    """Share of copies that match the photograph in their own row."""
    differing = np.unpackbits(originals.codes ^ altered_ones.codes, axis=1).sum(axis=1)
    likeness = (originals.thumbs * altered_ones.thumbs).sum(axis=1)
    return float(((differing <= near.RADIUS) & (likeness >= near.ALIKE)).mean())


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
    wrong = near.alike(other, train)
    result = {
        "radius": near.RADIUS,
        "alike": near.ALIKE,
        "found": {kind: round(found(train, copies(paths, kind)), 4) for kind in CHANGES},
        "pairs of different classes": len(paths) * len(others),
        "false pairs": len(wrong.query),
        "other photographs falsely matched": round(len(set(wrong.query.tolist())) / len(others), 5),
        "photographs": len(paths),
        "set aside": int(Distinct().add(train).sum()),
        "milliseconds a photograph": round(1000 * seconds / len(paths), 2),
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

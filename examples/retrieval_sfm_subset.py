"""Choose images of retrieval-SfM-120k as its authors lay them out, and link to them in a folder for distilltool.

    python examples/retrieval_sfm_subset.py DATA/train/retrieval-SfM-120k DATA/sfm-10k --count 10000

The folder given holds `ims/`, where an image lies under the last letters of its name, without an ending
(cirtorch/datasets/datahelpers.py, cid2filename), and `retrieval-SfM-120k.pkl` with the names of the training and
validation images, `retrieval-SfM-120k-whiten.pkl` with those that whitening is learned on. The pickles are read by a
reader that runs nothing of them; labels and pairs in them are not looked at.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distilltool.errors import DistillError
from distilltool.groundtruth import read_pickle

PARTS = ("train", "val", "whiten")


def names(root: Path, part: str) -> list[str]:
    """Names of the images of one part, each once, in order."""
    found: Any = read_pickle(root / f"{root.name}{'-whiten' if part == 'whiten' else ''}.pkl")
    try:
        listed = (found if part == "whiten" else found[part])["cids"]
        if listed and all(isinstance(one, str) and len(one) > 6 and "/" not in one for one in listed):
            return sorted(set(listed))
    except (KeyError, TypeError):
        pass
    raise DistillError(f"the list of {part} images in {root} holds no names", "get the file anew from its source")


def place(root: Path, name: str) -> Path:
    """Where an image lies."""
    return root / "ims" / name[-2:] / name[-4:-2] / name[-6:-4] / name


def link(root: Path, out: Path, part: str, count: int, seed: int) -> int:
    """Make `out` hold links to `count` images drawn evenly, or to all where there are no more; returns how many."""
    every = names(root.resolve(), part)
    drawn = np.random.default_rng(seed).permutation(len(every))[:count]
    wanted = {f"{every[at]}.jpg": place(root.resolve(), every[at]) for at in sorted(drawn.tolist())}
    missing = [path for path in wanted.values() if not path.is_file()]
    if missing:
        raise DistillError(f"{len(missing):,} images are not there, as {missing[0]}", "unpack ims.tar.gz into ims/")
    strange = [one for one in out.glob("*") if one.name not in wanted]
    if strange:
        raise DistillError(f"{out} holds other files, as {strange[0].name}", "name an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    for name, path in wanted.items():
        made = out / name
        if made.is_symlink() and made.readlink() != path:  # of a dataset that has been moved since
            made.unlink()
        if not made.is_symlink():
            made.symlink_to(path)
    return len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder retrieval-SfM-120k")
    parser.add_argument("out", type=Path, help="the folder to fill with links")
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        made = link(args.root, args.out, args.part, args.count, args.seed)
    except DistillError as error:
        sys.exit(f"{error.message}: {error.fix}")
    fewer = "" if made == args.count else f" (there are no more; {args.count:,} were asked for)"
    print(f"{args.out}: {made:,} images{fewer}")


if __name__ == "__main__":
    main()

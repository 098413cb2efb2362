"""UKBench (Nister and Stewenius, CVPR 2006): 2,550 objects in four photographs each, which ask for one another."""

import re
from pathlib import Path

from distilltool import images
from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.published import benchmark
from distilltool.truth import Figure

SIGN = "full/ukbench00000.jpg"
NAME = re.compile(r"ukbench(\d{5})")
EACH = 4


def ukbench(root: Path) -> Dataset:
    """`ukbench00000.jpg` and so on, in `full/` or in `root`: four in a row are one object."""
    folder = root / "full" if (root / "full").is_dir() else root
    numbered = [(path, NAME.fullmatch(path.stem)) for path in images.find(folder)]
    pairs = [(path, str(int(found[1]) // EACH)) for path, found in numbered if found]
    if not pairs:
        raise DistillError(f"{folder} has no file ukbench00000.jpg or the like", "give the folder that holds full/")
    return benchmark("ukbench", pairs, [], (Figure(measure="ns"), Figure(measure="map")))

"""CUB-200-2011 (Wah et al. 2011), zero-shot: the birds of classes 101 to 200, whole images, each asks all others."""

from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.published import below, benchmark, lines
from distilltool.truth import Figure, recalls

SIGN = "image_class_labels.txt"
FIRST, LAST = 101, 200  # classes that metric learning keeps for testing (Song et al., CVPR 2016)


def cub200(root: Path) -> Dataset:
    """`images.txt` (id path), `image_class_labels.txt` (id class) and `images/`."""
    listing = root / "images.txt"
    labels = dict(lines(root / SIGN, columns=2))
    named = lines(listing, columns=2)
    if any(number not in labels or not labels[number].isdecimal() for number, _ in named):
        raise DistillError(f"{root / SIGN} does not tell the class of every image", "get the list anew")
    pairs = [
        (below(root / "images", path, listing), labels[number])
        for number, path in named
        if FIRST <= int(labels[number]) <= LAST
    ]
    if not pairs:
        raise DistillError(f"{root} has no image of classes {FIRST} to {LAST}", "give the whole data set")
    figures = (*recalls(1, 2, 4, 8), Figure(measure="r-precision"), Figure(measure="map@r"))
    return benchmark("cub200", pairs, [], figures, {"classes": f"{FIRST} to {LAST}, whole images, no boxes"})

"""Stanford Online Products (Song et al., CVPR 2016): 60,502 photographs of 11,316 products that were not trained on."""

from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.published import below, benchmark, lines
from distilltool.truth import Figure, recalls

SIGN = "Ebay_test.txt"


def sop(root: Path) -> Dataset:
    """`Ebay_test.txt` (image_id class_id super_class_id path) beside the folders of images; each asks all others."""
    listing = root / SIGN
    rows = lines(listing, columns=4, skip=1)
    pairs = [(below(root, path, listing), label) for _, label, _, path in rows]
    return benchmark("sop", pairs, [], (*recalls(1, 10, 100, 1000), Figure(measure="map@r")))

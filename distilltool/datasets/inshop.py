"""DeepFashion In-shop Clothes Retrieval (Liu et al., CVPR 2016): queries and a gallery of the same items, apart."""

from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.published import below, benchmark, lines
from distilltool.truth import Figure, recalls

SIGN = "Eval/list_eval_partition.txt"


def inshop(root: Path) -> Dataset:
    """`Eval/list_eval_partition.txt` (image_name item_id evaluation_status) and `img/`, which may lie in `Img/`."""
    listing = root / SIGN if (root / SIGN).is_file() else root / Path(SIGN).name
    rows = lines(listing, columns=3, skip=2)  # the number of images, and the columns' names
    wrong = next((row for row in rows if row[2] not in ("train", "query", "gallery")), None)
    if wrong is not None:
        raise DistillError(f"{listing} says {wrong[2]!r} of {wrong[0]}", "it must be train, query or gallery")
    base = root / "Img" if (root / "Img" / "img").is_dir() else root
    asks, found = (
        [(below(base, path, listing), item) for path, item, role in rows if role == wanted]
        for wanted in ("query", "gallery")
    )
    if not asks or not found:
        raise DistillError(f"{listing} has no queries or no gallery", "get the list anew")
    return benchmark("inshop", asks, found, (*recalls(1, 10, 20, 30), Figure(measure="map@r")))

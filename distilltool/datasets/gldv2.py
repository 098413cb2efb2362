"""Google Landmarks v2, retrieval (Weyand et al., CVPR 2020): mAP@100 on the public and the private queries."""

import csv
from pathlib import Path

from distilltool import images
from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.published import asked_lists, with_distractors
from distilltool.truth import Figure

SIGN = "retrieval_solution_v2.1.csv"
COLUMNS = {"id", "images", "Usage"}
HALVES = ("private", "public")
HEX = 16  # letters of an image's name


def gldv2(root: Path, *, distractors: str | None = None) -> Dataset:
    """`retrieval_solution_v2.1.csv` (id, images, Usage), queries in `test/`, gallery in `index/`, as a/b/c/abc….jpg.

    Queries of usage Ignored are left out; all of `index/` is the gallery.
    """
    listing = root / SIGN
    asked = _solution(listing)
    gallery = {path.stem: path for path in images.find(root / "index")}
    for _, names, _ in asked:
        for name in names:
            gallery.setdefault(name, _place(root / "index", name, listing))  # if it is missing, that will be said
    place = {name: at for at, name in enumerate(gallery)}
    return with_distractors(
        asked_lists(
            "gldv2",
            [_place(root / "test", query, listing) for query, _, _ in asked],
            list(gallery.values()),
            {
                half: [([place[name] for name in names] if usage == half else [], []) for _, names, usage in asked]
                for half in HALVES
            },
            figures=tuple(Figure(measure="map", cut=100, level=half) for half in HALVES),
            conventions={"usage": "private and public queries apart; ignored queries are not asked"},
        ),
        distractors,
    )


def _solution(listing: Path) -> list[tuple[str, list[str], str]]:
    """Query, images that answer it, private or public."""
    try:
        with listing.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DistillError(f"{listing} cannot be read ({error})", "get it from the data set's page") from None
    if not rows or not set(rows[0]) >= COLUMNS or any(row[column] is None for row in rows for column in COLUMNS):
        raise DistillError(f"{listing} has not the columns id, images, Usage", "get it from the data set's page")
    asked = [(row["id"], row["images"].split(), row["Usage"].lower()) for row in rows]
    return [one for one in asked if one[2] in HALVES]


def _place(folder: Path, name: str, listing: Path) -> Path:
    if len(name) != HEX or not name.isalnum():
        raise DistillError(f"{listing} names the image {name[:40]!r}", "a name is 16 letters and digits")
    return folder / name[0] / name[1] / name[2] / f"{name}.jpg"

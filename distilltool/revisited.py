"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018, https://github.com/filipradenovic/revisitop)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.groundtruth import read_kept
from distilltool.images import Box
from distilltool.published import asked_lists, below, with_distractors
from distilltool.truth import Figure

LEVELS = {  # of the lists of a query, which are right and which are ignored
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
FIGURES = tuple(
    Figure(measure=measure, cut=cut, level=level)
    for level in LEVELS
    for measure, cut in (("trapezoid", None), ("mp", 1), ("mp", 5), ("mp", 10))
)
CONVENTIONS = {
    "easy": "positives easy; junk and hard ignored",
    "medium": "positives easy and hard; junk ignored",
    "hard": "positives hard; junk and easy ignored",
    "queries": "cropped to their boxes",
}
CORNERS = 4


def revisited(name: str, root: Path, distractors: str | None, keep: Path | None) -> Dataset:
    """`gnd_NAME.pkl` and `jpg/` in `root`, or in a folder of that name inside it.

    distractors: folder of further images, or of vectors, NAME.npy for each model; they stand behind the database.
    """
    root = root if (root / f"gnd_{name}.pkl").is_file() else root / name
    path = root / f"gnd_{name}.pkl"
    database, queries, asked = _checked(path, read_kept(path, keep))
    folder = root / "jpg"
    dataset = asked_lists(
        name,
        [below(folder, f"{one}.jpg", path) for one in queries],
        [below(folder, f"{one}.jpg", path) for one in database],
        {
            level: [
                ([at for kind in right for at in one[kind]], [at for kind in ignored for at in one[kind]])
                for one in asked
            ]
            for level, (right, ignored) in LEVELS.items()
        },
        boxes=(*(_box(one["bbx"]) for one in asked), *(None for _ in database)),
        figures=FIGURES,
        conventions=CONVENTIONS,
    )
    return with_distractors(dataset, distractors)


def _checked(path: Path, found: Any) -> tuple[list[str], list[str], list[Mapping[str, Any]]]:
    """Names of the database, names of the queries, and what is known of each query."""
    try:
        database, queries, asked = found["imlist"], found["qimlist"], found["gnd"]
        whole = len(queries) == len(asked) > 0 and all(isinstance(one, str) for one in (*database, *queries))
        for one in asked:
            whole &= len(one["bbx"]) == CORNERS and all(isinstance(side, int | float) for side in one["bbx"])
            places = [at for kind in ("easy", "hard", "junk") for at in one[kind]]
            whole &= all(type(at) is int and 0 <= at < len(database) for at in places)
        if whole:
            return database, queries, asked
    except (KeyError, TypeError):
        pass
    raise DistillError(f"{path} is no ground truth of this benchmark", "get the file anew from its source")


def _box(corners: list[float]) -> Box:
    left, upper, right, lower = (round(side) for side in corners)  # as Pillow's crop rounds
    return left, upper, right, lower

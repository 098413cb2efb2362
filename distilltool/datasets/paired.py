"""Visual place recognition: queries and references of the same way, and which of them show the same place."""

import csv
from pathlib import Path
from typing import Any

from distilltool import images
from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.groundtruth import read_kept
from distilltool.published import asked_lists, with_distractors
from distilltool.truth import recalls

SIGN = "ground_truth_new.npy"  # as VPR-Bench has it (Zaffar et al., IJCV 2021)
LISTS = (SIGN, "ground_truth.npy", "ground_truth.csv")
QUERIES, REFERENCES = ("query", "queries"), ("ref", "reference", "references", "database", "gallery")


def paired(
    root: Path,
    *,
    frames: str | None = None,
    truth: str | None = None,
    distractors: str | None = None,
    keep: Path | None = None,
) -> Dataset:
    """Folders `query` and `ref` of frames in order of their names, and who shows the same place.

    truth: a `.npy` of VPR-Bench, rows of a query's number and the numbers of its references, counted from 0 in order of
    the names; or a CSV of `query,reference`, file names; by default such a file beside the folders. frames: instead, a
    reference is right whose place in order is at most so far from the query's.
    """
    asks, found = (_frames(root, names) for names in (QUERIES, REFERENCES))
    if frames is not None and truth is not None:
        raise DistillError("frames= and truth= both say what is right", "give one of them")
    listing = Path(truth) if truth is not None else next((root / one for one in LISTS if (root / one).is_file()), None)
    if frames is not None:
        right, said = _within(frames, len(asks), len(found)), f"references within {frames} frames of the query's place"
    elif listing is None:
        raise DistillError(
            f"{root} has no {', '.join(LISTS)}", "say which frames are the same place: --protocol paired:frames=2"
        )
    elif listing.suffix == ".csv":
        right, said = _of_csv(listing, asks, found), f"references that {listing.name} lists"
    else:
        right, said = _of_numbers(listing, keep, len(asks), len(found)), f"references that {listing.name} lists"
    dataset = asked_lists(
        "paired",
        asks,
        found,
        {"": [(places, []) for places in right]},
        figures=recalls(1, 5, 10),
        conventions={"positives": said},
    )
    return with_distractors(dataset, distractors)


def _frames(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Frames of the first of these folders, by the numbers in their names: 2.jpg before 10.jpg."""
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise DistillError(f"{root} has no folder {' or '.join(names)}", "put queries and references side by side")
    return sorted(images.find(folder), key=lambda path: _order(path.relative_to(folder).as_posix()))


def _order(name: str) -> list[tuple[int, str]]:
    parts, digits = [], ""
    for char in name + "\0":
        if char in "0123456789":
            digits += char
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, char))
    return parts


def _within(frames: str, asks: int, found: int) -> list[list[int]]:
    if not frames.isdecimal():
        raise DistillError(f"frames={frames} is no number of frames", "write --protocol paired:frames=2")
    if asks != found:
        raise DistillError(
            f"there are {asks} queries and {found} references, so that the same number is not the same place",
            "give a ground-truth file: --protocol paired:truth=FILE",
        )
    reach = int(frames)
    return [list(range(max(0, at - reach), min(found, at + reach + 1))) for at in range(asks)]


def _of_csv(listing: Path, asks: list[Path], found: list[Path]) -> list[list[int]]:
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DistillError(f"{listing} cannot be read ({error})", "give a CSV file in UTF-8") from None
    if not rows or not set(rows[0]) >= {"query", "reference"}:
        raise DistillError(f"{listing} has no rows with columns query,reference", "name them in its first line")
    ask, answer = ({path.name: at for at, path in enumerate(paths)} for paths in (asks, found))
    right: list[list[int]] = [[] for _ in asks]
    for at, row in enumerate(rows, 2):
        if row["query"] not in ask or row["reference"] not in answer:
            raise DistillError(f"{listing} line {at} names a file that is not there", "write names without folders")
        right[ask[row["query"]]].append(answer[row["reference"]])
    return right


def _of_numbers(listing: Path, keep: Path | None, asks: int, found: int) -> list[list[int]]:
    rows: Any = read_kept(listing, keep)
    right: list[list[int]] = [[] for _ in range(asks)]
    try:
        for query, references in rows:
            places = [references] if isinstance(references, int) else list(references)
            if not (type(query) is int and all(type(at) is int and 0 <= at < found for at in places) and query >= 0):
                raise ValueError
            right[query] += places
    except (TypeError, ValueError, IndexError):
        raise DistillError(
            f"{listing} does not list places among {asks} queries and {found} references",
            "use the file of these images",
        ) from None
    return right

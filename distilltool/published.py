"""What the protocols of published benchmarks share: their lists, their roles, and distractors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distilltool import images
from distilltool.datasets import Dataset
from distilltool.errors import DistillError
from distilltool.truth import Figure, Truth, listed


def benchmark(
    protocol: str,
    queries: Sequence[tuple[Path, str]],
    gallery: Sequence[tuple[Path, str]],
    figures: tuple[Figure, ...],
    conventions: Mapping[str, str] | None = None,
) -> Dataset:
    """A published set whose (path, label) pairs ask each other or, where `gallery` is empty, are asked about one
    another."""
    rows = [*queries, *gallery]
    alone = not gallery
    return Dataset(
        protocol=protocol,
        paths=tuple(path for path, _ in rows),
        labels=tuple(label for _, label in rows),
        query=(True,) * len(queries) + (False,) * len(gallery),
        gallery=(alone,) * len(queries) + (True,) * len(gallery),
        figures=figures,
        conventions=conventions or {},
        as_listed=True,
    )


def asked_lists(
    protocol: str,
    queries: Sequence[Path],
    gallery: Sequence[Path],
    truth: Mapping[str, Sequence[tuple[Iterable[int], Iterable[int]]]],
    **more: Any,
) -> Dataset:
    """A set of queries and, behind them, a gallery, whose truth is for each query (positives, ignored) as places in the
    gallery, by level. more: further fields."""
    shift = len(queries)
    return Dataset(
        protocol=protocol,
        paths=(*queries, *gallery),
        labels=None,
        query=(True,) * shift + (False,) * len(gallery),
        gallery=(False,) * shift + (True,) * len(gallery),
        truth={
            level: Truth(
                positives=tuple(listed(shift + place for place in right) for right, _ in lists),
                ignored=tuple(listed(shift + place for place in ignored) for _, ignored in lists),
            )
            for level, lists in truth.items()
        },
        as_listed=True,
        **more,
    )


def with_distractors(dataset: Dataset, distractors: str | None) -> Dataset:
    """The same set with further gallery images, which answer nobody: a folder of them, or of their vectors."""
    if distractors is None:
        return dataset
    folder = Path(distractors)
    if folder.is_dir() and any(folder.glob("*.npy")):
        return replace(dataset, distractors=folder)
    try:
        more = images.find(folder)
    except DistillError:
        raise DistillError(
            f"{folder} holds no distractors", "give a folder of images, or of vectors, NAME.npy for each model"
        ) from None
    return replace(
        dataset,
        paths=(*dataset.paths, *more),
        labels=None if dataset.labels is None else (*dataset.labels, *("" for _ in more)),
        query=(*dataset.query, *(False for _ in more)),
        gallery=(*dataset.gallery, *(True for _ in more)),
        boxes=None if dataset.boxes is None else (*dataset.boxes, *(None for _ in more)),
    )


def below(root: Path, name: str, listing: Path) -> Path:
    """The file that a benchmark's list names, below its folder; a name that leads out of it is an error."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise DistillError(f"{listing} names {name[:80]!r}, which does not lie below {root}", "get the list anew")
    return root / name


def lines(listing: Path, columns: int, skip: int = 0) -> list[list[str]]:
    """The rows of a benchmark's list, parted by blanks; raises DistillError where one has not so many columns."""
    try:
        text = listing.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(
            f"{listing} cannot be read ({error})", "give the folder that the benchmark unpacks to"
        ) from None
    rows = [line.split() for line in text.splitlines()[skip:] if line.strip()]
    wrong = next((at for at, row in enumerate(rows) if len(row) != columns), None)
    if wrong is not None or not rows:
        at = "no line" if wrong is None else f"line {wrong + skip + 1} that has not {columns} columns"
        raise DistillError(f"{listing} has {at}", "get the list anew")
    return rows

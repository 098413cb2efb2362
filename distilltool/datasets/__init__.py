"""Sets of images to evaluate on: one file a protocol, its name is what `--protocol` takes.

Each file holds one function `name(root, **settings) -> Dataset`. What follows the name in `--protocol name:key=value`
is given to its keyword parameters as text; `keep`, where it has one, is a folder for what is worth reading once alone.
A file may say by `SIGN` which path below `root` tells such a set.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from distilltool import extensions, images
from distilltool.errors import DistillError
from distilltool.images import Box
from distilltool.truth import LABELLED, Figure, Truth


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Image files and what is known of them. labels: one per path, or None, an empty one
    being like no other; query, gallery: which paths are which.

    truth: instead of labels, lists of rows for each query in order, by level. boxes: for each path the part that is
    meant, None for all of it. figures: what the protocol reports, conventions: what must be known to compare them.
    as_listed: each path counts, as in published figures; otherwise one of those with the same bytes. distractors: a
    folder of vectors that stand in the gallery behind all images, one file for each model.
    """

    protocol: str
    paths: tuple[Path, ...]
    labels: tuple[str, ...] | None
    query: tuple[bool, ...]
    gallery: tuple[bool, ...]
    truth: Mapping[str, Truth] = field(default_factory=dict)
    boxes: tuple[Box | None, ...] | None = None
    figures: tuple[Figure, ...] = LABELLED
    conventions: Mapping[str, str] = field(default_factory=dict)
    as_listed: bool = False
    distractors: Path | None = None


def open_dataset(root: Path, protocol: str | None = None, keep: Path | None = None) -> Dataset:
    """Load a set by the protocol named, or by what it looks like: the files of a benchmark, a CSV file, class folders,
    or a plain folder.

    keep: folder for ground truth that was read once; None keeps nothing. Raises DistillError.
    """
    name, _, text = (protocol or _recognise(root)).partition(":")
    load = extensions.find(__name__, "protocol", name)
    takes = [one.name for one in inspect.signature(load).parameters.values() if one.kind is one.KEYWORD_ONLY]
    settings = {}
    for piece in filter(None, text.split(",")):
        key, _, value = piece.partition("=")
        if not value or key not in takes or key == "keep":
            known = ", ".join(f"{one}=" for one in takes if one != "keep") or "no settings"
            raise DistillError(f"--protocol {protocol}: {piece} is not understood", f"{name} takes {known}")
        settings[key] = value
    dataset: Dataset = load(root, **settings, **({"keep": keep} if "keep" in takes else {}))
    return dataset


def _recognise(root: Path) -> str:
    """Class folders are two or more folders side by side that hold all the images, one of them at least two."""
    if root.suffix.lower() == ".csv":
        return "csv"
    for name in extensions.names(__name__):
        sign = getattr(import_module(f"{__name__}.{name}"), "SIGN", None)
        if sign is not None and (root / sign).is_file():
            return name
    classes = [path.relative_to(root).parts for path in images.find(root)]
    names = [parts[0] for parts in classes if len(parts) > 1]
    if len(names) == len(classes) and len(set(names)) > 1 and len(set(names)) < len(names):
        return "folders"
    return "unlabelled"


def settled(dataset: Dataset, contents: Sequence[bytes]) -> tuple[Dataset, list[bytes]]:
    """The rows that count, and the content of each: as listed, or one for each distinct content.

    contents: for each path what its image is kept under, empty where it could not be read.
    """
    if not dataset.as_listed:
        return merged(dataset, contents)
    rows = [row for row, content in enumerate(contents) if content]
    return chosen(dataset, rows), [contents[row] for row in rows]


def chosen(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """The same set of some rows alone, in that order."""
    queries = [row for row, asks in enumerate(dataset.query) if asks]
    return replace(
        dataset,
        paths=tuple(dataset.paths[row] for row in rows),
        labels=None if dataset.labels is None else tuple(dataset.labels[row] for row in rows),
        query=tuple(dataset.query[row] for row in rows),
        gallery=tuple(dataset.gallery[row] for row in rows),
        truth={level: one.among(rows, queries) for level, one in dataset.truth.items()},
        boxes=None if dataset.boxes is None else tuple(dataset.boxes[row] for row in rows),
    )


def merged(dataset: Dataset, contents: Sequence[bytes]) -> tuple[Dataset, list[bytes]]:
    """One row for each distinct content, so that an image cannot be found as its own copy; roles add up.

    contents: for each path the sha256 of its bytes, empty where it could not be read (such rows are left out).
    Returns the dataset and the content of each of its rows. The same bytes under two labels are an error.
    """
    first: dict[bytes, int] = {}
    roles: dict[bytes, tuple[bool, bool]] = {}
    for row, content in enumerate(contents):
        if not content:
            continue
        at = first.setdefault(content, row)
        if dataset.labels is not None and dataset.labels[at] != dataset.labels[row]:
            raise DistillError(
                f"{dataset.paths[at]} and {dataset.paths[row]} are the same image with different labels",
                "remove one of them",
            )
        before = roles.get(content, (False, False))
        roles[content] = (before[0] or dataset.query[row], before[1] or dataset.gallery[row])
    kept = replace(
        chosen(dataset, list(first.values())),
        query=tuple(roles[content][0] for content in first),
        gallery=tuple(roles[content][1] for content in first),
    )
    return kept, list(first)


def all_roles(count: int) -> tuple[bool, ...]:
    """Every image in that role."""
    return (True,) * count

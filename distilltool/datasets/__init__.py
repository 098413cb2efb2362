"""Sets of images to evaluate on: one file a protocol, its name is what `--protocol` takes.

Each file holds one function `name(root) -> Dataset`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distilltool import extensions, images
from distilltool.errors import DistillError


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Image files and what is known of them. labels: one per path, or None, an empty one
    being like no other; query, gallery: which paths are which."""

    protocol: str
    paths: tuple[Path, ...]
    labels: tuple[str, ...] | None
    query: tuple[bool, ...]
    gallery: tuple[bool, ...]


def open_dataset(root: Path, protocol: str | None = None) -> Dataset:
    """Load a set by the protocol named, or by what it looks like: a CSV file, class folders, or a plain folder."""
    chosen = protocol or _recognise(root)
    dataset: Dataset = extensions.find(__name__, "protocol", chosen)(root)
    return dataset


def _recognise(root: Path) -> str:
    """Class folders are two or more folders side by side that hold all the images, one of them at least two."""
    if root.suffix.lower() == ".csv":
        return "csv"
    classes = [path.relative_to(root).parts for path in images.find(root)]
    names = [parts[0] for parts in classes if len(parts) > 1]
    if len(names) == len(classes) and len(set(names)) > 1 and len(set(names)) < len(names):
        return "folders"
    return "unlabelled"


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
    rows = list(first.values())
    labels = dataset.labels
    kept = Dataset(
        protocol=dataset.protocol,
        paths=tuple(dataset.paths[row] for row in rows),
        labels=None if labels is None else tuple(labels[row] for row in rows),
        query=tuple(roles[content][0] for content in first),
        gallery=tuple(roles[content][1] for content in first),
    )
    return kept, list(first)


def all_roles(count: int) -> tuple[bool, ...]:
    """Every image in that role."""
    return (True,) * count

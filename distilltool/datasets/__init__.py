"""Sets of images to evaluate on: one file a protocol, its name is what `--protocol` takes.

Each file holds one function `name(root) -> Dataset`.
"""

from dataclasses import dataclass
from pathlib import Path

from distilltool import extensions, images


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Image files and what is known of them. labels: one per path, or None; query, gallery: which paths are which."""

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


def all_roles(count: int) -> tuple[bool, ...]:
    """Every image in that role."""
    return (True,) * count

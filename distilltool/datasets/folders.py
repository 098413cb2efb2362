"""A folder of class folders: every image is asked about against all others."""

from pathlib import Path

from distilltool import images
from distilltool.datasets import Dataset, all_roles
from distilltool.errors import DistillError


def folders(root: Path) -> Dataset:
    """The first folder below `root` is an image's class."""
    paths = tuple(images.find(root))
    parts = [path.relative_to(root).parts for path in paths]
    loose = [path for path, part in zip(paths, parts, strict=True) if len(part) < 2]
    if loose:
        raise DistillError(f"{loose[0]} lies in no class folder", f"put each image into {root}/CLASS/")
    roles = all_roles(len(paths))
    return Dataset(protocol="folders", paths=paths, labels=tuple(part[0] for part in parts), query=roles, gallery=roles)

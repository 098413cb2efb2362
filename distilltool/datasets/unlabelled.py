"""Any folder of images: no labels, only agreement with the teacher."""

from pathlib import Path

from distilltool import images
from distilltool.datasets import Dataset, all_roles


def unlabelled(root: Path) -> Dataset:
    """Every image below `root` is asked about against all others."""
    paths = tuple(images.find(root))
    roles = all_roles(len(paths))
    return Dataset(protocol="unlabelled", paths=paths, labels=None, query=roles, gallery=roles)

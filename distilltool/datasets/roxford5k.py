"""Revisited Oxford: landmarks, three difficulties, queries cropped to their boxes."""

from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.revisited import revisited

SIGN = "gnd_roxford5k.pkl"


def roxford5k(root: Path, *, distractors: str | None = None, keep: Path | None = None) -> Dataset:
    """`gnd_roxford5k.pkl` and `jpg/` as published; `distractors=DIR` adds a folder of images or vectors."""
    return revisited("roxford5k", root, distractors, keep)

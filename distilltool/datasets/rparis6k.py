"""Revisited Paris: landmarks, three difficulties, queries cropped to their boxes."""

from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.revisited import revisited

SIGN = "gnd_rparis6k.pkl"


def rparis6k(root: Path, *, distractors: str | None = None, keep: Path | None = None) -> Dataset:
    """`gnd_rparis6k.pkl` and `jpg/` as published; `distractors=DIR` adds a folder of images or vectors."""
    return revisited("rparis6k", root, distractors, keep)

"""Look whether a bundle is what was exported: its files, and what it makes of the pictures it carries."""

import time
from pathlib import Path

import numpy as np

from distilltool import bundle, deploy, golden, images
from distilltool.errors import DistillError
from distilltool.report import GoldenReport, VerifyReport

FP32 = "student.onnx"
NEAR = 0.9999  # cosine of float32 to the trained student: other decoders and processors round otherwise
VARIANT_NEAR = 0.98  # of a variant to what it gave where it was exported: 8 bits are summed differently


def verify(root: Path) -> VerifyReport:
    """Recompute hashes, and the vectors of the golden pictures with what a deployment would run.

    Raises DistillError where the folder is no bundle; what is wrong with one is among its faults.
    """
    began = time.perf_counter()
    if not (root / bundle.SUMS).is_file():
        raise DistillError(f"{root} is no bundle of distilltool", "give the folder that export wrote")
    listed = bundle.sealed(root)
    faults = [*_changed(root, listed), *_unlisted(root, listed)]
    found = tuple[GoldenReport, ...]()
    if not faults:
        found = tuple(_compared(root, path) for path in sorted(root.glob("student*.onnx")))
        faults += [f"{one.file} gives other vectors: cosine {one.cosine_min:.4f}" for one in found if not one.same]
    return VerifyReport(
        bundle=str(root),
        files=len(listed),
        golden=found,
        faults=tuple(faults),
        seconds=time.perf_counter() - began,
    )


def _changed(root: Path, listed: dict[str, str]) -> list[str]:
    faults = []
    for name, sha256 in listed.items():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            faults.append(f"{name} is outside of the bundle")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif images.digest(path) != sha256:
            faults.append(f"{name} was changed: its sha256 is another")
    return faults


def _unlisted(root: Path, listed: dict[str, str]) -> list[str]:
    names = (path.relative_to(root).as_posix() for path in bundle.files(root))
    return [f"{name} was not exported" for name in names if name not in listed]


def _compared(root: Path, path: Path) -> GoldenReport:
    """A file's vectors of the golden pictures: float32 beside the trained student, a variant beside itself."""
    pictures = sorted(one for one in (root / golden.FOLDER).iterdir() if one.name != golden.VECTORS)
    with np.load(root / golden.FOLDER / golden.VECTORS, allow_pickle=False) as kept:
        expected = kept[golden.TRAINED if path.name == FP32 else path.name]
    found = deploy.Student(path).embed(pictures)
    cosine = float((expected * found).sum(axis=1).min())
    return GoldenReport(
        file=path.name,
        pictures=len(pictures),
        cosine_min=cosine,
        difference_max=float(np.abs(expected - found).max()),
        same=cosine >= (NEAR if path.name == FP32 else VARIANT_NEAR),
    )

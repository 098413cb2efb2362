"""Look whether a bundle is what was exported: its files, and what it makes of the pictures it carries."""

import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL.Image import DecompressionBombError

from distilltool import bundle, deploy, golden, images
from distilltool.errors import DistillError
from distilltool.onnx_file import first_line
from distilltool.report import GoldenReport, VerifyReport
from distilltool.runtime import RUNTIME_ERRORS

FP32 = "student.onnx"
GOLDEN = f"{golden.FOLDER}/{golden.VECTORS}"
# what a file that anybody may have written can raise when it is read, opened or run
UNFIT: tuple[type[Exception], ...] = (
    *RUNTIME_ERRORS,
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, SyntaxError),
    *(BadZipFile, zlib.error, DecompressionBombError),
)
NEAR = 0.9999  # cosine of float32 to the trained student: other decoders and processors round otherwise
VARIANT_NEAR = 0.98  # of a variant to what it gave where it was exported: 8 bits are summed differently


def verify(root: Path) -> VerifyReport:
    """Recompute hashes, and the vectors of the golden pictures with what a deployment would run.

    Raises DistillError where the folder is no bundle; what is wrong with one is among its faults.
    """
    began = time.perf_counter()
    if not (root / bundle.SUMS).is_file():
        raise DistillError(f"{root} is no bundle of distilltool", "give the folder that export wrote")
    try:
        listed, odd = bundle.sealed(root), bundle.unreadable(root)
    except OSError as error:
        raise DistillError(f"{root / bundle.SUMS} cannot be read ({error.strerror})", "check its permissions") from None
    faults = [f"{bundle.SUMS} has a line that names no file, or one again: {line[:80]}" for line in odd]
    faults += [*_lacking(listed), *_changed(root, listed), *_unlisted(root, listed)]
    found = list[GoldenReport]()
    if not faults:
        expected = _expected(root, faults)
        pictures = sorted(root / name for name in listed if _is_picture(name))
        for file in sorted(name for name in listed if _is_student(name)) if expected else ():
            one = _compared(root / file, pictures, expected, faults)
            found += [one] if one else []
    return VerifyReport(
        bundle=str(root),
        files=len(listed),
        golden=tuple(found),
        faults=tuple(faults),
        seconds=time.perf_counter() - began,
    )


def _lacking(listed: Mapping[str, str]) -> list[str]:
    """What every bundle has and this one does not even claim to have."""
    pictures = [] if any(_is_picture(name) for name in listed) else [f"{bundle.SUMS} names no golden pictures"]
    return [f"{name} is not in {bundle.SUMS}" for name in (FP32, GOLDEN) if name not in listed] + pictures


def _is_student(name: str) -> bool:
    return "/" not in name and name.startswith("student") and name.endswith(".onnx")


def _is_picture(name: str) -> bool:
    return name.startswith(f"{golden.FOLDER}/") and name != GOLDEN


def _changed(root: Path, listed: Mapping[str, str]) -> list[str]:
    faults = []
    for name, sha256 in listed.items():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            faults.append(f"{name} is outside of the bundle")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        else:
            faults += _changed_file(path, name, sha256)
    return faults


def _changed_file(path: Path, name: str, sha256: str) -> list[str]:
    try:
        return [] if images.digest(path) == sha256 else [f"{name} was changed: its sha256 is another"]
    except OSError as error:
        return [f"{name} cannot be read ({error.strerror})"]


def _unlisted(root: Path, listed: Mapping[str, str]) -> list[str]:
    names = (path.relative_to(root).as_posix() for path in bundle.files(root))
    return [f"{name} was not exported" for name in names if name not in listed]


def _expected(root: Path, faults: list[str]) -> dict[str, NDArray[np.float32]]:
    """The golden vectors by the file that is to give them, each (N, D); what is wrong with them goes to `faults`."""
    try:
        with np.load(root / GOLDEN, allow_pickle=False) as kept:
            named = {FP32 if name == golden.TRAINED else name: name for name in kept.files if name != FP32}
            found = {name: np.asarray(kept[key], np.float32) for name, key in named.items()}
    except UNFIT as error:
        faults.append(f"{GOLDEN} cannot be read ({first_line(error)})")
        return {}
    gone = [name for name in found if not (root / name).is_file()]
    faults += [f"{GOLDEN} has vectors of {name}, which is not there" for name in gone]
    return found


def _compared(
    path: Path, pictures: Sequence[Path], expected: Mapping[str, NDArray[np.float32]], faults: list[str]
) -> GoldenReport | None:
    """A file's vectors of the golden pictures: float32 beside the trained student, a variant beside itself.

    What is wrong with it goes to `faults`; None where it gives nothing that could be compared.
    """
    wanted = expected.get(path.name)
    if wanted is None:
        faults.append(f"{path.name} cannot be checked: {GOLDEN} has no vectors of it")
        return None
    try:
        found = deploy.Student(path, threads=images.workers()).embed(pictures)
    except UNFIT as error:
        why = f"nothing in it says {error}" if isinstance(error, KeyError) else first_line(error)
        faults.append(f"{path.name} cannot be run ({why})")
        return None
    if found.shape != wanted.shape or not np.isfinite([found, wanted]).all():
        faults.append(f"{path.name} gives {_form(found)}, {GOLDEN} has {_form(wanted)}")
        return None
    cosine = float((wanted * found).sum(axis=1).min())
    same = cosine >= (NEAR if path.name == FP32 else VARIANT_NEAR)
    if not same:
        faults.append(f"{path.name} gives other vectors: cosine {cosine:.4f}")
    return GoldenReport(
        file=path.name,
        pictures=len(pictures),
        cosine_min=cosine,
        difference_max=float(np.abs(wanted - found).max()),
        same=same,
    )


def _form(vectors: NDArray[np.float32]) -> str:
    """What vectors look like, in words."""
    kind = "numbers" if np.isfinite(vectors).all() else "numbers not all of which are finite"
    return f"{' x '.join(map(str, vectors.shape))} {kind}"

"""What a bundle holds beside the graph: how the Hugging Face hub describes a model, and hashes; and its folder."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from distilltool import golden, images
from distilltool.any_size import whole_sides
from distilltool.deploy import RESAMPLE
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.rundir import write_text

if TYPE_CHECKING:
    from distilltool.student import StudentCard

SUMS, CARD, REPORT = "SHA256SUMS", "card.md", "report.json"
UNSEALED = (CARD, SUMS)  # whoever ships the bundle fills in the card
# what an export may write
WRITTEN = (REPORT, *UNSEALED, "student*.onnx", "deploy.py", "config.json", "preprocessor_config.json", "vectors.*")
WRITTEN_BELOW = golden.FOLDER
WORK = ".export."  # how the folder is called, inside a bundle's, in which the next one is made
LINE = re.compile("(?P<sha256>[0-9a-f]{64})  (?P<name>.+)")
SAID = {"bundle", "variants", "teacher", "machine"}  # in every report of an export
ELSEWHERE = "choose another folder with --bundle"


def preprocessor_config(how: Preprocess) -> dict[str, Any]:
    """`preprocessor_config.json` as image processors of the hub read it; scaling and normalisation are in the graph.

    A stretched cut is said as they can: resized larger, then cut from the middle.
    """
    # CLIP's processor alone stretches, keeps proportions and cuts in transformers 4 and 5: ViT's neither cuts nor keeps
    # proportions in 4. Checked by AutoImageProcessor of 4.50.3 and 5.23.0, with Pillow and with torchvision (5): within
    # 2 of 255 of ours where margins are whole; an odd margin is divided otherwise, which moves the cut by a pixel
    height, width = how.size
    said: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": RESAMPLE[how.interpolation],
        "do_rescale": False,
        "do_normalize": False,
    }
    if how.resize == "shortest":
        size: dict[str, int] = {"shortest_edge": int(how.resize_to or min(how.size))}
    else:
        size = dict(zip(("height", "width"), whole_sides(how), strict=True))
    cut = size != {"height": height, "width": width}
    return {**said, "size": size, "do_center_crop": cut, "crop_size": {"height": height, "width": width}}


def config(card: "StudentCard", teacher_sha256: str, version: str) -> dict[str, Any]:
    """`config.json`: what the hub shows of a model and libraries look up."""
    return {
        "model_type": "distilltool",
        "library_name": "onnxruntime",
        "pipeline_tag": "image-feature-extraction",
        "architecture": card.spec,
        "hidden_size": card.dim,
        "image_size": list(card.input),
        "num_channels": 3,
        "normalized_embeddings": True,
        "space_id": card.space_id,
        "nested_sizes": list(card.dims),
        "teacher_sha256": teacher_sha256,
        "distilltool_version": version,
    }


def files(bundle: Path) -> list[Path]:
    """Everything in a bundle that is sealed, in order."""
    found = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(bundle).as_posix() not in UNSEALED]


def seal(bundle: Path) -> None:
    """Write the hashes of all files but the card, as `sha256sum -c` reads them."""
    hashes = {path.relative_to(bundle).as_posix(): images.digest(path) for path in files(bundle)}
    write_text(bundle / SUMS, _lines(hashes))


def _lines(hashes: Mapping[str, str]) -> str:
    return "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())


def sealed(bundle: Path) -> dict[str, str]:
    """Hashes by name, as they were written; lines that are none are left out."""
    return dict(entry for entry, _ in _entries(bundle) if entry)


def unreadable(bundle: Path) -> list[str]:
    """Lines of the list of hashes that are none, or name a file again."""
    found, seen = [], set[str]()
    for entry, line in _entries(bundle):
        if entry is None or entry[0] in seen:
            found.append(line)
        else:
            seen.add(entry[0])
    return found


def _entries(bundle: Path) -> Iterator[tuple[tuple[str, str] | None, str]]:
    """Name and hash of each line, None where it says neither, and the line; whoever wrote the list."""
    text = (bundle / SUMS).read_bytes().decode("utf-8", "backslashreplace")
    for line in text.removesuffix("\n").split("\n") if text else ():
        found = LINE.fullmatch(line) if line.isprintable() else None
        yield ((found["name"], found["sha256"]) if found else None), line


def check(bundle: Path) -> None:
    """Raise DistillError where a folder may not be filled: it holds what is no bundle, or others' files in the way."""
    if not bundle.is_dir():
        if bundle.exists() or bundle.is_symlink():
            raise DistillError(f"{bundle} is a file", ELSEWHERE)
        return
    there = _there(bundle)
    if there and not _is_bundle(bundle):
        raise DistillError(f"the folder {bundle} holds something that is no bundle", f"{ELSEWHERE}, or empty this one")
    if in_the_way := [name for name in foreign(bundle) if _may_write(name)]:
        raise DistillError(
            f"{bundle} holds {in_the_way[0]}, which no export wrote", f"move it elsewhere, or {ELSEWHERE}"
        )


def foreign(bundle: Path) -> list[str]:
    """Files in a bundle's folder that are none of its own, in order."""
    own = _own(bundle)
    return [name for name in _there(bundle) if name not in own]


@contextmanager
def replaced(bundle: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of the bundle that was there; an error leaves that as it was.

    Of what was there goes what its own list names, and nothing else. Raises DistillError as `check` does.
    """
    check(bundle)
    new = not bundle.exists()
    try:
        bundle.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=WORK, dir=bundle)
    except OSError as error:
        raise _unwritable(bundle, error) from None
    try:
        with work as folder:
            made = Path(folder) / bundle.resolve().name
            made.mkdir()
            yield made
            try:
                _swap(made, bundle)
            except OSError as error:
                raise _unwritable(bundle, error) from None
    finally:
        if new:
            with suppress(OSError):
                bundle.rmdir()  # nothing came of it


def _swap(made: Path, bundle: Path) -> None:
    """Put what was made in place of what is there; stopped at any moment, this is a bundle that names all its files."""
    fresh, old = _there(made), _own(bundle)
    both = {**_sealed_if_any(bundle), **_sealed_if_any(made)}
    (made / REPORT).replace(bundle / REPORT)
    if both:
        write_text(bundle / SUMS, _lines(both))
    for name in old - {*fresh, REPORT, SUMS}:
        if _inside(bundle, name) and not (bundle / name).is_dir():
            (bundle / name).unlink(missing_ok=True)
    for name in fresh:
        if name not in (REPORT, SUMS):
            (bundle / name).parent.mkdir(exist_ok=True)
            (made / name).replace(bundle / name)
    if SUMS in fresh:
        (made / SUMS).replace(bundle / SUMS)
    else:
        (bundle / SUMS).unlink(missing_ok=True)
    with suppress(OSError):
        (bundle / golden.FOLDER).rmdir()  # unless something is in it


def _there(folder: Path) -> list[str]:
    """Names of all files in a folder and below, in order, but for what an export that was killed has left."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in found]
    return [name for name in names if not name.startswith(WORK)]


def _is_bundle(folder: Path) -> bool:
    """Whether an export wrote this: its report says so, and its list, if it has one, names the report."""
    try:
        said = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        return False
    listed = _sealed_if_any(folder)
    return isinstance(said, dict) and said.keys() >= SAID and (not listed or REPORT in listed)


def _own(bundle: Path) -> set[str]:
    """Names of a bundle's files: its report, and with a list what that names, the card and itself."""
    listed = _sealed_if_any(bundle)
    return {REPORT, *listed, *(UNSEALED if listed else ())}


def _sealed_if_any(folder: Path) -> dict[str, str]:
    return sealed(folder) if (folder / SUMS).is_file() else {}


def _may_write(name: str) -> bool:
    return PurePosixPath(name).parts[0] == WRITTEN_BELOW or any(fnmatchcase(name, one) for one in WRITTEN)


def _inside(folder: Path, name: str) -> bool:
    """Whether a listed name leads to a place in the folder, whoever wrote the list."""
    place = Path(os.path.normpath(folder / name)).parent.resolve()
    return place.is_relative_to(folder.resolve()) and ".." not in PurePosixPath(name).parts


def _unwritable(bundle: Path, error: OSError) -> DistillError:
    return DistillError(f"{bundle} cannot be written ({error.strerror})", "choose a writable folder with --bundle")

"""Find images, name them by their bytes, decode them ahead of whoever needs them."""

import hashlib
import os
import stat
import struct
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distilltool import deploy
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.report import Skipped

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
ARCHIVES = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\0",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
MAX_BYTES = 1 << 30  # of one image file; 80 million pixels of 16 bits and four channels are 0.6 GB
LARGE = threading.Lock()  # so that bombs that stay below the limit go off one after the other
Item = TypeVar("Item")
Result = TypeVar("Result")


Box = tuple[int, int, int, int]  # left, upper, right, lower in pixels of the upright image


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """An image file: its path, the sha256 of its bytes (32 bytes), and the part of it that is meant, None for all."""

    path: Path
    sha256: bytes
    box: Box | None = None

    @property
    def key(self) -> bytes:
        """What a ledger keeps its answers under: a part of an image is another question than the image."""
        return question(self.sha256, self.box)


def question(sha256: bytes, box: Box | None) -> bytes:
    """The hash of an image, and after it the part of it that is asked about, where it is not asked about as a whole."""
    return sha256 if box is None else sha256 + f"crop={','.join(map(str, box))}".encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a folder holds: every readable file once per content, and what was left out.

    photos: in order of path, one per distinct content. files: image files found. duplicates: files whose
    content stands under another name too. paths: each file asked about, in order; of_path: the `key` of its photo,
    empty where it could not be read.
    """

    photos: tuple[Photo, ...]
    files: int
    duplicates: int
    skipped: tuple[Skipped, ...]
    paths: tuple[Path, ...]
    of_path: tuple[bytes, ...]


CGROUPS = Path("/sys/fs/cgroup")


def workers() -> int:
    """Processors this process may really use, by affinity and by the container's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else min(allowed, max(1, int(quota)))  # a thread more would wait for its turn


def cpu_quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time the control groups of this process may use, the tightest counting; None without one.

    Version 2 says it in cpu.max, version 1 in cpu.cfs_quota_us (Linux kernel, admin-guide/cgroup-v2 and
    scheduler/sched-bwc). Groups above count too, as far as they can be seen.
    """
    found = [quota for folder in _groups(root, membership) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Folders of the groups this process is in, with those above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/"]:
        _, kinds, path = (line.split(":", 2) + ["", ""])[:3]
        parts = [part for part in path.split("/") if part]
        if ".." in parts or (kinds and "cpu" not in kinds.split(",")):
            continue
        for top in (root,) if not kinds else (root / kinds, root / "cpu"):
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _quota(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def find(root: Path) -> list[Path]:
    """Image files below a folder in order of path; hidden ones are left out. A single file is itself."""
    if root.is_file():
        _refuse_archive(root)
        return [root]
    if not root.is_dir():
        raise DistillError(f"there is no folder {root}", "give the folder that holds the images")
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(folder, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise DistillError(f"there is no image in {root}", f"the endings that count are {' '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _refuse_archive(path: Path) -> None:
    """An archive is no folder: unpacking it is for tools that guard against what names in it can do."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return  # taking stock will say so
    if head.startswith(ARCHIVES) or head[257:262] == b"ustar":
        raise DistillError(f"{path} is an archive", "unpack it first and give the folder; nothing was unpacked")


def take_stock(paths: Sequence[Path], boxes: Sequence[Box | None] | None = None) -> Inventory:
    """Name every file by its bytes; the same bytes under several names count once, each part of them that is meant too.

    boxes: for each path the part that is meant; None where all are meant as a whole.
    """
    photos: dict[bytes, Photo] = {}
    skipped: list[Skipped] = []
    of_path: list[bytes] = []
    for path, box, found in zip(paths, boxes or [None] * len(paths), ahead(paths, _digest), strict=True):
        if isinstance(found, str):
            of_path.append(b"")
            skipped.append(Skipped(path=str(path), reason=found))
        else:
            photo = Photo(path=path, sha256=found, box=box)
            of_path.append(photo.key)
            photos.setdefault(photo.key, photo)
    return Inventory(
        photos=tuple(photos.values()),
        files=len(paths),
        skipped=tuple(skipped),
        duplicates=len(paths) - len(skipped) - len(photos),
        paths=tuple(paths),
        of_path=tuple(of_path),
    )


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(hashes: Iterable[bytes]) -> str:
    """One hash for a set of images, whatever their order."""
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def _digest(path: Path) -> bytes | str:
    if (odd := _odd(path)) is not None:
        return odd
    try:
        return bytes.fromhex(digest(path))
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _odd(path: Path) -> str | None:
    """Why a file must not even be opened: reading a pipe waits for ever, a device never ends."""
    try:
        found = path.stat()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "cannot be read (its name holds a NUL)"
    if not stat.S_ISREG(found.st_mode):
        return "is no ordinary file"
    return "is too large to be a photograph" if found.st_size > MAX_BYTES else None


def decode(path: Path, least: int = 0) -> Image.Image | str:
    """Decode one file to upright RGB, or say in a few words why not. least: as of `deploy.open_rgb`."""
    with ExitStack() as alone:
        return _decode(path, least, alone)


def _decode(path: Path, least: int, alone: ExitStack) -> Image.Image | str:
    """As `decode`; a large image takes the lock that `alone` lets go of once nothing of it is in memory."""
    if (odd := _odd(path)) is not None:
        return odd
    try:
        return deploy.open_rgb(path, least, lambda: alone.enter_context(LARGE))
    except UnidentifiedImageError:
        return "is no image of a known format"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "is too large to be a photograph"
    except (
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        NotImplementedError,
        MemoryError,
        ArithmeticError,
        zlib.error,
    ) as error:
        return f"cannot be decoded ({str(error).split(chr(10))[0] or type(error).__name__})"  # Pillow's own range


def prepare(path: Path, preprocess: Preprocess, box: Box | None = None) -> NDArray[np.uint8] | str:
    """Decode and resize one file, or the part of it in a box → (H, W, 3) uint8, or the reason why not."""
    found = prepare_each(path, (preprocess,), box)
    return found if isinstance(found, str) else found[0]


def prepare_each(
    path: Path, preprocesses: Sequence[Preprocess], box: Box | None = None
) -> list[NDArray[np.uint8]] | str:
    """As `prepare`, in several sizes of one file that is decoded once."""
    with ExitStack() as alone:
        image = _decode(path, 0, alone)
        if isinstance(image, str):
            return image
        try:
            if box is not None:
                left, upper, right, lower = box
                inside = (max(left, 0), max(upper, 0), min(right, image.width), min(lower, image.height))
                if inside[0] >= inside[2] or inside[1] >= inside[3]:
                    return f"has {image.width}×{image.height} pixels, none of them in the box {box}"
                image = image.crop(inside)
            return [preprocess.prepare(image) for preprocess in preprocesses]
        except (MemoryError, ValueError) as error:  # a strip of 20,000 x 1 pixels, brought to a short side of 224
            return f"cannot be resized ({str(error) or type(error).__name__})"
        finally:
            del image


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    threads: int = 0,
    depth: int = 64,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Results in the items' order, computed by threads up to `depth` items ahead of whoever takes them.

    begin: what each thread does first.
    """
    waiting: deque[Future[Result]] = deque()

    def prepare_thread() -> None:
        _give_way()
        begin()

    with ThreadPoolExecutor(threads or workers(), initializer=prepare_thread) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _give_way() -> None:
    """Lower this thread's priority: a model that waits for one of its own threads loses more than a decoder does."""
    if sys.platform == "linux":  # elsewhere priority belongs to the process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def load(paths: Sequence[Path], preprocess: Preprocess) -> tuple[NDArray[np.uint8], list[Skipped]]:
    """All files prepared to one shape, (N, H, W, 3) uint8 in memory, and those that could not be."""
    kept, skipped = load_each(paths, preprocess)
    if not kept:
        return np.zeros((0, *preprocess.size, 3), np.uint8), skipped
    return np.stack(kept), skipped


def load_each(paths: Sequence[Path], preprocess: Preprocess) -> tuple[list[NDArray[np.uint8]], list[Skipped]]:
    """All files prepared, each (H, W, 3) uint8, and those that could not be."""
    kept: list[NDArray[np.uint8]] = []
    skipped: list[Skipped] = []
    for path, found in zip(paths, ahead(paths, lambda p: prepare(p, preprocess)), strict=True):
        if isinstance(found, str):
            skipped.append(Skipped(path=str(path), reason=found))
        else:
            kept.append(found)
    return kept, skipped


def spoilt(path: str, reason: str) -> DistillError:
    """An image the teacher was asked about cannot be read any more."""
    return DistillError(
        f"{path} {reason} now, but the teacher was asked about it", "put the image back and run the same command again"
    )

"""Where an evaluation keeps vectors: in files that fill as they are computed, survive a stop, and are mapped."""

import io
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.names import printable
from distilltool.progress import Progress
from distilltool.rundir import lock_folder, unlock_folder, write_json

ROWS = 4096  # at once, of what is made of rows that are there
HELD = 1 << 26  # bytes of vectors up to which those that are soon gone are held in memory instead
SCRATCH = ".scratch-"
EVERY = 1.0  # seconds of work that a stop may cost
SPARE = 1 << 26  # bytes of disk that are left to others
LONGEST = 100  # letters of a file's name
NUMBER = np.dtype("<f4")

Blocks = Callable[[int], Iterable[NDArray[np.float32]]]  # rows from that place on, some at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a file is to hold. count: rows; made_from: what they are made from, JSON values; about: what is said beside
    the finished file, JSON values; blocks: the rows."""

    count: int
    made_from: Mapping[str, Any]
    about: Mapping[str, Any]
    blocks: Blocks


class Shelf:
    """A folder of `NAME.npy`, float32 (N, D), each with `NAME.json`: how many of the rows are there, and of what.

    A file that is not finished is shorter than it says it will be, so that nobody reads it by mistake.
    """

    def __init__(self, folder: Path, scratch: Path, progress: Progress) -> None:
        """scratch: for what is made anew each time."""
        self.folder, self._scratch, self._progress = folder, scratch, progress
        self._taken: set[str] = set()

    def claim(self, model: str) -> Path:
        """A file for a model, by its name; another one where that is taken. Raises DistillError where a file is there
        that is none of ours."""
        safe = re.sub(r"[^\w.+-]", "_", printable(model)).lstrip(".")[:LONGEST] or "model"
        name, number = safe, 2
        while name.lower() in self._taken:
            name, number = f"{safe}-{number}", number + 1
        self._taken.add(name.lower())
        path = self.folder / f"{name}.npy"
        for left in self.folder.glob(f".{name}.json.*"):  # of a note that was being written when the process was killed
            left.unlink(missing_ok=True)
        if path.exists() and _note(path) is None:
            raise DistillError(f"{path} is there and none that eval wrote", "keep vectors in another folder")
        return path

    def make_sure_of_room(self, size: int) -> None:
        """Raise DistillError where so many bytes do not fit on the disk."""
        _make_sure_of_room(self.folder, size)

    def kept(self, path: Path, wanted: Rows) -> NDArray[np.float32]:
        """All rows, mapped: those that are there as they are, the others once they are computed."""
        file = _Filling(path, wanted)
        if file.others:
            self._progress.note(f"{path.name} holds vectors of something else; they are computed anew")
        elif 0 < file.done:
            self._progress.note(f"{path.name} holds {file.done:,} of {wanted.count:,} vectors already")
        file.fill()
        return mapped(path)

    def made(self, shape: tuple[int, int], blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Rows that are made of others, in memory where they are few, else mapped."""
        if shape[0] * shape[1] * NUMBER.itemsize <= HELD:
            return np.concatenate([np.zeros((0, shape[1]), np.float32), *blocks])
        _make_sure_of_room(self._scratch, shape[0] * shape[1] * NUMBER.itemsize)
        handle, name = tempfile.mkstemp(suffix=".npy", dir=self._scratch)
        os.close(handle)
        with Path(name).open("wb", buffering=0) as file:
            _put(file, _header(shape))
            for block in blocks:
                _put(file, np.ascontiguousarray(block, NUMBER).data)
        return mapped(Path(name))


@contextmanager
def shelf(store: Path, place: str, kept: Path | None, progress: Progress) -> Iterator[Shelf]:
    """A shelf for one evaluation: `kept` where it is named, else a folder beside the ledger `store` that goes once all
    is done, and stays where it is not, for the same evaluation to go on from. Nobody else writes there meanwhile.

    place: which evaluation it is.
    """
    own = store.parent / f"{store.stem}-vectors" / place
    folder = own if kept is None else kept
    lock = lock_folder(folder, "name a writable folder with --vectors")
    if lock is None and kept is not None:
        raise DistillError(f"another process keeps vectors in {kept}", "wait for it, or name another folder")
    if lock is None:  # the same evaluation twice at a time: this one keeps to itself, and nothing of it stays
        own.parent.mkdir(parents=True, exist_ok=True)  # the other may just have been done
        with tempfile.TemporaryDirectory(dir=own.parent) as alone:
            yield Shelf(Path(alone), Path(alone), progress)
        return
    try:
        for left in folder.glob(f"{SCRATCH}*"):  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            yield Shelf(folder, Path(scratch), progress)
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        unlock_folder(folder, lock)
        with suppress(OSError):
            own.parent.rmdir()  # where nothing else is in it


def mapped(path: Path) -> NDArray[np.float32]:
    """A file of vectors, read as it is looked at."""
    found: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


class _Filling:
    """A file on its way from the rows that are there to all of them."""

    def __init__(self, path: Path, wanted: Rows) -> None:
        self.path, self.wanted = path, wanted
        self.done, self.dim, self._crc, self.others = 0, 0, 0, False
        note = _note(path)
        if note is not None and path.exists():
            self.others = note.get("made_from") != json.loads(json.dumps(wanted.made_from))
            if not self.others and _holds(path, note, wanted.count):
                self.done, self.dim, self._crc = note["rows"], note["dim"], note["crc32"]

    def fill(self) -> None:
        """Write what is missing; what is written stays, whatever stops it."""
        if self.done < self.wanted.count:
            self._write_note({})  # before the file is there: without one it would be taken for somebody's
            with _writing(self.path):
                file = self.path.open("r+b" if self.done else "wb", buffering=0)
            with file:
                self._append(file)
        assert self.done == self.wanted.count
        self._write_note(self.wanted.about)

    def _append(self, file: io.FileIO) -> None:
        with _writing(self.path):  # what was written after the last note is not known to be whole
            file.truncate(len(_header(self._shape)) + self.done * self.dim * NUMBER.itemsize if self.done else 0)
            file.seek(0, os.SEEK_END)
        noted = time.monotonic()
        try:
            for block in self.wanted.blocks(self.done):
                self._add(file, np.ascontiguousarray(block, NUMBER))
                if time.monotonic() - noted > EVERY:
                    self._sync(file)
                    noted = time.monotonic()
        finally:
            if self.done:
                self._sync(file)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.wanted.count, self.dim

    def _add(self, file: io.FileIO, block_BD: NDArray[np.float32]) -> None:
        if not self.done:  # their length is known from the first rows on
            self.dim = block_BD.shape[1]
            _make_sure_of_room(self.path.parent, self.wanted.count * self.dim * NUMBER.itemsize)
            _put(file, _header(self._shape))
        _put(file, block_BD.data)
        self._crc, self.done = zlib.crc32(block_BD.data, self._crc), self.done + len(block_BD)

    def _sync(self, file: io.FileIO) -> None:
        with _writing(self.path):
            os.fsync(file.fileno())
        self._write_note({})

    def _write_note(self, about: Mapping[str, Any]) -> None:
        """Say what is there, after it is: a note is never ahead of its file."""
        facts = {"rows": self.done, "of": self.wanted.count, "dim": self.dim, "crc32": self._crc}
        write_json(self.path.with_suffix(".json"), {**about, **facts, "made_from": self.wanted.made_from})


def _holds(path: Path, note: Mapping[str, Any], count: int) -> bool:
    """Whether a file begins with the rows that its note speaks of."""
    try:
        rows, dim, crc = int(note["rows"]), int(note["dim"]), int(note["crc32"])
        head, left, found = _header((count, dim)), rows * dim * NUMBER.itemsize, 0
        with path.open("rb") as file:
            if not 0 < rows <= count or file.read(len(head)) != head:
                return False
            while left and (data := file.read(min(left, 1 << 22))):
                found, left = zlib.crc32(data, found), left - len(data)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return left == 0 and found == crc


def _note(path: Path) -> dict[str, Any] | None:
    """What is said beside a file, None where nothing of ours is."""
    try:
        note = json.loads(path.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and "made_from" in note and "rows" in note else None


def _header(shape: tuple[int, int]) -> bytes:
    """How an .npy file of float32 begins."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": NUMBER.str, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _put(file: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of it; a full disk in one line. Not through a map: there a full disk kills the process."""
    left = memoryview(data).cast("B")
    with _writing(Path(str(file.name))):
        while left:
            left = left[file.write(left) :]


def _make_sure_of_room(folder: Path, size: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # the disk says nothing; writing will tell
    if free < size + SPARE:
        raise DistillError(
            f"vectors need {size / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are left",
            "make room, or keep them on another disk with --vectors DIR",
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the disk does to us, as an error of one line."""
    try:
        yield
    except OSError as error:
        raise DistillError(
            f"{path} cannot be written ({error.strerror})", "make room and run the same command again: it goes on"
        ) from None

"""A run on disk: every path in it, atomic writes, and the manifest that is written last."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilltool.errors import DistillError
from distilltool.names import json_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


LOCK = ".lock"  # stays in a run's folder: a file that is removed while others wait for it would let two of them in


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run. `plan` says from what it is made and exists from the start; `manifest` exists once it is finished."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        return self.root / "best.safetensors"

    @property
    def start(self) -> Path:
        return self.root / "start.safetensors"

    @property
    def undistilled(self) -> Path:
        return self.root / "undistilled.json"

    @property
    def split(self) -> Path:
        return self.root / "split.json"

    @property
    def weights(self) -> Path:
        return self.root / "student.safetensors"

    @property
    def card(self) -> Path:
        return self.root / "student.json"

    @property
    def choice(self) -> Path:
        return self.root / "choice.json"

    @property
    def architecture(self) -> Path:
        return self.root / "architecture.onnx"

    @property
    def answers(self) -> Path:
        """The teacher's vectors of the held-out images, in the manifest's order."""
        return self.root / "held_out.npy"

    @property
    def seen(self) -> Path:
        """The student's vectors of images it was trained on."""
        return self.root / "seen.npy"

    @property
    def unseen(self) -> Path:
        """The student's vectors of the held-out images, in the manifest's order."""
        return self.root / "unseen.npy"

    @property
    def trained(self) -> Path:
        """SHA-256 of every image it was trained on by the teacher's answer, (N, 32) uint8."""
        return self.root / "trained.npy"

    @property
    def trained_unasked(self) -> Path:
        """SHA-256 of every image it was trained on of which the teacher's answer is not known, (N, 32) uint8."""
        return self.root / "trained_unasked.npy"

    @property
    def pixels(self) -> Path:
        return self.root / "cache" / "pixels.npy"

    @property
    def reference(self) -> Path:
        return self.root / "cache" / "reference.npy"

    @property
    def unasked(self) -> Path:
        """Images that nobody was asked about, decoded."""
        return self.root / "cache" / "unasked.npy"

    @property
    def unasked_vectors(self) -> Path:
        """What the untrained student makes of them at a larger size."""
        return self.root / "cache" / "unasked_vectors.npy"

    @property
    def unasked_list(self) -> Path:
        """Their paths, their hashes and their share of the steps; written last."""
        return self.root / "cache" / "unasked.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def trackers(self) -> Path:
        """What trackers keep of its training, a folder for each."""
        return self.root / "trackers"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def check(self, plan: Mapping[str, Any]) -> None:
        """Fail where this folder holds a run made from something else than `plan`, or something that is no run.

        plan: what is known so far of what the run is to be made from, as JSON values.
        """
        self._check_folder()
        if not self.plan.exists():
            if self.root.exists() and any(one.name != LOCK for one in self.root.iterdir()):
                raise DistillError(f"the folder {self.root} holds something that is no run", "choose another --out")
            return
        before = read_json(self.plan)
        differing = sorted(key for key in plan if before.get(key) != plan[key])
        if differing:
            raise DistillError(
                f"the run {self.root} was made with another {', '.join(differing)}",
                "choose another --out, or add --restart to replace it",
            )

    def _check_folder(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise DistillError(f"{self.root} is a file", "choose another folder with --out")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else makes this run meanwhile; raises DistillError at once where another process does.

        The lock is the system's: it ends with the process that holds it, however that ends.
        """
        self._check_folder()
        lock = lock_folder(self.root, "choose a writable folder with --out")
        if lock is None:
            raise DistillError(f"another process is making the run {self.root}", "wait for it, or choose another --out")
        try:
            yield
        finally:
            unlock_folder(self.root, lock)

    def begin(self, plan: Mapping[str, Any], restart: bool) -> bool:
        """Make the run, or reopen it where it was made from the same; True where it is finished already.

        restart: clear what the folder holds of another run, or of this one.
        """
        if restart and self.plan.exists():
            self._clear()
        self.check(plan)
        if not self.plan.exists():
            write_json(self.plan, plan)
        return self.manifest.exists()

    def _clear(self) -> None:
        self.manifest.unlink(missing_ok=True)
        self.tidy()
        for path in (
            self.environment,
            self.log,
            self.split,
            self.choice,
            self.weights,
            self.architecture,
            self.card,
            self.answers,
            self.seen,
            self.unseen,
            self.trained,
            self.trained_unasked,
        ):
            path.unlink(missing_ok=True)
        for folder in (self.evaluations, self.trackers, self.bundle):
            shutil.rmtree(folder, ignore_errors=True)
        self.plan.unlink()  # last: until then the folder is known to be a run

    def tidy(self) -> None:
        """Remove what only training needs."""
        for path in (self.checkpoint, self.best, self.start, self.undistilled):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.pixels.parent, ignore_errors=True)


def check_room(path: Path, needed: int) -> None:
    """Make the folder of a file; fail where its disk has less than these bytes free.

    A mapped file is written to without a word of what there is: a full disk kills the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DistillError(
            f"the decoded images need {needed / 1e9:.1f} GB, {path.parent} has {free / 1e9:.1f} GB free",
            "make room, or choose another disk with --out",
        )


def open_run(root: Path) -> RunDir:
    """A finished run, or an error that says what is missing."""
    run = RunDir(root)
    if not run.plan.exists():
        raise DistillError(f"{root} is no run of distilltool", "give the folder that distill wrote with --out")
    if not run.manifest.exists():
        raise DistillError(f"the run {root} is not finished", "run the same distill command again: it goes on")
    return run


def write_bytes(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it there in one step, synced; errors name the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise DistillError(f"{path} cannot be written ({error.strerror})", "choose a writable folder") from None
    os.close(handle)
    fresh = Path(name)
    try:
        write(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        raise DistillError(
            f"{path} cannot be written ({error.strerror})", "make room or choose another folder"
        ) from None
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON values atomically."""
    write_bytes(path, lambda fresh: _dump(fresh, json_text(values, indent=2) + "\n"))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, lambda fresh: _dump(fresh, text))


def write_array(path: Path, values: "NDArray[Any]") -> None:
    """Write an array as .npy atomically."""

    def save(fresh: Path) -> None:
        import numpy as np

        with fresh.open("wb") as file:  # a path would get another ending
            np.save(file, values, allow_pickle=False)

    write_bytes(path, save)


def _dump(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def read_json(path: Path) -> Any:
    """Read JSON that we wrote."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DistillError(f"{path} cannot be read ({error})", "remove the run and make it again") from None


def check_writable(path: Path) -> None:
    """Fail before an hour of timing rather than after it; leaves no file behind that was not there."""
    fresh = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if fresh:
            path.unlink()
    except OSError as error:
        raise DistillError(f"{path} cannot be written ({error.strerror})", "choose a writable file") from None


def lock_folder(folder: Path, fix: str) -> Any:
    """A folder for ourselves, until `unlock_folder` or the process ends; None where another process has it. fix: what
    to do where it cannot be written."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise DistillError(f"{folder} cannot be written ({error.strerror})", fix) from None
    return lock


def unlock_folder(folder: Path, lock: Any) -> None:
    """Let others have it; a folder that nothing came into goes."""
    with suppress(OSError):
        if not any(one.name != LOCK for one in folder.iterdir()):
            (folder / LOCK).unlink()
            folder.rmdir()
    lock.release()

"""Run a model that nobody trusts in a child process with limits; this is the parent's side.

The parent neither parses the file nor runs it: it starts `distilltool.isolated`, sends what to open, and gets back
plain facts and arrays. It waits no longer than a limit, kills the child beyond it, and turns every death into one line.
"""

import json
import os
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distilltool.errors import DistillError, Exit, OutOfMemory
from distilltool.wire import Broken, Late, Message, Wire, open_wire

OPEN_SECONDS = 60.0  # for starting, parsing and loading
ACCELERATOR_SECONDS = 600.0  # the same on a device that compiles the model first
BYTES_A_SECOND = 20e6  # a large file may take longer: as slow as a disk in a network
RUN_SECONDS = 120.0  # for one batch, at least
IMAGE_SECONDS = 20.0  # for each image of a batch, where that is more
MEMORY = 6 << 30  # bytes of address space for the model's work, beyond what a fresh process has and its files need
COPIES = 3  # of the weights while a model is opened: as read, as parsed, as laid out for the processor
LARGEST_FILES = 8 << 30  # bytes of files beside the model that memory is allowed for
PIPE = 1 << 20  # bytes a pipe holds, as far as the system allows an ordinary user
FLAGS = ("-I", "-B")  # no environment, no user's site-packages, no compiled files written
START = "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); from distilltool import isolated; isolated.main()"


class Failed(RuntimeError):
    """The model's own failure on a batch, in the words of its runtime."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a child may take. seconds: to open, and for a batch and each of its images. memory: bytes of
    address space beyond those of a fresh process, None where the device's driver reserves more than any limit."""

    open_seconds: float
    run_seconds: float = RUN_SECONDS
    image_seconds: float = IMAGE_SECONDS
    memory: int | None = MEMORY


def limits_of(path: Path, device: str) -> Limits:
    """The limits for a file on a device; what lies beside it may hold its weights, under any name."""
    size = min(sum(_on_disk(one) for one in path.absolute().parent.iterdir()), LARGEST_FILES)
    start = OPEN_SECONDS if device == "cpu" else ACCELERATOR_SECONDS
    memory = MEMORY + COPIES * size if device == "cpu" else None
    return Limits(open_seconds=start + size / BYTES_A_SECOND, memory=memory)


def _on_disk(path: Path) -> int:
    """Bytes that a file takes on disk, so that one full of holes allows for nothing."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return min(found.st_size, found.st_blocks * 512) if stat.S_ISREG(found.st_mode) else 0


class Child:
    """One isolated process that has one file open."""

    def __init__(self, path: Path, device: str = "cpu", limits: Limits | None = None) -> None:
        self._path, self._limits = path, limits or limits_of(path, device)
        self._process = self._begin(device)
        self._wire = _connect(self._process)
        self._end = weakref.finalize(self, _stop, self._process)
        self._lock = threading.Lock()

    def _begin(self, device: str) -> "subprocess.Popen[bytes]":
        return start(START, device, environment=_environment())

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, header: dict[str, Any], array: NDArray[Any] | None = None, seconds: float | None = None) -> Message:
        """Ask for something and wait for the answer; errors of the other side are raised as they were there.

        header: see `distilltool.isolated`. seconds: to wait, None for as long as opening may take.
        """
        seconds = self._limits.open_seconds if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with self._lock:
            try:
                self._wire.send(header, array, deadline)
                answer = self._wire.receive(deadline)
            except Late:
                self.close()
                raise DistillError(
                    f"{self._path} was stopped: its child process gave no answer for {seconds:.0f} s",
                    "use a smaller --batch, or do not trust this file",
                ) from None
            except Broken as why:
                raise self._died(why) from None
            except BaseException:  # interrupted halfway: the wire is of no more use
                self.close()
                raise
        _raise(answer.header)
        return answer

    def read(self) -> dict[str, Any]:
        """What the file says of itself, as `distilltool.plain` takes it."""
        return self.ask({"ask": "file", "path": str(self._path), "memory": self._limits.memory}).header

    def dissect(self, options: Any) -> dict[str, Any]:
        """The file's anatomy, as `distilltool.plain` marks it."""
        about = {"path": str(self._path), "memory": self._limits.memory}
        return self.ask({"ask": "dissect", **about, "options": options}).header

    def open(self, options: Any, size: Any, threads: int) -> dict[str, Any]:
        """Open the file to run it; the facts of the model. options, size: as `distilltool.plain` marks them."""
        about = {"path": str(self._path), "memory": self._limits.memory}
        return self.ask({"ask": "open", **about, "options": options, "size": size, "threads": threads}).header

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """A batch as fed → the raw output."""
        seconds = max(self._limits.run_seconds, self._limits.image_seconds * len(batch))
        found = self.ask({"ask": "run"}, batch, seconds).array
        if found is None:
            self.close()
            raise DistillError(f"the child process of {self._path} gave no output", "do not trust this file")
        return found

    def close(self) -> None:
        """End the process now."""
        self._end()

    def _died(self, why: Broken) -> DistillError:
        code = _code(self._process)
        self.close()
        if code == -9:
            return OutOfMemory(
                f"the child process of {self._path} was killed, most likely for want of memory", "use a smaller --batch"
            )
        if code is None:
            return DistillError(f"the child process of {self._path} sent {why}", "do not trust this file")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return DistillError(
            f"{self._path} crashed in its child process ({how})", "do not trust this file, or export it anew"
        )


def _code(process: "subprocess.Popen[bytes]") -> int | None:
    """How a process ended, None where it has not."""
    try:
        return process.wait(2)
    except subprocess.TimeoutExpired:
        return None


def _raise(header: dict[str, Any]) -> None:
    """Raise what the answer says went wrong."""
    kind, text, fix = (str(header.get(name, "")) for name in ("error", "message", "fix"))
    if kind == "DistillError":
        code = header.get("code")
        raise DistillError(text, fix, Exit(code) if code in [int(one) for one in Exit] else Exit.FIX)
    if kind == "OutOfMemory":
        raise OutOfMemory(text, fix)
    if kind == "MemoryError":
        raise MemoryError(text)
    if kind == "Failed":
        raise Failed(text)
    if kind:
        raise AssertionError(f"a fault of distilltool in its child process:\n{text}")


def start(code: str, *words: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A fresh interpreter for `code`: no descriptor but its two pipes, out of reach of Ctrl-C.

    Its arguments are where to import from, our process's number, whether it is tied to us, and `words`.
    """
    return subprocess.Popen(
        [sys.executable, *FLAGS, "-c", code, json.dumps(_import_path()), str(os.getpid()), _tied(), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    )


def _import_path() -> Sequence[str]:
    """Where this package and what it needs are imported from; never the working folder."""
    ours = str(Path(__file__).resolve().parents[1])
    return list(dict.fromkeys([ours, *(one for one in sys.path if Path(one).is_absolute())]))


def _tied() -> str:
    """Whether the child may be tied to this thread's life, as Linux does: only the main thread lives long enough."""
    return "tied" if threading.current_thread() is threading.main_thread() else "free"


def _environment() -> dict[str, str]:
    """What the child sees of our environment: where libraries are, nothing that is a secret or an instruction."""
    kept = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C.UTF-8"}


def _connect(process: "subprocess.Popen[bytes]") -> Wire:
    assert process.stdin is not None and process.stdout is not None
    ends = (process.stdout.fileno(), process.stdin.fileno())
    for end in ends:
        _widen(end)
    return open_wire(*ends)


def _widen(end: int) -> None:
    """Let a pipe hold more, so that a batch takes fewer turns; where that is refused it only takes longer."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE)
        except OSError:
            pass


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass  # what was still to be written has no reader

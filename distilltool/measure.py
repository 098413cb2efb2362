"""The parent's side of timing: each model in a fresh process, told when to run, so that one runs at a time."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError, OutOfMemory
from distilltool.feeds import Subject
from distilltool.isolate import IMAGE_SECONDS, RUN_SECONDS, Child, Failed, limits_of, start
from distilltool.onnx_file import first_line
from distilltool.wire import Message

START = "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); from distilltool import measured; measured.main()"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model in its process. seconds: to load, and of the first run; nodes: of the graph, by the provider that took
    them, {} where nobody says; wholly: nothing could be left to the CPU; before: bytes in use before loading; copies:
    the ways it can be run."""

    load_seconds: float
    first_seconds: float
    provider: str
    nodes: dict[str, int]
    wholly: bool
    before: int
    copies: tuple[str, ...]

    @property
    def elsewhere(self) -> float | None:
        """Share of the nodes that another provider took; None where nobody says."""
        whole = sum(self.nodes.values())
        if self.provider == "CPUExecutionProvider":
            return 0.0
        return 1 - self.nodes.get(self.provider, 0) / whole if whole else None


class Worker(Child):
    """A fresh process with one model."""

    def __init__(self, subject: Subject, device: str, threads: int, feeds: dict[str, NDArray[Any]], batch: int) -> None:
        super().__init__(subject.path, device, limits_of(subject.path, device))
        self._patience = max(RUN_SECONDS, IMAGE_SECONDS * batch)
        try:
            self.loaded = self._load(subject, device, threads, feeds)
        except BaseException:
            self.close()
            raise

    def _begin(self, device: str) -> "subprocess.Popen[bytes]":
        return start(START, environment=os.environ)

    def _load(self, subject: Subject, device: str, threads: int, feeds: dict[str, NDArray[Any]]) -> Loaded:
        for name, array in feeds.items():
            self.ask({"ask": "feed", "name": name}, array)
        model = subject.relocated()
        about = {"path": str(subject.path.absolute()), "threads": threads, "device": device}
        folder = _folder(subject) if model is not None else ""
        said = self.ask(
            {"ask": "load", **about, "folder": folder}, None if model is None else np.frombuffer(model, np.uint8)
        ).header
        first = self.ask({"ask": "first"}, None, self._patience).header
        return Loaded(
            load_seconds=said["seconds"],
            first_seconds=first["seconds"],
            provider=said["provider"],
            nodes=said["nodes"],
            wholly=said["wholly"],
            before=said["before"],
            copies=tuple(said["copies"]),
        )

    def ask(self, header: dict[str, Any], array: NDArray[Any] | None = None, seconds: float | None = None) -> Message:
        """As of any child; what the model itself fails on is a DistillError."""
        try:
            return super().ask(header, array, seconds)
        except Failed as error:
            raise DistillError(
                f"{self._path} fails on what it is fed ({first_line(error)})",
                "say what its inputs are with --shape, --input or --images",
            ) from None
        except MemoryError:
            raise OutOfMemory(f"{self._path} needs more memory than there is", "use a smaller --batch") from None

    def warm(self, copies: str) -> dict[str, Any]:
        """Warm up by time and count; how long and how often that was."""
        found = self.ask({"ask": "warm", "copies": copies}, None, 5 * self._patience).header
        return {"seconds": found["seconds"], "runs": found["runs"]}

    def block(self, seconds: float, copies: str) -> NDArray[np.float64]:
        """Run for so long; seconds of each run."""
        request = {"ask": "block", "seconds": seconds, "copies": copies}
        found = self.ask(request, None, seconds + 3 * self._patience).array
        assert found is not None
        return found

    def peak(self) -> int:
        """The most memory that the process has had since before it loaded the model, in bytes."""
        return int(self.ask({"ask": "memory"}).header["peak"])


def _folder(subject: Subject) -> str:
    """Where the names of external data start from, once links are followed."""
    return os.path.commonpath([one.resolve().parent for one in subject.file.external] or [Path.cwd()])

"""Processes that tests kill, stop or starve: the real command line, with a teacher whose calls are counted.

`python victims.py count FOLDER DELAY COMPANY WORDS...` runs one command; `harmless` for `count` does so without root's
privileges. `python victims.py kill FOLDER KILLS SEED WORDS...` runs it again and again and kills each run with SIGKILL
at a random moment. In FOLDER/asked there is a line for each image that the teacher was really asked about, appended
before it is: process and sha256 of the pixels.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 75  # bytes of a line in FOLDER/asked
HEAT = 0.03  # seconds
SLOWNESS = 0.005  # seconds the teacher takes beside its own time


def count_calls(folder: Path, delay: float) -> None:
    """Wrap the teacher so that every image is written down before it is asked about; then it takes `delay` seconds."""
    from distilltool.teacher import OnnxEmbedder

    embed = OnnxEmbedder.embed
    log = os.open(folder / "asked", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def counted(self: OnnxEmbedder, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        os.write(log, b"".join(line_of(image).encode() for image in images_NHWC))
        time.sleep(delay)
        return embed(self, images_NHWC)

    OnnxEmbedder.embed = counted  # type: ignore[method-assign]


def line_of(image_HWC: NDArray[np.uint8]) -> str:
    """The line that says that this process asked about this image."""
    return f"{os.getpid():10d} {fingerprint(image_HWC)}\n"


def fingerprint(image_HWC: NDArray[np.uint8]) -> str:
    """A name for prepared pixels."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()[:63]


def asked(folder: Path) -> list[tuple[int, str]]:
    """Process and fingerprint of every image the teacher was asked about."""
    path = folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def meet(folder: Path, company: int) -> None:
    """Wait until so many processes are here."""
    (folder / f"here-{os.getpid()}").touch()
    wait_for(lambda: len(list(folder.glob("here-*"))) >= company, 60.0)


def without_privileges() -> None:
    """Give up what lets root write where it may not; on Linux, by the system call capset."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def run(words: list[str]) -> None:
    """The command line, as `distilltool WORDS` runs it."""
    from distilltool.cli import main

    sys.argv = ["distilltool", *words]
    main()


def kill_at_random(folder: Path, kills: int, seed: int, words: list[str]) -> list[dict[str, Any]]:
    """Start the command so often and kill it at random; what each run had come to by then.

    Every other run is killed up to HEAT seconds after its first question, the ones between while they get there or soon
    after. Everything is imported before the first is forked off, so that a run is soon at work; no session of
    onnxruntime is made before, for its threads would not be there in the child.
    """
    import distilltool.selection.random
    import distilltool.stages.query
    import distilltool.teacher  # noqa: F401

    with contextlib.suppress(SystemExit):
        run(["query", str(folder / "no.onnx"), str(folder)])  # comes as far as the imports
    log = folder / "asked"
    log.touch()
    rng = np.random.default_rng(seed)
    runs: list[dict[str, Any]] = []
    to_question = 0.0
    while sum(one["killed"] for one in runs) < kills and len(runs) < 2 * kills:
        before = log.stat().st_size
        child = os.fork()
        if child == 0:
            fork_off(folder, words)
        if len(runs) % 2:
            time.sleep(float(rng.uniform(0, 1.2 * to_question)))
        else:
            began = time.monotonic()
            wait_for(lambda size=before: log.stat().st_size > size)
            to_question = time.monotonic() - began
            time.sleep(float(rng.uniform(0, HEAT)))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        runs.append(
            {"killed": os.WIFSIGNALED(status), "status": status, "asked": (log.stat().st_size - before) // LINE}
        )
    return runs


def wait_for(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    """Look again and again whether something has happened."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.0005)


def fork_off(folder: Path, words: list[str]) -> None:
    """In a child: run the command, what it says goes into a file; never returns."""
    code = 1
    with contextlib.suppress(BaseException), (folder / "said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        count_calls(folder, SLOWNESS)
        try:
            run(words)
        except SystemExit as end:
            code = int(end.code or 0)
    os._exit(code)


if __name__ == "__main__":
    mode, place, *rest = sys.argv[1:]
    if mode == "kill":
        found = kill_at_random(Path(place), int(rest[0]), int(rest[1]), rest[2:])
        print(json.dumps(found))
    else:
        if mode == "harmless":
            without_privileges()
        count_calls(Path(place), float(rest[0]))
        meet(Path(place), int(rest[1]))
        run(rest[2:])

"""Opens spoilt files one after the other, as the commands do; a test starts it, and starts another where it dies.

Reads a path a line; answers with one JSON object a line: outcome, message, seconds, peak memory in bytes.
"""

import json
import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distilltool import images
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.teacher import TeacherOptions, open_teacher

MEMORY = 8 << 30  # bytes of address space, for the machine's sake; what counts is what is measured
PRE = ("scale=1/255", "mean=0.5", "std=0.5")


def onnx_file(path: Path, isolate: bool) -> tuple[str, str]:
    """Open a model and embed two images."""
    teacher = open_teacher(path, TeacherOptions(preprocess=PRE, isolate=isolate), threads=1)
    rows = np.random.default_rng(0).integers(0, 256, (2, *teacher.preprocess.size, 3), dtype=np.uint8)
    vectors = teacher.embed(rows)
    return "ran", f"{vectors.shape}"


def image_file(path: Path) -> tuple[str, str]:
    """Hash and prepare an image."""
    stock = images.take_stock([path])
    found = images.prepare(path, Preprocess(size=(32, 32), resize="shortest", resize_to=36))
    if isinstance(found, str):
        assert "\n" not in found and len(found) < 400, found
        return "refused", found
    assert found.shape == (32, 32, 3) and stock.photos
    return "ran", ""


def peak() -> int:
    """Most memory held since it was last set back, bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def tried(work: Callable[[Path], tuple[str, str]], path: Path) -> dict[str, object]:
    """One file, and how it ended."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back, see proc(5)
    began = time.perf_counter()
    try:
        outcome, message = work(path)
    except DistillError as error:
        outcome, message = "refused", f"{error.message}: {error.fix}"
        if "\n" in message:
            outcome = "more than one line"
    except BaseException:
        outcome, message = "traceback", traceback.format_exc()
    return {"outcome": outcome, "message": message, "seconds": time.perf_counter() - began, "bytes": peak()}


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("error", category=RuntimeWarning)
    answers = os.fdopen(os.dup(1), "w")
    kind = sys.argv[1]
    ways: dict[str, Callable[[Path], tuple[str, str]]] = {
        "onnx": lambda path: onnx_file(path, False),
        "isolated": lambda path: onnx_file(path, True),
        "image": image_file,
    }
    for line in sys.stdin:
        answers.write(json.dumps(tried(ways[kind], Path(line.rstrip("\n")))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""Fixtures that several test files use, and whose turn it is where tests run on several processors."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import onnx_teacher, photo_folder

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Each of several workers keeps to a processor of its own."""
    if WORKER and PROCESSORS:
        os.sched_setaffinity(0, _own())


def _own() -> set[int]:
    every = sorted(PROCESSORS)
    return {every[int(WORKER.removeprefix("gw")) % len(every)]}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """A test marked `alone` waits until the other workers are between tests, and has all processors meanwhile."""
    if not WORKER or sys.platform == "win32":
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with _turn(alone):
        if alone and PROCESSORS:
            os.sched_setaffinity(0, PROCESSORS)
        try:
            return (yield)
        finally:
            if alone and PROCESSORS:
                os.sched_setaffinity(0, _own())


@contextmanager
def _turn(alone: bool) -> Iterator[None]:
    """Hold the lock that tests share, or that one has alone. Whoever waits for it holds the door meanwhile, so that
    nobody comes in between."""
    import fcntl

    name = Path(tempfile.gettempdir()) / f"distilltool-{os.environ['PYTEST_XDIST_TESTRUNUID']}"
    with name.with_suffix(".door").open("w") as door, name.with_suffix(".room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same ones in every test."""
    return np.random.default_rng(20)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Ten different pictures in `tmp_path / "photos"`."""
    return photo_folder(tmp_path / "photos", 10)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A float32 NCHW teacher of 32×32 images that says nothing of preprocessing."""
    return onnx_teacher(tmp_path / "teacher.onnx")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and a student that ranks differently."""
    root = tmp_path_factory.mktemp("models")
    onnx_teacher(root / "teacher.onnx")
    onnx_teacher(root / "student.onnx", dim=12, seed=5)
    return root

"""Fixtures that several test files use."""

import os
from pathlib import Path

import numpy as np
import pytest
from builders import onnx_teacher, photo_folder

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network


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

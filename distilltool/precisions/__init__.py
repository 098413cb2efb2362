"""Precisions a student is exported in, beside float32: one file a precision, its name is the name.

Each file holds one function `name(given) -> onnx.ModelProto` that makes the variant. It takes and returns what the
float32 graph does, bytes in and float32 vectors of length 1 out. Where there is nothing to convert it raises
DistillError. Whether a variant is any good is judged elsewhere, by what it makes of images and by its time.

What users type has hyphens where a file's name has underscores: `int8-static` is `int8_static.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilltool import extensions

if TYPE_CHECKING:
    import onnx

FP32 = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a variant is made from.

    model: the float32 graph. batches: prepared images to calibrate on, (N, H, W, 3) uint8 each, from the beginning at
    every call. leave: names of nodes that stay in float32, normalisation among them. saturates: the machine adds
    products of 8 bits in 16. symmetric: the device takes 8 bits around zero alone. folder: for files on the way.
    """

    model: "onnx.ModelProto"
    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    leave: tuple[str, ...]
    saturates: bool
    symmetric: bool
    folder: Path


def names() -> list[str]:
    """What users may ask for, float32 first."""
    return [FP32, *(name.replace("_", "-") for name in extensions.names(__name__))]


def find(name: str) -> Callable[[Given], Any]:
    """The function that makes a precision."""
    return extensions.find(__name__, "precision", name.replace("-", "_"))

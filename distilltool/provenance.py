"""Hashes of what a student was made from, so that whoever holds the sources can see that they are the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# what each is over, in a card, for whoever computes it again
OVER = {
    "images": "the SHA-256 of each image with an answer, sorted, in hex, a line each: "
    "`sha256sum FILES | cut -c1-64 | sort -u | sha256sum`",
    "unasked": "the same of the images learned from without an answer",
    "answers": "these images in the same order, of each its SHA-256 (32 bytes) and the answer in the ledger "
    "(little-endian float32, as it came)",
    "recipe": "`recipe` in the run's `run.json`, as JSON with sorted keys and without spaces",
}


def of_images(hashes: Sequence[bytes]) -> str:
    """sha256 over the SHA-256 (32 bytes) of images, in any order, in hex."""
    return hashlib.sha256("".join(f"{one}\n" for one in sorted({one.hex() for one in hashes})).encode()).hexdigest()


def of_answers(hashes: Sequence[bytes], vectors_NE: NDArray[np.float32]) -> str:
    """sha256 over images and the teacher's answers about them, in any order, in hex."""
    digest = hashlib.sha256()
    for row in sorted(range(len(hashes)), key=lambda row: hashes[row]):
        digest.update(hashes[row])
        digest.update(np.ascontiguousarray(vectors_NE[row], "<f4").tobytes())
    return digest.hexdigest()


def of_recipe(values: Mapping[str, Any]) -> str:
    """sha256 over a recipe's JSON values, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

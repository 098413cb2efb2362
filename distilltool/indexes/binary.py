"""A bit for each number, compared by how many differ."""

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool import codes
from distilltool.indexes import Index, Point

SETTINGS: dict[str, tuple[int, int]] = {}


def binary(vectors_GD: NDArray[np.float32]) -> Index:
    """Every vector as a binary code (`distilltool.codes`); each query's code is compared with all."""
    centre = codes.centre(vectors_GD)

    def encode(vectors_ND: NDArray[np.float32]) -> NDArray[np.uint8]:
        return codes.packed(vectors_ND, centre)

    rows = encode(vectors_GD)
    index = faiss.IndexBinaryFlat(8 * rows.shape[1])
    index.add(rows)
    return Index(index=index, encode=encode, settings={}, points=(Point(),), complete=True)

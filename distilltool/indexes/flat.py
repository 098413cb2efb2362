"""Every vector as it is."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool.indexes import Index, Point

SETTINGS: dict[str, tuple[int, int]] = {}


def flat(vectors_GD: NDArray[np.float32]) -> Index:
    """Exact search: each query is compared with all vectors."""
    index = faiss.IndexFlatIP(vectors_GD.shape[1])
    index.add(np.ascontiguousarray(vectors_GD))
    return Index(index=index, encode=_as_it_is, settings={}, points=(Point(),), complete=True)


def _as_it_is(vectors_ND: NDArray[np.float32]) -> NDArray[Any]:
    return np.ascontiguousarray(vectors_ND)

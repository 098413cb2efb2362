"""A graph of near neighbours that a search walks along."""

from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool.indexes import Index, Point, sweep

LINKS = 32
BUILD = 200
MOST = 256
SETTINGS = {"m": (2, 256), "build": (1, 10_000), "ef": (1, 100_000)}


def hnsw(vectors_GD: NDArray[np.float32], *, m: int = LINKS, build: int = BUILD, ef: int | None = None) -> Index:
    """HNSW (Malkov & Yashunin 2018) over the vectors as they are. m: links of a vector, twice as many on the lowest
    level; build: candidates kept while building; ef: while searching."""
    index = faiss.IndexHNSWFlat(vectors_GD.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = build
    index.add(np.ascontiguousarray(vectors_GD))
    return Index(
        index=index,
        encode=np.ascontiguousarray,
        settings={"m": m, "build": build},
        points=tuple(
            Point(settings={"ef": one}, prepare=partial(setattr, index.hnsw, "efSearch", one))
            for one in sweep(16, max(ef or 0, min(MOST, max(16, len(vectors_GD)))), ef)
        ),
    )

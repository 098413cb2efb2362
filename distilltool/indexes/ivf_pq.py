"""Cells of vectors near each other, each vector kept as a short code."""

from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.indexes import Index, Point, sweep

EACH = 39  # vectors to train a centroid on, as faiss asks for at least
NUMBERS = 8  # of a vector that share a code
CODES = 16  # of a vector at least, where it has as many numbers
BITS = (4, 8)  # of a code, the least and the most that are chosen
SETTINGS = {"nlist": (1, 1_000_000), "m": (1, 4096), "bits": (1, 12), "nprobe": (1, 1_000_000)}


def ivf_pq(
    vectors_GD: NDArray[np.float32],
    *,
    nlist: int | None = None,
    m: int | None = None,
    bits: int | None = None,
    nprobe: int | None = None,
) -> Index:
    """Inverted file with product quantisation of what is left of a vector less its cell's (Jégou et al. 2011).

    nlist: cells, 4·√G of them or as many as G trains; m: codes of a vector, one for 8 numbers, 16 at least; bits: of
    a code, 8 or as many as G trains; nprobe: cells that are searched. A length that m does not divide is filled up
    with zeros.
    """
    count, dim = vectors_GD.shape
    bits = bits or next((one for one in range(BITS[1], BITS[0] - 1, -1) if EACH << one <= count), None)
    if bits is None or 1 << bits > count:
        needed = EACH << BITS[0] if bits is None else 1 << bits
        raise DistillError(
            f"a gallery of {count:,} is too small to train ivf-pq on", f"it takes {needed:,} vectors or more"
        )
    nlist = nlist or max(1, min(round(4 * count**0.5), count // EACH))
    m = m or max(min(dim, CODES), round(dim / NUMBERS))
    if nlist > count or m > dim:
        what = f"nlist={nlist:,} of {count:,} vectors" if nlist > count else f"m={m:,} of {dim:,} numbers"
        raise DistillError(f"ivf-pq cannot have {what}", "use less")
    wide = m * -(-dim // m)

    def encode(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(np.pad(vectors_ND, ((0, 0), (0, wide - dim))), np.float32)

    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(wide), wide, nlist, m, bits, faiss.METRIC_INNER_PRODUCT)
    for training in (index.cp, index.pq.cp):
        training.seed, training.min_points_per_centroid = 0, 1  # faiss would write of fewer to stderr
    rows = encode(vectors_GD)
    index.train(rows)
    index.add(rows)
    return Index(
        index=index,
        encode=encode,
        settings={"nlist": nlist, "m": m, "bits": bits},
        points=tuple(
            Point(settings={"nprobe": one}, prepare=partial(setattr, index, "nprobe", one))
            for one in sweep(1, nlist, nprobe)
        ),
    )

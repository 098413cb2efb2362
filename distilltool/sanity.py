"""Signs that a model's vectors cannot be ranked by: constant, broken, saturated, dead."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distilltool.embedder import unit

ENOUGH = 8  # images below which nothing is said of how much the vectors differ
ALIKE = 0.995  # mean cosine between different images from which they count as nearly constant
CLOSE = 0.98  # from which they hardly depend on the image
SATURATED = 0.02  # share of values at the same extreme
DEAD = 0.1  # share of dimensions that never change
HALF_MAX = 65504.0  # the largest number of float16


def warnings(vectors_ND: NDArray[np.float32]) -> list[str]:
    """What is suspicious about the vectors of different images, (N, D), one line each; empty where nothing is."""
    return list(_signs(vectors_ND))


def _signs(vectors_ND: NDArray[np.float32]) -> Iterator[str]:
    count, dim = vectors_ND.shape
    finite = np.isfinite(vectors_ND).all(axis=1)
    if not finite.all():
        yield f"{int((~finite).sum())} of {count} vectors hold NaN or Inf"
    rows = vectors_ND[finite]
    if len(rows) < ENOUGH:
        return
    zero = np.asarray((rows == 0).all(axis=1))
    if zero.any():
        yield f"{int(zero.sum())} of {len(rows)} vectors are all zeros"
    alike = _mean_cosine(rows)
    if alike > ALIKE:
        yield f"the embeddings are nearly constant: different images have a mean cosine of {alike:.5f}"
    elif alike > CLOSE:
        yield (
            f"the embedding hardly depends on the image: different images have a mean cosine of {alike:.3f}; "
            "is the preprocessing right, and the output?"
        )
    yield from _extremes(rows)
    dead = int((np.ptp(rows, axis=0) <= 1e-6 * np.abs(rows).max(initial=1e-30)).sum())
    if alike <= ALIKE and dead > DEAD * dim:
        yield f"{dead:,} of {dim:,} dimensions are the same for every one of {len(rows)} images"


def _extremes(rows: NDArray[np.float32]) -> Iterator[str]:
    """Values that stand at a limit: of float16, or of a squashing or clipping end."""
    if (np.abs(rows) == HALF_MAX).any():
        yield "values reach the limit of float16 (65504)"
        return
    top = np.abs(rows).max()
    share = float((np.abs(rows) >= top * (1 - 1e-6)).mean()) if top > 0 else 0.0
    if share > SATURATED and len(np.unique(np.abs(rows).round(6))) > 2:  # codes of ±1 are made so
        yield f"{100 * share:.0f} % of the values are saturated at {top:.4g}"


def _mean_cosine(rows_ND: NDArray[np.float32]) -> float:
    """Mean over all pairs of different rows."""
    units = unit(rows_ND).astype(np.float64)
    count = len(units)
    total = float((units.sum(axis=0) ** 2).sum()) - float((units**2).sum())
    return total / (count * (count - 1))

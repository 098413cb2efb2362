"""Ask about images that are unlike those asked about before."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distilltool.images import Photo
from distilltool.selection import luck


def coverage(
    photos: Sequence[Photo], seed: int, known: NDArray[np.bool_], count: int, features_ND: NDArray[np.float32]
) -> list[Photo]:
    """Draw each next image with odds of its squared distance to the nearest one chosen (D² sampling).

    Of k-means++ (Arthur & Vassilvitskii, SODA 2007), with the luck of each image drawn once, by its content: what
    comes next depends on nothing but what was chosen, so that a larger budget goes on where a smaller one stopped.
    """
    lots = luck(photos, seed)
    near = np.full(len(photos), 2.0, np.float32)  # of unit vectors that have nothing in common
    for row in np.flatnonzero(known):
        near = np.minimum(near, _distances(features_ND, row))
    near[known] = 0
    order: list[np.intp] = []
    while len(order) < count:
        row = np.argmax(near / lots)
        if near[row] <= 0:  # nothing is unlike what was chosen any more
            break
        order.append(row)
        near = np.minimum(near, _distances(features_ND, row))
        near[row] = 0
    left = np.setdiff1d(np.flatnonzero(~known), order)
    return [photos[row] for row in [*order, *left[np.argsort(lots[left])]]]


def _distances(features_ND: NDArray[np.float32], row: np.intp) -> NDArray[np.float32]:
    """Squared distances of all rows to one, (N,), never below a rounding error of zero."""
    distances: NDArray[np.float32] = np.maximum(2 - 2 * (features_ND @ features_ND[row]), 0)
    return distances

"""Ask about the middle of each of as many groups as may be asked about."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distilltool import search
from distilltool.images import Photo
from distilltool.selection import luck


def cluster(
    photos: Sequence[Photo], seed: int, known: NDArray[np.bool_], count: int, features_ND: NDArray[np.float32]
) -> list[Photo]:
    """Cluster by k-means, a cluster for each image answered or still to be asked; of each the most central image first.

    Clusters take turns, larger ones first; one that holds answered images has had as many turns. Another `count` makes
    other clusters, so that a larger budget chooses other images than a smaller one, but goes on from what was answered.
    """
    groups = search.grouped(features_ND, min(len(photos), count + int(known.sum())), seed)
    size = np.bincount(groups.cluster)
    lots = luck(photos, seed)
    order = np.lexsort((lots, -groups.closeness, ~known, groups.cluster))  # by cluster, the known ones first in each
    first = np.searchsorted(groups.cluster[order], groups.cluster[order])
    turn = np.empty(len(photos), np.int64)
    turn[order] = np.arange(len(photos)) - first
    rows = np.lexsort((lots, -size[groups.cluster], turn))
    return [photos[row] for row in rows if not known[row]]

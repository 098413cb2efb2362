"""Which images to ask about when the budget does not cover them all: one file a way, its name is the name.

Each file holds one function that returns photos in the order in which to ask. Either `name(photos, seed)`, which need
not see the images; or `name(photos, seed, known, count, features_ND)`, which gets distinct pictures only and compares
them: known (N,) marks those answered already, which are left out of the order and from which it goes on; count is how
many more may be asked about; features_ND are rows of length 1.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distilltool.images import Photo


def ticket(photo: Photo, seed: int) -> bytes:
    """An image's number in a lottery, by seed and content: the same whatever its name or its companions."""
    return hashlib.sha256(seed.to_bytes(8, "little", signed=True) + photo.sha256).digest()


def luck(photos: Sequence[Photo], seed: int) -> NDArray[np.float64]:
    """Exponential numbers of mean 1 from the tickets, (N,): the least of luck / weight is a draw by weight."""
    even = [(int.from_bytes(ticket(photo, seed)[:8]) + 0.5) / 2.0**64 for photo in photos]
    return np.asarray(-np.log1p(-np.array(even)), np.float64)

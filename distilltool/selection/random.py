"""Ask about images drawn evenly."""

from collections.abc import Sequence

from distilltool.images import Photo
from distilltool.selection import ticket


def random(photos: Sequence[Photo], seed: int) -> list[Photo]:
    """Order by lot: the same images come first whatever their names or companions."""
    return sorted(photos, key=lambda photo: ticket(photo, seed))

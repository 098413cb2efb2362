"""Images that show the same picture: hashes that survive re-encoding, resizing, light changes and small crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilltool import search

# Measured by benchmarks/near_duplicates.py: both together find 90 % of crops of up to 6 % a side and nearly all copies
# altered otherwise, with no false pair among 3.5 million; the hash alone finds 96 % with 20 false ones.
RADIUS = 28  # bits of 128 that may differ
ALIKE = 0.9  # least correlation of the thumbnails
FINE = 32  # side from which the cosine transform is taken
LOW = 8  # frequencies kept of it, each way
THUMB = 8  # side of the colour thumbnail
BLOCK = 1024  # images compared at once
FLAT = 1.0  # length below which a centred thumbnail is one colour and says nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What images are compared by. codes: (N, 16) uint8, 128 bits each; thumbs: (N, 192) float32, centred, of
    length 1, or zeros where the image has a single colour."""

    codes: NDArray[np.uint8]
    thumbs: NDArray[np.float32]

    def at(self, rows: NDArray[np.int64]) -> "Marks":
        """The marks of some images."""
        return Marks(codes=self.codes[rows], thumbs=self.thumbs[rows])


def _cosines(side: int) -> NDArray[np.float32]:
    """The cosine transform (DCT-II) of one direction, (side, side), not scaled."""
    frequency, place = np.mgrid[:side, :side]
    waves: NDArray[np.float32] = np.cos(np.pi * frequency * (2 * place + 1) / (2 * side)).astype(np.float32)
    return waves


_DCT = _cosines(FINE)[:LOW]


def code(image: Image.Image) -> NDArray[np.uint8]:
    """128 bits of an RGB image, (16,) uint8: pHash (signs of low frequencies around their median) and dHash (where it
    grows brighter from left to right), 64 each.

    After N. Krawetz, "Looks Like It" (2011) and "Kind of Like That" (2013), hackerfactor.com.
    """
    grey = image.convert("L")
    fine = np.asarray(grey.resize((FINE, FINE), Image.Resampling.BOX), np.float32)
    low = (_DCT @ fine @ _DCT.T).ravel()
    coarse = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    bits = np.concatenate([low > np.median(low[1:]), (coarse[:, 1:] > coarse[:, :-1]).ravel()])
    return np.packbits(bits)


def thumb(image: Image.Image) -> NDArray[np.float32]:
    """An RGB image of 8×8 pixels, centred and of length 1, (192,)."""
    small = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return np.zeros_like(small) if length < FLAT else small / length


def mark(image: Image.Image) -> Marks:
    """The marks of one RGB image."""
    return Marks(codes=code(image)[None], thumbs=thumb(image)[None])


def joined(parts: Sequence[Marks]) -> Marks:
    """The marks of all images of all parts, in order."""
    none = Marks(codes=np.zeros((0, 16), np.uint8), thumbs=np.zeros((0, 3 * THUMB**2), np.float32))
    return Marks(
        codes=np.concatenate([one.codes for one in (none, *parts)]),
        thumbs=np.concatenate([one.thumbs for one in (none, *parts)]),
    )


class Distinct:
    """Pictures met so far, each once."""

    def __init__(self) -> None:
        self._kept = joined([])

    def add(self, more: Marks) -> NDArray[np.bool_]:
        """Take images in order → (N,), True where one looks like an earlier image that was itself kept.

        A chain of images, each a little unlike the last, is cut by this: likeness is to a kept image.
        Taking images that were kept earlier than others first leaves what is kept as it is.
        """
        parts = [self._add(more.at(np.arange(at, min(at + BLOCK, len(more.codes))))) for at in _starts(more)]
        return np.concatenate([np.zeros(0, bool), *parts])

    def _add(self, block: Marks) -> NDArray[np.bool_]:
        repeats = np.zeros(len(block.codes), bool)
        repeats[_alike(block, self._kept).query] = True
        inside = _alike(block, block)
        for later, earlier in zip(inside.query.tolist(), inside.gallery.tolist(), strict=True):
            if earlier < later and not repeats[earlier]:  # pairs come in order of the later one
                repeats[later] = True
        self._kept = joined([self._kept, block.at(np.flatnonzero(~repeats))])
        return repeats


def _starts(more: Marks) -> range:
    return range(0, len(more.codes), BLOCK)


def _alike(queries: Marks, gallery: Marks) -> search.Pairs:
    """Pairs of the same picture, in order of the query."""
    pairs = search.within(queries.codes, gallery.codes, RADIUS)
    likeness = np.einsum("pt,pt->p", queries.thumbs[pairs.query], gallery.thumbs[pairs.gallery])
    good = likeness >= ALIKE
    return search.Pairs(query=pairs.query[good], gallery=pairs.gallery[good])

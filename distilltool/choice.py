"""Which images to ask about when the budget does not cover them all."""

import inspect
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from distilltool import extensions, images, near
from distilltool.descriptor import SIDE, WIDTH, describe
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.near import Distinct, Marks
from distilltool.progress import Progress
from distilltool.selection import ticket

LOOK = 256  # images looked at before asking whether that is enough
COMPONENTS = 128  # of the features that are compared: the rest is noise and time
SAMPLE = 20_000  # images that the components are taken from

Describe = Callable[[Sequence[Photo]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The images in the order in which to ask. set_aside: those at the end because an image before them, or one that
    was answered, shows the same picture; None where nobody looked, as the budget covers everything."""

    order: tuple[Photo, ...]
    set_aside: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Looked:
    """Some images after a look. fresh: pictures met for the first time; repeats: of such ones; unreadable: neither."""

    fresh: list[Photo] = field(default_factory=list)
    repeats: list[Photo] = field(default_factory=list)
    unreadable: list[Photo] = field(default_factory=list)


def choose(
    select: str,
    photos: Sequence[Photo],
    known: AbstractSet[bytes],
    count: int,
    seed: int,
    progress: Progress,
    features: Describe | None = None,
) -> Choice:
    """Order the photos that are not known, the best `count` first.

    known: sha256 of images that were answered, which the choice goes on from. features: describes images, (N, F); a
    small fixed descriptor by default.
    """
    function = extensions.find("distilltool.selection", "selection", select)
    photos = sorted(photos, key=lambda photo: photo.sha256)  # by content: file names change nothing
    wanted = [photo for photo in photos if photo.key not in known]
    if count <= 0 or count >= len(wanted):
        return Choice(order=tuple(_by_lot(wanted, seed)))
    answered = [photo for photo in photos if photo.key in known]
    if "features_ND" in inspect.signature(function).parameters:
        return _compared(function, wanted, answered, count, seed, progress, features)
    return _unseen(function(wanted, seed), answered, count, progress)


def _by_lot(photos: Sequence[Photo], seed: int) -> list[Photo]:
    return sorted(photos, key=lambda photo: ticket(photo, seed))


def _unseen(order: list[Photo], answered: list[Photo], count: int, progress: Progress) -> Choice:
    """Walk an order, setting repeats aside, for as long as the budget goes; the rest is not even opened."""
    distinct, ready, repeats = Distinct(), list[Photo](), list[Photo]()
    progress.begin("looking at the images", len(answered), "images")
    _look(distinct, answered, progress)
    at = found = 0
    while found < count and at < len(order):
        some = order[at : at + LOOK]
        progress.expect(len(answered) + at + max(len(some), min(count - found, len(order) - at)))
        looked = _look(distinct, some, progress)
        late = {photo.sha256 for photo in looked.repeats}
        ready += [photo for photo in some if photo.sha256 not in late]
        repeats += looked.repeats
        found, at = found + len(looked.fresh), at + LOOK
    progress.end()
    return Choice(order=(*ready, *order[at:], *repeats), set_aside=len(repeats))


def _compared(
    function: Callable[..., list[Photo]],
    wanted: list[Photo],
    answered: list[Photo],
    count: int,
    seed: int,
    progress: Progress,
    features: Describe | None,
) -> Choice:
    """Compare all distinct pictures with one another; what cannot be read comes first, as it costs no query."""
    distinct = Distinct()
    progress.begin("looking at the images", len(answered) + len(wanted), "images")
    _look(distinct, answered, progress)
    looked = _look(distinct, wanted, progress)
    progress.end()
    compared = sorted([*answered, *looked.fresh], key=lambda photo: photo.sha256)
    described = (features or partial(_describe, progress=progress))(compared)
    old = {photo.sha256 for photo in answered}
    known = np.array([photo.sha256 in old for photo in compared])
    rows = function(compared, seed, known=known, count=count, features_ND=reduced(described))
    return Choice(order=(*looked.unreadable, *rows, *_by_lot(looked.repeats, seed)), set_aside=len(looked.repeats))


def _look(distinct: Distinct, photos: Sequence[Photo], progress: Progress) -> _Looked:
    """Open photos one by one and tell new pictures from repeats; a few hundred bytes an image stay in memory."""
    looked, found = _Looked(), list[Marks]()
    readable = list[Photo]()
    for photo, mark in zip(photos, images.ahead(photos, _mark), strict=True):
        if mark is None:
            looked.unreadable.append(photo)
        else:
            readable.append(photo)
            found.append(mark)
        progress.advance()
    for photo, repeated in zip(readable, distinct.add(near.joined(found)).tolist(), strict=True):
        (looked.repeats if repeated else looked.fresh).append(photo)
    return looked


def _mark(photo: Photo) -> Marks | None:
    image = images.decode(photo.path, SIDE)
    return None if isinstance(image, str) else near.mark(image)


def _describe(photos: Sequence[Photo], progress: Progress) -> NDArray[np.float32]:
    """The fixed descriptor of each photo, (N, 176); zeros where it cannot be read any more."""
    described = np.zeros((len(photos), WIDTH), np.float32)
    progress.begin("describing the images", len(photos), "images")
    for row, found in enumerate(images.ahead(photos, _described)):
        described[row] = found
        progress.advance()
    progress.end()
    return described


def _described(photo: Photo) -> NDArray[np.float32]:
    image = images.decode(photo.path, SIDE)
    return np.zeros(WIDTH, np.float32) if isinstance(image, str) else describe(image)


def reduced(features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred features in their first principal components, (N, ≤ 128), each row of length 1."""
    sample = features_NF[:: max(1, len(features_NF) // SAMPLE)].astype(np.float64)
    mean = sample.mean(axis=0)
    _, directions = np.linalg.eigh((sample - mean).T @ (sample - mean))
    first = directions[:, ::-1][:, :COMPONENTS].astype(np.float32)
    return unit((features_NF - mean.astype(np.float32)) @ first)

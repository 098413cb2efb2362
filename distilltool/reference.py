"""What a student makes of larger images before it is trained: targets that cost no query, for each view of an image
that was asked about, and for images that nobody was asked about."""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import images
from distilltool.augment import altered, let_go, numbered
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.rundir import RunDir, read_json, write_array, write_bytes, write_json
from distilltool.student import Student, embed
from distilltool.train import Unanswered

BATCH = 32
SHARE = 0.2  # of the time budget that may be spent on it
LEAST = 64  # images that nobody was asked about, below which they teach nothing
TIMED = 2  # batches whose time decides how many views there are
MOST = 1.15  # times the student's own size, below which a larger one tells nothing new


def sides(own: int, native: int) -> list[int]:
    """Longer sides at which a network may serve as its own reference, in pixels, the smallest first."""
    between = round((own + native) / 32) * 16
    return sorted({side for side in (between, native) if side >= MOST * own})


@torch.inference_mode()
def known(
    path: Path,
    student: Student,
    photos: Sequence[Photo],
    seen_by: Preprocess,
    recipe: Recipe,
    keep: float,
    seconds: float | None,
    progress: Progress,
) -> NDArray[np.float16]:
    """Features at length 1 of the views of each image, (N, V, F) in a mapped file that is made once.

    seen_by: how the whole of an image becomes what views are cut out of. seconds: of which at most a fifth is spent;
    fewer views are made where all of them take longer.
    """
    if path.exists():
        kept: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return kept
    maker = _Maker(student, seen_by, recipe, keep)
    views = maker.views_that_fit(photos, seconds)

    def write(fresh: Path) -> None:
        mapped = np.lib.format.open_memmap(fresh, "w+", np.float16, (len(photos), views, student.width))
        progress.begin("looking at larger images", len(photos), "images")
        ready = images.ahead(photos, lambda photo: images.prepare(photo.path, maker.whole))
        for row, found in enumerate(ready):
            if isinstance(found, str):
                raise images.spoilt(str(photos[row].path), found)
            mapped[row] = maker.features(row, found, range(views))
            progress.advance()
        mapped.flush()
        progress.end()

    write_bytes(path, write)
    made: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return made


def unasked(
    run: RunDir,
    student: Student,
    photos: Sequence[Photo],
    cached_by: Preprocess,
    seen_by: Preprocess,
    recipe: Recipe,
    centred: bool,
    seconds: float | None,
    progress: Progress,
) -> Unanswered | None:
    """Images that nobody was asked about, and the student's features of each at a larger size; made once a run.

    cached_by: how they are kept for training. seen_by: how they are looked at here. centred: the mean of the features
    over these images is taken off. seconds: of which at most a fifth is spent; fewer images are looked at where all
    take longer. What cannot be read is left out; None where hardly any is left.
    """
    if not run.unasked_names.exists():
        drawn = np.random.default_rng((recipe.seed, 14)).permutation(len(photos))[: recipe.unasked.most]
        chosen = [photos[row] for row in drawn[: _that_fit(student, seen_by, seconds)]]
        _look(run, student, chosen, cached_by, seen_by, progress)
    names = read_json(run.unasked_names)
    if len(names) < LEAST:
        return None
    vectors: NDArray[np.float32] = np.load(run.unasked_vectors, allow_pickle=False)
    pixels: NDArray[np.uint8] = np.load(run.unasked, mmap_mode="r", allow_pickle=False)[: len(names)]
    return Unanswered(pixels=pixels, vectors=unit(vectors - vectors.mean(axis=0) * centred), names=tuple(names))


def _look(
    run: RunDir,
    student: Student,
    photos: Sequence[Photo],
    cached_by: Preprocess,
    seen_by: Preprocess,
    progress: Progress,
) -> None:
    """Write the images of which both sizes can be made, what the student makes of the larger, and their names."""
    names, parts = list[str](), [np.zeros((0, student.width), np.float32)]

    def both(photo: Photo) -> tuple[Photo, NDArray[np.uint8], NDArray[np.uint8]] | None:
        small, large = (images.prepare(photo.path, how) for how in (cached_by, seen_by))
        return None if isinstance(small, str) or isinstance(large, str) else (photo, small, large)

    def write(fresh: Path) -> None:
        mapped = np.lib.format.open_memmap(fresh, "w+", np.uint8, (len(photos), *cached_by.size, 3))
        progress.begin("looking at images nobody was asked about", len(photos), "images")
        ready = images.ahead(photos, both)
        while some := list(islice(ready, BATCH)):
            good = [one for one in some if one is not None]
            for photo, small, _ in good:
                mapped[len(names)] = small
                names.append(str(photo.path))
            if good:
                parts.append(embed(student, np.stack([large for _, _, large in good]), features=True))
            let_go(mapped)
            progress.advance(len(some))
        mapped.flush()
        progress.end()

    write_bytes(run.unasked, write)
    write_array(run.unasked_vectors, np.concatenate(parts))
    write_json(run.unasked_names, names)


def _that_fit(student: Student, seen_by: Preprocess, seconds: float | None) -> int | None:
    """How many images there is time to look at; None for all."""
    if seconds is None:
        return None
    blank = np.zeros((BATCH, *seen_by.size, 3), np.uint8)
    embed(student, blank, features=True)
    began = time.perf_counter()
    embed(student, blank, features=True)
    return max(LEAST, int(SHARE * seconds * BATCH / (time.perf_counter() - began)))


class _Maker:
    def __init__(self, student: Student, seen_by: Preprocess, recipe: Recipe, keep: float) -> None:
        self.student, self.recipe, self.keep = student, recipe, keep
        self.size = seen_by.size
        height, width = (round(side / keep) for side in self.size)
        self.whole = seen_by.at((height, width))

    def features(self, row: int, image_HWC: NDArray[np.uint8], numbers: Sequence[int]) -> NDArray[np.float16]:
        """Of some views of one image, (V, F)."""
        device = self.student.factor.device
        views = [numbered(row, one, self.recipe.augment, self.keep, self.recipe.seed) for one in numbers]
        pixels = altered([image_HWC] * len(views), views, self.size)
        starts = range(0, len(pixels), BATCH)
        parts = [self.student.features(pixels[at : at + BATCH].to(device)) for at in starts]
        made: NDArray[np.float16] = torch.cat(parts).cpu().numpy().astype(np.float16)
        return made

    def views_that_fit(self, photos: Sequence[Photo], seconds: float | None) -> int:
        """How many views of each image there is time for."""
        wanted = self.recipe.reference.views
        if seconds is None:
            return wanted
        blank = np.zeros((*self.whole.size, 3), np.uint8)
        self.features(0, blank, range(wanted))
        began = time.perf_counter()
        for row in range(TIMED):
            self.features(row, blank, range(wanted))
        each = (time.perf_counter() - began) / (TIMED * wanted)
        return max(1, min(wanted, int(SHARE * seconds / (each * len(photos)))))

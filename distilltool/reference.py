"""What a student makes of larger images before it is trained: targets for each view that cost no query."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import images
from distilltool.augment import altered, numbered
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.rundir import write_bytes
from distilltool.student import Student

BATCH = 32
SHARE = 0.2  # of the time budget that may be spent on it
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

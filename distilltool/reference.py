"""What a student makes of larger images before it is trained: targets that cost no query, for each view of an image
that was asked about, and for images that nobody was asked about."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import images
from distilltool.augment import altered, embed_plain, let_go, numbered
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.rundir import RunDir, check_room, read_json, write_array, write_bytes, write_json
from distilltool.selection import ticket
from distilltool.student import Student, embed
from distilltool.train import Data, Unanswered, batching

BATCH = 32
SHARE = 0.2  # of the time budget that may be spent on it
LEAST = 64  # images that nobody was asked about, below which they teach nothing, however small a step is
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
    data: Data,
    seen_by: Preprocess,
    recipe: Recipe,
    centred: bool,
    seconds: float | None,
    progress: Progress,
) -> Unanswered | None:
    """Images that nobody was asked about, and the student's features of each at a larger size; made once a run.

    data: what is known of the others: of these images those are left out that the untrained student finds nearer to a
    held-out one than to any that is trained on, as held-out images are to be unlike what is trained on. seen_by: how
    they are looked at here, whole. centred: the mean of the features over these images is taken off. seconds: of which
    at most a fifth is spent; fewer images are looked at where all take longer. What cannot be read is left out; None
    where they are too few for a step (`least`).
    """
    if not run.unasked_list.exists():
        ends = None if seconds is None else time.perf_counter() + SHARE * seconds
        drawn = sorted(photos, key=lambda photo: ticket(photo, recipe.seed))[: recipe.unasked.most]
        _look(run, student, drawn, data, seen_by, recipe, ends, progress)
    listed = read_json(run.unasked_list)
    names, hashes = listed["names"], listed["hashes"]
    if len(names) < least(recipe, len(data.pixels)):
        return None
    vectors: NDArray[np.float32] = np.load(run.unasked_vectors, allow_pickle=False)
    pixels: NDArray[np.uint8] = np.load(run.unasked, mmap_mode="r", allow_pickle=False)[: len(names)]
    return Unanswered(
        pixels=pixels,
        vectors=unit(vectors - vectors.mean(axis=0) * centred),
        names=tuple(names),
        hashes=tuple(bytes.fromhex(one) for one in hashes),
        share=listed["share"],
    )


def least(recipe: Recipe, trained: int) -> int:
    """Images that nobody was asked about, below which they teach nothing: no list of a step shows one twice.

    trained: images trained on by the teacher's answers.
    """
    batch, parts = batching(recipe, trained, finetune=True)
    return max(LEAST, batch * parts)


def _look(
    run: RunDir,
    student: Student,
    photos: Sequence[Photo],
    data: Data,
    seen_by: Preprocess,
    recipe: Recipe,
    ends: float | None,
    progress: Progress,
) -> None:
    """Write the images of which both sizes can be made until the time is over, what the student makes of the larger,
    their names and hashes, and what they are of all."""
    found, parts = list[Photo](), [np.zeros((0, student.width), np.float32)]
    height, width = data.pixels.shape[1:3]
    sizes = seen_by.at((height, width)), seen_by.at(seen_by.size, data.keep)
    check_room(run.unasked, len(photos) * height * width * 3)
    near_held = _NearHeld(student, data)

    def both(photo: Photo) -> tuple[Photo, list[NDArray[np.uint8]]] | None:
        made = images.prepare_each(photo.path, sizes, photo.box)
        return None if isinstance(made, str) else (photo, made)

    def in_time() -> Iterator[Photo]:
        for photo in photos:
            if ends is not None and time.perf_counter() > ends:
                return
            yield photo

    def readable() -> Iterator[tuple[Photo, list[NDArray[np.uint8]]]]:
        """Whether a run knew before what cannot be read must not change which images are embedded together."""
        for one in images.ahead(in_time(), both, depth=BATCH):
            progress.advance()
            if one is not None:
                yield one

    def write(fresh: Path) -> None:
        mapped = np.lib.format.open_memmap(fresh, "w+", np.uint8, (len(photos), height, width, 3))
        progress.begin("looking at images nobody was asked about", len(photos), "images")
        ready = readable()
        while some := list(islice(ready, BATCH)):
            apart = ~near_held(np.stack([small for _, (small, _) in some]))
            good = [one for one, fine in zip(some, apart, strict=True) if fine]
            for photo, (small, _) in good:
                mapped[len(found)] = small
                found.append(photo)
            if good:
                parts.append(embed(student, np.stack([large for _, (_, large) in good]), features=True))
            let_go(mapped)
        mapped.flush()
        progress.end()

    write_bytes(run.unasked, write)
    write_array(run.unasked_vectors, np.concatenate(parts))
    share = min(recipe.unasked.share, len(found) / (len(found) + len(data.pixels) + len(data.held_pixels)))
    hashes = [photo.sha256.hex() for photo in found]
    write_json(run.unasked_list, {"share": share, "names": [str(photo.path) for photo in found], "hashes": hashes})


class _NearHeld:
    """Whether images at caching size, (N, H, W, 3), are nearer to a held-out one than to any that is trained on → (N,)
    bool, by the untrained student's features less their mean."""

    def __init__(self, student: Student, data: Data) -> None:
        self.student, self.data = student, data
        trained = embed_plain(student, data.pixels, data.size, data.keep, features=True)
        self.centre = trained.mean(axis=0)
        self.trained = unit(trained - self.centre)
        self.held = unit(embed(student, data.held_pixels, features=True) - self.centre)

    def __call__(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
        some = embed_plain(self.student, pixels_NHWC, self.data.size, self.data.keep, features=True)
        some = unit(some - self.centre)
        near: NDArray[np.bool_] = (some @ self.held.T).max(axis=1) > (some @ self.trained.T).max(axis=1)
        return near


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

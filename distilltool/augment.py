"""Batches of augmented images, made from cached pixels; which ones depends on seed and step alone."""

import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilltool.recipe import Augment
from distilltool.student import Student, embed, to_pixels

CHUNK = 64  # images embedded together
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision weigh grey


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Which images are in a list. rows: (B,) of the training set; views: (B,) the number of each image's view; asked:
    whether the teacher was asked about them; otherwise rows are of those it was not asked about."""

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    asked: bool = True


@dataclass(frozen=True, kw_only=True)
class Batch(Shown):
    """pixels: (B, 3, H, W) of 0 to 255, channels last."""

    pixels: Tensor


def together(batches: Sequence[Batch]) -> Shown:
    """The list that several batches make, all asked about or none."""
    rows, views = (np.concatenate(parts) for parts in zip(*((one.rows, one.views) for one in batches), strict=True))
    return Shown(rows=rows, views=views, asked=batches[0].asked)


def rows_of(step: int, count: int, batch: int, seed: int) -> NDArray[np.int64]:
    """The training rows of a step, (batch,): every epoch is a fresh order, cut into steps across its borders."""
    batch = min(batch, count)
    positions = range(step * batch, (step + 1) * batch)
    epochs = {at // count for at in positions}
    orders = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(count) for epoch in epochs}
    return np.array([orders[at // count][at % count] for at in positions], np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How an image is altered. top, left, height, width: the crop, as shares of the image's sides; factors: of
    brightness, contrast and saturation."""

    top: float
    left: float
    height: float
    width: float
    mirrored: bool
    factors: tuple[float, float, float]


def view(augment: Augment, keep: float, rng: np.random.Generator) -> View:
    """A random view.

    keep: share of each side that the student looks at when it is used; crops are that large, give or take.
    """
    least, most = keep * augment.crop, min(1.0, keep / augment.crop)
    height, width = rng.uniform(least, most, 2)
    top, left = rng.uniform(0, 1, 2) * (1 - height, 1 - width)
    factors = rng.uniform(1 - augment.jitter, 1 + augment.jitter, 3)
    return View(
        top=float(top),
        left=float(left),
        height=float(height),
        width=float(width),
        mirrored=augment.flip and bool(rng.random() < 0.5),
        factors=(float(factors[0]), float(factors[1]), float(factors[2])),
    )


def numbered(row: int, number: int, augment: Augment, keep: float, seed: int) -> View:
    """One of the views of an image that come again and again."""
    return view(augment, keep, np.random.default_rng((seed, 10, row, number)))


def seen(image_HWC: NDArray[np.uint8], one: View, size: tuple[int, int]) -> Tensor:
    """A view of an image with antialiasing, (1, 3, H, W) uint8; its colours come with `coloured`."""
    tall, wide = image_HWC.shape[:2]
    height, width = max(1, round(one.height * tall)), max(1, round(one.width * wide))
    top, left = min(round(one.top * tall), tall - height), min(round(one.left * wide), wide - width)
    part = to_pixels(image_HWC[None, top : top + height, left : left + width])
    return shrink(part.flip(3) if one.mirrored else part, size)


def make_batch(
    step: int,
    pixels_NHWC: NDArray[np.uint8],
    size: tuple[int, int],
    batch: int,
    augment: Augment,
    seed: int,
    keep: float = 1.0,
    views: int = 0,
    asked: bool = True,
) -> Batch:
    """The augmented batch of one step: each image its own crop, mirror and colour.

    keep: as of `view`. views: how many each image has, another one in every epoch; 0 for a new one each time. asked:
    whether these are images that the teacher was asked about.
    """
    rng = np.random.default_rng((seed, 2, step))
    rows = rows_of(step, len(pixels_NHWC), batch, seed)
    epochs = (step * len(rows) + np.arange(len(rows))) // len(pixels_NHWC)
    numbers = epochs % views if views else np.zeros(len(rows), np.int64)
    drawn = [
        numbered(int(row), int(number), augment, keep, seed) if views else view(augment, keep, rng)
        for row, number in zip(rows, numbers, strict=True)
    ]
    return Batch(rows=rows, pixels=altered(each(pixels_NHWC, rows), drawn, size), views=numbers, asked=asked)


def single_threaded() -> None:
    """Let torch work in this thread without threads of its own, and elsewhere as before.

    OpenMP's threads wait for their next work by looking for it, as long as there are no more of them than processors;
    a second team beside the network's would send both to sleep after every operation.
    """
    elsewhere = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of all that come after it
    restore = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    restore.start()
    restore.join()


def altered(images: Iterable[NDArray[np.uint8]], views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """A view of each image, (N, 3, H, W) float32, colours and all."""
    return coloured(torch.cat([seen(image, one, size) for image, one in zip(images, views, strict=True)]), views)


def shrink(pixels_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images with antialiasing, as Pillow's bilinear does, (N, 3, H, W) uint8."""
    if pixels_NCHW.shape[-2:] == size:
        return pixels_NCHW
    return torch.nn.functional.interpolate(pixels_NCHW, size, mode="bilinear", antialias=True)


def plain(pixels_NHWC: NDArray[np.uint8], size: tuple[int, int], keep: float = 1.0) -> NDArray[np.uint8]:
    """Cached images at working size without augmentation, the middle `keep` of each side, (N, H, W, 3)."""
    (height, width), whole = (round(keep * side) for side in pixels_NHWC.shape[1:3]), pixels_NHWC.shape[1:3]
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return (
        shrink(to_pixels(pixels_NHWC[:, top : top + height, left : left + width]), size)
        .permute(0, 2, 3, 1)
        .contiguous()
        .numpy()
    )


def embed_plain(
    student: Student,
    pixels_NHWC: NDArray[np.uint8],
    size: tuple[int, int],
    keep: float,
    *,
    features: bool = False,
) -> NDArray[np.float32]:
    """Vectors of cached images without augmentation, (N, D), or their pooled features; a few images at a time."""
    parts = []
    for at in range(0, len(pixels_NHWC), CHUNK):
        parts.append(embed(student, plain(pixels_NHWC[at : at + CHUNK], size, keep), features=features))
        let_go(pixels_NHWC)
    return np.concatenate(parts)


@torch.inference_mode()
def embed_view(
    student: Student,
    pixels_NHWC: NDArray[np.uint8],
    size: tuple[int, int],
    keep: float,
    augment: Augment,
    seed: int,
    number: int,
) -> NDArray[np.float32]:
    """Pooled features of the view with this number of each cached image, (N, F), a few images at a time."""
    training, parts = student.training, []
    student.eval()
    for at in range(0, len(pixels_NHWC), CHUNK):
        some = pixels_NHWC[at : at + CHUNK]
        views = [numbered(at + row, number, augment, keep, seed) for row in range(len(some))]
        made = altered(some, views, size).to(student.factor.device)
        parts.append(student.features(made).float().cpu().numpy())
        let_go(pixels_NHWC)
    student.train(training)
    return np.concatenate(parts)


def each(pixels_NHWC: NDArray[np.uint8], rows: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
    """Images of these rows, each to be read before the next is asked for: around one of them the system maps as much
    as 2 MB of a file."""
    for row in rows:
        yield pixels_NHWC[row]
        let_go(pixels_NHWC)


def taken(pixels_NHWC: NDArray[np.uint8], rows: Iterable[int]) -> NDArray[np.uint8]:
    """Images of these rows in memory of their own, whatever they are kept in."""
    return np.stack([image.copy() for image in each(pixels_NHWC, rows)])


def let_go(pixels_NHWC: NDArray[np.uint8]) -> None:
    """Take what was read of a mapped file out of the process's memory; the system's cache keeps it while there is
    room. Nothing where the images are in memory, or where the system has no such call."""
    mapped = getattr(pixels_NHWC, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def coloured(pixels_NCHW: Tensor, views: Sequence[View]) -> Tensor:
    """Brightness, saturation and contrast of each view, (N, 3, H, W) float32; torchvision's take one value a call.

    All three are linear in the colours of a pixel and the mean grey of its image: one 3×3 matrix an image does them.
    """
    pixels = pixels_NCHW.to(torch.float32, memory_format=torch.channels_last)
    factors = torch.tensor([one.factors for one in views])
    if bool((factors == 1).all()):
        return pixels
    brightness, contrast, saturation = factors.T.reshape(3, -1, 1, 1)
    luma = torch.tensor(LUMA)
    turned = contrast * brightness * (saturation * torch.eye(3) + (1 - saturation) * luma[:, None].expand(3, 3))
    grey = pixels.mean(dim=(2, 3)) @ luma
    shift = (1 - contrast) * brightness * grey.view(-1, 1, 1)
    flat = pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1, 3)
    made = torch.baddbmm(shift.expand(-1, flat.shape[1], 3), flat, turned).clamp_(0, 255)
    return made.view(*pixels.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)

"""Batches of augmented images, made from cached pixels; which ones depends on seed and step alone."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilltool.recipe import Augment
from distilltool.student import to_pixels

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision weigh grey


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """rows: (B,) of the training set; pixels: (B, 3, H, W) of 0 to 255, channels last."""

    rows: NDArray[np.int64]
    pixels: Tensor


def rows_of(step: int, count: int, batch: int, seed: int) -> NDArray[np.int64]:
    """The training rows of a step, (batch,): every epoch is a fresh order, cut into steps across its borders."""
    batch = min(batch, count)
    positions = range(step * batch, (step + 1) * batch)
    epochs = {at // count for at in positions}
    orders = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(count) for epoch in epochs}
    return np.array([orders[at // count][at % count] for at in positions], np.int64)


def make_batch(
    step: int,
    pixels_NHWC: NDArray[np.uint8],
    size: tuple[int, int],
    batch: int,
    augment: Augment,
    seed: int,
    keep: float = 1.0,
) -> Batch:
    """The augmented batch of one step: each image its own crop, mirror and colour.

    keep: share of each side that the student looks at when it is used; crops are that large, give or take.
    """
    rng = np.random.default_rng((seed, 2, step))
    rows = rows_of(step, len(pixels_NHWC), batch, seed)
    crops = [_crop(to_pixels(pixels_NHWC[row][None]), size, augment, keep, rng) for row in rows]
    pixels = torch.cat(crops).to(torch.float32, memory_format=torch.channels_last)
    return Batch(rows=rows, pixels=_jitter(pixels, augment.jitter, rng) if augment.jitter else pixels)


def _crop(image: Tensor, size: tuple[int, int], augment: Augment, keep: float, rng: np.random.Generator) -> Tensor:
    """A random crop resized with antialiasing, (1, 3, H, W) uint8."""
    full_height, full_width = image.shape[-2:]
    least, most = keep * augment.crop, min(1.0, keep / augment.crop)
    height, width = (max(1, round(full * rng.uniform(least, most))) for full in (full_height, full_width))
    top, left = rng.integers(0, full_height - height + 1), rng.integers(0, full_width - width + 1)
    part = image[:, :, top : top + height, left : left + width]
    if augment.flip and rng.random() < 0.5:
        part = part.flip(3)
    return shrink(part, size)


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


def _jitter(pixels_NCHW: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation, drawn per image from 1 ± strength; torchvision's take one value a call."""
    draws = rng.uniform(1 - strength, 1 + strength, (3, len(pixels_NCHW), 1, 1, 1))
    brightness, contrast, saturation = torch.from_numpy(draws.astype(np.float32))
    pixels = pixels_NCHW * brightness
    grey = (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    pixels = grey + (pixels - grey) * saturation
    mean = grey.mean(dim=(2, 3), keepdim=True)
    changed: Tensor = (mean + (pixels - mean) * contrast).clamp_(0, 255)
    return changed

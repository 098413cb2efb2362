"""Batches: which images, which part of them, and which colours."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import drawn
from PIL import Image

from distilltool.augment import LUMA, coloured, each, make_batch, rows_of, shrink, view
from distilltool.recipe import Augment
from distilltool.student import to_pixels

PLAIN = Augment(crop=1.0, flip=False, jitter=0.0)


def pictures(count: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """Drawn images, (count, H, W, 3) uint8."""
    return np.stack([np.asarray(drawn(number, size)) for number in range(count)])


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (7, 7), (33, 8), (5, 64), (64, 1)])
def test_every_epoch_holds_every_image_once(count: int, batch: int) -> None:
    """Steps laid end to end and cut at each epoch's border are permutations, and no two epochs are alike."""
    steps = 3 * count // min(batch, count) + 2
    rows = np.concatenate([rows_of(step, count, batch, seed=3) for step in range(steps)])
    epochs = [rows[at : at + count].tolist() for at in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_depend_on_seed_and_step_alone() -> None:
    """A resumed run sees the batches that it would have seen."""
    np.testing.assert_array_equal(rows_of(9, 50, 8, seed=1), rows_of(9, 50, 8, seed=1))
    assert rows_of(9, 50, 8, seed=1).tolist() != rows_of(9, 50, 8, seed=2).tolist()
    assert len(rows_of(0, 5, 64, seed=0)) == 5


def test_same_step_same_batch() -> None:
    """The whole batch repeats, and the next one differs."""
    stored = pictures(9)
    one, again = (make_batch(4, stored, (16, 16), 6, Augment(), seed=2) for _ in range(2))
    np.testing.assert_array_equal(one.rows, again.rows)
    assert torch.equal(one.pixels, again.pixels)
    other = make_batch(4, stored, (16, 16), 6, Augment(), seed=3)
    assert not torch.equal(one.pixels, other.pixels)


def test_shape_and_range() -> None:
    """(B, 3, H, W) float32 of 0 to 255, in channels-last memory."""
    batch = make_batch(0, pictures(9), (16, 24), 6, Augment(crop=0.5, jitter=1.0), seed=2)
    assert batch.pixels.shape == (6, 3, 16, 24) and batch.pixels.dtype == torch.float32
    assert batch.pixels.min() >= 0 and batch.pixels.max() <= 255
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(32, 40), (16, 20), (17, 23)])
def test_without_augmentation_only_resized(size: tuple[int, int]) -> None:
    """Each row is its own image, resized as Pillow does."""
    stored = pictures(8)
    batch = make_batch(1, stored, size, 5, PLAIN, seed=0)
    for row, got in zip(batch.rows, batch.pixels, strict=True):
        wanted = Image.fromarray(stored[row]).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        assert np.abs(got.permute(1, 2, 0).numpy() - np.asarray(wanted, np.float32)).max() <= 1


@pytest.mark.parametrize("size", [(20, 20), (64, 48), (96, 80), (11, 70)])
def test_shrink_is_pillows_antialiased_bilinear(size: tuple[int, int], rng: np.random.Generator) -> None:
    """On noise, where a missing antialiasing would be off by a hundred."""
    noise = rng.integers(0, 256, (2, 96, 80, 3), dtype=np.uint8)
    got = shrink(to_pixels(noise), size)
    assert got.dtype == torch.uint8
    for row in range(2):
        wanted = np.asarray(Image.fromarray(noise[row]).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        assert np.abs(got[row].permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def ramp(height: int, width: int) -> np.ndarray:
    """An image whose red tells the column and whose green tells the row, (1, H, W, 3)."""
    image = np.zeros((1, height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    return image


@pytest.mark.parametrize("crop", [0.5, 0.8, 1.0])
def test_crops_keep_to_their_size_and_place(crop: float) -> None:
    """Every crop covers at least its share of each side, lies inside, and crops lie all over the image."""
    stored = ramp(100, 200)
    shares, lefts = [], []
    for step in range(80):
        found = make_batch(step, stored, (100, 200), 1, Augment(crop=crop, flip=False, jitter=0.0), seed=1).pixels[0]
        for channel, full in ((0, 200), (1, 100)):
            low, high = float(found[channel].min()), float(found[channel].max())
            shares.append((high - low + 1) / full)
        lefts.append(float(found[0].min()))
    assert min(shares) >= crop - 0.03 and max(shares) <= 1
    if crop < 1:
        assert min(shares) < crop + 0.06 < 0.94 < max(shares)
        assert min(lefts) < 5 and max(lefts) > 0.5 * (1 - crop) * 200
    else:
        assert min(shares) == 1


def test_half_of_the_images_are_mirrored() -> None:
    """Left and right, never top and bottom."""
    stored = ramp(20, 40)
    mirrored = 0
    for step in range(200):
        found = make_batch(step, stored, (20, 40), 1, Augment(crop=1.0, flip=True, jitter=0.0), seed=5).pixels[0]
        mirrored += bool(found[0, 0, 0] > found[0, 0, -1])
        assert found[1, 0, 0] < found[1, -1, 0]
    assert 70 <= mirrored <= 130


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_jitter_stays_within_its_strength(strength: float) -> None:
    """On a flat grey only brightness shows: each image its own factor of 1 ± strength."""
    stored = np.full((64, 8, 8, 3), 100, np.uint8)
    found = make_batch(0, stored, (8, 8), 64, Augment(crop=1.0, flip=False, jitter=strength), seed=1).pixels
    factors = found.mean(dim=(1, 2, 3)).numpy() / 100
    assert np.abs(found.numpy() - 100 * factors[:, None, None, None]).max() < 1e-3
    assert (1 - strength - 1e-4 <= factors).all() and (factors <= 1 + strength + 1e-4).all()
    assert factors.max() - factors.min() > strength and len(np.unique(factors)) == 64


def test_jitter_changes_contrast_and_colour_within_bounds() -> None:
    """Contrast moves pixels from their mean, saturation colours from their grey, by at most the strength."""
    strength = 0.3
    stored = np.zeros((48, 8, 8, 3), np.uint8)
    stored[:, :4], stored[:, 4:] = (90, 90, 90), (150, 150, 150)
    found = make_batch(0, stored, (8, 8), 48, Augment(crop=1.0, flip=False, jitter=strength), seed=1).pixels.numpy()
    brightness = found.mean(axis=(1, 2, 3)) / 120
    contrast = (found[:, 0, 7, 7] - found[:, 0, 0, 0]) / 60 / brightness
    assert (np.abs(contrast - 1) <= strength + 1e-3).all() and np.ptp(contrast) > strength
    stored[:] = (140, 100, 100)
    found = make_batch(0, stored, (8, 8), 48, Augment(crop=1.0, flip=False, jitter=strength), seed=1).pixels.numpy()
    grey = found.mean(axis=(2, 3)) @ (0.299, 0.587, 0.114)
    colour = (found[:, 0, 0, 0] - found[:, 1, 0, 0]) / 40 / (grey / (100 + 0.299 * 40))
    assert (np.abs(colour - 1) <= (1 + strength) ** 2 - 1 + 1e-3).all() and np.ptp(colour) > strength


def test_colours_are_brightness_then_saturation_then_contrast() -> None:
    """Against the three steps written out one by one in float64."""
    rng = np.random.default_rng(3)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 3, 9, 7), np.uint8))
    views = [view(Augment(jitter=0.6), 0.9, rng) for _ in range(3)]
    found = coloured(pixels, views)
    for image, one, got in zip(pixels.double(), views, found, strict=True):
        brightness, contrast, saturation = one.factors
        bright = image * brightness
        grey = sum(weight * bright[channel] for channel, weight in enumerate(LUMA))
        saturated = grey + (bright - grey) * saturation
        expected = (grey.mean() + (saturated - grey.mean()) * contrast).clamp(0, 255)
        assert torch.allclose(got.double(), expected, atol=1e-3)
    assert found.is_contiguous(memory_format=torch.channels_last)


THREADS = """
import os, sys
import numpy as np
import torch
from distilltool import images
from distilltool.augment import make_batch, single_threaded
from distilltool.recipe import Augment

torch.set_num_threads(3)
pixels = np.zeros((8, 160, 160, 3), np.uint8)
begin = single_threaded if sys.argv[1] == "alone" else lambda: None
made = images.ahead(range(4), lambda n: make_batch(n, pixels, (128, 128), 8, Augment(), 0), threads=1, begin=begin)
before = len(os.listdir("/proc/self/task"))
next(made)
print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
made.close()
after = images.ahead(range(1), lambda _: torch.get_num_threads(), threads=1)
print(next(after))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_batches_are_made_without_threads_of_their_own() -> None:
    """One thread, none of OpenMP's beside it; the number that torch works with elsewhere stays."""
    alone, freely = (
        subprocess.run([sys.executable, "-c", THREADS, how], capture_output=True, text=True, check=True).stdout.split()
        for how in ("alone", "freely")
    )
    assert alone == ["1", "3", "3"]
    assert int(freely[0]) > 1  # what would be there otherwise


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    found = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if str(path) in mapping.partition("\n")[0]:
            found += 1024 * int(mapping.partition("Rss:")[2].split()[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_images_of_a_mapped_file_do_not_stay(tmp_path: Path) -> None:
    """Of 20 MB of images, one and what the system maps around it is held at a time; nothing after a batch."""
    stored, path = pictures(8, (160, 160)), tmp_path / "pixels.npy"
    np.save(path, np.tile(stored, (32, 1, 1, 1)))
    mapped = np.load(path, mmap_mode="r")
    for row, image in enumerate(each(mapped, range(len(mapped)))):
        assert (image == stored[row % 8]).all() and 0 < resident(path) < 8e6
    assert resident(path) == 0 and mapped.sum() > 0 and resident(path) > 15e6
    batch = make_batch(0, mapped, (64, 64), 64, Augment(), seed=2)
    assert resident(path) == 0
    assert torch.equal(batch.pixels, make_batch(0, np.array(mapped), (64, 64), 64, Augment(), seed=2).pixels)

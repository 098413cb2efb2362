"""Pictures that every bundle carries with their vectors, so that whoever gets it can see that it computes the same.

They are drawn, so that nobody's photographs travel, and each takes a path of its own through decoding and resizing.
"""

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER, VECTORS = "golden", "vectors.npz"
TRAINED = "torch"  # the vectors of the student as it was trained


def draw(folder: Path) -> list[Path]:
    """Write the pictures into `folder`, in the order of their vectors: wide and tall JPEGs, one with an orientation,
    transparency, a palette, greys."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "0-wide.jpg": _scene(320, 200, 0),
        "1-tall.jpg": _scene(150, 400, 1),
        "2-turned.jpg": _scene(256, 256, 2),
        "3-clear.png": _scene(200, 240, 3).convert("RGBA"),
        "4-palette.png": _scene(240, 180, 4).quantize(32),
        "5-grey.png": _scene(96, 96, 5).convert("L"),
    }
    made["3-clear.png"].putalpha(_scene(200, 240, 6).convert("L"))
    for name, picture in made.items():
        exif = Image.Exif()
        if "turned" in name:
            exif[0x0112] = 6
        if name.endswith(".jpg"):
            picture.save(folder / name, quality=92, exif=exif)
        else:
            picture.save(folder / name)
    return [folder / name for name in made]


def _scene(width: int, height: int, seed: int) -> Image.Image:
    """Soft colours and a few disks and bars: neither flat nor noise."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    pixels = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), np.float32).copy()
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(6):
        y, x, reach = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.06, 0.25) * min(width, height)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < reach**2
        pixels[inside] = 0.2 * pixels[inside] + 0.8 * rng.uniform(0, 255, 3)
    stripes = (columns * int(rng.integers(1, 4)) + rows * int(rng.integers(1, 4))) % 24 < 5
    pixels[stripes] *= 0.7
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

"""Altered copies of photographs, planted on purpose so that it is known which is which."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from distilltool import deploy

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.4, 0.9)
    return image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Up to 6 % off each side, each side for itself."""
    left, top, right, bottom = rng.uniform(0, 0.06, 4)
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(side) for side in box))


def _brightened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.choice([rng.uniform(0.6, 0.85), rng.uniform(1.15, 1.4)]))


CHANGES: dict[str, Change] = {
    "recoded": lambda image, rng: image,
    "resized": _resized,
    "cropped": _cropped,
    "brightened": _brightened,
}
QUALITIES = (30, 50, 75, 90)


def altered(path: Path, kind: str, rng: np.random.Generator) -> bytes:
    """One altered copy as JPEG bytes, of a quality drawn from `QUALITIES`."""
    image = CHANGES[kind](deploy.open_rgb(path), rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.choice(QUALITIES)))
    return file.getvalue()


def plant(originals: list[Path], folder: Path, share: float, seed: int = 0) -> dict[str, str]:
    """Fill `folder` with links to the originals and with altered copies of some, 2 to 6 each, until the copies are
    `share` of all files → the name of each copy and that of its original."""
    rng = np.random.default_rng((seed, 11))
    folder.mkdir(parents=True, exist_ok=True)
    for path in originals:
        (folder / path.name).symlink_to(path.resolve())
    wanted = round(len(originals) * share / (1 - share))
    copies: dict[str, str] = {}
    for row in rng.permutation(len(originals)):
        for _ in range(min(int(rng.integers(2, 7)), wanted - len(copies))):
            name = f"{originals[row].stem}-{len(copies):05d}.jpg"
            (folder / name).write_bytes(altered(originals[row], str(rng.choice(list(CHANGES))), rng))
            copies[name] = originals[row].name
        if len(copies) == wanted:
            return copies
    raise ValueError("more copies than the originals allow")

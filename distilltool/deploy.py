"""Turn images into unit vectors with an exported student: onnxruntime, numpy and Pillow, nothing else.

    python deploy.py student.onnx photo1.jpg photo2.jpg     prints their cosine similarities
    python deploy.py student.onnx photos/*.jpg --save v.npy  keeps the vectors

This file travels with every student. distilltool decodes and resizes with it too, so what was measured
is what is deployed, to the pixel.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 80_000_000  # below Pillow's own limit, so that a bomb is refused before it is unpacked
LARGE_PIXELS = 20_000_000  # where it matters how many are in memory at once
STRIP = 512  # rows
IMAGE_KEY = "distilltool.image"  # in the metadata of a file that resizes images itself
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def open_rgb(
    source: str | Path | bytes, least: int = 0, before_large: Callable[[], object] | None = None
) -> Image.Image:
    """Decode one image (the first frame) upright and in RGB; transparency is laid on white.

    least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as no side gets shorter than
    this, which is several times faster; 0 is always the whole size. before_large: called before an image of more
    than 20 million pixels is unpacked, so that threads can do so one after the other.
    Raises OSError where the bytes are no complete image of a known format, ValueError where it is too large.
    """
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
        if least:
            image.draft("RGB", (least, least))
        if before_large and image.width * image.height > LARGE_PIXELS:
            before_large()
        image.load()  # a TIFF is turned upright by this, and loses its tag
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
        rgb = to_rgb(image)
    return rgb if turn is None else rgb.transpose(Image.Transpose(turn))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB, 8 bits a channel."""
    if image.mode.startswith("I"):  # 16-bit grey, the only integers that photographs come in
        values = np.asarray(image)
        wide = image.mode.startswith("I;16") or bool(values.max(initial=0) > 255)
        image = Image.fromarray((values >> 8 if wide else values).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image).clip(0, 255)).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return on_white(image)
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparency on white, strip by strip: whole, a large one would be in memory four times."""
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return flat


def resize(image: Image.Image, spec: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize an RGB image as `spec` (size, resize, resize_to, crop_pct, interpolation) says → (H, W, 3) uint8."""
    height, width = spec["size"]
    how = RESAMPLE[spec["interpolation"]]
    if spec["resize"] == "stretch":
        keep = spec.get("crop_pct", 1)
        left, top = image.width * (1 - keep) / 2, image.height * (1 - keep) / 2
        return np.asarray(image.resize((width, height), how, box=(left, top, image.width - left, image.height - top)))
    short = spec["resize_to"]
    if image.width <= image.height:
        scaled = (short, max(short, int(short * image.height / image.width)))
    else:
        scaled = (max(short, int(short * image.width / image.height)), short)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return np.asarray(image.resize(scaled, how).crop((left, top, left + width, top + height)))


class Student:
    """An exported student: image files in, unit vectors out."""

    def __init__(self, model: str | Path, threads: int = 0) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it reports its use, and keeps an id below HOME
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        resizes = metadata.get(IMAGE_KEY) == "any"
        self.spec = None if resizes else json.loads(metadata["distilltool.preprocess"])
        self.space_id = metadata["distilltool.space_id"]

    def embed(self, images: Sequence[str | Path], batch: int = 32) -> NDArray[np.float32]:
        """Embed image files → (N, D) float32 of length 1."""
        name, parts = self.session.get_inputs()[0].name, []
        batch = batch if self.spec else 1  # images of one size alone share a batch
        for at in range(0, len(images), batch):
            decoded = [open_rgb(image) for image in images[at : at + batch]]
            rows = np.stack([resize(image, self.spec) if self.spec else np.asarray(image) for image in decoded])
            parts.append(np.asarray(self.session.run(None, {name: rows})[0]))
        return np.concatenate(parts)


def main() -> None:
    """Print the cosine similarities of the images given, or save their vectors."""
    parser = argparse.ArgumentParser(description="Embed images with an exported student.")
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--save", type=Path, help="write the (N, D) vectors to this .npy file")
    args = parser.parse_args()
    vectors = Student(args.model).embed(args.images)
    if args.save:
        np.save(args.save, vectors)
        print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {args.save}", file=sys.stderr)
        return
    for image, row in zip(args.images, vectors @ vectors.T, strict=True):
        print(image.name, *(f"{value:.3f}" for value in row))


if __name__ == "__main__":
    main()

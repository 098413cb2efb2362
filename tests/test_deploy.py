"""Decoding to upright RGB, and the script that travels with a student."""

import io
import json
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import onnx_teacher, photo_folder
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distilltool import deploy, images
from distilltool.preprocess import METADATA_KEY, Preprocess
from distilltool.teacher import SPACE_KEY, open_teacher

# the pixels as stored for each EXIF orientation of an upright image; the standard names the side of the picture on
# which the stored first row and the stored first column lie
STORED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda up: up,  # top, left
    2: lambda up: up[:, ::-1],  # top, right
    3: lambda up: up[::-1, ::-1],  # bottom, right
    4: lambda up: up[::-1],  # bottom, left
    5: lambda up: up.swapaxes(0, 1),  # left, top
    6: lambda up: up[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda up: up[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda up: up[::-1].swapaxes(0, 1),  # left, bottom
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corner(image: Image.Image) -> tuple[int, ...]:
    """The first pixel."""
    found = image.getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(kind: str, orientation: int) -> None:
    """An image is turned upright exactly once, whatever the format."""
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :16], upright[:16, 48:], upright[16:, :16] = (255, 0, 0), (0, 255, 0), (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    got = deploy.open_rgb(encoded(stored, kind, exif=exif, **options))
    assert got.size == (64, 32)
    assert np.abs(np.asarray(got).astype(int) - upright).max() <= 12


def palette(transparency: bytes | int | None) -> bytes:
    """A PNG of mode P: colour 0 is (10, 20, 30)."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def filled(mode: str, value: Any, kind: str, **options: Any) -> bytes:
    """A file of one colour."""
    return encoded(Image.new(mode, (4, 4), value), kind, **options)


def deep(value: int, kind: str, order: str = "<u2") -> bytes:
    """A file of 16-bit grey."""
    return encoded(Image.fromarray(np.full((4, 4), value, order)), kind)


MODES = {
    "1": (filled("1", 1, "PNG"), (255, 255, 255)),
    "L": (filled("L", 77, "PNG"), (77, 77, 77)),
    "L one grey transparent": (filled("L", 77, "PNG", transparency=77), (255, 255, 255)),
    "LA": (filled("LA", (100, 255), "PNG"), (100, 100, 100)),
    "LA clear": (filled("LA", (100, 0), "PNG"), (255, 255, 255)),
    "P": (palette(None), (10, 20, 30)),
    "P clear": (palette(0), (255, 255, 255)),
    "P half clear": (palette(bytes([128, 255])), (132, 137, 142)),
    "RGB": (filled("RGB", (1, 2, 3), "PNG"), (1, 2, 3)),
    "RGB one colour transparent": (filled("RGB", (1, 2, 3), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
    "RGBA": (filled("RGBA", (1, 2, 3, 255), "PNG"), (1, 2, 3)),
    "RGBA clear": (filled("RGBA", (1, 2, 3, 0), "PNG"), (255, 255, 255)),
    "RGBA half clear": (filled("RGBA", (0, 100, 200, 128), "PNG"), (127, 177, 227)),
    "RGBA WebP clear": (filled("RGBA", (1, 2, 3, 0), "WEBP", lossless=True, exact=True), (255, 255, 255)),
    "CMYK TIFF": (filled("CMYK", (255, 0, 0, 0), "TIFF"), (0, 255, 255)),
    "CMYK JPEG": (filled("CMYK", (255, 0, 0, 0), "JPEG", quality=100), (0, 255, 255)),
    "I;16 PNG": (deep(0x8040, "PNG"), (128, 128, 128)),
    "I;16 PNG dark": (deep(200, "PNG"), (0, 0, 0)),
    "I;16 TIFF": (deep(0xFFFF, "TIFF"), (255, 255, 255)),
    "I;16B TIFF": (deep(0x4020, "TIFF", ">u2"), (64, 64, 64)),
    "F TIFF": (filled("F", 99.0, "TIFF"), (99, 99, 99)),
    "F TIFF out of range": (filled("F", 1e9, "TIFF"), (255, 255, 255)),
    "RGB WebP": (filled("RGB", (1, 2, 3), "WEBP", lossless=True), (1, 2, 3)),
    "RGB BMP": (filled("RGB", (1, 2, 3), "BMP"), (1, 2, 3)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name: str) -> None:
    """Palette, alpha, depth and print colours come out as a viewer shows them, transparency on white."""
    content, wanted = MODES[name]
    got = deploy.open_rgb(content)
    assert got.mode == "RGB" and got.size == (4, 4)
    np.testing.assert_allclose(corner(got), wanted, atol=2)


@pytest.mark.parametrize(
    ("value", "grey"), [(77, 77), (255, 255), (0x1234, 0x12), (0xFFFF, 255), (-5, 0), (2_000_000, 255)]
)
def test_mode_i(value: int, grey: int) -> None:
    """Integers are 8-bit or 16-bit grey, by what they hold; nothing wraps round."""
    assert corner(deploy.to_rgb(Image.fromarray(np.full((3, 3), value, np.int32)))) == (grey,) * 3


def test_negative_and_fractional_floats_do_not_wrap() -> None:
    """Floats are cut to 0..255."""
    assert corner(deploy.to_rgb(Image.fromarray(np.full((3, 3), -7.5, np.float32)))) == (0, 0, 0)


def test_first_frame_of_an_animation() -> None:
    """Of an animation the first frame counts."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF"):
        assert corner(deploy.open_rgb(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))) == (255, 0, 0)


def test_transparent_gif() -> None:
    """The transparent colour of a GIF is laid on white."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    assert corner(deploy.open_rgb(encoded(image, "GIF", transparency=0))) == (255, 255, 255)


def test_other_formats_are_refused() -> None:
    """Only the formats named are opened, whatever the file calls itself."""
    with pytest.raises(UnidentifiedImageError):
        deploy.open_rgb(encoded(Image.new("RGB", (4, 4)), "PPM"))


def huge_png(side: int) -> bytes:
    """A PNG that claims to be `side` pixels wide and high, in a hundred bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_pixel_limit() -> None:
    """An image over the limit is refused before it is unpacked."""
    assert deploy.MAX_PIXELS < (Image.MAX_IMAGE_PIXELS or 0)
    with pytest.raises(ValueError, match="81000000|9000x9000"):
        deploy.open_rgb(huge_png(9000))


@pytest.mark.parametrize("side", [9000, 11000, 60000])
def test_bombs_are_skipped(tmp_path: Path, side: int) -> None:
    """Above our limit, above Pillow's warning and above its error: always a reason, whatever is done with warnings."""
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(huge_png(side))
    for how in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(how)
            assert isinstance(images.decode(bomb), str)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A file that says of itself what an exported student says."""
    own = Preprocess(size=(32, 32), resize="shortest", resize_to=36, layout="NHWC", dtype="uint8").to_dict()
    metadata = {METADATA_KEY: json.dumps(own), SPACE_KEY: "own-1234"}
    return onnx_teacher(tmp_path / "student.onnx", layout="NHWC", dtype="uint8", normalise=True, metadata=metadata)


def test_student_embeds_as_measured(tmp_path: Path, student: Path) -> None:
    """Deployed vectors are those that the tool itself computes."""
    paths = photo_folder(tmp_path / "some", 3)
    vectors = deploy.Student(student, threads=1).embed(paths)
    ours = open_teacher(student, threads=1)
    loaded, _ = images.load(paths, ours.preprocess)
    np.testing.assert_allclose(vectors, ours.embed(loaded), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_script_runs_alone(tmp_path: Path, student: Path) -> None:
    """Copied elsewhere, the script needs onnxruntime, numpy and Pillow, and nothing of this package."""
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(deploy.__file__, alone / "deploy.py")
    paths = photo_folder(tmp_path / "some", 3)
    code = (
        "import runpy, sys\n"
        "runpy.run_path('deploy.py', run_name='__main__')\n"
        "sys.stderr.write(' '.join(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(student), *map(str, paths)],
        cwd=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[0] for row in rows] == [path.name for path in paths]
    assert [float(rows[at][at + 1]) for at in range(3)] == [1.0, 1.0, 1.0]
    assert not {"distilltool", "torch", "onnx", "timm", "faiss"} & set(run.stderr.split())


def test_script_saves_vectors(tmp_path: Path, student: Path) -> None:
    """--save writes (N, D) float32."""
    paths = photo_folder(tmp_path / "some", 3)
    target = tmp_path / "v.npy"
    subprocess.run(
        [sys.executable, deploy.__file__, str(student), *map(str, paths), "--save", str(target)],
        capture_output=True,
        check=True,
    )
    saved = np.load(target, allow_pickle=False)
    np.testing.assert_allclose(saved, deploy.Student(student).embed(paths), atol=1e-6)

"""The same picture in other bytes is recognised; another picture is not."""

import io
from pathlib import Path

import numpy as np
import pytest
from builders import drawn
from PIL import Image, ImageEnhance

from distilltool import deploy, near
from distilltool.near import Distinct, Marks
from distilltool.search import within

SIZE = (240, 200)


def photograph(number: int) -> Image.Image:
    """A made picture with fine grain, so that no two bits of its hash are ties."""
    grain = np.random.default_rng(number).normal(0, 4, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((np.asarray(drawn(number, SIZE), np.float32) + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(io.BytesIO(file.getvalue())) as again:
        return again.convert("RGB")


def marks(images: list[Image.Image]) -> Marks:
    return near.joined([near.mark(one) for one in images])


CHANGES = {
    "quality 30": lambda image: jpeg(image, 30),
    "quality 90": lambda image: jpeg(image, 90),
    "half the size": lambda image: image.resize((120, 100)),
    "stretched": lambda image: image.resize((200, 200)),
    "2 % off each side": lambda image: image.crop((5, 4, 235, 196)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_copy_is_a_repeat(change: str) -> None:
    originals = [photograph(number) for number in range(40)]
    distinct = Distinct()
    assert not distinct.add(marks(originals)).any(), "made pictures differ"
    assert distinct.add(marks([CHANGES[change](one) for one in originals])).mean() >= 0.95


def test_others_are_no_repeats() -> None:
    """Other pictures, the mirror image, the negative, and the same shapes in another colour."""
    image = photograph(3)
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), Image.fromarray(255 - np.asarray(image))]
    others.append(Image.merge("RGB", [image.getchannel(one) for one in "BRG"]))
    assert Distinct().add(marks([image, *others])).tolist() == [False] * 4


def test_images_of_one_colour_are_never_repeats() -> None:
    """They have nothing to be recognised by."""
    plain = [Image.new("RGB", SIZE, colour) for colour in ("white", "black", "white")]
    found = marks(plain)
    assert not found.thumbs.any() and not Distinct().add(found).any()


def test_likeness_is_to_kept_images_alone() -> None:
    """A chain, each 20 bits from the last: the third is unlike the first, which was kept, and so is kept itself."""
    codes = np.zeros((3, 128), np.uint8)
    codes[1, :20] = 1
    codes[2, :40] = 1
    chain = Marks(codes=np.packbits(codes, axis=1), thumbs=np.tile(np.eye(1, 192, dtype=np.float32), (3, 1)))
    assert Distinct().add(chain).tolist() == [False, True, False]


@pytest.mark.parametrize("differing", [near.RADIUS, near.RADIUS + 1])
@pytest.mark.parametrize("likeness", [near.ALIKE + 0.01, near.ALIKE - 0.01])
def test_both_hash_and_thumbnail_must_agree(differing: int, likeness: float) -> None:
    codes = np.zeros((2, 128), np.uint8)
    codes[1, :differing] = 1
    thumbs = np.zeros((2, 192), np.float32)
    thumbs[0, 0] = 1
    thumbs[1, :2] = likeness, np.sqrt(1 - likeness**2)
    pair = Marks(codes=np.packbits(codes, axis=1), thumbs=thumbs)
    assert Distinct().add(pair)[1] == (differing == near.RADIUS and likeness > near.ALIKE)


def by_hand(marks: Marks) -> list[bool]:
    """Each image against every kept one, one by one."""
    kept: list[int] = []
    said = []
    for row in range(len(marks.codes)):
        bits = [int(np.unpackbits(marks.codes[row] ^ marks.codes[one]).sum()) for one in kept]
        close = [float(marks.thumbs[row] @ marks.thumbs[one]) for one in kept]
        said.append(any(b <= near.RADIUS and c >= near.ALIKE for b, c in zip(bits, close, strict=True)))
        kept += [] if said[-1] else [row]
    return said


def test_blocks_are_as_one_by_one(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a block, across blocks and across calls."""
    monkeypatch.setattr(near, "BLOCK", 16)
    centres = rng.integers(0, 2, (12, 128))
    bits = centres[rng.integers(0, 12, 150)] ^ (rng.random((150, 128)) < 0.12)
    thumbs = np.zeros((150, 192), np.float32)
    thumbs[:, 0] = 1
    every = Marks(codes=np.packbits(bits.astype(np.uint8), axis=1), thumbs=thumbs)
    distinct = Distinct()
    found = [*distinct.add(every.at(np.arange(70))), *distinct.add(every.at(np.arange(70, 150)))]
    assert found == by_hand(every)
    assert 12 <= found.count(False) < 150


def test_what_was_kept_stays_kept_when_it_comes_first(rng: np.random.Generator) -> None:
    """A larger budget starts from what a smaller one asked: the same pictures are kept."""
    bits = rng.integers(0, 2, (9, 128))[rng.integers(0, 9, 80)] ^ (rng.random((80, 128)) < 0.1)
    thumbs = np.tile(np.eye(1, 192, dtype=np.float32), (80, 1))
    every = Marks(codes=np.packbits(bits.astype(np.uint8), axis=1), thumbs=thumbs)
    kept = np.flatnonzero(~Distinct().add(every))
    first = rng.permutation(kept)[: len(kept) // 2]
    order = np.concatenate([first, np.setdiff1d(np.arange(80), first)])
    assert sorted(order[~Distinct().add(every.at(order))].tolist()) == kept.tolist()


def test_within_counts_bits(rng: np.random.Generator) -> None:
    """All pairs up to the radius and none beyond, also of nothing."""
    one, other = (rng.integers(0, 256, (count, 16), dtype=np.uint8) for count in (30, 40))
    apart = np.unpackbits(one[:, None] ^ other[None], axis=2).sum(axis=2)
    found = within(one, other, 56)
    assert set(zip(found.query.tolist(), found.gallery.tolist(), strict=True)) == {
        (int(i), int(j)) for i, j in zip(*np.nonzero(apart <= 56), strict=True)
    }
    assert (np.diff(found.query) >= 0).all()
    assert not len(within(one[:0], other, 56).query) and not len(within(one, other[:0], 56).query)


def test_a_jpeg_opened_small_has_the_same_marks(tmp_path: Path) -> None:
    """Looking at a large photograph decodes an eighth of it; that is still the same picture."""
    path = tmp_path / "large.jpg"
    photograph(5).resize((1920, 1600), Image.Resampling.BICUBIC).save(path, quality=90)
    small = deploy.open_rgb(path, 64)
    assert small.size == (240, 200) and deploy.open_rgb(path).size == (1920, 1600)
    assert Distinct().add(marks([deploy.open_rgb(path), small])).tolist() == [False, True]

"""Finding, naming and decoding image files."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders import drawn, photo_folder

from distilltool import images
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess


def test_find_walks_down_in_order_of_path(tmp_path: Path) -> None:
    """Every known ending in any case, at any depth, sorted; other files and hidden ones are left out."""
    wanted = ["a/1.jpg", "a/b/2.PNG", "b.Jpeg", "c.webp", "d.tif", "e.bmp", "f.gif"]
    hidden = [".x.jpg", ".cache/3.jpg", "a/.trash/4.jpg", "a/notes.txt", "a/model.onnx", "jpg"]
    for name in (*wanted, *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = images.find(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(wanted)
    assert found == sorted(found)


def test_find_below_a_hidden_folder(tmp_path: Path) -> None:
    """The folder asked for may be hidden itself."""
    photo_folder(tmp_path / ".mine", 2)
    assert len(images.find(tmp_path / ".mine")) == 2


def test_find_one_file(tmp_path: Path) -> None:
    """A file is taken as it is, whatever its ending."""
    path = tmp_path / "picture"
    drawn(0).save(path, "PNG")
    assert images.find(path) == [path]


def test_find_nothing(tmp_path: Path) -> None:
    """A missing folder and an empty one are errors that name it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("none")
    for name in ("empty", "missing"):
        with pytest.raises(DistillError, match=name):
            images.find(tmp_path / name)


def test_take_stock_counts_content_once(tmp_path: Path) -> None:
    """Files are known by their bytes: a copy under another name is a duplicate, the first path stands for it."""
    paths = photo_folder(tmp_path, 4)
    copies = [tmp_path / "zz1.jpg", tmp_path / "zz2.png"]
    for copy in copies:
        copy.write_bytes(paths[1].read_bytes())
    missing = tmp_path / "gone.jpg"
    order = [*paths, missing, *copies]
    stock = images.take_stock(order)
    hashes = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert [photo.path for photo in stock.photos] == paths
    assert [photo.sha256 for photo in stock.photos] == hashes
    assert (stock.files, stock.duplicates) == (7, 2)
    assert [one.path for one in stock.skipped] == [str(missing)]
    assert "cannot be read" in stock.skipped[0].reason
    assert stock.of_path == (*hashes, b"", hashes[1], hashes[1])


def test_digest_of_a_set_does_not_depend_on_order() -> None:
    """The same images are the same set; another one is another."""
    assert images.digest_of([b"a" * 32, b"b" * 32]) == images.digest_of([b"b" * 32, b"a" * 32])
    assert images.digest_of([b"a" * 32]) != images.digest_of([b"a" * 32, b"b" * 32])


def test_ahead_keeps_the_order() -> None:
    """Slow items do not let quick ones overtake."""

    def work(item: int) -> int:
        time.sleep(0.004 if item % 5 == 0 else 0)
        return item * item

    assert list(images.ahead(range(60), work, threads=4, depth=8)) == [item * item for item in range(60)]


def test_ahead_is_lazy_and_bounded() -> None:
    """Nothing is taken before the first result is asked for, and never more than `depth` beyond what was taken."""
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = images.ahead(source(), lambda item: item, threads=2, depth=5)
    assert not taken
    for count in range(1, 20):
        assert next(results) == count - 1
        assert len(taken) <= count + 5
    results.close()
    assert len(taken) <= 25


def test_ahead_works_in_parallel() -> None:
    """Two items that wait for each other both run."""
    both = threading.Barrier(2, timeout=10)
    assert list(images.ahead([0, 1], lambda _: both.wait() >= 0, threads=2, depth=4)) == [True, True]


def test_ahead_stops_when_its_taker_does() -> None:
    """What has not begun when the taker leaves is not done any more."""
    done: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.01)
        done.append(item)
        return item

    results = images.ahead(range(50), work, threads=1, depth=40)
    next(results)
    results.close()
    assert len(done) < 45


def test_ahead_passes_errors_on() -> None:
    """An error in the work reaches whoever takes the result."""

    def work(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    results = images.ahead(range(9), work)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_cut_off_files_have_a_reason(tmp_path: Path, ending: str) -> None:
    """A file that ends early is never half an image, but a reason of one line."""
    whole = tmp_path / f"whole.{ending}"
    drawn(1, (160, 120)).save(whole)
    content = whole.read_bytes()
    assert not isinstance(images.decode(whole), str)
    for share in (0.0, 0.01, 0.3, 0.8):
        torn = tmp_path / f"torn.{ending}"
        torn.write_bytes(content[: int(share * len(content))])
        reason = images.decode(torn)
        assert isinstance(reason, str)
        assert "\n" not in reason and 0 < len(reason) < 200


def test_truncated_jpeg_says_so(tmp_path: Path) -> None:
    """The reason names what is wrong."""
    path = photo_folder(tmp_path, 1, size=(200, 150))[0]
    path.write_bytes(path.read_bytes()[:-900])
    reason = images.decode(path)
    assert isinstance(reason, str) and "truncated" in reason


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL.*")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_spoilt_files_never_raise(tmp_path: Path, kind: str, rng: np.random.Generator) -> None:
    """Whatever bytes are changed, decoding gives an image or a reason."""
    path = tmp_path / "spoilt"
    drawn(2, (30, 24)).save(path, kind)
    content = path.read_bytes()
    for turn in range(60):
        spoilt = bytearray(content)
        reach = len(spoilt) if turn % 2 else min(len(spoilt), 120)
        for at in rng.integers(0, reach, 3):
            spoilt[at] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        found = images.decode(path)
        assert isinstance(found, str) or found.mode == "RGB"


def test_files_that_are_no_images(tmp_path: Path) -> None:
    """Text, nothing, a folder and a missing file each have a reason."""
    text, empty, folder = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
    text.write_text("no image")
    empty.write_bytes(b"")
    folder.mkdir()
    for path in (text, empty, folder, tmp_path / "d.jpg"):
        assert isinstance(images.decode(path), str)


def test_load_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    """Good images stand in order of path; bad ones are listed."""
    paths = photo_folder(tmp_path, 4)
    paths[2].write_bytes(b"torn")
    way = Preprocess(size=(16, 12))
    loaded, skipped = images.load(paths, way)
    assert loaded.shape == (3, 16, 12, 3) and loaded.dtype == np.uint8
    assert [one.path for one in skipped] == [str(paths[2])]
    for row, path in zip(loaded, [paths[0], paths[1], paths[3]], strict=True):
        np.testing.assert_array_equal(row, images.prepare(path, way))
    nothing, both = images.load(paths[2:3] * 2, way)
    assert nothing.shape == (0, 16, 12, 3) and len(both) == 2


def test_workers() -> None:
    """At least one processor, and never more than the machine may use."""
    assert 1 <= images.workers() <= 4096

"""What the untrained student makes of larger views: the same views, the same network, once a run."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import drawn, photo_folder
from numpy.typing import NDArray
from torch.nn import functional as F

from distilltool import images, reference
from distilltool import recipe as recipes
from distilltool.augment import coloured, make_batch, numbered, seen, shrink
from distilltool.deploy import open_rgb
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.images import Photo, digest
from distilltool.preprocess import Preprocess
from distilltool.progress import Silent
from distilltool.recipe import Augment
from distilltool.rundir import RunDir
from distilltool.student import Student, to_pixels
from distilltool.students import Start, build
from distilltool.train import Data, Unanswered

HOW = Preprocess(size=(64, 64), layout="NHWC", dtype="uint8")


def a_student() -> Student:
    """A small network with weights from nowhere."""
    return Student(build("timm:test_efficientnet", Start(input=32, seed=3)), 0, bias=False).eval()


def photos(folder: Path, count: int) -> list[Photo]:
    """Drawn photographs and their digests."""
    return [Photo(path=one, sha256=bytes.fromhex(digest(one))) for one in photo_folder(folder, count)]


def test_the_larger_side_is_the_native_one_or_between() -> None:
    assert reference.sides(128, 224) == [176, 224]
    assert reference.sides(200, 224) == []
    assert reference.sides(224, 224) == [] and reference.sides(128, 0) == []


def test_a_numbered_view_is_the_same_at_every_size() -> None:
    """The student's crop and its reference's show the same part of the image, mirrored or not."""
    image = np.asarray(drawn(1, (256, 256)))
    augment = Augment(crop=0.5, jitter=0.0)
    for number in range(8):
        one = numbered(4, number, augment, 0.9, seed=0)
        small, large = seen(image, one, (32, 32)).float(), seen(image, one, (128, 128))
        assert (small - shrink(large, (32, 32)).float()).abs().mean() < 2.5
        other = seen(image, numbered(4, number + 1, augment, 0.9, seed=0), (32, 32)).float()
        assert (small - other).abs().mean() > 5


def test_batches_take_another_view_in_every_epoch_and_come_round() -> None:
    pixels = np.stack([np.asarray(drawn(number, (40, 40))) for number in range(6)])
    made = [make_batch(step, pixels, (32, 32), 6, Augment(), 0, views=3) for step in range(4)]
    assert [set(one.views.tolist()) for one in made] == [{0}, {1}, {2}, {0}]
    back = {int(row): at for at, row in enumerate(made[3].rows)}
    again = made[3].pixels[[back[int(row)] for row in made[0].rows]]
    torch.testing.assert_close(made[0].pixels, again)
    assert (made[0].pixels - made[1].pixels[[made[1].rows.tolist().index(r) for r in made[0].rows]]).abs().mean() > 3


def test_what_is_known_of_a_view_is_what_the_network_makes_of_it(tmp_path: Path) -> None:
    student, recipe = a_student(), recipes.load("best", ["reference.views=3"])
    found = photos(tmp_path / "imgs", 5)
    known = reference.known(tmp_path / "known.npy", student, found, HOW, recipe, 0.9, None, Silent())
    assert known.shape == (5, 3, student.width) and known.dtype == np.float16
    whole = HOW.at((71, 71))
    with torch.inference_mode():
        for row, photo in enumerate(found):
            image = whole.prepare(open_rgb(photo.path))
            for number in range(3):
                one = numbered(row, number, recipe.augment, 0.9, recipe.seed)
                expected = student.features(coloured(seen(image, one, (64, 64)), [one]))[0]
                assert F.cosine_similarity(expected, torch.tensor(known[row, number]).float(), dim=0) > 0.9999
    stamp = (tmp_path / "known.npy").stat().st_mtime_ns
    reference.known(tmp_path / "known.npy", student, found, HOW, recipe, 0.9, None, Silent())
    assert (tmp_path / "known.npy").stat().st_mtime_ns == stamp


def test_fewer_views_are_made_where_time_is_short(tmp_path: Path) -> None:
    student, recipe = a_student(), recipes.load("best", ["reference.views=8"])
    found = photos(tmp_path / "imgs", 4) * 50
    known = reference.known(tmp_path / "known.npy", student, found, HOW, recipe, 1.0, 0.05, Silent())
    assert known.shape[1] == 1


def known(pixels: NDArray[np.uint8], held: NDArray[np.uint8]) -> Data:
    """What is known of images that were asked about: at 40 px for training, at 32 px held out."""
    vectors = unit(np.random.default_rng(0).normal(size=(len(pixels) + len(held), 3)).astype(np.float32))
    at = len(pixels)
    return Data(
        pixels=pixels,
        targets=vectors[:at],
        held_pixels=held,
        held_targets=vectors[at:],
        names=("",) * at,
    )


ASKED = known(
    np.stack([np.asarray(drawn(1000 + number, (40, 40))) for number in range(100)]),
    np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8),  # noise, like none of what is drawn
)


def looked_at(
    run: RunDir,
    found: list[Photo],
    *,
    data: Data = ASKED,
    centred: bool = True,
    seconds: float | None = None,
    changes: Sequence[str] = (),
) -> Unanswered | None:
    """What `reference.unasked` makes of images, kept for training at 40 px and looked at at 64."""
    recipe = recipes.load("best", ["unasked.share=0.5", "unasked.most=1000", "schedule.batch=16", *changes])
    return reference.unasked(run, a_student(), found, data, HOW, recipe, centred, seconds, Silent())


def test_images_nobody_was_asked_about_are_known_by_the_network_itself(tmp_path: Path) -> None:
    """At the larger size, less their mean; in a drawn order; what cannot be read is left out; made once."""
    run, found = RunDir(tmp_path / "run"), photos(tmp_path / "imgs", 70)
    found[3].path.write_bytes(b"no image")
    made = looked_at(run, found)
    assert made is not None and made.pixels.shape == (69, 40, 40, 3) and len(set(made.names)) == 69
    assert str(found[3].path) not in made.names and list(made.names) != sorted(made.names)
    assert made.hashes == tuple(next(one.sha256 for one in found if str(one.path) == name) for name in made.names)
    assert made.share == pytest.approx(69 / (69 + 104)), "no more than they are of all"
    student, rows = a_student(), [Path(name) for name in made.names]
    with torch.inference_mode():
        features = student.features(to_pixels(np.stack([HOW.prepare(open_rgb(path)) for path in rows]))).numpy()
    wanted = F.normalize(torch.from_numpy(features - features.mean(axis=0)), dim=1)
    torch.testing.assert_close(torch.from_numpy(made.vectors), wanted, atol=1e-4, rtol=0)
    assert (made.pixels[5] == HOW.at((40, 40)).prepare(open_rgb(rows[5]))).all()
    stamp = run.unasked.stat().st_mtime_ns
    again = looked_at(run, [])
    assert again is not None and (again.vectors == made.vectors).all() and run.unasked.stat().st_mtime_ns == stamp
    assert again.share == made.share, "whatever the folder holds by now"
    plain = looked_at(run, [], centred=False)
    torch.testing.assert_close(
        torch.from_numpy(plain.vectors if plain else made.vectors), torch.from_numpy(features), atol=1e-4, rtol=0
    )


def test_the_share_is_the_recipes_or_what_the_images_that_are_used_are_of_all(tmp_path: Path) -> None:
    found = photos(tmp_path / "imgs", 150)
    for name, changes, share in (
        ("a", ["unasked.share=0.2"], 0.2),
        ("b", [], 0.5),
        ("c", ["unasked.most=80"], 80 / 184),
    ):
        made = looked_at(RunDir(tmp_path / name), found, changes=changes)
        assert made is not None and made.share == pytest.approx(share)


def test_few_images_nobody_was_asked_about_teach_nothing(tmp_path: Path) -> None:
    """Fewer than a list of a step has would stand in it twice."""
    found = photos(tmp_path / "imgs", 70)
    assert looked_at(RunDir(tmp_path / "few"), found[:63]) is None
    assert looked_at(RunDir(tmp_path / "step"), found, changes=["schedule.batch=32"]) is None
    recipe = recipes.load("best", [])
    assert [reference.least(recipe, count) for count in (40, 130, 1000)] == [64, 128, 192]


def test_fewer_images_are_looked_at_where_time_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding counts: files that take 50 ms each, by a clock of their own, end it at a fifth of 25 s."""
    found, decoded = photos(tmp_path / "imgs", 200), list[int]()
    prepare = images.prepare_each

    def slow(*given: Any) -> Any:
        decoded.append(1)
        return prepare(*given)

    monkeypatch.setattr(images, "prepare_each", slow)
    monkeypatch.setattr(reference, "time", SimpleNamespace(perf_counter=lambda: 0.05 * len(decoded)))
    made = looked_at(RunDir(tmp_path / "run"), found, seconds=25.0)
    assert made is not None and 64 <= len(made.names) <= len(decoded) < 150
    assert looked_at(RunDir(tmp_path / "none"), found, seconds=0.0) is None


def test_what_is_nearer_to_a_held_out_image_is_left_out(tmp_path: Path) -> None:
    """So that held-out images stay unlike what is trained on."""
    found = photos(tmp_path / "imgs", 150)
    held = np.stack([HOW.at((32, 32)).prepare(open_rgb(one.path)) for one in found[:10]])
    made = looked_at(RunDir(tmp_path / "run"), found, data=known(ASKED.pixels, held))
    assert made is not None and not {str(one.path) for one in found[:10]} & set(made.names)
    assert 64 <= len(made.names) <= 140


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = photos(tmp_path / "imgs", 70)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DistillError, match=r"need 0\.0 GB"):
        looked_at(RunDir(tmp_path / "run"), found)


def test_an_image_that_is_gone_is_said(tmp_path: Path) -> None:
    found = photos(tmp_path / "imgs", 3)
    found[1].path.unlink()
    with pytest.raises(DistillError, match="photo0001"):
        recipe = recipes.load("best", ["reference.views=1"])
        reference.known(tmp_path / "known.npy", a_student(), found, HOW, recipe, 1.0, None, Silent())


def test_centred_features_are_what_vectors_are_made_of() -> None:
    student = a_student()
    pixels = to_pixels(np.stack([np.asarray(drawn(number, (32, 32))) for number in range(4)]))
    with torch.no_grad():
        student.centre.copy_(student.features(pixels).mean(dim=0))
        vectors, plain = student(pixels), student.features(pixels)
    torch.testing.assert_close(vectors, F.normalize(plain - plain.mean(dim=0), dim=1))

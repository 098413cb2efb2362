"""Which images are asked about: every selection by its being there, and what the budget makes of it."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import drawn, onnx_teacher, photo_folder
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import distilltool
from distilltool import choice, extensions, images, students
from distilltool.choice import choose, reduced
from distilltool.cli import app
from distilltool.descriptor import WIDTH, describe
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.ledger import Ledger
from distilltool.preprocess import Preprocess
from distilltool.progress import Silent
from distilltool.report import QueryReport
from distilltool.selection import luck
from distilltool.stages import distill
from distilltool.student import Student, embed
from distilltool.students import Start

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
PACKAGE = "distilltool.selection"
COMPARING = [
    name
    for name in extensions.names(PACKAGE)
    if "features_ND" in inspect.signature(extensions.find(PACKAGE, "selection", name)).parameters
]
GROWING = ["random", "coverage"]  # a larger budget chooses what a smaller one did, and more


def photo(number: int) -> Photo:
    return Photo(path=Path(f"{number}.jpg"), sha256=hashlib.sha256(str(number).encode()).digest())


def clustered(rng: np.random.Generator, count: int = 300) -> NDArray[np.float32]:
    """Most points in one dense group, the rest in eleven small ones, (N, 16) of length 1."""
    centres = rng.normal(size=(12, 16))
    group = np.where(rng.random(count) < 0.7, 0, rng.integers(1, 12, count))
    return unit((centres[group] + 0.15 * rng.normal(size=(count, 16))).astype(np.float32))


def distances(features_ND: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float32]:
    """The distance of each point to the nearest chosen one, (N,)."""
    return np.sqrt(np.maximum(2 - 2 * (features_ND @ features_ND[list(rows)].T).max(axis=1), 0))


def ordered(
    name: str, photos: list[Photo], features_ND: NDArray[np.float32], known: set[int] | None = None, count: int = 20
) -> list[int]:
    """Rows of the photos in the order of a selection; `known` are rows answered already."""
    function = extensions.find(PACKAGE, "selection", name)
    answered = np.array([row in (known or ()) for row in range(len(photos))])
    place = {one.sha256: row for row, one in enumerate(photos)}
    if name in COMPARING:
        found = function(photos, 0, known=answered, count=count, features_ND=features_ND)
    else:
        found = function([one for one, out in zip(photos, answered, strict=True) if not out], 0)
    return [place[one.sha256] for one in found]


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
@pytest.mark.parametrize("known", [set(), {3, 4, 50}])
@pytest.mark.parametrize("count", [1, 20, 290])
def test_every_open_photo_once_and_always_alike(
    name: str, known: set[int], count: int, rng: np.random.Generator
) -> None:
    photos, features = [photo(number) for number in range(300)], clustered(rng)
    found = ordered(name, photos, features, known, count)
    assert sorted(found) == sorted(set(range(300)) - known)
    assert found == ordered(name, photos, features, known, count)


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_equal_features_are_no_trouble(name: str) -> None:
    """Also fewer kinds of image than may be asked about."""
    photos = [photo(number) for number in range(40)]
    for features in (np.zeros((40, 8), np.float32), np.eye(8, dtype=np.float32)[np.arange(40) % 2]):
        assert sorted(ordered(name, photos, features, {1}, 30)) == [row for row in range(40) if row != 1]


@pytest.mark.parametrize("name", GROWING)
def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(name: str, rng: np.random.Generator) -> None:
    photos, features = [photo(number) for number in range(300)], clustered(rng)
    whole = ordered(name, photos, features, count=60)
    assert ordered(name, photos, features, count=15)[:15] == whole[:15]
    assert ordered(name, photos, features, set(whole[:15]), count=45)[:45] == whole[15:60]


def test_coverage_leaves_nothing_far_away(rng: np.random.Generator) -> None:
    photos, features = [photo(number) for number in range(300)], clustered(rng)
    by_lot = ordered("random", photos, features)[:24]
    chosen = ordered("coverage", photos, features, count=24)[:24]
    assert distances(features, chosen).max() < 0.7 * distances(features, by_lot).max()


@pytest.mark.parametrize("name", COMPARING)
def test_comparing_is_nearer_to_all_than_chance(name: str, rng: np.random.Generator) -> None:
    photos, features = [photo(number) for number in range(300)], clustered(rng)
    by_lot = ordered("random", photos, features)[:24]
    chosen = ordered(name, photos, features, count=24)[:24]
    assert distances(features, chosen).mean() < 0.9 * distances(features, by_lot).mean()


@pytest.mark.parametrize("name", COMPARING)
def test_what_was_answered_is_not_covered_again(name: str, rng: np.random.Generator) -> None:
    """All of the dense group but a few is answered: what is asked lies elsewhere."""
    photos, features = [photo(number) for number in range(300)], clustered(rng)
    dense = np.flatnonzero(features @ features[np.argmax((features @ features.T).sum(axis=1))] > 0.8)
    assert len(dense) > 150
    found = ordered(name, photos, features, set(dense[5:].tolist()), count=20)
    assert not set(found[:12]) & set(dense[:5].tolist())


def test_coverage_draws_by_squared_distance() -> None:
    """Of 50 images at √½ and 50 at 1 from the answered one, the farther are drawn first two times in three."""
    photos = [photo(number) for number in range(101)]
    features = np.zeros((101, 3), np.float32)
    features[0, 0] = 1
    features[1:51, :2] = 0.75, np.sqrt(1 - 0.75**2)
    features[51:, ::2] = 0.5, np.sqrt(1 - 0.5**2)
    known = np.arange(101) == 0
    draw = extensions.find(PACKAGE, "selection", "coverage")
    first = [draw(photos, seed, known=known, count=1, features_ND=features)[0] for seed in range(400)]
    far = [photos.index(one) > 50 for one in first]
    assert abs(np.mean(far) - 2 / 3) < 0.08 and len(set(first)) > 60


def test_luck_is_exponential() -> None:
    values = luck([photo(number) for number in range(4000)], 5)
    assert (values > 0).all() and abs(values.mean() - 1) < 0.06 and abs((values > 1).mean() - np.exp(-1)) < 0.03


def test_reduced_features_keep_directions(rng: np.random.Generator) -> None:
    """Fewer numbers, length 1, and the same nearest neighbour where little is lost."""
    wide = (rng.normal(size=(400, 20)) @ rng.normal(size=(20, 300))).astype(np.float32)
    found, centred = reduced(wide), unit(wide - wide.mean(axis=0))
    assert found.shape == (400, 128)
    np.testing.assert_allclose(found @ found.T, centred @ centred.T, atol=1e-3)


def test_descriptor_sees_edges_and_colours() -> None:
    """The same picture, larger, is nearly the same; another layout, another colour or a turned edge is not."""
    image = drawn(1, (200, 160))
    others = [drawn(2, (200, 160)), image.rotate(90), Image.merge("RGB", [image.getchannel(one) for one in "GBR"])]
    first = describe(image)
    assert first.shape == (WIDTH,) and abs(np.linalg.norm(first) - 1) < 1e-5
    assert first @ describe(image.resize((400, 320))) > 0.98
    assert all(first @ describe(one) < 0.9 for one in others)
    assert np.isfinite(describe(Image.new("RGB", (5, 5), "red"))).all()


# the whole: photographs in a folder, copies of some, a budget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 pictures of 96×80 and, of the first ten, two copies each in other bytes."""
    root = tmp_path / "imgs"
    for number, path in enumerate(photo_folder(root, 30, size=(96, 80), endings=("png",))[:10]):
        for quality in (60, 95):
            with Image.open(path) as image:
                image.save(root / f"copy{number}-{quality}.jpg", quality=quality)
    return root


def pictures(photos: Sequence[Photo]) -> list[str]:
    """What each photo shows, by number."""
    names = [one.path.stem for one in photos]
    return [str(int(name[5:])) if name.startswith("photo") else name[4:].split("-")[0] for name in names]


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_copies_come_last(name: str, folder: Path) -> None:
    stock = images.take_stock(images.find(folder))
    found = choose(name, stock.photos, set(), 28, 0, Silent())
    assert sorted(one.path for one in found.order) == sorted(one.path for one in stock.photos)
    assert len(set(pictures(found.order[:28]))) == 28, "no picture twice while there are others"
    assert found.set_aside == 20


class Counted(Silent):
    """How many images were looked at."""

    def __init__(self) -> None:
        self.looked = 0

    def advance(self, amount: int = 1, detail: str = "") -> None:
        self.looked += amount


def test_random_looks_at_no_more_than_it_must(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time until enough are distinct; repeats among those come after all that nobody looked at."""
    monkeypatch.setattr(choice, "LOOK", 5)
    photos, watch = images.take_stock(images.find(folder)).photos, Counted()
    found = choose("random", photos, set(), 20, 0, watch)
    lots = ordered("random", list(photos), np.zeros((0, 0), np.float32))
    seen = pictures([photos[row] for row in lots])
    repeated = [name in seen[:at] for at, name in enumerate(seen)]
    enough = next(at for at in range(5, 50, 5) if repeated[:at].count(False) >= 20)
    late = [at for at in range(enough) if repeated[at]]
    assert 20 < enough < 50 and watch.looked == enough and found.set_aside == len(late)
    expected = [*(at for at in range(50) if at not in late), *late]
    assert [one.path for one in found.order] == [photos[lots[at]].path for at in expected]


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_names_and_their_order_change_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    photos = list(images.take_stock(images.find(folder)).photos)
    renamed = [
        Photo(path=tmp_path / f"{99 - row}{one.path.suffix}", sha256=one.sha256) for row, one in enumerate(photos)
    ]
    for old, new in zip(photos, renamed, strict=True):
        new.path.write_bytes(old.path.read_bytes())
    first = choose(name, photos, set(), 12, 3, Silent()).order
    again = choose(name, renamed[::-1], set(), 12, 3, Silent()).order
    assert [one.sha256 for one in first] == [one.sha256 for one in again]


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_copies_of_answered_images_come_last_too(name: str, folder: Path) -> None:
    photos = images.take_stock(images.find(folder)).photos
    known = {one.sha256 for one in photos if one.path.suffix == ".png" and int(one.path.stem[5:]) < 5}
    found = choose(name, photos, known, 20, 0, Silent())
    assert len(found.order) == len(photos) - 5
    assert not set(pictures(found.order[:20])) & set("01234")


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_nobody_looks_where_the_budget_covers_all(name: str, folder: Path) -> None:
    photos = images.take_stock(images.find(folder)).photos

    def never(_: Sequence[Photo]) -> NDArray[np.float32]:
        raise AssertionError("looked at the images")

    found = choose(name, photos, set(), len(photos), 0, Silent(), never)
    assert found.set_aside is None and len(found.order) == len(photos)


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_a_file_that_cannot_be_read_takes_nobodys_place(name: str, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    photos = images.take_stock(images.find(folder)).photos
    found = choose(name, photos, set(), 28, 0, Silent())
    readable = [one for one in found.order if one.path.name != "broken.jpg"]
    assert len(readable) == len(photos) - 1 and len(set(pictures(readable[:28]))) == 28


def test_given_features_decide(folder: Path) -> None:
    """Coverage by what the caller says of each image, not by how it looks."""
    photos = images.take_stock(images.find(folder)).photos
    far = {"photo0011.png", "photo0017.png", "photo0023.png"}

    def describe(some: Sequence[Photo]) -> NDArray[np.float32]:
        rows = np.zeros((len(some), 5), np.float32)
        rows[:, 0] = 1
        for at, name in enumerate(sorted(far)):
            rows[[one.path.name == name for one in some], :2] = 0
            rows[[one.path.name == name for one in some], 2 + at] = 1
        return rows

    found = choose("coverage", photos, set(), 4, 0, Silent(), describe)
    assert far < {one.path.name for one in found.order[:4]}


@pytest.mark.parametrize("name", extensions.names(PACKAGE))
def test_query_reports_and_a_raised_budget_asks_others(name: str, folder: Path, tmp_path: Path) -> None:
    teacher, store = onnx_teacher(tmp_path / "t.onnx"), tmp_path / "l.sqlite"

    def ask(budget: int | None) -> QueryReport:
        return distilltool.query(teacher, folder, store=store, budget=budget, preprocess=PRE, select=name)

    first = ask(8)
    assert first.queried == 8 and first.near_duplicates is not None
    second = ask(30)
    assert second.queried == 22 and second.pending == 20 and second.near_duplicates == 20
    photos = images.take_stock(images.find(folder)).photos
    with Ledger.open(store) as ledger:
        state = ledger.settled(1, [one.sha256 for one in photos])
    assert sorted(pictures([one for one in photos if one.sha256 in state])) == sorted(map(str, range(30)))
    third = ask(None)
    assert third.queried == 0 and third.near_duplicates is None, "nothing may be asked: nobody looks"
    assert ask(50).queried == 20, "copies are asked about when the budget allows"


def test_the_table_says_what_was_set_aside(folder: Path, tmp_path: Path) -> None:
    words = ["query", str(onnx_teacher(tmp_path / "t.onnx")), str(folder), "--store", str(tmp_path / "l.sqlite")]
    flags = [word for one in PRE for word in ("--preprocess", one)]
    result = CliRunner().invoke(app, [*words, *flags, "--budget", "28", "--select", "coverage"])
    assert result.exit_code == 0, result.stderr
    assert "20 that look like another image" in result.stderr


def test_a_plan_looks_at_no_image_it_does_not_ask_about(folder: Path, tmp_path: Path) -> None:
    found = distilltool.query(
        onnx_teacher(tmp_path / "t.onnx"), folder, store=tmp_path / "l.sqlite", budget=40, plan=True, preprocess=PRE
    )
    assert found.near_duplicates is None and found.queried == 32


def test_a_pretrained_student_describes_by_its_own_vectors(folder: Path) -> None:
    """What distillation would start from; a student from scratch has nothing to say."""
    photos = images.take_stock(images.find(folder)).photos
    fresh = students.build("timm:test_efficientnet", Start(input=32, seed=0))
    seen_by = Preprocess(size=(64, 48))
    assert distill.describer(fresh, seen_by, 32, Silent()) is None
    backbone = replace(fresh, start="file weights.safetensors")
    describe_all = distill.describer(backbone, seen_by, 32, Silent())
    assert describe_all is not None
    found = describe_all(photos)
    rows, _ = images.load([one.path for one in photos], seen_by.at((32, 24)))
    np.testing.assert_allclose(found, embed(Student(backbone, 0, bias=False), rows), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert describe_all([]).shape == (0, found.shape[1])

"""Several views of an image: what they are, what is made of them, and what each costs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from builders import class_folders, onnx_teacher, photo_folder
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import distilltool
from distilltool import images, views
from distilltool.assessing import place
from distilltool.cli import app
from distilltool.errors import DistillError
from distilltool.ledger import Ledger
from distilltool.preprocess import Preprocess
from distilltool.report import EvalReport
from distilltool.views import Views

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
BASE = Preprocess(size=(32, 40), scale=1 / 255)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four classes of four pictures."""
    class_folders(tmp_path / "labelled", classes=4, each=4)
    return tmp_path / "labelled"


@pytest.fixture
def free(tmp_path: Path) -> Path:
    """A teacher that takes images of any size whose sides are multiples of four."""
    return onnx_teacher(tmp_path / "free.onnx", size=None)


def embedded(model: Path, paths: list[Path], side: int, mirrored: bool = False) -> NDArray[np.float64]:
    """Vectors of length 1 at one size, by onnxruntime and Pillow alone."""
    pictures = [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for path in paths]
    rows = np.stack([np.asarray(one) for one in pictures])
    rows = rows[:, :, ::-1] if mirrored else rows
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": ((rows / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)})[0]
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float64)


@pytest.mark.parametrize(("combine", "power"), [("mean", 1.0), ("gem:2.5", 2.5), ("gem", 3.0)])
def test_views_are_combined_as_said(combine: str, power: float, free: Path, labelled: Path) -> None:
    """Vectors of all views, each at length 1, by the mean or the signed generalised mean; one query each."""
    report = distilltool.evaluate(
        free,
        labelled,
        teacher=free,
        store=labelled.parent / "e.sqlite",
        preprocess=[*PRE, "size=32"],
        scales="1,0.75,1.5",
        flip=True,
        combine=combine,
    )
    paths = images.find(labelled)
    total = np.zeros((len(paths), 16))
    for side in (32, 24, 48):
        for mirrored in (False, True):
            part = embedded(free, paths, side, mirrored)
            total += np.sign(part) * np.abs(part) ** power
    expected = np.sign(total) * np.abs(total / 6) ** (1 / power)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert report.views is not None
    assert (report.views.count, report.views.flip, report.views.power) == (6, True, power)
    assert report.teacher_queries == {"new": 6 * len(paths), "cached": 0}
    labels = np.array([path.parent.name for path in paths])
    similar = expected @ expected.T
    np.fill_diagonal(similar, -2)
    first = labels[similar.argmax(axis=1)] == labels
    assert report.models[0].metrics["recall@1"].value == pytest.approx(first.mean())
    assert report.models[1].fidelity is not None
    assert report.models[1].fidelity["overlap@10"].value == 1  # the same model beside itself
    with Ledger.open(labelled.parent / "e.sqlite") as ledger:
        kept = [ledger.select("SELECT preprocess FROM teachers")]
        assert len({row[0] for rows in kept for row in rows}) == 6  # each view under a preprocessing of its own


def test_the_vector_of_an_image_is_that_of_its_views() -> None:
    """Against the same worked out by hand, and cnnimageretrieval-pytorch's formula where no number is negative."""
    parts = [np.array([[3.0, -4.0]], np.float32), np.array([[0.0, 2.0]], np.float32)]
    mean = Views(scales=(1.0, 0.5)).combined(parts)
    assert mean == pytest.approx(np.array([[0.3, 0.1]]) / np.sqrt(0.1), abs=1e-6)
    gem = Views(scales=(1.0, 0.5), combine="gem", power=3.0).combined(parts)
    raised = np.array([[0.6**3 / 2, (1 - 0.8**3) / 2]]) ** (1 / 3)
    assert gem == pytest.approx(raised / np.linalg.norm(raised), abs=1e-6)


def test_answers_are_asked_for_once(free: Path, labelled: Path) -> None:
    """Views that were asked about before cost nothing, whatever else is asked for now."""

    def asked(**how: object) -> dict[str, int]:
        return distilltool.evaluate(
            free,
            labelled,
            teacher=free,
            store=labelled.parent / "e.sqlite",
            preprocess=[*PRE, "size=32"],
            **how,  # type: ignore[arg-type]
        ).teacher_queries

    assert asked() == {"new": 16, "cached": 0}
    assert asked(scales=[1, 0.5]) == {"new": 16, "cached": 16}
    assert asked(scales=[1, 0.5], flip=True) == {"new": 32, "cached": 32}
    assert asked(scales=[0.5], combine="gem") == {"new": 0, "cached": 16}


def test_a_model_of_one_size(teacher: Path, labelled: Path) -> None:
    """Other scales are refused by name before anything is asked; mirrored views work."""
    how = {"teacher": teacher, "store": labelled.parent / "e.sqlite", "preprocess": PRE}
    with pytest.raises(DistillError, match=r"teacher.onnx takes images of 32x32 alone") as refused:
        distilltool.evaluate(teacher, labelled, scales="1,0.5", **how)  # type: ignore[arg-type]
    assert "--flip works" in refused.value.fix
    assert not (labelled.parent / "e.sqlite").exists()
    report = distilltool.evaluate(teacher, labelled, flip=True, **how)  # type: ignore[arg-type]
    assert report.teacher_queries == {"new": 32, "cached": 0}


def test_answers_bought_elsewhere_have_one_view(free: Path, labelled: Path, tmp_path: Path) -> None:
    """Nobody can be asked about others."""
    paths = images.find(labelled)
    np.savez(tmp_path / "v.npz", paths=[str(path) for path in paths], vectors=np.eye(16, dtype=np.float32))
    with pytest.raises(DistillError, match="v holds vectors of images as they are"):
        distilltool.evaluate(
            free, labelled, teacher=tmp_path / "v.npz", store=tmp_path / "e.sqlite", preprocess=PRE, flip=True
        )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scales", "1,x"], "'x' is no number"),
        (["--scales", "0"], "'0' is no number"),
        (["--scales", "1,1"], "different numbers"),
        (["--scales", "0.01"], "cannot be used"),
        (["--combine", "max"], "--combine max is unknown"),
        (["--flip", "--combine", "gem:0.5"], "a power below 1"),
        (["--combine", "gem:nan"], "'nan' is no number"),
        (["--combine", "gem"], "means nothing for one view"),
        (["--whiten-dim", "3"], "means nothing without --whiten"),
    ],
)
def test_what_cannot_be_meant(flags: list[str], said: str, free: Path, labelled: Path) -> None:
    """One line and exit 2."""
    found = CliRunner().invoke(app, ["eval", str(free), "--data", str(labelled), "--teacher", str(free), *flags])
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())


def test_the_power_that_a_file_names() -> None:
    """What the export of a GeM network writes; nonsense counts as nothing said."""
    assert views.said_power({views.POWER_KEY: "2.75"}) == 2.75
    assert views.said_power({}) == views.said_power({views.POWER_KEY: "much"}) == 3.0
    assert views.said_power({views.POWER_KEY: "1e9"}) == 3.0


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_is_another_size_of_the_same(mirrored: bool) -> None:
    """Sides times the scale, rounded down; everything else stays, and one view is what it was."""
    shortest = Preprocess(size=(224, 224), resize="shortest", resize_to=256, scale=1 / 255)
    half = shortest.view(0.7, mirrored)
    assert (half.size, half.resize_to, half.flip) == ((156, 156), 179, mirrored)
    assert BASE.view(1.0) == BASE and BASE.view(1.0).identity() == BASE.identity()
    assert "flip" not in BASE.to_dict() and "zoom" not in BASE.to_dict()
    assert Preprocess.from_dict(json.loads(json.dumps(half.to_dict()))) == half
    assert Preprocess(size=(320, 320)).view(0.7).size == (224, 224)  # 0.7 · 320 is a little less in floating point
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    straight, turned = BASE.prepare(picture), BASE.view(1.0, True).prepare(picture)
    assert np.array_equal(turned, straight[:, ::-1])


def test_proportions_are_kept_by_longest() -> None:
    """As Pillow's thumbnail, which retrieval-SfM's code calls: small images stay; scales count from there."""
    how = Preprocess(size=(64, 64), resize="longest", interpolation="lanczos", scale=1 / 255)
    rng = np.random.default_rng(3)
    for width, height in rng.integers(8, 200, (40, 2)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        thumb = picture.copy()
        thumb.thumbnail((64, 64), Image.Resampling.LANCZOS, reducing_gap=None)
        made = how.prepare(picture)
        assert abs(made.shape[0] - thumb.height) <= 1 and abs(made.shape[1] - thumb.width) <= 1
        if made.shape[:2] == (thumb.height, thumb.width):
            assert np.array_equal(made, np.asarray(thumb))
        assert how.fits(made.shape[:2])
        larger = how.view(1.5).prepare(picture)
        assert larger.shape[:2] == (int(made.shape[0] * 1.5), int(made.shape[1] * 1.5))
    assert how.at((32, 32)).resize == "stretch"


def test_images_of_many_shapes(free: Path, tmp_path: Path) -> None:
    """Asked about, inspected and evaluated batch by batch of one shape: the same vectors as one by one."""
    for at, size in enumerate([(32, 32), (64, 32), (32, 64), (64, 32), (96, 64), (16, 24)] * 2):
        photo_folder(tmp_path / "photos" / str(at), 1, size=size, endings=["png"], seed=at)
    flags = [*PRE, "size=64", "resize=longest"]
    report = distilltool.query(free, tmp_path / "photos", store=tmp_path / "l.sqlite", preprocess=flags)
    assert report.queried == 12
    session = onnxruntime.InferenceSession(free, providers=["CPUExecutionProvider"])
    how = Preprocess(size=(64, 64), resize="longest", scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        stock = images.take_stock(images.find(tmp_path / "photos"))
        kept = ledger.vectors(1, [photo.key for photo in stock.photos])
    for photo in stock.photos:
        row = how.prepare(Image.open(photo.path).convert("RGB"))
        alone = session.run(None, {"images": how.feed(row[None])})[0][0]
        assert kept[photo.key] == pytest.approx(alone, abs=1e-5)
    again = distilltool.evaluate(
        free, tmp_path / "photos", teacher=free, store=tmp_path / "l.sqlite", preprocess=flags, scales="1,0.5"
    )
    assert again.teacher_queries == {"new": 12, "cached": 12}
    assert distilltool.inspect(free, tmp_path / "photos", preprocess=flags).images == 12


def test_longest_needs_a_free_graph(teacher: Path, photos: list[Path], tmp_path: Path) -> None:
    """One line, as the shape of an image cannot be kept."""
    with pytest.raises(DistillError, match="takes images of 32x32 alone"):
        distilltool.query(
            teacher, photos[0].parent, store=tmp_path / "l.sqlite", preprocess=[*PRE, "resize=longest", "size=32"]
        )


def test_figures_of_other_vectors_are_kept_apart(free: Path, labelled: Path) -> None:
    """In a run, what several views or whitening gave does not overwrite what one view gave; tables and page say it."""

    def told(name: str, **how: object) -> EvalReport:
        return distilltool.evaluate(
            free,
            labelled,
            teacher=free,
            store=labelled.parent / "e.sqlite",
            preprocess=[*PRE, "size=32"],
            markdown=labelled.parent / f"{name}.md",
            html=labelled.parent / f"{name}.html",
            **how,  # type: ignore[arg-type]
        )

    reports = [told("one"), told("flip", flip=True), told("gem", flip=True, combine="gem")]
    assert len({place(labelled, "folders", one) for one in reports}) == 3
    assert place(labelled, "folders", reports[0]) == place(labelled, "folders", replace(reports[0], views=None))
    for name, said in (("flip", "mirrored too, combined by mean"), ("gem", "generalised mean, power 3")):
        assert said in (labelled.parent / f"{name}.md").read_text("utf-8")
        assert said in (labelled.parent / f"{name}.html").read_text("utf-8")
    assert "combined by" not in (labelled.parent / "one.md").read_text("utf-8")

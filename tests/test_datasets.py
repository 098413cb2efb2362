"""Sets of images: how they are recognised, and that an image never finds its own copy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import class_folders, onnx_teacher, photo_folder
from layouts import DEFAULT, EXPECTED, LAYOUTS, named

import distilltool
from distilltool import extensions
from distilltool.datasets import Dataset, merged, open_dataset
from distilltool.errors import DistillError
from distilltool.metrics import Task, labelled
from distilltool.report import EvalReport


def listed(labels: Sequence[str] | None, query: Sequence[bool], gallery: Sequence[bool]) -> Dataset:
    """A dataset of made-up paths."""
    paths = tuple(Path(f"{at}.jpg") for at in range(len(query)))
    kept = None if labels is None else tuple(labels)
    return Dataset(protocol="csv", paths=paths, labels=kept, query=tuple(query), gallery=tuple(gallery))


def test_what_a_set_looks_like_decides_the_protocol(tmp_path: Path) -> None:
    class_folders(tmp_path / "classes", classes=2, each=3)
    photo_folder(tmp_path / "plain", 3)
    photo_folder(tmp_path / "one" / "only", 3)
    (tmp_path / "list.csv").write_text("path\nplain/photo0000.jpg\n")
    found = {name: open_dataset(tmp_path / name).protocol for name in ("classes", "plain", "one", "list.csv")}
    assert found == {"classes": "folders", "plain": "unlabelled", "one": "unlabelled", "list.csv": "csv"}
    assert open_dataset(tmp_path / "classes", "unlabelled").labels is None


@pytest.mark.parametrize("name", extensions.names("distilltool.datasets"))
def test_every_protocol_gives_one_role_a_path_and_says_what_is_right(name: str, tmp_path: Path) -> None:
    found = open_dataset(LAYOUTS[name](tmp_path), name)
    queries, gallery, figures = EXPECTED[name]
    assert found.protocol == name
    assert all(path.is_file() for path in found.paths)
    assert len(found.paths) == len(found.query) == len(found.gallery)
    assert (sum(found.query), sum(found.gallery)) == (queries, gallery)
    assert found.labels is None or len(found.labels) == len(found.paths)
    assert found.boxes is None or len(found.boxes) == len(found.paths)
    for truth in found.truth.values():
        assert len(truth.positives) == len(truth.ignored) == queries
        listed = {row for rows in (*truth.positives, *truth.ignored) for row in rows.tolist()}
        assert all(found.gallery[row] for row in listed)
    judged = found.labels is not None or found.truth
    assert named(found.figures) == (figures if judged else DEFAULT)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_benchmark_is_recognised_by_its_files(name: str, tmp_path: Path) -> None:
    assert open_dataset(LAYOUTS[name](tmp_path)).protocol == name


def test_the_same_bytes_are_one_row_whose_roles_add_up() -> None:
    given = listed(["a", "b", "a"], [True, False, False], [False, True, True])
    found, contents = merged(given, [b"x", b"y", b"x"])
    assert contents == [b"x", b"y"]
    assert (found.query, found.gallery, found.labels) == ((True, False), (True, True), ("a", "b"))


def test_unreadable_rows_are_left_out_and_contradicting_labels_refused() -> None:
    found, contents = merged(listed(None, [True] * 3, [True] * 3), [b"x", b"", b"y"])
    assert contents == [b"x", b"y"] and len(found.paths) == 2
    with pytest.raises(DistillError, match="different labels"):
        merged(listed(["a", "b"], [True] * 2, [True] * 2), [b"x", b"x"])


def test_a_copy_in_the_gallery_is_not_an_answer(tmp_path: Path) -> None:
    """With every image standing there twice, the figures are those of the set without the copies."""
    onnx_teacher(tmp_path / "t.onnx")
    paths = class_folders(tmp_path / "set", classes=6, each=2)

    def measure() -> EvalReport:
        return distilltool.evaluate(
            tmp_path / "t.onnx",
            tmp_path / "set",
            teacher=tmp_path / "t.onnx",
            store=tmp_path / "e.sqlite",
            preprocess=["scale=1/255", "mean=0.5", "std=0.5"],
        )

    before = measure()
    for path in paths:
        (path.parent / f"copy-{path.name}").write_bytes(path.read_bytes())
    after = measure()
    assert (after.queries, after.gallery, after.teacher_queries["new"]) == (12, 12, 0)
    assert after.models[0].metrics == before.models[0].metrics


def test_an_empty_label_is_like_no_other(tmp_path: Path) -> None:
    """Two unlabelled distractors are not each other's positives."""
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "p", 6, endings=("png",))
    labels = ["a", "a", "b", "b", "", ""]
    rows = [f"p/photo{at:04d}.png,{label}" for at, label in enumerate(labels)]
    (tmp_path / "set.csv").write_text("path,label\n" + "\n".join(rows))
    report = distilltool.evaluate(
        [tmp_path / "t.onnx"],
        tmp_path / "set.csv",
        teacher=tmp_path / "t.onnx",
        store=tmp_path / "e.sqlite",
        preprocess=["scale=1/255", "mean=0.5", "std=0.5"],
    )
    assert report.queries == 6
    task = Task(query=np.arange(6), gallery=np.arange(6), labels=np.array([0, 0, 1, 1, 2, 3]))
    per_query = labelled(task, np.eye(6, dtype=np.float32), np.eye(6, dtype=np.float32))
    assert np.isnan(per_query["map"][4:]).all() and np.isfinite(per_query["map"][:4]).all()


def test_rankings_are_the_same_whether_in_one_block_or_many(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    task = Task(query=np.arange(0, 50, 2), gallery=np.arange(50), labels=rng.integers(0, 5, 50))
    whole = labelled(task, vectors, vectors)
    monkeypatch.setattr("distilltool.metrics.BLOCK", 7)
    parts = labelled(task, vectors, vectors)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])

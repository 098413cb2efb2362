"""PCA whitening beside scikit-learn's, what it is learned on, and whose it is."""

from pathlib import Path

import numpy as np
import pytest
from builders import class_folders, onnx_teacher, photo_folder
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA

import distilltool
from distilltool import whitening
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.report import EvalReport, to_json

PRE = ["scale=1/255", "mean=0.5", "std=0.5", "size=32"]


def vectors(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of length 1 that vary unlike in each direction, around a mean."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dim)) * np.geomspace(1, 0.1, dim) @ rng.normal(size=(dim, dim))
    return unit((mixed + rng.normal(size=dim)).astype(np.float32))


@pytest.mark.parametrize("dim", [None, 12, 3])
def test_whitening_is_scikit_learns(dim: int | None) -> None:
    """The same similarities after bringing both to length 1, whatever signs the eigenvectors have."""
    apart, test = vectors(300, 24), vectors(60, 24, seed=9)
    ours = whitening.learn(apart, dim, "m").apply(test)
    theirs = PCA(n_components=dim, whiten=True, svd_solver="full").fit(apart.astype(np.float64)).transform(test)
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    assert ours.shape == theirs.shape
    assert ours @ ours.T == pytest.approx(theirs @ theirs.T, abs=1e-5)
    assert np.linalg.norm(ours, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "dim", "said"),
    [
        (24, None, "24 images are too few to whiten 24 directions of m: 25 are needed"),
        (5, 5, "5 images are too few"),
        (100, 25, "more than the 24 numbers of m"),
    ],
)
def test_what_cannot_be_whitened(count: int, dim: int | None, said: str) -> None:
    """One line with the numbers."""
    with pytest.raises(DistillError, match=said):
        whitening.learn(vectors(count, 24), dim, "m")


def test_directions_that_do_not_vary() -> None:
    """They hold rounding alone, which whitening would make as long as the others."""
    flat = vectors(100, 10)
    flat[:, 3] = 0
    with pytest.raises(DistillError, match="vary in 9 directions of 10") as refused:
        whitening.learn(unit(flat), None, "m")
    assert "--whiten-dim 9" in refused.value.fix
    assert whitening.learn(unit(flat), 9, "m").apply(flat).shape == (100, 9)
    with pytest.raises(DistillError, match="vary in 0 directions"):
        whitening.learn(np.ones((50, 4), np.float32) / 2, None, "m")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A teacher and a student of other length, images to evaluate on, and images apart."""
    onnx_teacher(tmp_path / "teacher.onnx")
    onnx_teacher(tmp_path / "student.onnx", dim=12, seed=5)
    class_folders(tmp_path / "test", classes=4, each=4)
    photo_folder(tmp_path / "apart", 60, seed=77)
    return tmp_path


def measured(sets: Path, **how: object) -> EvalReport:
    return distilltool.evaluate(
        sets / "student.onnx",
        sets / "test",
        teacher=sets / "teacher.onnx",
        store=sets / "e.sqlite",
        preprocess=PRE,
        **how,  # type: ignore[arg-type]
    )


def test_each_model_has_its_own(sets: Path) -> None:
    """Figures are those of vectors whitened by scikit-learn; the teacher is asked about the images apart, once."""
    report = measured(sets, whiten=sets / "apart", whiten_dim=8)
    assert report.teacher_queries == {"new": 76, "cached": 0}
    assert report.whitening is not None and (report.whitening.images, report.whitening.dim) == (60, 8)
    assert [model.dim for model in report.models] == [8, 8]
    assert set(to_json(report.whitening)) == {"data", "images", "dim"}
    assert "covariance" in report.conventions["whitening"]
    assert measured(sets).conventions["whitening"].startswith("none")
    for at, name in enumerate(("teacher", "student")):
        raw, apart = embedded(sets / f"{name}.onnx", sets / "test"), embedded(sets / f"{name}.onnx", sets / "apart")
        white = PCA(n_components=8, whiten=True, svd_solver="full").fit(apart).transform(raw)
        white /= np.linalg.norm(white, axis=1, keepdims=True)
        assert report.models[at].metrics["recall@1"].value == pytest.approx(recall(white, sets / "test"))
    again = measured(sets, whiten=sets / "apart", whiten_dim=4, flip=True)
    assert again.teacher_queries == {"new": 76, "cached": 76}


def embedded(model: Path, folder: Path) -> NDArray[np.float64]:
    """Vectors of length 1 in order of path, by onnxruntime and Pillow alone."""
    import onnxruntime

    pictures = [Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR) for path in found(folder)]
    fed = ((np.stack([np.asarray(one) for one in pictures]) / 255 - 0.5) / 0.5).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    made = session.run(None, {"images": fed.transpose(0, 3, 1, 2)})[0]
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float64)


def found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def recall(vectors_ND: NDArray[np.float64], folder: Path) -> float:
    labels = np.array([path.parent.name for path in found(folder)])
    similar = vectors_ND @ vectors_ND.T
    np.fill_diagonal(similar, -2)
    return float((labels[similar.argmax(axis=1)] == labels).mean())


def test_the_teachers_gallery_is_whitened_one_way(sets: Path) -> None:
    """A model in the teacher's space is put to it by the teacher's whitening: itself finds all of its own."""
    report = distilltool.evaluate(
        sets / "teacher.onnx",
        sets / "test",
        teacher=sets / "teacher.onnx",
        store=sets / "e.sqlite",
        preprocess=PRE,
        whiten=sets / "apart",
        whiten_dim=8,
    )
    assert report.models[1].asymmetric is not None
    assert report.models[1].asymmetric["overlap@10"].value == 1


def test_images_apart_are_apart(sets: Path) -> None:
    """An image of the test among them is refused by content, whatever it is called; so are too few."""
    (sets / "apart" / "renamed.png").write_bytes((sets / "test" / "class1" / "photo0002.png").read_bytes())
    with pytest.raises(DistillError, match="1 of the images in .* are evaluated on too"):
        measured(sets, whiten=sets / "apart", whiten_dim=4)
    (sets / "apart" / "renamed.png").unlink()
    (sets / "few.csv").write_text("path\n" + "\n".join(f"apart/{one.name}" for one in found(sets / "apart")[:5]))
    with pytest.raises(DistillError, match="5 images are too few to whiten 16 directions of teacher"):
        measured(sets, whiten=sets / "few.csv")
    with pytest.raises(DistillError, match="--whiten-dim 14 is more than the 12 numbers of student"):
        measured(sets, whiten=sets / "apart", whiten_dim=14)
    assert not (sets / "e.sqlite").exists()  # found out before anybody is asked


def test_vectors_bought_elsewhere_are_whitened_by_their_own_rows(sets: Path) -> None:
    """A file of vectors has rows for the images apart too, and ranks as the model that made it; one that has none is
    refused."""
    paths = [*found(sets / "test"), *found(sets / "apart")]
    rows = np.concatenate([embedded(sets / "student.onnx", sets / name) for name in ("test", "apart")])
    np.savez(sets / "theirs.npz", paths=[str(path) for path in paths], vectors=rows.astype(np.float32))
    np.savez(sets / "half.npz", paths=[str(path) for path in paths[:16]], vectors=rows[:16].astype(np.float32))
    how = {"teacher": sets / "teacher.onnx", "store": sets / "e.sqlite", "preprocess": PRE, "whiten_dim": 8}
    models = [sets / "student.onnx", sets / "theirs.npz"]
    report = distilltool.evaluate(models, sets / "test", whiten=sets / "apart", **how)  # type: ignore[arg-type]
    ours, theirs = (model.metrics["map"].value for model in report.models[1:])
    assert ours == pytest.approx(theirs, abs=1e-3)
    with pytest.raises(DistillError, match="half"):
        distilltool.evaluate(sets / "half.npz", sets / "test", whiten=sets / "apart", **how)  # type: ignore[arg-type]


def test_nested_vectors_are_whitened_cut(sets: Path) -> None:
    """The first numbers of a vector have a whitening of their own, of no more directions than they are."""
    onnx_teacher(sets / "nested.onnx", dim=12, seed=5, metadata={"distilltool.dims": "12,6"})
    report = distilltool.evaluate(
        sets / "nested.onnx",
        sets / "test",
        teacher=sets / "teacher.onnx",
        store=sets / "e.sqlite",
        preprocess=PRE,
        whiten=sets / "apart",
        whiten_dim=8,
    )
    assert (report.models[1].dim, report.models[1].nested["6"].dim) == (8, 6)
    raw, apart = embedded(sets / "nested.onnx", sets / "test"), embedded(sets / "nested.onnx", sets / "apart")
    cut = [one[:, :6] / np.linalg.norm(one[:, :6], axis=1, keepdims=True) for one in (raw, apart)]
    white = PCA(whiten=True, svd_solver="full").fit(cut[1]).transform(cut[0])
    expected = recall(white / np.linalg.norm(white, axis=1, keepdims=True), sets / "test")
    assert report.models[1].nested["6"].metrics["recall@1"].value == pytest.approx(expected)

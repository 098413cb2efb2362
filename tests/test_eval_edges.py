"""Evaluations at the edge of what is allowed: files that are read stay as they are, money goes far enough or is not
spent, and vectors meet only where they can."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import class_folders, onnx_teacher
from PIL import Image
from typer.testing import CliRunner

from distilltool import images
from distilltool.cli import app
from distilltool.preprocess import Preprocess
from distilltool.search import Gallery

FLAGS = ["--preprocess", "scale=1/255", "--preprocess", "mean=0.5", "--preprocess", "std=0.5"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a teacher and a student that take any size, and labelled images."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "teacher.onnx", size=None)
    onnx_teacher(tmp_path / "student.onnx", size=None, dim=12, seed=5)
    class_folders(tmp_path / "labelled", classes=4, each=5)
    return tmp_path


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.stdout, result.stderr


def evaluated(*words: str, data: str = "labelled") -> tuple[int, str, str]:
    flags = [*FLAGS, "--preprocess", "size=32", "--teacher", "teacher.onnx", "--json"]
    return call("eval", "student.onnx", "--data", data, *flags, *words)


def test_kept_vectors_are_not_written_over_what_is_read(work: Path) -> None:
    """A file of vectors as the teacher, and as a model beside one of its name."""
    assert evaluated("--vectors", "kept")[0] == 0
    before = (work / "kept" / "teacher.npy").read_bytes()
    flags = ["--data", "labelled", "--vectors", "kept"]
    for words in (
        ["student.onnx", "--teacher", "kept/teacher.npy", *FLAGS, "--preprocess", "size=32"],
        ["student.onnx", "kept/student.npy", "--teacher", "teacher.onnx", *FLAGS, "--preprocess", "size=32"],
    ):
        code, _, err = call("eval", *words, *flags)
        assert code == 1 and "would be written over" in err, err
    assert (work / "kept" / "teacher.npy").read_bytes() == before


def test_vectors_of_several_views_claim_no_space(work: Path) -> None:
    """Or they would stand for the model's answers about one."""
    assert evaluated("--vectors", "one")[0] == 0
    assert evaluated("--vectors", "two", "--flip")[0] == 0
    one, two = (json.loads((work / name / "teacher.json").read_text()) for name in ("one", "two"))
    assert one["space_id"] and "space_id" not in two and one["files"] == two["files"]


def test_kept_vectors_name_images_that_lie_elsewhere(work: Path) -> None:
    """A list in one folder of images in another: what is kept is a model of the same images."""
    (work / "lists").mkdir()
    rows = [f"{path.absolute()},{path.parent.name}" for path in images.find(work / "labelled")]
    (work / "lists" / "test.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert evaluated("--vectors", "kept", data="lists/test.csv")[0] == 0
    words = ["kept/student.npy", "--teacher", "kept/teacher.npy", "--data", "lists/test.csv", "--json"]
    code, out, err = call("eval", *words)
    assert code == 0, err
    assert json.loads(out)["models"][1]["metrics"]


def test_money_that_does_not_go_as_far_as_all_views_is_not_spent(work: Path) -> None:
    price = ["--price-per-query", "1", "--max-cost"]
    code, _, err = evaluated("--flip", *price, "30")
    assert code == 1 and "takes 40 questions, and 30 may be asked" in " ".join(err.split())
    code, out, _ = evaluated("--flip", *price, "40")
    assert code == 0 and json.loads(out)["teacher_queries"]["new"] == 40


def test_vectors_of_another_length_meet_no_gallery_of_the_teacher(work: Path) -> None:
    """Though they claim its space."""
    assert evaluated("--vectors", "kept")[0] == 0
    space = json.loads((work / "kept" / "teacher.json").read_text())
    short = np.load(work / "kept" / "teacher.npy")[:, :5]
    np.savez(work / "short.npz", path=space["files"], vectors=short, space_id=np.array(space["space_id"]))
    words = ["short.npz", "--teacher", "teacher.onnx", "--data", "labelled", "--json"]
    code, out, err = call("eval", *words, *FLAGS, "--preprocess", "size=32")
    assert code == 0, err
    assert json.loads(out)["models"][1]["asymmetric"] is None


def test_both_ways_between_student_and_teacher(work: Path, rng: np.random.Generator) -> None:
    """Whose queries, whose gallery: R@1 and the teacher's ten nearest, written out a second time."""
    assert evaluated("--vectors", "kept")[0] == 0
    said = json.loads((work / "kept" / "teacher.json").read_text())
    theirs = np.load(work / "kept" / "teacher.npy")
    ours = theirs + rng.normal(0, 0.6, theirs.shape).astype(np.float32) * np.abs(theirs)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.savez(work / "near.npz", path=said["files"], vectors=ours, space_id=np.array(said["space_id"]))
    words = ["near.npz", "--teacher", "teacher.onnx", "--data", "labelled", "--json"]
    code, out, err = call("eval", *words, *FLAGS, "--preprocess", "size=32")
    assert code == 0, err
    labels = np.array([Path(name).parent.name for name in said["files"]])

    def ranked(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        scores = queries @ gallery.T
        np.fill_diagonal(scores, -2)
        return np.argsort(-scores, axis=1)

    right = ranked(theirs, theirs)[:, :9]
    model = json.loads(out)["models"][1]
    for family, order in (("asymmetric", ranked(ours, theirs)), ("reverse", ranked(theirs, ours))):
        hits = (labels[order[:, 0]] == labels).mean()
        shared = np.mean([len(set(a) & set(b)) / 9 for a, b in zip(right, order[:, :9], strict=True)])
        assert model[family]["recall@1"]["value"] == pytest.approx(hits)
        assert model[family]["overlap@10"]["value"] == pytest.approx(shared)
    assert model["asymmetric"] != model["reverse"]


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("count", [101, 257])
def test_equal_vectors_score_equally_in_small_galleries(queries: int, count: int, rng: np.random.Generator) -> None:
    """Wherever they stand: the last columns of a product are computed in another way than the first."""
    gallery = rng.normal(size=(count, 512)).astype(np.float32)
    gallery[-1] = gallery[0]
    scores = Gallery(gallery).scores(rng.normal(size=(queries, 512)).astype(np.float32))
    assert (scores[:, 0] == scores[:, -1]).all()


def test_images_are_shrunk_as_pillow_shrinks_them(rng: np.random.Generator) -> None:
    how = Preprocess(size=(1024, 700), resize="longest")
    for width, height in [
        (2048, 1537),
        (1535, 2048),
        (700, 1024),
        (1, 5000),
        *rng.integers(1, 4000, (300, 2)).tolist(),
    ]:
        picture = Image.new("1", (width, height))
        picture.thumbnail((700, 1024))
        assert how.fitted((width, height)) == picture.size

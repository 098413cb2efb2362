"""The map of a page by UMAP, where that is installed: it keeps groups together, is seeded, and says what it is."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import class_folders
from numpy.typing import NDArray

pytest.importorskip("matplotlib", reason="the page needs distilltool[report]")

import distilltool
from distilltool.page import map as maps

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]


def groups(rng: np.random.Generator, each: int = 30) -> NDArray[np.float32]:
    """Four groups of vectors of length 1 in 24 dimensions, one after the other."""
    rows = np.repeat(rng.normal(size=(4, 24)), each, axis=0) + rng.normal(size=(4 * each, 24)) * 0.25
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_nearest_are_the_nearest_and_not_themselves(rng: np.random.Generator) -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert maps._nearest(line, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    rows = rng.normal(size=(20, 5))
    distances = np.linalg.norm(rows[:, None] - rows, axis=2) + np.diag(np.full(20, np.inf))
    assert maps._nearest(rows, 3).tolist() == np.argsort(distances, axis=1)[:, :3].tolist()


@pytest.mark.slow
def test_umap_keeps_groups_together(rng: np.random.Generator, tmp_path: Path) -> None:
    """All ten nearest of an image in the map are of its group; another process draws the same."""
    pytest.importorskip("umap", reason="needs distilltool[umap]")
    rows = groups(rng)
    flat = maps.neighbourly(rows)
    group = np.arange(len(rows)) // 30
    assert (group[maps._nearest(flat.at, 10)] == group[:, None]).mean() > 0.99
    assert 0.2 < flat.share <= 1 and flat.share > 2 * 10 / len(rows)
    np.testing.assert_array_equal(maps.neighbourly(rows).at, flat.at)
    code = (
        "import sys, numpy as np; from distilltool.page import map as maps\n"
        "np.save(sys.argv[2], maps.neighbourly(np.load(sys.argv[1])).at)"
    )
    np.save(tmp_path / "rows.npy", rows)
    subprocess.run([sys.executable, "-c", code, tmp_path / "rows.npy", tmp_path / "at.npy"], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "at.npy"), flat.at)


@pytest.mark.slow
def test_the_page_says_which_map_it_is(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP where it is installed and images are enough, else principal components; in the text and for those who do not
    see it."""
    class_folders(tmp_path / "data", classes=4, each=6)
    words = {"teacher": models / "teacher.onnx", "preprocess": PRE, "store": tmp_path / "e.sqlite"}

    def page() -> str:
        distilltool.evaluate(models / "student.onnx", tmp_path / "data", html=tmp_path / "r.html", **words)
        return (tmp_path / "r.html").read_text("utf-8")

    if maps.find_spec("umap") is not None:
        html = page()
        assert "UMAP of each model's vectors" in html and html.count('aria-label="Map (UMAP) of 24 queries') == 2
        assert re.search(r"\d+ % of each one's ten nearest are its ten nearest in the map", html)
        assert "principal components" not in html
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    html = page()
    assert "first two principal components" in html and "of the variance" in html and "UMAP" not in html
    assert html.count('aria-label="Map (principal components) of 24 queries') == 2

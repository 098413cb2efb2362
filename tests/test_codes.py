"""Binary codes: by hand, beside faiss, and in an evaluation."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from builders import class_folders, onnx_teacher

import distilltool
from distilltool import codes, eval_text
from distilltool.codes import centre, packed, signs
from distilltool.report import EvalReport
from distilltool.search import nearest, nearest_in

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]


def by_hand(queries: np.ndarray, gallery: np.ndarray, k: int, itself: np.ndarray) -> list[list[int]]:
    """By sorting (bits that differ, id) in python."""
    found = []
    for at, query in enumerate(queries):
        ids = [row for row in range(len(gallery)) if row != itself[at]]
        found.append(sorted(ids, key=lambda row: (int((query != gallery[row]).sum()), row))[:k])
    return found


def test_bits_by_hand() -> None:
    """Above the mean of the gallery is 1; the mean itself is not above."""
    gallery = np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 3.0]], np.float32)
    middle = centre(gallery)
    assert middle.tolist() == [1.0, 1.0, 4.0]
    queries = np.array([[1.5, 1.0, 9.0]], np.float32)
    assert signs(queries, middle).tolist() == [[1.0, -1.0, 1.0]]
    assert packed(queries, middle).tolist() == [[0b10100000]]


@pytest.mark.parametrize("dim", [3, 8, 20, 300])
def test_signs_rank_as_hamming_does(dim: int, rng: np.random.Generator) -> None:
    """Inner products of ±1, faiss's binary index and a count of differing bits, ties and copies among them."""
    gallery = rng.normal(size=(700, dim)).astype(np.float32)
    gallery[200:260] = gallery[:60]
    queries, itself = gallery[150:260], np.arange(150, 260)
    middle = centre(gallery)
    signed = nearest(signs(queries, middle), signs(gallery, middle), 12, itself)
    expected = by_hand(queries > middle, gallery > middle, 12, itself)
    assert signed.ids.tolist() == expected
    index = faiss.IndexBinaryFlat(8 * packed(gallery[:1], middle).shape[1])
    index.add(packed(gallery, middle))
    assert nearest_in(index, packed(queries, middle), 12, itself).tolist() == expected
    distances, _ = index.search(packed(queries, middle), 13)
    assert ((dim - signed.scores[:, 0]) / 2 == np.minimum(distances[:, 0], distances[:, 1])).sum() >= 50


def test_codes_of_large_sets_lie_in_a_file(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones, block by block, counted from the mean of the gallery's rows alone."""
    vectors, rows = rng.normal(size=(70, 9)).astype(np.float32), np.arange(5, 60)
    middle = centre(vectors, rows)
    assert middle == pytest.approx(vectors[rows].mean(axis=0), abs=1e-6)
    monkeypatch.setattr(codes, "BLOCK", 16)
    assert centre(vectors, rows) == pytest.approx(middle, abs=1e-6)
    with codes.signed(vectors, middle) as held:
        assert not isinstance(held, np.memmap)
    monkeypatch.setattr(codes, "IN_MEMORY", 100)
    with codes.signed(vectors, middle) as mapped:
        assert isinstance(mapped, np.memmap) and (mapped == signs(vectors, middle)).all()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("codes")
    for name, dim, seed in (("teacher", 16, 0), ("a", 12, 1)):
        onnx_teacher(root / f"{name}.onnx", dim=dim, seed=seed)
    class_folders(root / "labelled", classes=5, each=6)
    return root


@pytest.fixture(scope="module")
def report(work: Path) -> EvalReport:
    words = {"teacher": work / "teacher.onnx", "store": work / "e.sqlite", "preprocess": PRE}
    return distilltool.evaluate(work / "a.onnx", work / "labelled", binary=True, csv=work / "x.csv", **words)


def test_every_models_codes_are_measured(report: EvalReport, work: Path) -> None:
    """Those of the teacher too, whose float vectors are the measure of both; elsewhere nothing changes."""
    assert "above the gallery's mean" in report.conventions["binary"]
    for model in report.models:
        assert model.binary is not None and model.binary.dim == model.dim and model.binary.binary is None
        for name, value in model.binary.metrics.items():
            kept = value.value / report.models[0].metrics[name].value
            assert model.binary.retention[name].value == pytest.approx(kept)
        assert model.binary.metrics["map"] != model.metrics["map"]
    teacher = report.models[0].binary
    assert teacher is not None and teacher.fidelity is not None
    assert 0 < teacher.fidelity["overlap@10"].value < 1


def test_codes_are_in_every_table(report: EvalReport, work: Path) -> None:
    rows = {heading: values for family, _, heading, values in eval_text.rows(report) if family.startswith("binary.")}
    assert list(rows) == ["mAP, binary", "mAP kept, binary", "overlap@10, binary"]
    assert all(None not in values for values in rows.values())
    text = (work / "x.csv").read_text()
    for model in report.models:
        assert model.binary is not None
        assert f"binary.metrics,{model.name},,map,{model.binary.metrics['map'].value!r}," in text
    assert all(f"| {heading} | " in eval_text.markdown(report) for heading in rows)


def test_nobody_who_did_not_ask_gets_them(work: Path) -> None:
    words = {"teacher": work / "teacher.onnx", "store": work / "e.sqlite", "preprocess": PRE}
    plain = distilltool.evaluate(work / "a.onnx", work / "labelled", **words)  # type: ignore[arg-type]
    assert all(model.binary is None for model in plain.models) and "binary" not in plain.conventions
    assert not any(family.startswith("binary") for family, *_ in eval_text.rows(plain))


def test_codes_of_vectors_that_are_all_equal() -> None:
    """A collapsed model has one code: nothing fails, and the order is that of the images."""
    flat = np.ones((20, 4), np.float32)
    middle = codes.centre(flat)
    assert nearest(signs(flat, middle), signs(flat, middle), 3, np.arange(20)).ids[5].tolist() == [0, 1, 2]

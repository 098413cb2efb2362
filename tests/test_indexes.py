"""Index types: built on a gallery, searched beside exact search, asked for by name."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from builders import class_folders, onnx_teacher
from typer.testing import CliRunner

import distilltool
from distilltool import index_text, indexes, indexing, metrics
from distilltool.cli import app
from distilltool.embedder import unit
from distilltool.errors import DistillError, Exit
from distilltool.indexes import names, parse
from distilltool.metrics import Task
from distilltool.report import EvalReport, IndexReport
from distilltool.search import Gallery
from distilltool.truth import Truth

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
COUNT, DIM = 900, 24


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[None]:
    """No test judges a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "BATCH_SECONDS", 0.0)
        yield


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    """Groups of vectors of length 1."""
    means = rng.normal(size=(30, DIM))
    return unit((means[rng.integers(0, 30, COUNT)] + 0.5 * rng.normal(size=(COUNT, DIM))).astype(np.float32))


def measured(text: str, vectors: np.ndarray, queries: int = 200) -> IndexReport:
    """One index type on a gallery whose first images are asked about."""
    every = np.arange(len(vectors), dtype=np.int64)
    task = Task(query=every[:queries], gallery=every, labels=every % 7)
    k = metrics.reach(len(vectors))
    exact = Gallery(vectors).nearest(vectors[:queries], k, task.itself).scores[:, -1]
    [wanted] = parse(text)
    return indexing._measured(wanted, task, vectors, vectors[:queries], task.itself, exact, k)


def figures(report: IndexReport) -> list[object]:
    """What does not depend on the clock."""
    return [report.settings, report.bytes, [(point.settings, point.recall, point.metrics) for point in report.points]]


@pytest.mark.parametrize("name", names())
def test_every_type_finds_its_own_way_twice(name: str, vectors: np.ndarray) -> None:
    """Sane figures, the same ones again; more effort finds no less, where codes are not what limits."""
    one, again = measured(name, vectors), measured(name, vectors)
    assert figures(one) == figures(again) and one.reason == ""
    assert one.bytes is not None and one.bytes > 0 and one.build_seconds is not None and one.build_seconds > 0
    for point in one.points:
        assert 0 < point.recall.low <= point.recall.value <= point.recall.high <= 1
        assert point.p50_ms > 0 and point.qps > 0 and point.n == 600 and point.batch == 200
        assert point.p90_ms is not None and point.p90_ms >= point.p50_ms and point.p95_ms is not None
        assert set(point.metrics) == {"recall@1", "recall@5", "recall@10"}
    recalls = [point.recall.value for point in one.points]
    if name in ("flat", "hnsw"):
        assert recalls == sorted(recalls) and recalls[-1] > 0.99
    else:
        assert 0.2 < recalls[-1] < 1
    assert len({json.dumps(point.settings) for point in one.points}) == len(one.points)


@pytest.mark.parametrize("name", names())
def test_what_is_found_is_what_faiss_finds(name: str, vectors: np.ndarray) -> None:
    """At its most effort, itself left out: the recall written out a second time, from faiss's own answer."""
    [wanted] = parse(name)
    report = measured(name, vectors)
    built = indexes.build(wanted, vectors)
    point = built.points[-1]
    point.prepare()
    _, ids = built.index.search(built.encode(vectors[:200]), 60 if built.complete else 11)
    similar = vectors[:200] @ vectors.T
    np.fill_diagonal(similar, -2)
    right = 0
    for at in range(200):
        mine = [one for one in ids[at] if one != at]
        if name == "binary":
            bits = vectors > vectors.mean(axis=0)
            mine = sorted(mine, key=lambda row, at=at, bits=bits: ((bits[row] != bits[at]).sum(), row))
        right += len(set(mine[:10]) & set(np.argsort(-similar[at])[:10].tolist()))
    assert report.points[-1].recall.value == pytest.approx(right / 2000, abs=0.002 if name == "binary" else 1e-9)


def test_flat_is_exact_whatever_ties(rng: np.random.Generator) -> None:
    """Copies and equal scores: any of them counts, and labels are judged by the order of the images."""
    vectors = unit(rng.integers(-1, 2, (300, 4)).astype(np.float32) + 1e-9)
    report = measured("flat", vectors)
    assert report.points[0].recall.value == 1.0
    every = np.arange(300, dtype=np.int64)
    task = Task(query=every[:200], gallery=every, labels=every % 7)
    full = metrics.labelled(task, vectors, vectors)
    for name, value in report.points[0].metrics.items():
        assert value == metrics.interval(full[name])


def test_shallow_figures_are_those_of_the_whole_ranking(rng: np.random.Generator) -> None:
    """By labels and by lists, with images that are ignored; what ten neighbours do not decide is left out."""
    vectors = unit(rng.normal(size=(80, 6)).astype(np.float32))
    every = np.arange(80, dtype=np.int64)
    found = Gallery(vectors).nearest(vectors, 10, every).ids
    by_label = Task(query=every, gallery=every, labels=every // 4)
    shallow, whole = metrics.shallow(by_label, found), metrics.labelled(by_label, vectors, vectors)
    assert set(shallow) == {"map@r", "recall@1", "recall@5", "recall@10"}  # three positives each
    for name, values in shallow.items():
        np.testing.assert_array_equal(values, whole[name])
    lists = Truth(
        positives=tuple(np.flatnonzero(every // 8 == at // 8) for at in range(80)), ignored=(np.array([3]),) * 80
    )
    by_list = replace(by_label, labels=None, truth={"": lists})
    full = metrics.labelled(by_list, vectors, vectors)
    for name, values in metrics.shallow(by_list, found).items():
        assert (np.abs(values - full[name]) > 0).mean() < 0.05  # one that is ignored may stand among the ten
    assert metrics.shallow(replace(by_label, labels=None), found) == {}


def test_sizes_are_those_of_a_file(vectors: np.ndarray, tmp_path: Path) -> None:
    for name in names():
        index = indexes.build(parse(name)[0], vectors).index
        write = faiss.write_index_binary if name == "binary" else faiss.write_index
        write(index, str(tmp_path / "x"))
        assert indexing.size_of(index) == (tmp_path / "x").stat().st_size


@pytest.mark.parametrize("dim", [1, 7, 13, 40])
def test_any_length_of_vectors_will_do(dim: int, rng: np.random.Generator) -> None:
    """Product quantisation wants lengths that its codes divide: zeros fill them up and change no inner product."""
    vectors = unit(rng.normal(size=(700, dim)).astype(np.float32) + 0.1)
    for text in (*names(), *([f"ivf-pq:m={dim // 2},bits=6"] if dim > 1 else [])):
        report = measured(text, vectors, 50)
        assert report.reason == "" and report.points[-1].recall.value > 0, text


def test_a_gallery_too_small_says_so(vectors: np.ndarray) -> None:
    """What it takes; the others go on."""
    for text, said in (
        ("ivf-pq", "a gallery of 60 is too small to train ivf-pq on; it takes 624 vectors or more"),
        ("ivf-pq:bits=8", "it takes 256 vectors or more"),
        ("ivf-pq:bits=4,nlist=100", "nlist=100 of 60 vectors"),
        ("ivf-pq:bits=4,m=25", "m=25 of 24 numbers"),
    ):
        report = measured(text, vectors[:60], 20)
        assert said in report.reason and not report.points and report.bytes is None
    for text in ("flat", "hnsw", "binary", "ivf-pq:bits=4"):
        assert measured(text, vectors[:60], 20).points
    assert measured("hnsw", vectors[:2], 2).k == 1


def test_what_is_typed_is_read() -> None:
    found = parse("flat, ivf-pq:m=8,bits=6,hnsw:ef=64,flat")
    assert [(one.name, one.settings) for one in found] == [
        ("flat", {}),
        ("ivf-pq", {"m": 8, "bits": 6}),
        ("hnsw", {"ef": 64}),
    ]
    assert [one.text for one in parse("hnsw:m=8,hnsw:m=16")] == ["hnsw:m=8", "hnsw:m=16"]


@pytest.mark.parametrize(
    "text",
    ["", ",", "flat,", "lsh", "flat:m=2", "hnsw:", "hnsw:m", "hnsw:m=1", "hnsw:m=x", "hnsw:m=4,m=8", "hnsw:ef=0"]
    + ["hnsw:ef=99999999999", "HNSW", "m=4", "ivf_pq", "ivf-pq:bits=13", "hnsw:m=4:ef=5", "flat m=4"],
)
def test_what_is_not_understood_is_said_in_one_line(text: str) -> None:
    with pytest.raises(DistillError) as error:
        parse(text)
    assert error.value.code == Exit.USAGE and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("indexes")
    for name, dim, seed in (("teacher", 16, 0), ("a", 12, 1)):
        onnx_teacher(root / f"{name}.onnx", dim=dim, seed=seed)
    class_folders(root / "labelled", classes=5, each=6)
    return root


@pytest.fixture(scope="module")
def report(work: Path) -> EvalReport:
    words = {"teacher": work / "teacher.onnx", "store": work / "e.sqlite", "preprocess": PRE, "csv": work / "x.csv"}
    return distilltool.evaluate(
        work / "a.onnx", work / "labelled", index="flat,ivf-pq,hnsw:m=4,binary", markdown=work / "x.md", **words
    )


def test_every_models_gallery_is_searched(report: EvalReport) -> None:
    for model in report.models:
        assert [one.index for one in model.indexes] == ["flat", "ivf-pq", "hnsw:m=4", "binary"]
        flat, refused, _, _ = model.indexes
        assert flat.points[0].recall.value == 1.0 and flat.gallery == 30
        assert flat.points[0].metrics["recall@1"] == model.metrics["recall@1"]
        assert "too small" in refused.reason
    assert {"index recall", "index time", "index memory"} <= set(report.conventions)


def test_tables_hold_the_jsons_figures(report: EvalReport, work: Path) -> None:
    """CSV to the last digit; every line of the terminal and of Markdown."""
    with (work / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["family"], row["model"], row["figure"]): row for row in csv.DictReader(file)}
    text = (work / "x.md").read_text(encoding="utf-8")
    for at, model in enumerate(report.models):
        for one in model.indexes:
            for point in one.points:
                setting = "".join(f".{key}={value}" for key, value in point.settings.items())
                family = f"indexes.{one.index}{setting}"
                recall = rows[family, model.name, f"recall@{one.k} of exact"]
                assert [float(recall[end]) for end in ("value", "low", "high")] == [
                    point.recall.value,
                    point.recall.low,
                    point.recall.high,
                ]
                for name, number in (("p50_ms", point.p50_ms), ("qps", point.qps)):
                    assert float(rows[family, model.name, name]["value"]) == number
                for name, value in point.metrics.items():
                    assert float(rows[family, model.name, name]["value"]) == value.value
            if one.points:
                assert float(rows[f"indexes.{one.index}", model.name, "bytes"]["value"]) == one.bytes
        for line in index_text.lines(report, at):
            cells = [line.index, line.searched, *([entry.text for entry in line.entries] or [line.reason])]
            assert f"| {model.name} | {' | '.join(cells)} |" in text


def test_the_command_says_it_in_80_columns(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["eval", str(work / "a.onnx"), "--data", str(work / "labelled"), "--teacher", str(work / "teacher.onnx")]
    words += ["--store", str(work / "e.sqlite"), *(word for one in PRE for word in ("--preprocess", one))]
    result = CliRunner().invoke(app, [*words, "--binary", "--index", "flat,ivf-pq,hnsw,binary"])
    assert result.exit_code == 0, result.stderr
    said = result.stderr
    assert max(len(line) for line in said.splitlines() if line[:1] in "┃│") <= 80
    for one in ("mAP kept, binary", "│ flat ", "│ hnsw ef=16 ", "│ binary ", "no ivf-pq: a gallery of 30 is too small"):
        assert one in " ".join(said.split()) or one in said, one
    result = CliRunner().invoke(app, [*words, "--index", "hsnw", "--json"])
    assert result.exit_code == Exit.USAGE and result.stdout == "" and "use some of binary, flat" in result.stderr


def test_a_program_that_uses_faiss_with_torch_is_served_too() -> None:
    """As pytorch-metric-learning does: that module replaces faiss's `search` by one that takes less."""
    code = """
import faiss.contrib.torch_utils
import numpy as np
from distilltool import indexes
vectors = np.eye(40, 16, dtype=np.float32)
[wanted] = indexes.parse("hnsw")
from distilltool import indexing
built = indexes.build(wanted, vectors)
assert indexing._found(built, built.points[-1], vectors[:16], np.full(16, -1), 1)[:, 0].tolist() == list(range(16))
"""
    subprocess.run([sys.executable, "-c", code], check=True)

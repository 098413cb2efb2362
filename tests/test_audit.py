"""What a ledger holds, listed, checked and written out: right to the bit, within 80 columns, without changing it."""

import csv
import json
import re
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import onnx_teacher, photo_folder
from typer.testing import CliRunner

import distilltool
from distilltool import api, images
from distilltool.cli import app
from distilltool.errors import DistillError
from distilltool.ledger import Ledger, TeacherKey
from distilltool.stages import audit

PRE = ["scale=1/255"]


@pytest.fixture
def bought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two teachers, 12 photographs, and a ledger: the first was asked about all, the other about 5."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "one.onnx", dim=16)
    onnx_teacher(tmp_path / "two.onnx", dim=24, seed=1)
    photo_folder(tmp_path / "imgs", 12)
    distilltool.query("one.onnx", "imgs", store="l.sqlite", preprocess=PRE)
    distilltool.query("two.onnx", "imgs", store="l.sqlite", preprocess=PRE, budget=5)
    return tmp_path


def call(*words: str) -> tuple[int, str, str]:
    """The command line: exit code, stdout, stderr; a traceback is raised."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def truth(store: Path, teacher: Path) -> dict[str, list[float]]:
    """The answers as the ledger gives them, by sha256 in hex."""
    sha256 = images.digest(teacher)
    with sqlite3.connect(store) as db:
        rows = db.execute(
            "SELECT image, vector FROM answers JOIN teachers ON teachers.id = teacher WHERE sha256=?", (sha256,)
        ).fetchall()
    db.close()
    return {image.hex(): np.frombuffer(blob, "<f4").tolist() for image, blob in rows if blob is not None}


def test_show_lists_what_was_bought(bought: Path) -> None:
    found = api.ledger_show("l.sqlite")
    assert [(one.name, one.dim, one.done, one.asked, one.spent, one.budget) for one in found.teachers] == [
        ("one.onnx", 16, 12, 12, 12, None),
        ("two.onnx", 24, 5, 5, 5, 5),
    ]
    one = found.teachers[0]
    assert one.sha256 == images.digest(bought / "one.onnx")
    assert (one.output, one.pool, one.source, one.bytes) == ("embedding", "none", "flag scale=1/255", 12 * 16 * 4)
    assert one.preprocess["size"] == [32, 32]
    assert one.first is not None and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one.first)
    with Ledger.open(Path("l.sqlite")) as ledger:
        ledger.reserve_guess(one.sha256, "embedding", 8, 20, None)
    again = api.ledger_show("l.sqlite")
    assert again.teachers[0].spent == 20 and again.guesses[0].outcome == {}
    code, _, said = call("ledger", "show", "--store", "l.sqlite")
    assert code == 0 and max(map(len, said.splitlines())) <= 80
    assert "one.onnx" in said and "5 of a budget of 5" in " ".join(said.split()) and "not finished" in said


def test_verify_holds_answers_against_a_folder(bought: Path) -> None:
    """Which images have no answer, and which answers are about none of them."""
    gone = sorted((bought / "imgs").iterdir())[0]
    name = images.digest(gone)
    gone.unlink()
    photo_folder(bought / "imgs" / "more", 2, seed=5)
    before = (bought / "l.sqlite").read_bytes()
    found = api.ledger_verify("l.sqlite", images_dir="imgs")
    assert (found.faults, found.done, found.teachers) == ((), 17, 2)
    assert found.coverage[0].orphans == (name,) and found.coverage[0].known == 11
    assert [Path(one).parent.name for one in found.coverage[0].unanswered] == ["more", "more"]
    assert found.coverage[1].known + len(found.coverage[1].unanswered) == 13
    assert (bought / "l.sqlite").read_bytes() == before
    code, _, said = call("ledger", "verify", "--store", "l.sqlite", "--images", "imgs")
    assert code == 0 and "sound" in said and "no answer" in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE answers SET vector=substr(vector, 1, 8) WHERE rowid=3", "has 8 bytes, not 64"),
        ("UPDATE answers SET vector=zeroblob(64) WHERE rowid=3", "checksum"),
        ("UPDATE answers SET vector=NULL WHERE rowid=3", "has 0 bytes"),
        ("UPDATE answers SET state='failed' WHERE rowid=3", "is failed and has a vector"),
        ("UPDATE answers SET asked=-1 WHERE rowid=3", "never asked"),
        ("UPDATE answers SET time=1e300 WHERE rowid=3", "no time"),
        ("DELETE FROM teachers WHERE id=2", "5 answers belong to no teacher"),
        ("UPDATE teachers SET dim=17 WHERE id=1", "has 64 bytes, not 68"),
    ],
)
def test_verify_sees_every_kind_of_damage(bought: Path, damage: str, said: str) -> None:
    with sqlite3.connect("l.sqlite") as db:
        db.execute(damage)
    db.close()
    code, out, line = call("ledger", "verify", "--store", "l.sqlite")
    assert code == 1 and out == "" and said in line and len(line.strip().splitlines()) == 1
    code, out, _ = call("ledger", "verify", "--store", "l.sqlite", "--json")
    assert code == 1 and said in " ".join(json.loads(out)["faults"])


def test_verify_sees_an_answer_that_is_not_finite(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        number = ledger.teacher(TeacherKey(sha256="aa", output="e", pool="none", preprocess="{}"))
        ledger.answer(number, ledger.claim(number, [bytes(32)], None), np.full((1, 3), np.nan, np.float32), "here")
    assert "not finite" in api.ledger_verify(tmp_path / "l.sqlite").faults[0]


def as_float32(text: str) -> list[float]:
    """A JSON list as float32 numbers."""
    found: list[float] = np.array(json.loads(text), np.float32).tolist()
    return found


def exported(path: Path) -> dict[str, list[float]]:
    """What a file holds, by sha256 in hex."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["vector"].dtype == np.float32
            return dict(zip(arrays["sha256"].tolist(), arrays["vector"].tolist(), strict=True))
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    else:
        with path.open(newline="") as file:
            rows = [{**row, "vector": as_float32(row["vector"])} for row in csv.DictReader(file)]
    return {row["sha256"]: row["vector"] for row in rows}


@pytest.mark.parametrize("ending", ["parquet", "npz", "csv"])
def test_an_export_is_read_back_to_the_bit(bought: Path, ending: str) -> None:
    """By other programs, and by `query --import`."""
    out = bought / f"answers.{ending}"
    prefix = images.digest(bought / "one.onnx")[:10]
    found = api.ledger_export(out, store="l.sqlite", teacher=prefix.upper(), images_dir="imgs")
    assert (found.rows, found.teachers, found.format) == (12, 1, ending) and found.bytes == out.stat().st_size
    expected = truth(bought / "l.sqlite", bought / "one.onnx")
    assert len(expected) == 12 and exported(out) == expected
    assert not list(bought.glob(".answers*"))
    code, told, said = call("query", "--import", str(out), "imgs", "--store", "again.sqlite", "--json")
    assert code == 0, said
    report = json.loads(told)
    assert (report["imported"], report["queried"], report["pending"]) == (12, 0, 0)
    assert truth(Path("again.sqlite"), out) == expected
    assert api.ledger_verify("again.sqlite", images_dir="imgs").faults == ()


def test_a_parquet_says_where_every_answer_is_from(bought: Path) -> None:
    out = bought / "deep" / "answers.parquet"
    photo_folder(bought / "imgs" / "more", 1, seed=5)
    moved = sorted((bought / "imgs").glob("*.png"))[0]
    moved.rename(bought / "elsewhere.png")
    api.ledger_export(out, store="l.sqlite", images_dir="imgs")
    table = pq.read_table(out)
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert str(table.schema.field("vector").type) in ("list<element: float>", "list<item: float>")
    rows = table.to_pylist()
    assert [len(row["vector"]) for row in rows] == [16] * 12 + [24] * 5
    assert {row["provider"] for row in rows} == {"CPUExecutionProvider"} and {row["asked"] for row in rows} == {1}
    places = {
        images.digest(path): path.relative_to(bought / "imgs").as_posix() for path in images.find(bought / "imgs")
    }
    assert [row["path"] for row in rows] == [places.get(row["sha256"]) for row in rows]
    assert [row["path"] for row in rows].count(None) in (1, 2)
    assert json.loads(rows[0]["preprocess"])["size"] == [32, 32]
    first = out.read_bytes()
    api.ledger_export(out, store="l.sqlite", images_dir="imgs")
    assert out.read_bytes() == first  # the same answers make the same file


def test_an_export_that_cannot_be_is_an_error_of_one_line(bought: Path) -> None:
    for words, said in [
        (["a.txt"], "end it with .parquet, .npz, .csv"),
        (["a.npz"], "choose one with --number"),
        (["a.csv", "--teacher", "ffffff"], "no answer by a teacher ffffff"),
        (["a.csv", "--store", "none.sqlite"], "there is no ledger"),
        (["l.sqlite/a.csv"], "cannot be written"),
    ]:
        code, _, line = call("ledger", "export", "--store", "l.sqlite", *words)
        assert code == 1 and said in line and len(line.strip().splitlines()) == 1, line
    assert not list(bought.glob("*.csv")) and not list(bought.glob("*.npz")) and not Path("none.sqlite").exists()


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_memory_holds_a_part_of_the_answers_only(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,000 answers of 512 numbers, 16 MB: an export takes a fraction of that."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(audit, "GROUP_BYTES", 1 << 20)
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        number = ledger.teacher(TeacherKey(sha256="aa", output="e", pool="none", preprocess="{}"))
        for _ in range(8):
            some = [rng.bytes(32) for _ in range(1000)]
            ledger.answer(number, ledger.claim(number, some, None), rng.normal(size=(1000, 512)).astype("f4"), "here")
    out = tmp_path / f"x.{ending}"
    api.ledger_export(tmp_path / f"warm.{ending}", store=tmp_path / "l.sqlite")
    tracemalloc.start()
    api.ledger_export(out, store=tmp_path / "l.sqlite")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, peak
    if ending == "parquet":
        assert pq.ParquetFile(out).num_row_groups == 16
    assert len(exported(out)) == 8000


def test_looking_needs_a_ledger_and_makes_none(tmp_path: Path) -> None:
    for look in (api.ledger_show, api.ledger_verify):
        with pytest.raises(DistillError, match="there is no ledger"):
            look(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []
    Ledger.open(tmp_path / "empty.sqlite").close()
    assert api.ledger_show(tmp_path / "empty.sqlite").teachers == ()
    assert api.ledger_verify(tmp_path / "empty.sqlite").faults == ()

"""Answers bought elsewhere: every format, every fault, and a student trained from them without asking anybody."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import class_folders, drawn, onnx_teacher, photo_folder
from numpy.typing import NDArray
from PIL import Image
from test_bad_input import fails
from typer.testing import CliRunner

import distilltool
from distilltool import images
from distilltool.bought import open_bought
from distilltool.cli import app
from distilltool.errors import DistillError
from distilltool.ledger import Ledger
from distilltool.teacher import TeacherOptions

Vectors = NDArray[np.float32]
Write = Callable[[Path, Sequence[str], Vectors, str], None]


def as_list_parquet(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    pq.write_table(pa.table({key: list(names), "vector": list(vectors), "label": ["x"] * len(names)}), path)


def as_fixed_parquet(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({key: list(names), "vector": column}), path, row_group_size=3)


def as_wide_parquet(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    columns = {f"v{at}": vectors[:, at] for at in range(vectors.shape[1])}
    pq.write_table(pa.table({key: list(names), **columns}), path)


def as_npz(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    np.savez(path, **{"paths" if key == "path" else key: np.array(names), "vectors": vectors})


def as_wide_csv(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([key, *(f"v{at}" for at in range(vectors.shape[1]))])
        writer.writerows([name, *map(repr, row.tolist())] for name, row in zip(names, vectors, strict=True))


def as_json_csv(path: Path, names: Sequence[str], vectors: Vectors, key: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", key, "vector"])
        writer.writerows(["x", name, json.dumps(row.tolist())] for name, row in zip(names, vectors, strict=True))


WAYS: dict[str, tuple[str, Write]] = {
    "list": ("v.parquet", as_list_parquet),
    "fixed": ("v.parquet", as_fixed_parquet),
    "wide": ("v.parquet", as_wide_parquet),
    "npz": ("v.npz", as_npz),
    "numbers": ("v.csv", as_wide_csv),
    "json": ("v.csv", as_json_csv),
}


def answers(count: int, dim: int = 8) -> Vectors:
    """Different vectors, float32."""
    return np.random.default_rng((3, count)).normal(size=(count, dim)).astype(np.float32)


def colours(paths: Sequence[Path]) -> Vectors:
    """What somebody's model might answer: the mean colours of a 4 × 4 grid, (N, 48)."""
    small = [np.asarray(Image.open(path).convert("RGB").resize((4, 4), Image.Resampling.BOX)) for path in paths]
    return np.stack(small).reshape(len(paths), -1).astype(np.float32) - 128


def of_hashes(paths: Sequence[Path]) -> list[str]:
    """The sha256 of each file."""
    return [images.digest(path) for path in paths]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ten pictures in `imgs`."""
    monkeypatch.chdir(tmp_path)
    photo_folder(tmp_path / "imgs", 10)
    return tmp_path


def found(folder: Path) -> list[Path]:
    """The pictures."""
    return sorted((folder / "imgs").iterdir())


def call(*words: object) -> dict[str, Any]:
    """Run a command with --json."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def kept(teacher: Path, paths: Sequence[Path], store: Path = Path("runs/ledger.sqlite")) -> Vectors:
    """What the ledger holds about these images, in their order."""
    with Ledger.open(store) as ledger:
        number = ledger.teacher(open_bought(teacher, TeacherOptions()).key)
        vectors = ledger.vectors(number, [bytes.fromhex(one) for one in of_hashes(paths)])
        return np.stack([vectors[bytes.fromhex(one)] for one in of_hashes(paths)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["path", "sha256"])
def test_every_format_reaches_the_ledger_bit_for_bit(way: str, key: str, folder: Path) -> None:
    name, write = WAYS[way]
    paths, vectors = found(folder), answers(10)
    write(folder / name, of_hashes(paths) if key == "sha256" else [f"imgs/{p.name}" for p in paths], vectors, key)
    report = call("query", "--import", name, "imgs")
    assert (report["imported"], report["cached"], report["queried"], report["spent"]) == (10, 0, 0, 0)
    assert (report["pending"], report["unmatched"], report["teacher"]["dim"]) == (0, 0, 8)
    np.testing.assert_array_equal(kept(folder / name, paths), vectors)
    again = call("query", name, "imgs")
    assert (again["imported"], again["cached"], again["spent"]) == (0, 10, 0)


def test_hashes_may_be_bytes(folder: Path) -> None:
    raw = [bytes.fromhex(one) for one in of_hashes(found(folder))]
    pq.write_table(pa.table({"sha256": pa.array(raw, pa.binary(32)), "vector": list(answers(10))}), "v.parquet")
    assert call("query", "v.parquet", "imgs")["imported"] == 10


def as_absolute(folder: Path, path: Path) -> str:
    return str(path)


def as_seen_from_images(folder: Path, path: Path) -> str:
    return path.name


def as_seen_from_here(folder: Path, path: Path) -> str:
    return f"./imgs/{path.name}"


def as_seen_from_the_file(folder: Path, path: Path) -> str:
    return f"../imgs/{path.name}"


@pytest.mark.parametrize(
    "spell",
    [as_absolute, as_seen_from_images, as_seen_from_here, as_seen_from_the_file],
)
def test_paths_are_found_however_they_were_written(spell: Callable[[Path, Path], str], folder: Path) -> None:
    (folder / "sub").mkdir()
    paths, vectors = found(folder), answers(10)
    as_npz(folder / "sub/v.npz", [spell(folder, path) for path in paths], vectors, "path")
    assert call("query", "sub/v.npz", "imgs")["imported"] == 10
    np.testing.assert_array_equal(kept(folder / "sub/v.npz", paths), vectors)


def test_the_same_name_in_another_folder_is_another_image(folder: Path) -> None:
    """A wrong pair would poison the student unseen."""
    (folder / "imgs/deep").mkdir()
    drawn(77).save(folder / "imgs/deep/inner.png")
    names = ["photo0000.jpg", "inner.png", "0001.png", "other/photo0002.jpg", "/elsewhere/imgs/photo0003.png"]
    as_npz(folder / "v.npz", names, answers(5), "path")
    report = call("query", "v.npz", "imgs")
    assert (report["imported"], report["unmatched"], report["pending"]) == (1, 4, 10)


def test_images_without_an_answer_are_pending_and_duplicates_are_one(folder: Path) -> None:
    paths = found(folder)
    (folder / "imgs/twin.jpg").write_bytes(paths[0].read_bytes())
    vectors = answers(8)
    vectors[7] = vectors[0] * 1.0001  # the twin, rounded otherwise
    as_npz(folder / "v.npz", [*(p.name for p in paths[:7]), "twin.jpg"], vectors, "path")
    report = call("query", "v.npz", "imgs")
    assert (report["images"], report["imported"], report["pending"], report["unmatched"]) == (10, 7, 3, 0)
    np.testing.assert_array_equal(kept(folder / "v.npz", paths[:1]), vectors[:1])


def test_a_budget_does_not_limit_what_is_bought_already(folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10), "path")
    report = call("query", "v.npz", "imgs")
    assert (report["imported"], report["spent"], report["budget"]) == (10, 0, None)
    for words in (["--budget", "3"], ["--price-per-query", "2"]):
        refused = CliRunner().invoke(app, ["query", "v.npz", "imgs", *words])
        assert refused.exit_code == 2 and "a budget means nothing" in " ".join(refused.stderr.split())


def test_another_view_of_the_images_is_no_other_teacher(folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10), "path")
    first = call("query", "v.npz", "imgs")["teacher"]["preprocess"]
    assert (first["size"], first["resize"], first["source"]) == ([224, 224], "stretch", "default")
    again = call("query", "v.npz", "imgs", "--preprocess", "size=96x64")
    assert (again["cached"], again["imported"]) == (10, 0)
    assert again["teacher"]["preprocess"]["size"] == [96, 64]
    assert again["teacher"]["preprocess"]["source"] == "flag size=96x64"


def test_the_view_is_said_in_one_line(folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10), "path")
    said = CliRunner().invoke(app, ["query", "v.npz", "imgs"], env={"COLUMNS": "300"}).stderr
    assert "10 answers bought elsewhere" in said and "224×224 stretch (default; --preprocess changes it)" in said


def spoilt(change: Callable[[Vectors], None]) -> Vectors:
    """Ten answers with something wrong."""
    vectors = answers(10)
    change(vectors)
    return vectors


def with_nan(vectors: Vectors) -> None:
    vectors[4, 2] = np.nan


def with_infinity(vectors: Vectors) -> None:
    vectors[4, 2] = -np.inf


def with_zeros(vectors: Vectors) -> None:
    vectors[4] = 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "said"),
    [(with_nan, "NaN, infinity"), (with_infinity, "NaN, infinity"), (with_zeros, "all zeros")],
)
def test_numbers_that_are_none(way: str, change: Callable[[Vectors], None], said: str, folder: Path) -> None:
    name, write = WAYS[way]
    write(folder / name, [p.name for p in found(folder)], spoilt(change), "path")
    line = fails(1, "query", "--import", name, "imgs")
    assert said in line and "row 5" in line
    with Ledger.open(Path("runs/ledger.sqlite")) as ledger:
        number = ledger.teacher(open_bought(folder / name, TeacherOptions()).key)
        assert ledger.settled(number, [bytes.fromhex(one) for one in of_hashes(found(folder))]) == {}


def test_what_float32_cannot_hold(folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10).astype(np.float64) * 1e300, "path")  # type: ignore[arg-type]
    assert "float32 cannot hold" in fails(1, "query", "v.npz", "imgs")


def test_rows_of_other_lengths(folder: Path) -> None:
    rows = [row.tolist() for row in answers(10)]
    rows[2], rows[3] = rows[2][:5], []
    pq.write_table(pa.table({"path": [p.name for p in found(folder)], "vector": rows}), "v.parquet")
    line = fails(1, "query", "v.parquet", "imgs")
    assert "2 rows have not 8 numbers" in line and "the first is row 3" in line and "1 row have no" in line
    (folder / "v.csv").write_text("path,a,b\n" + "".join(f"{p.name},1\n" for p in found(folder)[:1]) + "x,1,2\ny,2,3\n")
    assert "1 row have not 2 numbers" in fails(1, "query", "v.csv", "imgs")


def test_missing_numbers_and_names(folder: Path) -> None:
    rows: list[Any] = [row.tolist() for row in answers(10)]
    rows[6][1] = None
    rows[7] = None
    names: list[Any] = [p.name for p in found(folder)]
    names[8] = None
    pq.write_table(pa.table({"path": names, "vector": rows}), "v.parquet")
    line = fails(1, "query", "v.parquet", "imgs")
    assert "row 7" in line and "row 8" in line and "1 row name no image, the first is row 9" in line


def test_contradicting_answers(folder: Path) -> None:
    names = [p.name for p in found(folder)]
    as_npz(folder / "v.npz", [*names, names[3]], answers(11), "path")
    line = fails(1, "query", "v.npz", "imgs")
    assert "1 row contradict others, as row 11 does row 4" in line


def test_a_path_that_could_mean_several_images(folder: Path) -> None:
    """As seen from the images' folder it is one image, as seen from the vectors' folder another."""
    for number, name in enumerate(("imgs/deep/imgs", "imgs/imgs")):
        (folder / name).mkdir(parents=True)
        drawn(50 + number).save(folder / name / "same.png")
    as_npz(folder / "imgs/deep/v.npz", ["imgs/same.png", "photo0000.jpg"], answers(2), "path")
    line = fails(1, "query", "imgs/deep/v.npz", "imgs")
    assert "1 path could mean several images, as 'imgs/same.png'" in line


def test_all_faults_in_one_message(folder: Path) -> None:
    vectors = answers(11)
    vectors[1], vectors[2, 0] = 0, np.nan
    names = [p.name for p in found(folder)]
    as_npz(folder / "v.npz", [*names, names[3]], vectors, "path")
    line = fails(1, "query", "v.npz", "imgs")
    assert "all zeros" in line and "NaN" in line and "contradict" in line


def test_hashes_that_are_none(folder: Path) -> None:
    as_wide_csv(folder / "v.csv", ["abc", *of_hashes(found(folder))[1:]], answers(10), "sha256")
    assert "1 row have a sha256 that is none, the first is row 1" in fails(1, "query", "v.csv", "imgs")


def test_a_file_about_other_images(folder: Path) -> None:
    as_npz(folder / "v.npz", ["cat.jpg", "dog.jpg"], answers(2), "path")
    line = fails(1, "query", "v.npz", "imgs")
    assert "none of its 2 rows is one of these images" in line and "cat.jpg" in line
    as_npz(folder / "v.npz", ["00" * 32, "11" * 32], answers(2), "sha256")
    assert "no image has that sha256" in fails(1, "query", "v.npz", "imgs")


def pickled(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), paths=np.array([{"a": 1}], object), vectors=answers(1))


def no_key(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), vectors=answers(1))


def no_vectors(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), paths=np.array(["a"]))


def misshapen(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), paths=np.array(["a"]), vectors=answers(2))


def spelt_out(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), paths=np.array(["a"]), vectors=np.array([["one", "two"]]))


def no_zip(path: Path) -> None:
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 torn")


def texts(path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "vector": [["x", "y"]]}), path.with_suffix(".parquet"))


def labels(path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "v0": [0.5], "label": [3]}), path.with_suffix(".parquet"))


def torn_parquet(path: Path) -> None:
    as_list_parquet(path.with_suffix(".parquet"), ["a"], answers(1), "path")
    whole = path.with_suffix(".parquet").read_bytes()
    path.with_suffix(".parquet").write_bytes(whole[: len(whole) // 2])


def headless(path: Path) -> None:
    path.with_suffix(".csv").write_text("photo0000.jpg,1,2\n")


def words(path: Path) -> None:
    path.with_suffix(".csv").write_text("path,a,b\nphoto0000.jpg,1,two\n")


def broken_json(path: Path) -> None:
    path.with_suffix(".csv").write_text('path,vector\nphoto0000.jpg,"[1, 2"\n')


def a_number(path: Path) -> None:
    path.with_suffix(".csv").write_text("path,vector\nphoto0000.jpg,17\n")


def empty(path: Path) -> None:
    path.with_suffix(".csv").touch()


def binary(path: Path) -> None:
    path.with_suffix(".csv").write_bytes(b"\xff\xfe\x00path")


@pytest.mark.parametrize(
    "make",
    [
        pickled,
        no_key,
        no_vectors,
        misshapen,
        spelt_out,
        no_zip,
        texts,
        labels,
        torn_parquet,
        headless,
        words,
        broken_json,
        a_number,
        empty,
        binary,
    ],
)
def test_files_that_hold_no_vectors(make: Callable[[Path], None], folder: Path) -> None:
    make(folder / "v")
    line = fails(1, "query", next(folder.glob("v.*")), "imgs")
    assert "cannot be read as vectors" in line and "path or sha256" in line


def test_a_file_without_rows(folder: Path) -> None:
    (folder / "v.csv").write_text("path,a,b\n")
    assert "it has no rows" in fails(1, "query", "v.csv", "imgs")


@pytest.mark.parametrize(
    "words",
    [
        ("query", "--import", "v.npz", "teacher.onnx", "imgs"),
        ("query", "--import", "v.npz", "--teacher-url", "http://localhost:1", "imgs"),
        ("query", "--import", "v.onnx", "imgs"),
        ("query", "v.npz"),
        ("query", "v.npz", "imgs", "--plan"),
        ("query", "v.npz", "imgs", "--pool", "avg"),
        ("query", "v.npz", "imgs", "--output", "x"),
        ("distill", "--import", "v.npz"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10), "path")
    assert CliRunner().invoke(app, list(words)).exit_code == 2


def test_no_such_file(folder: Path) -> None:
    assert "there is no file v.csv" in fails(1, "query", "--import", "v.csv", "imgs")


def test_nobody_can_be_asked(folder: Path) -> None:
    as_npz(folder / "v.npz", [p.name for p in found(folder)], answers(10), "path")
    with pytest.raises(DistillError, match="cannot be asked"):
        open_bought(folder / "v.npz", TeacherOptions()).embed(np.zeros((1, 224, 224, 3), np.uint8))


@pytest.mark.slow
def test_a_student_is_trained_measured_and_exported_from_bought_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """query --import, distill, eval on labelled images with answers of their own, export: nobody is ever asked."""
    monkeypatch.chdir(tmp_path)
    photographs = photo_folder(tmp_path / "imgs", 64)
    labelled = class_folders(tmp_path / "labelled", classes=5, each=6)
    as_list_parquet(tmp_path / "train.parquet", [p.name for p in photographs], colours(photographs), "path")
    names = [str(path.relative_to(tmp_path)) for path in labelled]
    as_npz(tmp_path / "judge.npz", names[:-1], colours(labelled[:-1]), "path")
    assert call("query", "--import", "train.parquet", "imgs")["imported"] == 64
    small = ["--student", "timm:test_efficientnet", "--input", "32", "--set", "schedule.epochs=3"]
    sizes = ["--set", "schedule.batch=16", "--set", "schedule.evaluations=3", "--preprocess", "size=48"]
    made = call("distill", "--import", "train.parquet", "imgs", *small, *sizes, "--out", "run")
    assert made["queries"] == {"new": 0, "cached": 64, "spent": 0}
    assert made["images"]["train"] + made["images"]["validation"] == 64
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert manifest["teacher"]["path"] == str(tmp_path / "train.parquet")
    line = fails(1, "eval", "run", "--data", "labelled")
    assert "none of its 64 rows is one of these images" in line
    judged = call("eval", "run", "--data", "labelled", "--teacher", "judge.npz")
    assert judged["queries"] == 29, "the image nobody bought an answer about is left out"
    assert judged["models"][0]["metrics"]["map"]["value"] > 0.5, "these colours tell the classes apart"
    assert judged["models"][1]["asymmetric"] is None, "two files need not be one space"
    onnx_teacher(tmp_path / "model.onnx")
    for words in (("eval", "run", "--data", "labelled"), ("export", "run")):
        line = fails(1, *words, "--teacher", "model.onnx")
        assert "the teacher of run is a file of answers" in line and "train.parquet" in line
    shipped = call("export", "run", "--seconds", "1")
    assert shipped["variants"][0]["status"] == "accepted"
    assert shipped["teacher"]["bytes"] == 0 and shipped["teacher"]["latency"] == []
    table = CliRunner().invoke(app, ["export", "run", "--seconds", "1"], env={"COLUMNS": "200"})
    assert table.exit_code == 0 and "is timed alone" in table.stderr
    report = distilltool.distill(tmp_path / "train.parquet", tmp_path / "imgs", out="run", **_same(made))
    assert report.verdict == made["verdict"], "the same in Python, and it is finished already"


def _same(made: dict[str, Any]) -> dict[str, Any]:
    return {
        "student": made["student"]["spec"],
        "input_size": 32,
        "changes": ["schedule.epochs=3", "schedule.batch=16", "schedule.evaluations=3"],
        "preprocess": ["size=48"],
    }

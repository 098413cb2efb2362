"""Vectors in files: what is written survives a stop, is gone on from, and is never taken for something else's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import class_folders, onnx_teacher
from numpy.typing import NDArray
from victims import asked

import distilltool
from distilltool import shelf as shelves
from distilltool.errors import DistillError
from distilltool.progress import Silent
from distilltool.shelf import Rows, Shelf, shelf

COUNT, DIM, BATCH = 100, 5, 8
SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from distilltool import shelf
from distilltool.progress import Silent
from test_shelf import blocks, wanted
shelf.EVERY = 0.0
def slow(start):
    for block in blocks(start):
        time.sleep(0.01)
        yield block
folder = Path(sys.argv[2])
with shelf.shelf(folder / "e.sqlite", "place", folder / "kept", Silent()) as one:
    path = one.claim("model")
    print("at it", flush=True)
    one.kept(path, wanted(slow))
"""


def rows() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(COUNT, DIM)).astype(np.float32)


def blocks(start: int) -> Iterator[NDArray[np.float32]]:
    """All rows from one on, in batches."""
    for at in range(start, COUNT, BATCH):
        yield rows()[at : at + BATCH]


def wanted(made: shelves.Blocks = blocks, of: Any = "a model") -> Rows:
    return Rows(count=COUNT, made_from={"of": of}, about={"space_id": "s"}, blocks=made)


def stopping(after: int, error: BaseException, start_at: list[int]) -> shelves.Blocks:
    """Rows that end in an error; where they were begun with is written down."""

    def made(start: int) -> Iterator[NDArray[np.float32]]:
        start_at.append(start)
        for number, block in enumerate(blocks(start)):
            if number == after:
                raise error
            yield block

    return made


@pytest.fixture
def one(tmp_path: Path) -> Shelf:
    """A folder to keep vectors in."""
    (tmp_path / "scratch").mkdir()
    return Shelf(tmp_path, tmp_path / "scratch", Silent())


def note_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DistillError("no", "more")])
def test_what_was_written_is_gone_on_from(one: Shelf, error: BaseException) -> None:
    """Two stops; each goes on where the last one was, and nothing is computed twice."""
    path, started = one.claim("model"), list[int]()
    for after in (3, 2, 99):
        try:
            one.kept(path, wanted(stopping(after, error, started)))
        except type(error):
            with pytest.raises(ValueError):
                np.load(path, mmap_mode="r")  # an unfinished file is none
            assert "space_id" not in note_of(path)
    assert started == [0, 24, 40]
    found = one.kept(path, wanted(stopping(0, AssertionError(), started)))
    assert started == [0, 24, 40] and isinstance(found, np.memmap) and not found.flags.writeable
    np.testing.assert_array_equal(found, rows())
    assert note_of(path)["rows"] == COUNT and note_of(path)["space_id"] == "s"
    assert path.read_bytes() == _saved(path.parent / "whole.npy").read_bytes()


def _saved(path: Path) -> Path:
    np.save(path, rows())
    return path


def test_killed_at_any_moment_the_bytes_are_the_same(tmp_path: Path) -> None:
    """SIGKILL, again and again; only notes say how far it was."""
    rng, progress, run = np.random.default_rng(0), [0], None
    words = [sys.executable, "-c", SLOW, str(Path(__file__).parent), str(tmp_path)]
    note = tmp_path / "kept" / "model.json"
    for turn in range(4):
        run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "at it\n"
        time.sleep(float(rng.uniform(0.0, 0.09)))
        while turn == 3 and not (note.exists() and note_of(note.with_suffix(".npy"))["rows"]):
            assert run.poll() is None  # it may be slow, but it gets on
            time.sleep(0.001)
        run.kill()
        run.wait()
        progress.append(note_of(note.with_suffix(".npy"))["rows"] if note.exists() else 0)
    assert progress == sorted(progress) and progress[-1] > 0, progress
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert note.with_suffix(".npy").read_bytes() == _saved(tmp_path / "whole.npy").read_bytes()
    assert {one.name for one in (tmp_path / "kept").iterdir()} <= {".lock", "model.json", "model.npy"}


def test_a_file_without_rows_yet_is_ours(one: Shelf) -> None:
    """Killed before the first note that counts, it is not taken for somebody's."""

    def seen(start: int) -> Iterator[NDArray[np.float32]]:
        assert path.exists() and Shelf(one.folder, one.folder, Silent()).claim("model") == path
        yield from blocks(start)

    path = one.claim("model")
    np.testing.assert_array_equal(one.kept(path, wanted(seen)), rows())


@pytest.mark.parametrize("harm", "from shape shorter byte rows json list".split())
def test_what_does_not_match_is_made_anew(one: Shelf, harm: str) -> None:
    """Another model, another set, a damaged file, a damaged note: the note must be of this file and these images."""
    path = one.claim("model")
    with pytest.raises(DistillError):
        one.kept(path, wanted(stopping(4, DistillError("", ""), [])))
    note, started, of = note_of(path), list[int](), "a model"
    if harm == "from":
        of = "another"
    elif harm == "shape":
        path.write_bytes(_saved(path.parent / "w.npy").read_bytes().replace(b"(100, 5)", b"(50, 10)"))
    elif harm == "shorter":
        os.truncate(path, path.stat().st_size - 1)
    elif harm == "byte":
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.write_bytes(data)
    elif harm == "rows":
        path.with_suffix(".json").write_text(json.dumps({**note, "rows": 0}))
    else:
        path.with_suffix(".json").write_text("{" if harm == "json" else "[]")
    found = one.kept(path, wanted(stopping(99, AssertionError(), started), of))
    assert started == [0]
    np.testing.assert_array_equal(found, rows())


def test_what_others_put_there_is_left_alone(one: Shelf) -> None:
    """A file without a note of ours is somebody's."""
    np.save(one.folder / "model.npy", rows())
    with pytest.raises(DistillError, match="model.npy is there and none that eval wrote"):
        one.claim("model")
    (one.folder / "model.json").write_text('{"files": []}')  # what export writes beside it
    with pytest.raises(DistillError, match="none that eval wrote"):
        Shelf(one.folder, one.folder, Silent()).claim("model")


def test_names_are_names_of_files(one: Shelf) -> None:
    """Models of one name get files of their own, and no name leads out of the folder."""
    names = [one.claim(name).name for name in ("a", "a", "A", "../../b", "", ".c", "x" * 300)]
    assert names == ["a.npy", "a-2.npy", "A-3.npy", "_.._b.npy", "model.npy", "c.npy", "x" * 100 + ".npy"]


def test_a_full_disk_is_said_before_and_survived(one: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first row where it is foreseen; else what was written stays."""
    with pytest.raises(DistillError, match="vectors need 1,000,000.00 GB in .*: make room"):
        one.make_sure_of_room(10**15)
    path, put, left = one.claim("model"), shelves._put, [4]

    def full(file: Any, data: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            with shelves._writing(path):
                raise OSError(28, "No space left on device")
        put(file, data)

    monkeypatch.setattr(shelves, "_put", full)
    with pytest.raises(DistillError, match="No space left on device.*make room and run the same command again"):
        one.kept(path, wanted())
    assert note_of(path)["rows"] == 3 * BATCH
    monkeypatch.setattr(shelves, "_put", put)
    np.testing.assert_array_equal(one.kept(path, wanted()), rows())


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_what_is_made_of_others_is_held_or_mapped(one: Shelf, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is large it is a file, the same numbers either way."""
    monkeypatch.setattr(shelves, "HELD", held)
    found = one.made((COUNT, DIM), blocks(0))
    np.testing.assert_array_equal(found, rows())
    assert isinstance(found, np.memmap) == (not held)


def test_a_folder_of_its_own_goes_when_all_is_done(tmp_path: Path) -> None:
    """It stays where something stopped it, its scratch does not; a second process keeps to itself meanwhile."""
    store = tmp_path / "e.sqlite"
    with pytest.raises(DistillError), shelf(store, "place", None, Silent()) as one:
        one.kept(one.claim("m"), wanted(stopping(2, DistillError("", ""), [])))
    left = tmp_path / "e-vectors" / "place"
    assert sorted(file.name for file in left.iterdir()) == [".lock", "m.json", "m.npy"]
    (left / ".scratch-of-one-that-was-killed").mkdir()
    with shelf(store, "place", None, Silent()) as one, shelf(store, "place", None, Silent()) as other:
        assert one.folder == left and other.folder != left and other.folder.is_dir()
        started = list[int]()
        one.kept(one.claim("m"), wanted(stopping(99, AssertionError(), started)))
        assert started == [2 * BATCH]
    assert not (tmp_path / "e-vectors").exists()
    with shelf(store, "place", tmp_path / "mine", Silent()), pytest.raises(DistillError, match="another process"):
        with shelf(store, "place", tmp_path / "mine", Silent()):
            pass
    assert not (tmp_path / "mine").exists()  # nothing came of it


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a teacher, a student, labelled images."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "teacher.onnx")
    onnx_teacher(tmp_path / "student.onnx", dim=12, seed=5)
    class_folders(tmp_path / "labelled", classes=20, each=8)
    return tmp_path


WORDS = ["eval", "student.onnx", "--teacher", "teacher.onnx", "--data", "labelled", "--preprocess", "scale=1/255"]


def test_eval_keeps_vectors_and_takes_them_again(work: Path) -> None:
    """The second call embeds nothing and says the same; a changed image is embedded, with all others."""
    given: dict[str, Any] = {"teacher": "teacher.onnx", "store": "e.sqlite", "preprocess": ["scale=1/255"]}
    plain = distilltool.evaluate("student.onnx", "labelled", **given)
    assert not (work / "e-vectors").exists()
    first = distilltool.evaluate("student.onnx", "labelled", vectors="kept", **given)
    assert (first.models, first.verdict) == (plain.models, plain.verdict)
    vectors = np.load("kept/student.npy")
    assert vectors.dtype == np.float32 and vectors.shape == (160, 12)
    assert np.load("kept/teacher.npy").shape == (160, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert note_of(work / "kept" / "student.npy")["files"][0] == "class0/photo0000.png"
    before = (work / "kept" / "student.npy").stat().st_mtime_ns
    again = distilltool.evaluate("student.onnx", "labelled", vectors="kept", **given)
    assert again.models == first.models and (work / "kept" / "student.npy").stat().st_mtime_ns == before
    asis = distilltool.evaluate("kept/student.npy", "labelled", **given)  # a file of vectors like any other
    assert asis.models[1].metrics == first.models[1].metrics
    (work / "labelled" / "class0" / "photo0000.png").unlink()
    distilltool.evaluate("student.onnx", "labelled", vectors="kept", **given)
    assert np.load("kept/student.npy").shape == (159, 12)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--vectors", "teacher.onnx"], "teacher.onnx cannot be written (File exists): name a writable folder"),
        (["--vectors", "theirs"], "student.npy is there and none that eval wrote: keep vectors in another folder"),
    ],
)
def test_a_folder_that_will_not_do(work: Path, flags: list[str], said: str) -> None:
    """One line, before the teacher is asked."""
    (work / "theirs").mkdir()
    np.save(work / "theirs" / "student.npy", rows())
    run = subprocess.run(
        [sys.executable, "-m", "distilltool", *WORDS, *flags, "--store", "e.sqlite"], capture_output=True, text=True
    )
    assert run.returncode == 1 and said in run.stderr and "Traceback" not in run.stderr
    assert not (work / "e.sqlite").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_eval_goes_on(work: Path, stop: signal.Signals) -> None:
    """Of 160 images as many as were noted are not embedded again, and the vectors are those of a call left alone."""
    common = [sys.executable, str(Path(__file__).with_name("victims.py")), "count", str(work)]
    flags = [*WORDS, "--store", "e.sqlite"]
    subprocess.run([*common, "0", "0", *flags, "--vectors", "whole"], check=True, capture_output=True)
    (work / "asked").unlink()
    note = work / "kept" / "student.json"
    run = subprocess.Popen([*common, "0.7", "0", *flags, "--vectors", "kept"], stderr=subprocess.DEVNULL)
    while not note.exists() or not note_of(note.with_suffix(".npy"))["rows"]:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(stop)
    run.wait()
    there = note_of(note.with_suffix(".npy"))["rows"]
    assert 0 < there < 160 and there % 32 == 0
    (work / "asked").unlink()
    subprocess.run([*common, "0", "0", *flags, "--vectors", "kept"], check=True, capture_output=True)
    assert len(asked(work)) == 160 - there
    for name in ("student.npy", "teacher.npy"):
        assert (work / "kept" / name).read_bytes() == (work / "whole" / name).read_bytes()

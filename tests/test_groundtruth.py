"""Ground truth in pickles: what numpy and lists need is read, nothing that is in it runs."""

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import GND, revisited

from distilltool import groundtruth
from distilltool.datasets import open_dataset
from distilltool.errors import DistillError
from distilltool.groundtruth import read_kept, read_pickle

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder"),
]
BUILDS_ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


class Runs:
    """A pickle that calls something when it is loaded."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.function, self.words = function, words

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.words


def array_state(shape: bytes, code: bytes, data: bytes) -> bytes:
    """A pickled array with what is given for its shape, its dtype's code and its data."""
    kind = (
        b"cnumpy\ndtype\nU"
        + bytes([len(code)])
        + code
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    )
    return BUILDS_ARRAY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb."


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        {"gnd": GND, "imlist": ["a", "b"], "n": np.int64(7), "x": np.float32(0.5)},
        [np.arange(6).reshape(2, 3), np.arange(6.0).reshape(3, 2).T, np.zeros((0, 2), np.uint8), np.array(True)],
        [np.array([1, 2], ">i4"), np.asfortranarray(np.array([[1, 2], [3, 4]], np.int16))],
        np.array([[1, [2, 3]], [4, [5]]], object),
        np.asfortranarray(np.array([[1, "a"], [4, None]], object)),
        [None, True, -(2**70), "é", (1, 2.5), {"a": []}],
    ],
)
def test_what_ground_truth_is_made_of_is_read(value: Any, protocol: int, tmp_path: Path) -> None:
    """The same as numpy itself makes of it, as lists."""
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(value, protocol=protocol))

    def lists(one: Any) -> Any:
        if isinstance(one, np.ndarray | np.generic):
            return lists(one.tolist())
        if isinstance(one, dict):
            return {key: lists(inner) for key, inner in one.items()}
        return [lists(inner) for inner in one] if isinstance(one, list | tuple) else one

    assert read_pickle(tmp_path / "g.pkl") == lists(value)


def test_an_array_file_of_objects(tmp_path: Path) -> None:
    """`np.save` pickles objects; `np.load` would run what is in them."""
    rows = np.empty((2, 2), object)
    rows[0], rows[1] = [0, [0, 1]], [1, [1]]
    np.save(tmp_path / "g.npy", rows, allow_pickle=True)
    assert read_pickle(tmp_path / "g.npy") == [[0, [0, 1]], [1, [1]]]
    np.save(tmp_path / "n.npy", np.zeros(3))
    with pytest.raises(DistillError, match="no pickle"):
        read_pickle(tmp_path / "n.npy")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call", [(os.system, "touch ran"), (eval, "open('ran', 'w')"), (os.mkdir, "ran"), (getattr, np, "array")]
)
def test_nothing_is_called(
    call: tuple[Any, ...], protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle may name any function: the file is refused and the function has not run."""
    monkeypatch.chdir(tmp_path)
    try:
        data = pickle.dumps({"gnd": Runs(*call)}, protocol=protocol)
    except TypeError:  # a module does not pickle
        data = b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR."
    Path("g.pkl").write_bytes(data)
    with pytest.raises(DistillError, match="calls|makes objects"):
        read_pickle(Path("g.pkl"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        b"\x80\x02",
        b"\x93NUMPY\x01\x00",
        pickle.dumps(GND)[:-9],
        b"\x80\x02cnumpy\nndarray\n.",  # the type itself
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x02cnumpy.core.multiarray\nfrombuffer\n.",
        b"\x80\x02cdistilltool.groundtruth\nread_pickle\nU\x01x\x85R.",
        b"\x80\x04\x8c\x05numpy\x94\x8c\x0fndarray.tofile\x94\x93.",
        b"(ios\nsystem\nS'touch ran'\n.".replace(b"(i", b"(S'touch ran'\ni"),
        b"\x80\x02" + b"r" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of 64 GB
        b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # a text of a terabyte
        array_state(b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", b"O8", b"]"),  # an array that its list does not fill
        array_state(b"K\x01\x85", b"O8", b"U\x08abcdefgh"),  # addresses in place of objects
        array_state(b"K\x01\x85", b"V8", b"U\x08abcdefgh"),
        array_state(b"J\xff\xff\xff\xff\x85", b"i8", b"U\x00"),
        array_state(b"K\x02\x85", b"i8", b"U\x08abcdefgh"),
        b"\x80\x02G\x7f\xf8\x00\x00\x00\x00\x00\x00.",  # NaN
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R.",
    ],
)
def test_damaged_and_hostile_files_are_one_line(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says which file, no traceback, and nothing done."""
    monkeypatch.chdir(tmp_path)
    Path("g.pkl").write_bytes(data)
    with pytest.raises(DistillError) as raised:
        read_pickle(Path("g.pkl"))
    assert "g.pkl is not read as ground truth" in raised.value.message and "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.pkl"]


def test_lists_that_hold_each_other_do_not_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes that are 2^40 lists once written out, and one that holds itself."""
    monkeypatch.setattr(groundtruth, "MOST_VALUES", 10_000)
    doubled: list[Any] = []
    for _ in range(40):
        doubled = [doubled, doubled]
    round_: list[Any] = []
    round_.append(round_)
    for value in (doubled, round_):
        (tmp_path / "g.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(DistillError, match="unfolds"):
            read_pickle(tmp_path / "g.pkl")


def test_it_is_kept_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once; a changed pickle is read anew; the data's own folder is left as it is."""
    root = revisited(tmp_path / "data", "roxford5k")
    path, keep = root / "gnd_roxford5k.pkl", tmp_path / "kept"
    before = sorted(root.iterdir())
    first = read_kept(path, keep)
    (kept,) = keep.iterdir()
    assert json.loads(kept.read_text()) == first == pickle.loads(path.read_bytes())
    monkeypatch.setattr(groundtruth, "read_pickle", lambda _: pytest.fail("read again"))
    assert read_kept(path, keep) == first
    monkeypatch.undo()
    path.write_bytes(pickle.dumps({"gnd": [], "imlist": [], "qimlist": []}))
    assert read_kept(path, keep)["gnd"] == []
    assert len(list(keep.iterdir())) == 2 and sorted(root.iterdir()) == before
    (tmp_path / "file").touch()
    assert read_kept(path, tmp_path / "file")["gnd"] == []  # no folder, nothing kept, read all the same


@pytest.mark.parametrize(
    "change",
    [
        {"gnd": GND[:2]},
        {"imlist": ["../../secret"] * 8},
        {"imlist": ["/etc/x"] * 8},
        {"imlist": ["a"] * 3},  # fewer images than the lists name
        {"gnd": [{**GND[0], "easy": [-1]}, *GND[1:]]},
        {"gnd": [{**GND[0], "bbx": [1, 2, 3]}, *GND[1:]]},
        {"gnd": [{"bbx": [1, 2, 3, 4]}] * 3},
        {"qimlist": [1, 2, 3]},
        {"gnd": 5},
    ],
)
def test_a_ground_truth_that_fits_no_images_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    root = revisited(tmp_path, "roxford5k")
    path = root / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **change}))
    with pytest.raises(DistillError, match="gnd_roxford5k.pkl"):
        open_dataset(root)


@pytest.mark.parametrize("name", [pytest.param(name, marks=REAL) for name in ("roxford5k", "rparis6k")])
def test_the_real_ground_truth(name: str, tmp_path: Path) -> None:
    """All of it, as pickle itself reads it, in the rows of the data set; no image is needed for that."""
    source = DATA / "revisitop" / f"gnd_{name}.pkl"
    real = pickle.loads(source.read_bytes())
    found = open_dataset(source.parent, name, tmp_path)
    images, asked = {"roxford5k": 4993, "rparis6k": 6322}[name], 70
    assert (sum(found.query), sum(found.gallery), len(found.paths)) == (asked, images, asked + images)
    for at, gnd in enumerate(real["gnd"]):
        assert found.paths[at].stem == real["qimlist"][at]
        assert found.boxes is not None and np.abs(np.array(found.boxes[at]) - gnd["bbx"]).max() <= 0.5
        for level, right, ignored in (
            ("easy", gnd["easy"], gnd["junk"] + gnd["hard"]),
            ("medium", gnd["easy"] + gnd["hard"], gnd["junk"]),
            ("hard", gnd["hard"], gnd["junk"] + gnd["easy"]),
        ):
            truth = found.truth[level]
            assert [row - asked for row in truth.positives[at]] == sorted(right)
            assert [row - asked for row in truth.ignored[at]] == sorted(ignored)
    assert [path.stem for path in found.paths[asked:]] == real["imlist"]
    assert json.loads(next(tmp_path.iterdir()).read_text()) == real


@pytest.mark.parametrize("name", [pytest.param("corridor", marks=REAL)])
def test_the_real_list_of_places(name: str) -> None:
    """A pickle of Python 2 inside an array file; it says what a tolerance of two frames says."""
    listed, tolerant = (open_dataset(DATA / name, one) for one in ("paired", "paired:frames=2"))
    assert sum(listed.query) == sum(listed.gallery) == 111
    for ours, theirs in zip(tolerant.truth[""].positives, listed.truth[""].positives, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_reader_is_not_the_ordinary_one() -> None:
    """The files above would run in it."""
    data = pickle.dumps(Runs(len, "four"))
    assert pickle.loads(data) == 4
    with pytest.raises(pickle.UnpicklingError):
        groundtruth._Reader(io.BytesIO(data)).load()

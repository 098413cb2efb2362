"""The batch size: doubled while that pays, halved where memory ends, and every image answered once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import onnx_teacher, photo_folder
from onnx import TensorProto, helper, numpy_helper

from distilltool import images
from distilltool.errors import OutOfMemory
from distilltool.ledger import Ledger
from distilltool.pace import START, Pace
from distilltool.progress import Silent
from distilltool.stages.query import ask
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher

CPU = "CPUExecutionProvider"
PLAIN = ("scale=1/255", "mean=0", "std=1")


def test_doubles_while_it_pays() -> None:
    """Up to the ceiling of a CPU, and no further."""
    pace, seen = Pace(None, CPU, None), []
    for _ in range(6):
        seen.append(pace.size)
        pace.went(pace.size, pace.size / 100)
    assert seen == [8, 16, 32, 64, 64, 64] and pace.largest == 64
    assert Pace(None, "CUDAExecutionProvider", None).largest == 512


def test_goes_back_where_it_does_not_pay() -> None:
    """A larger batch that is slower by a tenth is the last of its size."""
    pace = Pace(None, CPU, None)
    pace.went(8, 8 / 100)
    pace.went(16, 16 / 80)
    assert pace.size == 8
    pace.went(8, 8 / 1000)
    assert pace.size == 8, "once is enough"


def test_a_part_of_a_batch_decides_nothing() -> None:
    pace = Pace(None, CPU, None)
    pace.went(3, 0.001)
    assert pace.size == START


def test_memory_halves_it_for_good() -> None:
    """Never again as many as did not fit."""
    pace = Pace(None, CPU, None)
    for _ in range(3):
        pace.went(pace.size, pace.size / 100)
    pace.too_much(64)
    assert (pace.size, pace.largest) == (32, 32)
    pace.went(32, 0.1)
    assert pace.size == 32


@pytest.mark.parametrize(
    ("wanted", "step", "size"), [(5, None, 5), (5, 4, 4), (2, 4, 4), (None, 3, 6), (100, None, 100)]
)
def test_what_was_asked_for_and_what_the_graph_takes(wanted: int | None, step: int | None, size: int) -> None:
    """--batch holds; a graph of fixed batch is given whole ones."""
    pace = Pace(wanted, CPU, step)
    assert pace.size == size
    if wanted is not None:
        pace.went(size, 0.001)
        assert pace.size == size


class Watched(OnnxEmbedder):
    """A real teacher that notes how many images it was given at once, and fails above a limit."""

    sizes: list[int]
    limit = 10**6

    def embed(self, images_NHWC: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images_NHWC))
        if len(images_NHWC) > self.limit:
            raise OutOfMemory("too much", "less")
        return super().embed(images_NHWC)


def asked(tmp_path: Path, batch: int | None, fixed: int | str = "N", count: int = 150, limit: int = 10**6) -> list[int]:
    """Ask a teacher about `count` images; the sizes it was asked in, after checking that each has one answer."""
    path = onnx_teacher(tmp_path / "t.onnx", batch=fixed)
    opened = open_teacher(path, TeacherOptions(preprocess=PLAIN))
    teacher = Watched(opened.model, opened.preprocess)
    teacher.sizes, teacher.limit = [], limit
    stock = images.take_stock(photo_folder(tmp_path / "imgs", count, size=(32, 32), endings=("bmp",)))
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        number = ledger.teacher(teacher.key)
        done = ask(teacher, stock.photos, ledger, number, None, batch, Silent())
        hashes = [photo.sha256 for photo in stock.photos]
        found = ledger.vectors(number, hashes)
        assert done.queried == len(found) == count == ledger.spent(teacher.key.sha256)
    rows = np.stack([images.prepare(photo.path, teacher.preprocess) for photo in stock.photos])
    np.testing.assert_allclose(np.stack([found[one] for one in hashes]), opened.embed(rows), atol=1e-5, rtol=1e-4)
    return teacher.sizes


@pytest.mark.alone
def test_query_doubles(tmp_path: Path) -> None:
    """Eight, then more as long as that pays; every image is asked about once."""
    sizes = asked(tmp_path, None)
    assert sizes[0] == START and max(sizes) > START and sum(sizes) == 150


def test_query_keeps_to_batch(tmp_path: Path) -> None:
    assert asked(tmp_path, 7, count=20) == [7, 7, 6]


def test_query_with_a_fixed_batch(tmp_path: Path) -> None:
    """Multiples of the graph's own but for the last."""
    sizes = asked(tmp_path, None, fixed=4, count=50)
    assert all(size % 4 == 0 for size in sizes[:-1]) and sum(sizes) == 50


@pytest.mark.alone
def test_query_goes_on_with_half(tmp_path: Path) -> None:
    """What did not fit is asked about in halves, what follows in batches that fit."""
    sizes = asked(tmp_path, None, count=100, limit=12)
    first = next(at for at, size in enumerate(sizes) if size > 12)
    assert sizes[first + 1 : first + 3] == [8, 8] and max(sizes[first + 1 :]) <= 12
    assert sum(size for size in sizes if size <= 12) == 100


def hungry(path: Path) -> Path:
    """A model that needs 25 MB for each image of a batch at one moment: 64 rows of 100,000 numbers."""
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    constants = {
        "wide": rng.normal(size=(3, 6_400_000)).astype(np.float32),
        "rows": np.array([0, 16, -1], np.int64),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "wide"], ["large"]),
        helper.make_node("Tanh", ["large"], ["bent"]),
        helper.make_node("Reshape", ["bent", "rows"], ["shaped"]),
        helper.make_node("ReduceMean", ["shaped"], ["y"], axes=[2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [value("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(one, name) for name, one in constants.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
from distilltool import images
from distilltool.ledger import Ledger
from distilltool.progress import Silent
from distilltool import pace
from distilltool.stages.query import ask
pace.WORSE = 0.0  # a busy machine must not end the doubling before memory does
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher

class Watched(OnnxEmbedder):
    sizes, refused = [], []
    def embed(self, rows):
        try:
            found = super().embed(rows)
        except Exception as error:
            self.refused.append((len(rows), type(error).__name__))
            raise
        self.sizes.append(len(rows))
        return found

class Heard(Silent):
    notes = []
    def note(self, text):
        self.notes.append(text)

model, folder, store = map(Path, sys.argv[1:])
opened = open_teacher(model, TeacherOptions(preprocess=("scale=1/255", "mean=0", "std=1")), threads=1)
teacher = Watched(opened.model, opened.preprocess)
stock = images.take_stock(images.find(folder))
teacher.embed(np.zeros((1, 16, 16, 3), np.uint8)); teacher.sizes.clear()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 1_000_000_000
with Ledger.open(store) as ledger:
    number = ledger.teacher(teacher.key)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    done = ask(teacher, stock.photos, ledger, number, None, None, Heard())
    found = ledger.vectors(number, [one.sha256 for one in stock.photos])
    spent = ledger.spent(teacher.key.sha256)
rows = np.stack([images.prepare(one.path, teacher.preprocess) for one in stock.photos[:4]])
near = bool(np.allclose(np.stack([found[one.sha256] for one in stock.photos[:4]]), opened.embed(rows), atol=1e-5))
print(json.dumps({"sizes": teacher.sizes, "refused": teacher.refused, "asked": done.queried, "answers": len(found),
                  "spent": spent, "near": near, "notes": Heard.notes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_memory_that_really_ends(tmp_path: Path) -> None:
    """Under a limit of 1 GB more, a batch too large fails in onnxruntime itself: halved, and each image asked once."""
    import json

    photo_folder(tmp_path / "imgs", 120, size=(16, 16), endings=("bmp",))
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    words = [sys.executable, str(script), str(hungry(tmp_path / "t.onnx")), str(tmp_path / "imgs"), str(tmp_path / "l")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["refused"] and {kind for _, kind in said["refused"]} == {"OutOfMemory"}, said
    smallest = min(size for size, _ in said["refused"])
    assert max(said["sizes"]) < smallest and "half as many" in said["notes"][0]
    assert said["asked"] == said["answers"] == said["spent"] == sum(said["sizes"]) == 120 and said["near"]

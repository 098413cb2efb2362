"""What a model is fed when it is timed: by its signature, by what is said, by real images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import onnx_teacher, photo_folder
from onnx import TensorProto, helper, numpy_helper

from distilltool import images
from distilltool.errors import DistillError
from distilltool.feeds import FREE_SIDE, Subject, Wish, feeds_of, open_subject
from distilltool.preprocess import METADATA_KEY


def fed(subject: Subject, batch: int = 1, **wish: Sequence[object]) -> dict[str, np.ndarray]:
    """The inputs, proved by running the model on them."""
    found = feeds_of(subject, batch, Wish(**{name: tuple(value) for name, value in wish.items()}))  # type: ignore[arg-type]
    ort.InferenceSession(subject.path, providers=["CPUExecutionProvider"]).run(None, found)
    return found


def text_model(path: Path, words: int = 7) -> Path:
    """Token ids and a mask → a vector: an embedding table that breaks on an id it does not hold."""
    table = np.random.default_rng(0).normal(size=(words, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["ids"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["kept"]),
        helper.make_node("ReduceMean", ["kept", "tokens"], ["answer"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "sequence"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "sequence"]),
        ],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "tokens"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_images_by_signature(tmp_path: Path, layout: str, dtype: str) -> None:
    subject = open_subject(onnx_teacher(tmp_path / "m.onnx", layout=layout, dtype=dtype))  # type: ignore[arg-type]
    found = fed(subject, 3)["images"]
    assert found.shape == ((3, 3, 32, 32) if layout == "NCHW" else (3, 32, 32, 3))
    assert found.dtype == np.dtype(dtype) and len(np.unique(found)) > 100


def test_free_sides(tmp_path: Path) -> None:
    """224 where nothing says more; then metadata, then what the user says."""
    path = onnx_teacher(tmp_path / "m.onnx", size=None)
    assert fed(open_subject(path))["images"].shape == (1, 3, 224, 224)
    said = '{"size": [64, 48], "scale": 0.00392156862745098}'
    path = onnx_teacher(tmp_path / "n.onnx", size=None, metadata={METADATA_KEY: said})
    assert fed(open_subject(path))["images"].shape == (1, 3, 64, 48)
    assert fed(open_subject(path), preprocess=["size=32"])["images"].shape == (1, 3, 32, 32)
    assert fed(open_subject(path), 2, shapes=["images=Nx3x16x20"])["images"].shape == (2, 3, 16, 20)


def test_whole_numbers_are_in_range(tmp_path: Path) -> None:
    """Token ids stay within the table, free axes of one name are as long, flags are off."""
    found = fed(open_subject(text_model(tmp_path / "t.onnx")), 2)
    assert found["ids"].shape == found["mask"].shape == (2, FREE_SIDE)
    assert found["ids"].dtype == np.int32 and set(np.unique(found["ids"])) == set(range(7))
    found = fed(open_subject(tmp_path / "t.onnx"), 2, shapes=["ids=Nx5", "mask=Nx5"], settings=["mask=true"])
    assert found["ids"].shape == (2, 5) and found["mask"].all()


def test_real_images(tmp_path: Path) -> None:
    """As the model wants them, again from the beginning where there are too few."""
    photos = photo_folder(tmp_path / "imgs", 2)
    subject = open_subject(onnx_teacher(tmp_path / "m.onnx"))
    found = fed(subject, 3, preprocess=["unit"], photos=photos)["images"]
    assert found.shape == (3, 3, 32, 32) and 0 <= found.min() < found.max() <= 1
    assert (found[0] == found[2]).all() and not (found[0] == found[1]).all()
    with pytest.raises(DistillError, match="nothing says how"):
        fed(subject, 1, photos=images.find(tmp_path / "imgs"))


def test_a_fixed_batch(tmp_path: Path) -> None:
    subject = open_subject(onnx_teacher(tmp_path / "m.onnx", batch=4))
    assert subject.batch == 4 and fed(subject, 4)["images"].shape == (4, 3, 32, 32)
    with pytest.raises(DistillError, match=r"takes batches of 4 alone, not of 8.*--batch 4"):
        feeds_of(subject, 8, Wish())
    assert open_subject(onnx_teacher(tmp_path / "n.onnx")).batch is None


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"settings": ("nope=1",)}, "no input 'nope'"),
        ({"shapes": ("images=Nx3x0x4",)}, "is no shape"),
        ({"shapes": ("images=Nx3x16x16",)}, "does not fit"),
        ({"shapes": ("images=N",)}, "does not fit"),
        ({"shapes": ("images",)}, "is no setting"),
    ],
)
def test_wishes_that_cannot_be(tmp_path: Path, wish: dict[str, tuple[str, ...]], said: str) -> None:
    subject = open_subject(onnx_teacher(tmp_path / "m.onnx"))
    with pytest.raises(DistillError, match=said):
        feeds_of(subject, 1, Wish(**wish))  # type: ignore[arg-type]


def test_linked_weights_are_found(tmp_path: Path) -> None:
    """A hub's cache keeps weights elsewhere and links to them."""
    onnx_teacher(tmp_path / "blobs" / "m.onnx", external=True)
    (tmp_path / "hub").mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "hub" / name).symlink_to(tmp_path / "blobs" / name)
    assert open_subject(tmp_path / "hub" / "m.onnx").relocated() is not None
    assert open_subject(tmp_path / "blobs" / "m.onnx").relocated() is None

"""Resizing inside a file, beside Pillow's."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import drawn
from onnx import TensorProto, helper
from PIL import Image
from test_chain import run, run_dir, work  # noqa: F401  fixtures

from distilltool import deploy
from distilltool.any_size import any_size
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
WAYS = {
    "stretch": {"size": (64, 48)},
    "cut": {"size": (64, 64), "crop_pct": 0.8},
    "cut to a broken size": {"size": (64, 64), "crop_pct": 0.9},
    "shortest": {"size": (64, 64), "resize": "shortest", "resize_to": 73},
    "bicubic": {"size": (64, 96), "interpolation": "bicubic"},
    "larger": {"size": (320, 320), "interpolation": "bicubic"},
    "nearest": {"size": (60, 60), "interpolation": "nearest"},
}
SIZES = [(150, 90), (61, 200), (97, 97), (64, 64)]


def bytes_through(height: int, width: int) -> onnx.ModelProto:
    """A student that gives back its images, so that resizing alone is seen."""
    node = helper.make_node("Identity", ["images"], ["embedding"])
    ends = [
        helper.make_tensor_value_info(one, TensorProto.UINT8, ["n", height, width, 3])
        for one in ("images", "embedding")
    ]
    graph = helper.make_graph([node], "through", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("way", WAYS)
def test_pixels_are_pillows(way: str) -> None:
    """Mean difference over an image of what the file resizes and what deploy.py resizes."""
    how = Preprocess(layout="NHWC", dtype="uint8", **WAYS[way])  # type: ignore[arg-type]
    model = any_size(bytes_through(*how.size), how)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    apart = []
    for at, (width, height) in enumerate(SIZES):
        image = drawn(at).resize((width, height), Image.Resampling.BICUBIC)
        (found,) = session.run(None, {"images": np.asarray(image)[None]})
        wanted = how.prepare(image)
        assert found.shape == (1, *wanted.shape)
        apart.append(np.abs(found[0].astype(float) - wanted).mean())
    assert max(apart) <= (2.5 if "broken" in way else 0.3)  # drawn edges are harder than those of photographs


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
@pytest.mark.parametrize("way", ["stretch", "cut", "cut to a broken size", "shortest", "bicubic"])
def test_photographs_are_pillows_to_one_in_255(way: str) -> None:
    """Mean over photographs, at the size that students have."""
    given = {**WAYS[way], "size": (128, 128), **({"resize_to": 146} if way == "shortest" else {})}
    how = Preprocess(layout="NHWC", dtype="uint8", **given)  # type: ignore[arg-type]
    session = ort.InferenceSession(any_size(bytes_through(128, 128), how).SerializeToString())
    apart = []
    for path in sorted((DATA / "caltech/train").glob("*.jpg"))[:20]:
        image = deploy.open_rgb(path)
        (found,) = session.run(None, {"images": np.asarray(image)[None]})
        apart.append(np.abs(found[0].astype(float) - how.prepare(image)).mean())
    assert np.mean(apart) <= 1.0


def test_a_batch_of_one_size_is_resized_alike() -> None:
    how = Preprocess(size=(32, 32), layout="NHWC", dtype="uint8")
    session = ort.InferenceSession(any_size(bytes_through(32, 32), how).SerializeToString())
    rows = np.stack([np.asarray(drawn(seed).resize((80, 50))) for seed in range(3)])
    together = session.run(None, {"images": rows})[0]
    alone = np.concatenate([session.run(None, {"images": row[None]})[0] for row in rows])
    assert np.array_equal(together, alone)


def test_a_filter_that_onnx_lacks_is_refused() -> None:
    how = Preprocess(size=(32, 32), layout="NHWC", dtype="uint8", interpolation="lanczos")
    with pytest.raises(DistillError, match="lanczos"):
        any_size(bytes_through(32, 32), how)


@pytest.mark.slow
def test_the_exported_file_takes_photographs_as_they_are(run_dir: Path, work: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["export", str(run_dir), "--bundle", str(tmp_path), "--seconds", "1", "--precision", "fp32", "--json"]
    code, out, err = run(tmp_path, *words, "--image", "any")
    assert code == 0, err
    plain, whole = json.loads(out)["variants"]
    assert (whole["file"], whole["image"]) == ("student.any.onnx", "any")
    assert whole["latency"][0]["provider"] == "CPUExecutionProvider" and whole["latency"][0]["p50_ms"] > 0
    assert whole["overlap@10"]["value"] > 0.9 and whole["parity"]["cosine_min"] > 0.99
    photos = sorted((work / "imgs").glob("photo*"))[:5]
    one, other = (deploy.Student(tmp_path / file["file"]).embed(photos) for file in (plain, whole))
    assert (one * other).sum(axis=1).min() > 0.99
    card = (tmp_path / "card.md").read_text()
    assert whole["file"] in card and "| student fp32, one photograph, resized inside | " in card
    code, _, err = run(tmp_path, "verify", str(tmp_path))
    assert code == 0, err
    code, _, err = run(tmp_path, *words, "--image", "some")
    assert code == 2
    shutil.copytree(run_dir, tmp_path / "lanczos")
    card = tmp_path / "lanczos" / "student.json"
    card.write_text(card.read_text().replace('"bilinear"', '"lanczos"'))
    words = ["export", str(tmp_path / "lanczos"), "--bundle", str(tmp_path / "none"), "--image", "any"]
    code, _, err = run(tmp_path, *words)
    assert code == 1 and "lanczos" in err and not (tmp_path / "none").exists()  # said before anything is made

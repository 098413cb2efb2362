"""The scripts of the landmark experiment: checkpoints of cnnimageretrieval-pytorch, and its images."""

import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import loaded, photo_folder
from numpy.typing import NDArray
from torch import nn

import distilltool
from distilltool.preprocess import METADATA_KEY, Preprocess
from distilltool.views import POWER_KEY

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # they import each other, as when they are run
script = loaded(EXAMPLES / "export_retrieval_sfm.py")
subset = loaded(EXAMPLES / "retrieval_sfm_subset.py")


def checkpoint(path: Path, architecture: str = "resnet18", *, whitening: bool = False, **meta: Any) -> dict[str, Any]:
    """A file as cirtorch's training keeps it, with random weights; what is in it."""
    torch.manual_seed(3)
    features = nn.Sequential(*script.convolutions(architecture))
    for layer in features.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    state = OrderedDict((f"features.{name}", value) for name, value in features.state_dict().items())
    with torch.inference_mode():
        dim = features.eval()(torch.rand(1, 3, 64, 64)).shape[1]
    if meta.get("pooling", "gem").startswith("gem"):
        state["pool.p"] = torch.rand(dim) + 2.5 if meta.get("pooling") == "gemmp" else torch.tensor([2.75])
    if whitening:
        state["whiten.weight"], state["whiten.bias"] = torch.randn(dim, dim) / 20, torch.randn(dim) / 50
    rng = np.random.default_rng(1)
    lw = {"m": rng.normal(0, 0.02, (dim, 1)), "P": rng.normal(0, 1, (dim, dim))}
    said = {
        "architecture": architecture,
        "local_whitening": False,
        "pooling": "gem",
        "regional": False,
        "whitening": whitening,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "outputdim": dim,
        "Lw": {"retrieval-SfM-120k": {"ss": lw, "ms": lw}},
    }
    found = {"epoch": 3, "meta": {**said, **meta}, "state_dict": state}
    torch.save(found, path)
    return {**found, "features": features.eval()}


def exported(tmp_path: Path, *flags: str) -> Path:
    """The script as a user runs it."""
    subprocess.run(
        [sys.executable, EXAMPLES / "export_retrieval_sfm.py", tmp_path / "net.pth", tmp_path / "net.onnx", *flags],
        check=True,
    )
    return tmp_path / "net.onnx"


def by_hand(found: dict[str, Any], images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pooling, whitening and length 1 as their papers define them, in numpy, behind torch's convolutions."""
    with torch.inference_mode():
        maps = found["features"](torch.from_numpy(images)).numpy().astype(np.float64)
    flat = maps.reshape(*maps.shape[:2], -1)
    state, pooling = found["state_dict"], found["meta"]["pooling"]
    if pooling == "mac":
        pooled = flat.max(axis=2)
    elif pooling == "spoc":
        pooled = flat.mean(axis=2)
    else:
        power = state["pool.p"].numpy().astype(np.float64)
        pooled = np.mean(np.maximum(flat, 1e-6) ** power.reshape(-1, 1), axis=2) ** (1 / power)
    vectors = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    if "whiten.weight" in state:
        vectors = vectors @ state["whiten.weight"].numpy().T + state["whiten.bias"].numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def run(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made: NDArray[np.float32] = session.run(None, {"images": images})[0]
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "pooling", "whitening"),
    [
        ("resnet18", "gem", False),
        ("resnet18", "gem", True),
        ("resnet18", "gemmp", False),
        ("resnet18", "spoc", False),
        ("vgg11", "mac", False),
        ("resnet101", "gem", False),
    ],
)
def test_a_checkpoint_becomes_onnx(architecture: str, pooling: str, whitening: bool, tmp_path: Path) -> None:
    """The same vectors as torch's convolutions with the rest by hand, at sizes and batches of any kind."""
    found = checkpoint(tmp_path / "net.pth", architecture, whitening=whitening, pooling=pooling)
    path = exported(tmp_path)
    for count, height, width in ((2, 96, 128), (1, 201, 67)):
        images = np.random.default_rng(height).normal(size=(count, 3, height, width)).astype(np.float32)
        assert run(path, images) == pytest.approx(by_hand(found, images), abs=1e-4)
    props = {one.key: one.value for one in onnx.load(path, load_external_data=False).metadata_props}
    how = Preprocess.from_dict(json.loads(props[METADATA_KEY]))
    assert (how.size, how.resize, how.mean) == ((1024, 1024), "longest", (0.485, 0.456, 0.406))
    if pooling == "gem" and not whitening:  # as test.py of cirtorch chooses how scales are combined
        assert float(props[POWER_KEY]) == pytest.approx(2.75)
    else:
        assert POWER_KEY not in props


@pytest.mark.slow
def test_the_whitening_of_a_checkpoint(tmp_path: Path) -> None:
    """P (x − m), then length 1, behind the network; --size is the longest side."""
    found = checkpoint(tmp_path / "net.pth")
    path = exported(tmp_path, "--whitening", "retrieval-SfM-120k", "--size", "362")
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    lw = found["meta"]["Lw"]["retrieval-SfM-120k"]["ss"]
    expected = (by_hand(found, images) - lw["m"].T) @ lw["P"].T
    assert run(path, images) == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-4)
    photo_folder(tmp_path / "photos", 4, size=(500, 300))
    report = distilltool.query(path, tmp_path / "photos", store=tmp_path / "l.sqlite")
    assert report.teacher.preprocess["size"] == [362, 362] and report.queried == 4


def test_files_of_years_ago_are_read(tmp_path: Path) -> None:
    """The public ones are of torch and numpy before 1.0 and 2.0: no zip archive, arrays by their old name, and no count
    of batches beside the statistics of batch-norm."""
    found = checkpoint(tmp_path / "net.pth")
    state = OrderedDict((key, one) for key, one in found["state_dict"].items() if "num_batches" not in key)
    kept = {"meta": found["meta"], "state_dict": state}
    torch.save(kept, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "net.pth").read_bytes()
    assert b"cnumpy._core.multiarray\n" in data and not data.startswith(b"PK")
    (tmp_path / "net.pth").write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    meta, read = script.read(tmp_path / "net.pth")
    assert np.array_equal(
        meta["Lw"]["retrieval-SfM-120k"]["ms"]["P"], found["meta"]["Lw"]["retrieval-SfM-120k"]["ms"]["P"]
    )
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        made = script.build(meta, read, None)(torch.from_numpy(images)).numpy()
    assert made == pytest.approx(by_hand(found, images), abs=1e-5)


class Evil:
    """Runs when it is unpickled by whoever runs what a pickle says."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 0",)


def mislabelled(path: Path) -> None:
    """Weights of another network than the file says."""
    found = checkpoint(path)
    torch.save({"meta": {**found["meta"], "architecture": "resnet34"}, "state_dict": found["state_dict"]}, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"nothing"), "cannot be read|holds more than"),
        (lambda path: torch.save({"meta": {"x": Evil()}, "state_dict": {}}, path), "could run anything.*system"),
        (lambda path: torch.save({"weights": torch.zeros(2)}, path), "has no meta and state_dict"),
        (lambda path: checkpoint(path, pooling="rmac"), "pooling 'rmac' .* is not known here"),
        (lambda path: checkpoint(path, regional=True), "regional is not known here"),
        (lambda path: mislabelled(path), "do not fit resnet34"),
    ],
)
def test_other_checkpoints_are_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    """One line with what to do, and nothing of the file is run."""
    spoil(tmp_path / "net.pth")
    with pytest.raises(SystemExit, match=said):
        meta, state = script.read(tmp_path / "net.pth")
        script.build(meta, state, None)


def test_a_whitening_that_is_not_there(tmp_path: Path) -> None:
    """The names that are there are told."""
    checkpoint(tmp_path / "net.pth")
    meta, state = script.read(tmp_path / "net.pth")
    with pytest.raises(SystemExit, match="has no whitening 'mine': it has retrieval-SfM-120k"):
        script.build(meta, state, "mine")


@pytest.fixture
def sfm(tmp_path: Path) -> Path:
    """Twenty images as retrieval-SfM-120k lays them out."""
    root = tmp_path / "retrieval-SfM-120k"
    names = [f"{at:02d}ab{at * 7 % 20:02d}cd{at:02d}" for at in range(20)]
    for name in names:
        path = subset.place(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    lists = {"train": {"cids": names[:15]}, "val": {"cids": names[15:]}}
    (root / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(lists))
    (root / "retrieval-SfM-120k-whiten.pkl").write_bytes(pickle.dumps({"cids": names[10:]}))
    return root


def test_a_subset_is_drawn_and_linked(sfm: Path, tmp_path: Path) -> None:
    """Each name once, the same for the same seed, readable by its link, and the same call changes nothing."""
    assert subset.link(sfm, tmp_path / "out", "train", 6, 0) == 6
    made = sorted((tmp_path / "out").iterdir())
    assert len(made) == 6 and all(one.read_bytes().decode() == one.stem for one in made)
    assert subset.link(sfm, tmp_path / "out", "train", 6, 0) == 6
    assert subset.link(sfm, tmp_path / "other", "train", 6, 1) == 6
    assert {one.name for one in made} != {one.name for one in (tmp_path / "other").iterdir()}
    assert subset.link(sfm, tmp_path / "whiten", "whiten", 100, 0) == 10
    train = set(subset.names(sfm, "train"))
    assert {one.stem for one in made} <= train and not train & set(subset.names(sfm, "val"))


def test_a_subset_that_cannot_be_made(sfm: Path, tmp_path: Path) -> None:
    """Other files in the way, images that are not unpacked, a list that is none."""
    subset.link(sfm, tmp_path / "out", "train", 6, 0)
    with pytest.raises(distilltool.errors.DistillError, match="holds other files"):
        subset.link(sfm, tmp_path / "out", "train", 3, 0)
    subset.place(sfm, subset.names(sfm, "val")[0]).unlink()
    with pytest.raises(distilltool.errors.DistillError, match="1 images are not there"):
        subset.link(sfm, tmp_path / "val", "val", 10, 0)
    (sfm / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps({"train": {"cids": [1, 2]}}))
    with pytest.raises(distilltool.errors.DistillError, match="holds no names"):
        subset.link(sfm, tmp_path / "new", "train", 3, 0)

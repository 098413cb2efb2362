"""The whole chain with a real teacher on real photographs, where they are at hand."""

import os
from pathlib import Path

import pytest

import distilltool

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 of the unlabelled photographs, and three unseen classes of 12 in class folders, as links."""
    root = tmp_path_factory.mktemp("real")
    (root / "train").mkdir()
    for path in sorted((DATA / "caltech/train").glob("*.jpg"))[:200]:
        (root / "train" / path.name).symlink_to(path)
    for folder in sorted((DATA / "caltech/val").iterdir())[:3]:
        (root / "val" / folder.name).mkdir(parents=True)
        for path in sorted(folder.glob("*.jpg"))[:12]:
            (root / "val" / folder.name / path.name).symlink_to(path)
    return root


def test_chain_on_200_photographs(photographs: Path) -> None:
    """MobileNetEdgeTPU as the teacher: query, distill, evaluate, export, all for real."""
    teacher = DATA / "models/mobilenet_edgetpu_fp32.onnx"
    out, store = photographs / "run", photographs / "ledger.sqlite"
    report = distilltool.distill(
        teacher,
        photographs / "train",
        recipe="regression",
        out=out,
        store=store,
        preprocess=["tf"],
        budget=200,
        student="timm:mobilenetv3_small_050",
        input_size=64,
        time_budget=25.0,
    )
    assert report.queries == {"new": 200, "cached": 0, "spent": 200}
    assert report.fidelity.overlap_at_10.value > 0.3
    found = distilltool.evaluate([out], photographs / "val", store=photographs / "evaluation.sqlite")
    teacher_map = found.models[0].metrics["map"].value
    student_map = found.models[1].metrics["map"].value
    assert teacher_map > 0.9, "three classes are easy for this teacher"
    assert 0.34 < student_map < teacher_map, "better than chance, which is about a third"
    exported = distilltool.export(out, seconds=4.0)
    variant = exported.variants[0]
    assert variant.status == "accepted" and variant.parity["cosine_min"] > 0.9999
    speedup = variant.latency[0].speedup
    assert speedup is not None and speedup.low > 5
    again = distilltool.evaluate(
        [out / "bundle/student.onnx"],
        photographs / "val",
        teacher=teacher,
        preprocess=["tf"],
        store=photographs / "evaluation.sqlite",
    )
    assert again.models[1].metrics["map"].value == pytest.approx(student_map, abs=2e-3)


MODELS = {
    "mobilenet_edgetpu_fp32": (["tf"], "embedding", 1280),
    "mobilenet_edgetpu_uint8_qdq": ([], "embedding", 1280),
    "mobilenetv2_fp32": (["imagenet"], "embedding", 1280),
    "mobilenet_v1_embedder_uint8_qdq": ([], None, 1024),
    "squeezenet1.1_three_outputs": (["imagenet"], "embedding", 512),
    "squeezenet1.0_nhwc_batch1": (["tf"], "concat_62", 512),
    "squeezenet1.1_fp16_caffe": (["caffe"], "fire9/concat_1", 512),
    "resnet50v2_stage3": (["imagenet"], "embedding", 1024),
    "mobilefacenet": (["scale=1", "mean=127.5", "std=128"], "output", 128),
    "person_reid_0287": (["scale=1", "mean=0", "std=1", "channels=BGR"], "Identity:0", 256),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_real_model_answers(name: str, photographs: Path, tmp_path: Path) -> None:
    """Both layouts, float32, float16 and uint8, fixed and free batch, quantised, several outputs, odd names."""
    flags, output, dim = MODELS[name]
    report = distilltool.query(
        DATA / f"models/{name}.onnx", photographs / "train", preprocess=flags, budget=20, store=tmp_path / "l.sqlite"
    )
    assert report.queried == 20
    assert report.teacher.dim == dim
    assert output is None or report.teacher.output == output


@pytest.mark.parametrize("name", ["lfs_pointer", "custom_op"])
def test_files_that_are_no_embedders_are_refused(name: str, photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(distilltool.DistillError):
        distilltool.query(
            DATA / f"not_embedders/{name}.onnx",
            photographs / "train",
            preprocess=["imagenet"],
            budget=8,
            store=tmp_path / "l.sqlite",
        )

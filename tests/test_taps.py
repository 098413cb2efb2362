"""Features taken on the way through a graph: what they are, when they are chosen, that they reach the exported file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import photo_folder
from test_chain import PRE, PRE_FLAGS, run
from test_exports import export, network
from test_imported import cosines, grown, opened, spoilt

import distilltool
from distilltool import contest, images, imported, sources, students
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.graph import Graph
from distilltool.progress import Silent
from distilltool.student import Student, embed
from distilltool.students import Start, rebuilt
from distilltool.teacher import TeacherOptions, open_teacher

pytestmark = pytest.mark.slow
SIDE = 96
SHARE = 0.4
QUICK = ("schedule.epochs=2", "schedule.batch=16", "schedule.evaluations=2", "optimiser.lr_finetune=1e-4")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its early part as a teacher of its own, and photographs."""
    root = tmp_path_factory.mktemp("taps")
    path = export(network("resnet18", 0), root / "whole.onnx", torch.rand(2, 3, SIDE, SIDE), new=False)
    model = onnx.load(path)
    early = [one.tensor for one in on_the_way(path)][EARLY]
    part = Graph(model).cut(early)
    del part.graph.output[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info(early, 1, None))
    onnx.save(part, root / "teacher.onnx")
    photo_folder(root / "imgs", 120)
    return root


EARLY = 4  # the tensor that is the teacher, among those on the way


def on_the_way(path: Path) -> tuple[imported.Tap, ...]:
    """Of the whole of a file."""
    return students.on_the_way(grown(opened(path, tuple(PRE))))


def pixels_of(work: Path) -> Any:
    teacher = opened(work / "whole.onnx", tuple(PRE))
    return images.load(sorted((work / "imgs").iterdir()), teacher.preprocess)[0]


def test_what_is_taken_is_what_onnxruntime_has_there(work: Path) -> None:
    """The last features stay; each tap is the mean of the map of that name."""
    teacher = opened(work / "whole.onnx", tuple(PRE))
    backbone, pixels = grown(teacher), pixels_of(work)
    found = students.on_the_way(backbone)
    assert len(found) > EARLY and len({one.tensor for one in found}) == len(found)
    made = embed(Student(students.with_taps(backbone, found), 0, bias=False), pixels, features=True)
    widths = np.cumsum([backbone.width, *(one.width for one in found)])
    assert made.shape[1] == widths[-1]
    last, *earlier = np.split(made, widths[:-1], axis=1)
    assert cosines(last, teacher.embed(pixels)).min() >= 0.9999
    for one, rows in zip(found, earlier, strict=True):
        there = open_teacher(
            work / "whole.onnx", TeacherOptions(preprocess=tuple(PRE), output=one.tensor, pool="avg")
        ).embed(pixels)
        assert cosines(rows, there).min() >= 0.9999, one.tensor


def test_it_is_made_again_from_architecture_and_weights(work: Path, tmp_path: Path) -> None:
    pixels = pixels_of(work)
    backbone = grown(opened(work / "whole.onnx", tuple(PRE)))
    tapped = students.tapped(backbone, students.on_the_way(backbone)[EARLY].tensor, 0.5)
    assert tapped.architecture is not None and tapped.width > backbone.width
    assert [tuple(one.shape) for one in tapped.module.parameters()] == [
        tuple(one.shape) for one in backbone.module.parameters()
    ]
    (tmp_path / "a.onnx").write_bytes(tapped.architecture)
    again = rebuilt(tmp_path / "a.onnx", "start")
    again.module.load_state_dict(tapped.module.state_dict())
    one, other = (embed(Student(each, 0, bias=False), pixels) for each in (tapped, again))
    np.testing.assert_array_equal(one, other)
    lengths = np.linalg.norm(np.split(one, [backbone.width], axis=1)[1], axis=1)
    np.testing.assert_allclose(lengths, 0.5 / np.sqrt(1.25), rtol=1e-5)


def test_of_a_narrow_network_as_many_as_it_makes(work: Path) -> None:
    """Its last features stay as they are, and so does its architecture's promise."""
    teacher = opened(work / "whole.onnx", tuple(PRE))
    photos = tuple(sorted((work / "imgs").iterdir()))
    source = sources.open_source("teacher", teacher, False, [], Silent())
    start = Start(input=max(teacher.preprocess.size), seed=0, source=source, prepared=teacher.preprocess, photos=photos)
    narrow, pixels = students.build("teacher:width=0.5", start), pixels_of(work)
    found, wide = students.on_the_way(narrow), on_the_way(work / "whole.onnx")
    assert [one.tensor for one in found] == [one.tensor for one in wide]
    assert found[0].width < wide[0].width and all(a.width <= b.width for a, b in zip(found, wide, strict=True))
    tapped = students.with_taps(narrow, found)
    made = embed(Student(tapped, 0, bias=False), pixels, features=True)
    assert made.shape[1] == tapped.width == narrow.width + sum(one.width for one in found)
    assert cosines(made[:, : narrow.width], embed(Student(narrow, 0, bias=False), pixels)).min() >= 0.99999


def test_a_share_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    own, other = (np.float32(mean + rng.normal(0, spread, (50, 8))) for mean, spread in ((1, 0.1), (3, 2)))
    gain = contest.balanced(own, other, SHARE)
    one, two = unit(own).var(axis=0).sum(), (gain * unit(other)).var(axis=0).sum()
    assert two / (one + two) == pytest.approx(SHARE, rel=1e-5)


def test_nothing_is_added_to_what_ranks_as_the_teacher(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher itself as its student."""
    monkeypatch.chdir(work)
    changes = [*QUICK, "student.crop_pct=1"]
    distilltool.distill(
        "teacher.onnx",
        "imgs",
        out="same",
        store="l.sqlite",
        preprocess=PRE,
        pool="avg",
        student="teacher",
        changes=changes,
    )
    assert json.loads((work / "same" / "choice.json").read_text())["tap"] == ""


def test_a_better_earlier_tensor_is_found_trained_and_shipped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's own last features say little of a teacher that is its early part; the features there do."""
    monkeypatch.chdir(work)
    words = [word for one in QUICK for word in ("--set", one)]
    flags = [*PRE_FLAGS, *words, "--pool", "avg", "--student", "onnx:whole.onnx,preprocess=tf", "--store", "l.sqlite"]
    code, out, err = run(work, "distill", "teacher.onnx", "imgs", *flags, "--out", "run", "--json")
    assert code == 0, err
    choice = json.loads((work / "run" / "choice.json").read_text())
    assert choice["tap"] in [one.tensor for one in on_the_way(work / "whole.onnx")] and choice["gain"] > 0
    assert "beside its last" in " ".join(err.split())
    student = distilltool.load_student(work / "run")
    assert student.student.width > 512 and json.loads(out)["student"]["dim"] == student.dim
    code, out, err = run(work, "export", "run", "--json")
    assert code == 0, err
    shipped = open_teacher(work / "run" / "bundle" / "student.onnx", TeacherOptions())
    rows, _ = images.load(sorted((work / "imgs").iterdir()), student.preprocess)
    assert cosines(shipped.embed(rows), student.embed(rows)).min() >= 0.99999


@pytest.mark.parametrize(
    "taps",
    [
        "{",
        "3",
        '[{"tensor": "nothing", "kind": "map", "axis": 1, "pool": "avg", "width": 8}]',
        '[{"tensor": "nothing"}]',
        '[{"tensor": 3, "kind": "map", "axis": 1, "pool": "avg", "width": 8}]',
        "[" * 100_000,
        '[{"tensor": "%s", "kind": "map", "axis": 1, "pool": "avg", "width": 1099511627776}]',
    ],
)
def test_hostile_taps_are_one_line(work: Path, tmp_path: Path, taps: str) -> None:
    made = grown(opened(work / "whole.onnx", tuple(PRE))).architecture
    assert made is not None
    taps = taps.replace("%s", on_the_way(work / "whole.onnx")[EARLY].tensor)
    (tmp_path / "a.onnx").write_bytes(spoilt(made, taps=taps))
    with pytest.raises(DistillError) as caught:
        rebuilt(tmp_path / "a.onnx", "start")
    assert "\n" not in str(caught.value)

"""Students made of a graph see what onnxruntime sees, at any size it allows, and are made again from what is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import onnx_teacher, photo_folder
from onnx import numpy_helper

from distilltool import images, imported, sources
from distilltool.errors import DistillError
from distilltool.imported import Looks, Part, backbone, part_of
from distilltool.progress import Silent
from distilltool.sources import Source
from distilltool.student import Student, embed
from distilltool.students import Backbone, Start, build, rebuilt
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher

SCALED = ("scale=1/255", "mean=0.5", "std=0.5")


def opened(path: Path, preprocess: tuple[str, ...] = SCALED, **more: Any) -> OnnxEmbedder:
    """A file as a teacher."""
    return open_teacher(path, TeacherOptions(preprocess=preprocess, **more))


def source_of(teacher: OnnxEmbedder) -> Source:
    """The teacher's own file as a source."""
    found = sources.open_source("teacher", teacher, False, [], Silent())
    assert found is not None
    return found


def grown(teacher: OnnxEmbedder, spec: str = "teacher", side: int | None = None, **more: Any) -> Backbone:
    """The backbone a spec makes of a teacher."""
    start = Start(input=side or max(teacher.preprocess.size), seed=0, source=source_of(teacher), **more)
    return build(spec, start)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of rows."""
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    found: np.ndarray = (one * other).sum(1)
    return found


def agree(teacher: OnnxEmbedder, photos: list[Path], spec: str = "teacher") -> float:
    """The least cosine between a student that is the teacher and the teacher, on the same photographs."""
    pixels, _ = images.load(photos, teacher.preprocess)
    student = Student(grown(teacher, spec), 0, bias=False)
    return float(cosines(embed(student, pixels), teacher.embed(pixels)).min())


PREPROCESS = {
    "scaled": SCALED,
    "imagenet": ("imagenet",),
    "tf": ("tf",),
    "caffe": ("caffe",),
    "raw-bgr": ("raw-bgr",),
    "raw": ("raw",),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", PREPROCESS)
def test_the_same_vectors_as_onnxruntime(tmp_path: Path, photos: list[Path], name: str, layout: Any) -> None:
    teacher = opened(onnx_teacher(tmp_path / "t.onnx", layout=layout), PREPROCESS[name])
    assert agree(teacher, photos) >= 0.9999


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_bytes_and_half_floats(tmp_path: Path, photos: list[Path], dtype: Any) -> None:
    flags = () if dtype == "uint8" else SCALED
    teacher = opened(onnx_teacher(tmp_path / "t.onnx", dtype=dtype, layout="NHWC"), flags)
    assert agree(teacher, photos) >= 0.9999


@pytest.mark.parametrize(
    ("output", "pool"),
    [("map", "avg"), ("map", "max"), ("map", "gem"), ("tokens", "avg"), ("tokens", "cls"), ("column", None)],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_maps_and_tokens_are_pooled_as_the_teachers(
    tmp_path: Path, photos: list[Path], output: Any, pool: str | None, layout: Any
) -> None:
    """Whatever shape the embedding has."""
    teacher = opened(onnx_teacher(tmp_path / "t.onnx", output=output, layout=layout), pool=pool)
    assert agree(teacher, photos) >= 0.9999


@pytest.mark.parametrize("batch", [1, 4])
def test_a_graph_of_a_fixed_batch_is_set_free(tmp_path: Path, photos: list[Path], batch: int) -> None:
    assert agree(opened(onnx_teacher(tmp_path / "t.onnx", batch=batch)), photos) >= 0.9999


def test_pixels_have_the_same_meaning_at_another_size(tmp_path: Path, photos: list[Path]) -> None:
    """A teacher without a size of its own, asked at the student's, says what the student says."""
    path = onnx_teacher(tmp_path / "t.onnx", size=None)
    small, large = opened(path, (*SCALED, "size=16")), opened(path, (*SCALED, "size=32"))
    pixels, _ = images.load(photos, small.preprocess)
    student = Student(grown(large, side=16), 0, bias=False)
    assert cosines(embed(student, pixels), small.embed(pixels)).min() >= 0.9999


def fixed_teacher(path: Path) -> Path:
    """A teacher whose graph works on 32×32 alone: it flattens its map by numbers that are in the file."""
    model = onnx.load(onnx_teacher(path))
    graph = model.graph
    at = next(i for i, one in enumerate(graph.node) if one.op_type == "GlobalAveragePool")
    del graph.node[at : at + 2]
    held = {"sides": np.array([-1, 1024], np.int64), "last": np.random.default_rng(3).normal(0, 1, (1024, 16))}
    for name, value in held.items():
        kind = value if name == "sides" else value.astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(kind, name))
    graph.node.insert(at, onnx.helper.make_node("Reshape", ["map", "sides"], ["rows"]))
    graph.node.insert(at + 1, onnx.helper.make_node("MatMul", ["rows", "last"], ["shaped"]))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_a_graph_of_one_size_refuses_another_in_a_line(tmp_path: Path, photos: list[Path]) -> None:
    teacher = opened(fixed_teacher(tmp_path / "t.onnx"))
    assert agree(teacher, photos) >= 0.9999
    with pytest.raises(DistillError, match="only works on images of 32×32, not of 16×16") as caught:
        grown(teacher, side=16)
    assert "--input 32" in str(caught.value.fix)
    assert imported.only_side(source_of(teacher), Part()) == 32
    assert imported.only_side(source_of(teacher), Part(cut="hidden")) is None, "its early part takes any"


def test_proportions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A square graph and a teacher of upright images."""
    start = Start(
        input=32,
        seed=0,
        source=source_of(opened(fixed_teacher(tmp_path / "t.onnx"))),
        prepared=replace(opened(onnx_teacher(tmp_path / "u.onnx")).preprocess, size=(32, 16)),
    )
    with pytest.raises(DistillError, match="not of 32×16"):
        build("teacher", start)


def test_cuts_by_name_and_by_share(tmp_path: Path, photos: list[Path]) -> None:
    teacher = opened(onnx_teacher(tmp_path / "t.onnx"))
    pixels, _ = images.load(photos, teacher.preprocess)
    hidden = grown(teacher, "teacher:cut=hidden")
    assert hidden.width == 12 and "up to hidden" in hidden.start and "% of its work" in hidden.start
    known = open_teacher(teacher.file.path, TeacherOptions(preprocess=SCALED, output="hidden", pool="avg"))
    got = embed(Student(hidden, 0, bias=False), pixels)
    assert cosines(got, known.embed(pixels)).min() >= 0.9999
    assert grown(teacher, "teacher:cut=0.9").width == 12
    assert grown(teacher, "teacher:cut=1").width == 16


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("teacher:cut=nothing", "'nothing' is no tensor that all later computation passes"),
        ("teacher:cut=0.01", "no cut of the model takes 1% of its work or less"),
        ("teacher:cut=1.5", "cut=1.5 is no share of the work"),
        ("teacher:cut=0", "cut=0 is no share of the work"),
        ("teacher:cut=nan", "cut=nan is no share of the work"),
        ("teacher:width=2", "width=2 is no share of the channels"),
        ("teacher:width=half", "width=half is no share of the channels"),
        ("teacher:depth=3", "'depth=3' says nothing of a student"),
        ("teacher:cut=", "'cut=' says nothing of a student"),
        ("teacher:width=0.5", "width=0.5 chooses channels by 8 images or more, and 0 can be read"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, spec: str, said: str) -> None:
    with pytest.raises(DistillError) as caught:
        grown(opened(onnx_teacher(tmp_path / "t.onnx")), spec)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_its_own_leave_no_room_for_others(tmp_path: Path) -> None:
    teacher = opened(onnx_teacher(tmp_path / "t.onnx"))
    with pytest.raises(DistillError, match="has its weights already"):
        grown(teacher, weights=tmp_path / "w.safetensors")


def narrow_source(path: Path, photos: list[Path]) -> Backbone:
    return grown(opened(onnx_teacher(path)), "teacher:width=0.5", photos=tuple(photos))


def test_a_narrower_student(tmp_path: Path, photos: list[Path]) -> None:
    """Half the 12 channels inside, the embedding's 16 as they were; seeded by the images alone."""
    made = narrow_source(tmp_path / "t.onnx", photos)
    assert sorted(tuple(one.shape) for one in made.module.parameters()) == [(6, 3, 4, 4), (16, 6, 1, 1)]
    assert made.width == 16 and made.start == "the weights of t.onnx, 50 % of its channels (50 % of its work)"
    again = narrow_source(tmp_path / "t.onnx", photos)
    for name, one in made.module.state_dict().items():
        assert torch.equal(one, again.module.state_dict()[name])


def test_cut_and_width_together(tmp_path: Path, photos: list[Path]) -> None:
    """What is cut off is not pruned for; where the cut leaves one layer, there is nothing to take out."""
    teacher = opened(onnx_teacher(tmp_path / "t.onnx"))
    with pytest.raises(DistillError, match=r"t\.onnx cannot be made narrower"):
        grown(teacher, "teacher:cut=hidden,width=0.5", photos=tuple(photos))
    both = grown(teacher, "teacher:cut=map,width=0.5", photos=tuple(photos))
    assert sorted(tuple(one.shape) for one in both.module.parameters()) == [(6, 3, 4, 4), (16, 6, 1, 1)]


@pytest.mark.parametrize("spec", ["teacher", "teacher:cut=hidden", "teacher:width=0.5"])
def test_it_is_made_again_from_its_architecture(tmp_path: Path, photos: list[Path], spec: str) -> None:
    made = grown(opened(onnx_teacher(tmp_path / "t.onnx", layout="NHWC")), spec, photos=tuple(photos))
    assert made.architecture is not None
    (tmp_path / "architecture.onnx").write_bytes(made.architecture)
    again = rebuilt(tmp_path / "architecture.onnx", made.start)
    again.module.load_state_dict(made.module.state_dict())
    x = torch.rand(3, 3, 48, 40)
    assert torch.equal(again.module(x), made.module(x))
    assert replace(again, module=made.module) == replace(made, architecture=again.architecture, native=0, fitted=False)


def test_an_architecture_holds_neither_weights_nor_paths(tmp_path: Path, photos: list[Path]) -> None:
    made = narrow_source(tmp_path / "t.onnx", photos)
    assert made.architecture is not None
    model = onnx.load_model_from_string(made.architecture)
    assert all(not one.raw_data and not one.float_data for one in model.graph.initializer if np.prod(one.dims) > 16)
    assert str(tmp_path).encode() not in made.architecture
    weight = numpy_helper.to_array(onnx.load(tmp_path / "t.onnx").graph.initializer[0])
    assert weight.tobytes()[:16] not in made.architecture


def spoilt(made: bytes, **props: str) -> bytes:
    """An architecture that says something else of itself."""
    model = onnx.load_model_from_string(made)
    said = {one.key: one.value for one in model.metadata_props} | {f"distilltool.{key}": v for key, v in props.items()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, said)
    return bytes(model.SerializeToString())


def huge(made: bytes) -> bytes:
    model = onnx.load_model_from_string(made)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**20, 2**20, 4, 4])
    return bytes(model.SerializeToString())


def without(made: bytes) -> bytes:
    model = onnx.load_model_from_string(made)
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


def unknown(made: bytes) -> bytes:
    model = onnx.load_model_from_string(made)
    model.graph.node[-1].op_type = "Det"
    return bytes(model.SerializeToString())


SHAPES = '{"shapes": {"patches.weight": %s}, "groups": {}, "sides": {}}'
HOSTILE: dict[str, Any] = {
    "empty": lambda _: b"",
    "no ONNX": lambda _: b"\x08\x07 what is this",
    "no wiring": without,
    "wiring that is no JSON": lambda made: spoilt(made, wiring="{"),
    "wiring of another kind": lambda made: spoilt(made, wiring="[1, 2]"),
    "deep wiring": lambda made: spoilt(made, wiring="[" * 100_000),
    "too few factors": lambda made: spoilt(made, wiring='{"mean": [1], "std": "x"}'),
    "narrower than nothing": lambda made: spoilt(made, narrow='{"shapes": {"no": [1]}, "groups": {}, "sides": {}}'),
    "wider than it is": lambda made: spoilt(made, narrow=SHAPES % "[99999, 3, 4, 4]"),
    "of no channels": lambda made: spoilt(made, narrow=SHAPES % "[0, 3, 4, 4]"),
    "of other axes": lambda made: spoilt(made, narrow=SHAPES % "[12, 48]"),
    "narrow of another kind": lambda made: spoilt(made, narrow="3"),
    "weights without end": huge,
    "an unknown operator": unknown,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_architecture_is_one_line(tmp_path: Path, name: str) -> None:
    made = grown(opened(onnx_teacher(tmp_path / "t.onnx"))).architecture
    assert made is not None
    path = tmp_path / "architecture.onnx"
    path.write_bytes(HOSTILE[name](made))
    with pytest.raises(DistillError) as caught:
        rebuilt(path, "start")
    assert "\n" not in str(caught.value)


def test_settings_of_a_spec() -> None:
    assert part_of(sources.asked("teacher:cut=0.6,width=0.75")) == Part(cut=0.6, width=0.75)
    assert part_of(sources.asked("onnx:a.onnx,cut=fire/3")) == Part(cut="fire/3")
    assert part_of(sources.asked("onnx:a.onnx")) == part_of(sources.asked("teacher")) == Part()


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    """Channels are chosen on the rest."""
    paths = photo_folder(tmp_path / "p", 12)
    paths[0].write_bytes(b"no image")
    source = source_of(opened(onnx_teacher(tmp_path / "t.onnx")))
    assert backbone(source, Part(width=0.5), Looks(input=32, photos=paths)).share == 0.5

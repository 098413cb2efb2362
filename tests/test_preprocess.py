"""Preprocessing: its numbers, its pixels, and who is believed about it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import drawn, onnx_teacher
from PIL import Image

from distilltool.deploy import RESAMPLE
from distilltool.errors import DistillError
from distilltool.preprocess import METADATA_KEY, PRESETS, Preprocess, from_sidecar, merge, parse_flags, read_file
from distilltool.teacher import TeacherOptions, open_teacher

GRAPH = {"layout": "NCHW", "dtype": "float32", "size": (224, 224)}
# what black and white pixels become, by the formulas of torchvision, openai/CLIP and keras worked out by hand, in the
# order in which the network takes its channels
BLACK_WHITE = {
    "imagenet": ([-2.117904, -2.035714, -1.804444], [2.248908, 2.428571, 2.640000]),
    "clip": ([-1.792263, -1.752097, -1.480220], [1.930336, 2.074884, 2.145897]),
    "tf": ([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]),
    "caffe": ([-103.939, -116.779, -123.68], [151.061, 138.221, 131.32]),
    "unit": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    "raw": ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0]),
    "raw-bgr": ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0]),
}


def preset(name: str, **more: Any) -> Preprocess:
    """A preset as it comes out beside a graph that takes 224×224."""
    found = merge([{**parse_flags([name]), **more}, GRAPH])
    assert found is not None
    return found


def flat(colour: tuple[int, int, int], side: int = 2) -> np.ndarray:
    """One prepared image of a single colour, (1, side, side, 3) uint8."""
    return np.full((1, side, side, 3), colour, np.uint8)


def resized_then_cropped(image: Image.Image, size: tuple[int, int], short: int, interpolation: str) -> np.ndarray:
    """torchvision's way, with its rounding: the whole image is resized, then the middle is cut out."""
    width, height = image.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = int(round((scaled[0] - size[1]) / 2.0)), int(round((scaled[1] - size[0]) / 2.0))
    whole = image.resize(scaled, Image.Resampling[interpolation.upper()])
    return np.asarray(whole.crop((left, top, left + size[1], top + size[0])))


def farthest(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two images in any pixel."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_every_preset_has_its_numbers_checked_here() -> None:
    """A new preset needs a line in BLACK_WHITE."""
    assert set(BLACK_WHITE) == set(PRESETS)


@pytest.mark.parametrize("name", BLACK_WHITE)
def test_preset_numbers(name: str) -> None:
    """Black and white become what the preset's own library makes of them."""
    black, white = BLACK_WHITE[name]
    np.testing.assert_allclose(preset(name).feed(flat((0, 0, 0)))[0, :, 0, 0], black, atol=2e-5)
    np.testing.assert_allclose(preset(name).feed(flat((255, 255, 255)))[0, :, 0, 0], white, atol=2e-5)


@pytest.mark.parametrize(("name", "first"), [("imagenet", 2.248908), ("clip", 1.930336), ("tf", 1.0), ("raw", 255.0)])
def test_red_comes_first_in_rgb_presets(name: str, first: float) -> None:
    """Channel 0 is red."""
    assert preset(name).feed(flat((255, 0, 0)))[0, 0, 0, 0] == pytest.approx(first, abs=2e-5)


def test_red_comes_last_in_caffe() -> None:
    """Channel 2 is red, and the means follow the channels."""
    fed = preset("caffe").feed(flat((255, 0, 0)))[0, :, 0, 0]
    np.testing.assert_allclose(fed, [-103.939, -116.779, 131.32], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "resize", "short", "interpolation"),
    [
        ("imagenet", "shortest", 256, "bilinear"),
        ("clip", "shortest", 224, "bicubic"),
        ("tf", "stretch", None, "bilinear"),
        ("caffe", "stretch", None, "bilinear"),
    ],
)
def test_preset_geometry(name: str, resize: str, short: int | None, interpolation: str) -> None:
    """Resizing of a preset at 224 pixels."""
    found = preset(name)
    assert (found.size, found.resize, found.resize_to, found.interpolation) == (
        (224, 224),
        resize,
        short,
        interpolation,
    )


def test_preset_crop_follows_another_size() -> None:
    """torchvision's 224 of 256 is kept as a proportion where the network takes another size."""
    found = merge([parse_flags(["imagenet"]), {**GRAPH, "size": (32, 32)}])
    assert found is not None
    assert found.resize_to == 36


@pytest.mark.parametrize("interpolation", list(RESAMPLE))
@pytest.mark.parametrize("shape", [(97, 61), (61, 97), (200, 133), (45, 45), (33, 300), (40, 41)])
@pytest.mark.parametrize(("size", "short"), [((32, 32), 36), ((24, 32), 32), ((32, 20), 41)])
def test_shortest_is_resize_then_crop(
    shape: tuple[int, int], size: tuple[int, int], short: int, interpolation: str
) -> None:
    """The same pixels as torchvision's Resize(short) and CenterCrop(size) on Pillow images, whatever the shape."""
    image = drawn(3, shape)
    got = Preprocess(size=size, resize="shortest", resize_to=short, interpolation=interpolation).prepare(image)
    assert got.shape == (*size, 3) and got.dtype == np.uint8
    assert farthest(got, resized_then_cropped(image, size, short, interpolation)) <= 1


@pytest.mark.parametrize(("interpolation", "short"), [("bilinear", 256), ("bicubic", 224)])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (333, 250)])
def test_usual_resizing_holds_on_noise(
    shape: tuple[int, int], interpolation: str, short: int, rng: np.random.Generator
) -> None:
    """At the sizes of photographs every pixel is right within one step, on the hardest content there is."""
    image = Image.fromarray(rng.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    way = Preprocess(size=(224, 224), resize="shortest", resize_to=short, interpolation=interpolation)
    assert farthest(way.prepare(image), resized_then_cropped(image, (224, 224), short, interpolation)) <= 1


@pytest.mark.parametrize("size", [(20, 30), (64, 64)])
def test_stretch_ignores_proportions(size: tuple[int, int]) -> None:
    """Height and width are not confused, and nothing is cut off."""
    image = drawn(1, (50, 35))
    wanted = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Preprocess(size=size).prepare(image), wanted)


def test_feed_layouts_and_dtypes(rng: np.random.Generator) -> None:
    """Layout moves the channels, dtype casts, uint8 goes in as it is."""
    pixels = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    scaled = Preprocess(size=(4, 5), scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    wanted = (pixels.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    fed = scaled.feed(pixels)
    assert fed.dtype == np.float32 and fed.flags.c_contiguous
    np.testing.assert_allclose(fed, wanted.transpose(0, 3, 1, 2), atol=1e-6)
    values = {**scaled.to_dict(), "layout": "NHWC", "dtype": "float16"}
    half = Preprocess.from_dict(values).feed(pixels)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, wanted, atol=2e-3)
    raw = Preprocess(size=(4, 5), layout="NHWC", dtype="uint8").feed(pixels)
    np.testing.assert_array_equal(raw, pixels)
    blue = Preprocess(size=(4, 5), layout="NHWC", dtype="uint8", channels="BGR").feed(pixels)
    np.testing.assert_array_equal(blue[..., 0], pixels[..., 2])


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name: str) -> None:
    """Through JSON and back nothing changes, the identity least of all."""
    way = preset(name)
    again = Preprocess.from_dict(json.loads(json.dumps(way.to_dict())))
    assert again == way
    assert again.identity() == way.identity()


def test_identity_leaves_out_who_said_it() -> None:
    """Answers are not bought twice because another source said the same."""
    one, other = Preprocess(size=(8, 8), source="flag"), Preprocess(size=(8, 8), source="sidecar")
    assert one.identity() == other.identity()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", (8, 9)),
        ("mean", (0.0, 0.0, 0.1)),
        ("std", (1.0, 1.0, 2.0)),
        ("scale", 0.5),
        ("channels", "BGR"),
        ("layout", "NHWC"),
        ("dtype", "uint8"),
        ("interpolation", "bicubic"),
    ],
)
def test_identity_holds_everything_that_changes_numbers(field: str, value: Any) -> None:
    """Any field that changes the input changes the identity."""
    values: dict[str, Any] = {"size": (8, 8), field: value}
    assert Preprocess(**values).identity() != Preprocess(size=(8, 8)).identity()


def test_equal_preprocessing_has_one_identity() -> None:
    """Whole numbers written as 0 or as 0.0, as JSON files and flags do, mean the same answers."""
    written = Preprocess.from_dict({"size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1})
    flagged = Preprocess(size=(8, 8))
    assert written == flagged
    assert written.identity() == flagged.identity()


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("size=256x128", "size", (256, 128)),
        ("size=224", "size", (224, 224)),
        ("scale=1/255", "scale", 1 / 255),
        ("scale=0.5", "scale", 0.5),
        ("mean=0.5", "mean", (0.5, 0.5, 0.5)),
        ("std=0.1,0.2,0.3", "std", (0.1, 0.2, 0.3)),
        ("resize_to=256", "resize_to", 256),
        ("channels=BGR", "channels", "BGR"),
        ("layout=NHWC", "layout", "NHWC"),
        ("interpolation=lanczos", "interpolation", "lanczos"),
    ],
)
def test_flag_fields(flag: str, field: str, value: Any) -> None:
    """One field=value."""
    found = parse_flags([flag])
    assert found[field] == value
    assert flag in found["said_by"]


def test_later_flags_win() -> None:
    """A field over a preset, and a preset over a field."""
    assert parse_flags(["imagenet", "std=1"])["std"] == (1.0, 1.0, 1.0)
    assert parse_flags(["std=1", "imagenet"])["std"] == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "flag",
    [
        *("size=big", "size=1x2x3", "scale=1/0", "mean=a,b,c", "resize_to=1.5", "colour=red", "size="),
        *("imagnet", "nowhere.json"),
    ],
)
def test_flags_that_cannot_be_read(flag: str) -> None:
    """Each is an error of one line with a way out."""
    with pytest.raises(DistillError) as caught:
        parse_flags([flag])
    assert caught.value.fix and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"interpolation": "linear"},
        {"resize": "crop"},
        {"channels": "GBR"},
        {"layout": "CHWN"},
        {"dtype": "int8"},
        {"size": (0, 8)},
        {"size": (8, 9000)},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0, 2.0)},
        {"resize": "shortest"},
        {"resize": "shortest", "resize_to": 7},
    ],
)
def test_values_out_of_range(values: dict[str, Any]) -> None:
    """Faults of a description show where it is made."""
    with pytest.raises(DistillError):
        Preprocess(**{"size": (8, 8), **values})


@pytest.mark.parametrize("values", [{"size": [8, 8], "colour": 1}, {"scale": 1.0}])
def test_dict_with_unknown_or_missing_fields(values: dict[str, Any]) -> None:
    """Unknown names and a missing size are errors."""
    with pytest.raises(DistillError, match=r"colour|size"):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1, 2]",
        '{"hidden_size": 768}',
        '{"size": [224, 224], "scale": 1.0, "mean": [0, 0], "std": [1, 1, 1]}',
        '{"size": ["a", "b"], "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}',
        '{"scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": "shortest", "resize_to": "256"}',
        '{"size": [224, 224], "scale": "x", "mean": ["a", "b", "c"], "std": [1, 1, 1]}',
        # what such a file leaves unsaid depends on a class of code that is not here: 0.5, ImageNet's, or CLIP's
        '{"do_normalize": true, "do_resize": true, "size": 224}',
        '{"do_normalize": true, "do_resize": true, "size": 224, "image_mean": null, "image_std": null}',
    ],
)
def test_files_that_describe_nothing_usable(tmp_path: Path, text: str) -> None:
    """A file that cannot be used is an error of one line, never a traceback from inside."""
    file = tmp_path / "own.json"
    file.write_text(text)
    with pytest.raises(DistillError):
        merge([{**read_file(file), "said_by": "flag"}, GRAPH])


def test_numbers_in_a_file_may_be_short(tmp_path: Path) -> None:
    """One number for both sides, or for all three channels, as flags allow too."""
    file = tmp_path / "own.json"
    file.write_text('{"size": 224, "scale": 1, "mean": 0.5, "std": [1, 1, 1]}')
    found = merge([parse_flags([str(file)]), GRAPH])
    assert found is not None
    assert (found.size, found.mean, found.std) == ((224, 224), (0.5,) * 3, (1.0,) * 3)


def test_own_file(tmp_path: Path) -> None:
    """What `to_dict` writes can be given to --preprocess."""
    way = preset("clip")
    file = tmp_path / "own.json"
    file.write_text(json.dumps(way.to_dict()))
    found = merge([parse_flags([str(file)]), GRAPH])
    assert found is not None
    assert found.identity() == way.identity()


def hugging_face(**more: Any) -> dict[str, Any]:
    """A preprocessor_config.json."""
    return {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        **more,
    }


@pytest.mark.parametrize(
    ("more", "size", "resize", "short"),
    [
        ({"size": 224}, (224, 224), "stretch", None),
        ({"size": {"shortest_edge": 256}}, (256, 256), "shortest", 256),
        ({"size": {"height": 200, "width": 100}}, (200, 100), "stretch", None),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
            (224, 192),
            "shortest",
            256,
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": False, "crop_size": {"height": 224, "width": 224}},
            (256, 256),
            "shortest",
            256,
        ),
        # as older files have it, DeiT's among them
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, (224, 224), "shortest", 256),
    ],
)
def test_hugging_face_sizes(more: dict[str, Any], size: tuple[int, int], resize: str, short: int | None) -> None:
    """int and shortest_edge are the shorter side, height and width are both; a crop counts where it is asked for."""
    found = merge([{**(from_sidecar(hugging_face(**more)) or {}), "said_by": "sidecar"}])
    assert found is not None
    assert (found.size, found.resize, found.resize_to) == (size, resize, short)


@pytest.mark.parametrize("crop", [224, {"height": 224, "width": 224}])
def test_hugging_face_crop_is_what_the_network_takes(crop: Any) -> None:
    """Whatever the image is resized to first, the network is fed the crop."""
    sides = hugging_face(size={"height": 256, "width": 256}, do_center_crop=True, crop_size=crop)
    found = merge([{**(from_sidecar(sides) or {}), "said_by": "sidecar"}])
    assert found is not None
    assert found.size == (224, 224)


def test_hugging_face_numbers() -> None:
    """Rescaling, normalisation and the resampling filter; each can be switched off."""
    found = from_sidecar(hugging_face(size=224))
    assert found is not None
    assert (found["scale"], found["mean"], found["std"]) == (1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert found["interpolation"] == "bicubic"
    plain = from_sidecar(hugging_face(size=224, do_normalize=False, do_rescale=False, resample=2))
    assert plain is not None
    assert (plain["scale"], plain["mean"], plain["std"]) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert plain["interpolation"] == "bilinear"
    other = from_sidecar(hugging_face(size=224, rescale_factor=1 / 127.5))
    assert other is not None and other["scale"] == 1 / 127.5


@pytest.mark.parametrize(
    ("more", "resize", "short"),
    [
        ({}, "shortest", 256),
        ({"crop_pct": 0.95}, "shortest", 235),
        ({"crop_pct": 1.0}, "shortest", 224),
        ({"crop_mode": "squash"}, "stretch", None),
    ],
)
def test_timm(more: dict[str, Any], resize: str, short: int | None) -> None:
    """timm's config.json: the resized side is floored."""
    cfg = {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], **more}
    found = merge([{**(from_sidecar({"architecture": "x", "pretrained_cfg": cfg}) or {}), "said_by": "sidecar"}])
    assert found is not None
    assert (found.size, found.resize, found.resize_to) == ((224, 224), resize, short)
    assert (found.interpolation, found.scale, found.std) == ("bicubic", 1 / 255, (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("cfg", "resize", "short"),
    [
        ({"size": [240, 240]}, "shortest", 240),
        ({"size": 240}, "shortest", 240),
        ({}, "shortest", 240),
        ({"resize_mode": "squash", "interpolation": "bilinear"}, "stretch", None),
    ],
)
def test_open_clip(cfg: dict[str, Any], resize: str, short: int | None) -> None:
    """open_clip_config.json: the size may stand with the vision tower."""
    values = {
        "model_cfg": {"vision_cfg": {"image_size": 240}},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], **cfg},
    }
    found = merge([{**(from_sidecar(values) or {}), "said_by": "sidecar"}])
    assert found is not None
    assert (found.size, found.resize, found.resize_to) == ((240, 240), resize, short)
    assert (found.mean, found.interpolation) == ((0.1, 0.2, 0.3), cfg.get("interpolation", "bicubic"))


def test_other_json_beside_a_model_says_nothing() -> None:
    """A language model's config.json is no preprocessing."""
    assert from_sidecar({"hidden_size": 768, "model_type": "clip"}) is None


@pytest.mark.parametrize(
    ("believed", "std", "source"),
    [(4, 0.4, "flag"), (3, 0.3, "metadata"), (2, 0.2, "sidecar"), (1, 1.0, "graph")],
)
def test_order_of_belief(tmp_path: Path, believed: int, std: float, source: str) -> None:
    """Flag, metadata, sidecar, graph: each is heard only where those before it are silent."""
    own = Preprocess(size=(32, 32), scale=1 / 255, std=(0.3,) * 3, layout="NHWC").to_dict()
    path = onnx_teacher(
        tmp_path / "model.onnx",
        layout="NHWC",
        dtype="float32" if believed > 1 else "uint8",
        metadata={METADATA_KEY: json.dumps(own)} if believed >= 3 else {},
    )
    if believed >= 2:
        sidecar = hugging_face(image_std=[0.2] * 3, size={"height": 32, "width": 32})
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(sidecar))
    found = open_teacher(path, TeacherOptions(preprocess=("std=0.4",) if believed >= 4 else ())).preprocess
    assert found.std == (std,) * 3
    assert found.source.startswith(source)


def test_single_fields_are_laid_over_what_others_say() -> None:
    """A flag for one field leaves the others to the next source."""
    sidecar = {
        "mean": (0.1,) * 3,
        "std": (0.2,) * 3,
        "scale": 1 / 255,
        "interpolation": "bicubic",
        "said_by": "sidecar",
    }
    found = merge([parse_flags(["interpolation=box"]), sidecar, GRAPH])
    assert found is not None
    assert (found.interpolation, found.std, found.source) == ("box", (0.2,) * 3, "sidecar")


def test_geometry_of_another_source_does_not_linger() -> None:
    """A preset that stretches leaves no resize_to of a sidecar behind."""
    sidecar = {**GRAPH, "resize": "shortest", "resize_to": 300, "scale": 1.0, "said_by": "sidecar"}
    stretched = merge([parse_flags(["tf"]), sidecar])
    assert stretched is not None and stretched.resize_to is None
    cropped = merge([parse_flags(["imagenet"]), sidecar])
    assert cropped is not None and cropped.resize_to == 256


@pytest.mark.parametrize("sources", [[GRAPH], [parse_flags(["size=32"]), GRAPH], [parse_flags(["imagenet"])], []])
def test_nothing_is_guessed(sources: list[dict[str, Any]]) -> None:
    """Without numbers, or without a size, there is no preprocessing."""
    assert merge(sources) is None


@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
def test_student_sees_the_same_part_of_the_image(size: tuple[int, int]) -> None:
    """At a student's size the crop keeps its share, within a pixel, and bytes go in unscaled."""
    teacher = Preprocess(size=(224, 112), resize="shortest", resize_to=256, mean=(0.5,) * 3, scale=1 / 255)
    student = teacher.at(size)
    zoom = max(size[0] / 224, size[1] / 112)
    assert student.resize_to == pytest.approx(256 * zoom, abs=0.5)
    assert (student.dtype, student.layout, student.scale, student.mean) == ("uint8", "NHWC", 1.0, (0.0, 0.0, 0.0))
    assert Preprocess(size=(224, 224)).at((64, 64)).resize == "stretch"


def test_another_size_keeps_the_margin_around_the_crop() -> None:
    """A size asked for by flag over a sidecar of 224 out of 256 still cuts seven eighths."""
    sidecar = {"scale": 1 / 255, "size": (224, 224), "resize": "shortest", "resize_to": 256, "said_by": "sidecar"}
    found = merge([parse_flags(["size=112"]), sidecar, {**GRAPH, "size": None}])
    assert found is not None
    assert (found.size, found.resize, found.resize_to) == ((112, 112), "shortest", 128)


def test_means_alone_do_not_say_how_pixels_are_scaled() -> None:
    """Nobody said whether pixels go in as 0 to 1 or 0 to 255."""
    assert merge([parse_flags(["mean=0.5", "std=0.5"]), GRAPH]) is None


def test_bytes_go_in_as_they_are_whatever_a_preset_says(tmp_path: Path) -> None:
    """A preset's means are for networks that are fed numbers; with them the same answers would be bought twice."""
    path = onnx_teacher(tmp_path / "model.onnx", dtype="uint8")
    said, silent = open_teacher(path, TeacherOptions(preprocess=("caffe", "channels=RGB"))), open_teacher(path)
    assert (said.preprocess.scale, said.preprocess.mean) == (1.0, (0.0, 0.0, 0.0))
    assert said.key.preprocess == silent.key.preprocess

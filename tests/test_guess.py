"""The label-free guess: networks in code whose answers depend on how they are fed, and the real ones."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from distilltool import deploy, guess
from distilltool.errors import DistillError
from distilltool.guess import Candidate, Ranking, candidates, rank
from distilltool.preprocess import Preprocess, merge, parse_flags

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIZE = (32, 32)


def texture(number: int) -> Image.Image:
    """Fine specks in four colours of its own: every crop shows the same colours."""
    rng = np.random.default_rng(number)
    palette = rng.integers(0, 256, (4, 3))
    return Image.fromarray(palette[rng.integers(0, 4, (48, 64))].repeat(2, 0).repeat(2, 1).astype(np.uint8))


TEXTURES = [texture(number) for number in range(16)]


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """These textures are told apart by few; half as many save half the time."""
    monkeypatch.setattr(guess, "FEWEST", 12)


def convention(*flags: str, layout: str = "NCHW", size: tuple[int, int] = SIZE) -> Preprocess:
    """What flags say for a float32 input."""
    found = merge([parse_flags(flags), {"layout": layout, "dtype": "float32", "size": size}])
    assert found is not None
    return found


def network(truth: Preprocess) -> Callable[[Preprocess, NDArray[np.uint8]], NDArray[np.float32]]:
    """A network for one convention: what it is fed, it reads as pixels by `truth`, as bytes of 0 to 255.

    It takes colours for what they are beside each other, whatever the light, and sees red better than blue.
    """

    def embed(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        fed = np.asarray(preprocess.feed(images_NHWC), np.float64)
        expected = 3 if truth.layout == "NHWC" else 1
        if fed.shape[expected] != 3:
            raise DistillError("3 channels are expected elsewhere", "turn the layout round")
        values = fed if truth.layout == "NHWC" else fed.transpose(0, 2, 3, 1)
        pixels = ((values * np.array(truth.std) + np.array(truth.mean)) / truth.scale).round().clip(0, 255)
        pixels = pixels if truth.channels == "RGB" else pixels[..., ::-1]
        rows = pixels.reshape(len(pixels), -1, 3)
        rows = (rows - rows.mean(axis=(1, 2), keepdims=True)) / (rows.std(axis=(1, 2), keepdims=True) + 1.0)
        rows = rows * np.array([1.0, 1.0, 0.3])
        products = np.einsum("npc,npd->ncd", rows, rows).reshape(len(rows), -1) / rows.shape[1]
        features = [rows.mean(axis=1), (rows**3).mean(axis=1), products]
        return np.concatenate(features, axis=1).astype(np.float32)

    return embed


def guessed(truth: Preprocess, images: list[Image.Image] = TEXTURES) -> Ranking:
    """The guess for a network of this convention."""
    return rank(network(truth), candidates(truth.layout, "float32", truth.size), images)


def test_families_that_answer_alike_are_not_told_apart() -> None:
    """This network looks past contrast and brightness: fed from 0 to 1 it answers as it does fed from −1 to 1."""
    found = guessed(convention("tf"))
    assert found.best.family == "tf" and not found.clear
    assert found.why == "unit would give the same answers"


@pytest.mark.parametrize("name", ["imagenet", "unit", "raw", "caffe"])
def test_the_true_family_comes_first(name: str) -> None:
    found = guessed(convention(name))
    assert found.best.family == name
    assert found.clear, found.why
    assert found.margin is not None and found.margin >= guess.SURE
    assert found.images == 16


@pytest.mark.parametrize("flags", [("raw-bgr",), ("caffe",), ("caffe", "channels=RGB")])
def test_noise_tells_the_order_of_colours(flags: tuple[str, ...]) -> None:
    """BGR where RGB is usual, and the other way round; the flags that would fix it give the true convention."""
    truth = convention(*flags)
    found = guessed(truth)
    assert found.clear, found.why
    assert found.best.flags == flags
    assert convention(*found.best.flags).identity() == truth.identity()
    assert found.entries[1].note == "the other order of colours"


def test_a_network_that_does_not_care_about_blue_or_red_is_not_clear() -> None:
    """Where the order cannot be told, the usual one comes first, but not unasked."""

    def grey(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        swapped = np.ascontiguousarray(images_NHWC[..., ::-1])
        ask = network(convention("tf"))
        return np.concatenate([ask(preprocess, images_NHWC), ask(preprocess, swapped)], axis=1)

    found = rank(grey, candidates("NCHW", "float32", SIZE), TEXTURES)
    assert found.best.name == "tf"
    assert not found.clear and "BGR" in found.why


def test_conventions_that_make_no_difference_are_named_together() -> None:
    """A network that normalises its input itself answers the same to all of one order of colours, at little cost."""

    def normalising(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = np.asarray(preprocess.feed(images_NHWC), np.float64)
        normal = (values - values.mean(axis=(2, 3), keepdims=True)) / values.std(axis=(2, 3), keepdims=True)
        pixels = (normal * 50 + 128).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return network(convention("unit"))(convention("unit"), pixels)

    found = rank(normalising, candidates("NCHW", "float32", SIZE), TEXTURES)
    together = {one.candidate.family for one in found.entries if one.note == "answers as imagenet"}
    assert together == {"clip", "tf", "unit", "raw"}
    of_two = 2 * len(TEXTURES) * len(guess.VIEWS)  # imagenet and caffe, which differ by the order of colours
    assert found.passes <= of_two + 4 * guess.FIRST + 3 * len(TEXTURES)


def test_the_layout_is_found_where_the_graph_leaves_it_open() -> None:
    """The wrong one fails, and is listed with what the model said."""
    found = rank(network(convention("tf", layout="NHWC")), candidates(None, "float32", SIZE), TEXTURES)
    assert found.best.flags == ("tf", "layout=NHWC")
    failed = [one for one in found.entries if one.score is None]
    assert {one.candidate.preprocess.layout for one in failed} == {"NCHW"}
    assert all("turn the layout round" in one.note for one in failed)


def test_few_images_are_never_clear() -> None:
    found = guessed(convention("raw"), TEXTURES[: guess.FEWEST - 1])
    assert found.best.family == "raw"
    assert not found.clear and "too few" in found.why
    with pytest.raises(DistillError, match="too few"):
        guessed(convention("raw"), TEXTURES[:1])


def test_images_that_are_all_the_same_are_not_clear() -> None:
    """Nothing can be told where nothing differs."""
    found = guessed(convention("raw"), [TEXTURES[0]] * 16)
    assert not found.clear


def test_a_network_that_says_the_same_of_everything_is_not_clear() -> None:
    def constant(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(images_NHWC), 8), np.float32)

    found = rank(constant, candidates("NCHW", "float32", SIZE), TEXTURES)
    assert not found.clear and "same of every image" in found.why
    assert all(one.score is None for one in found.entries)


def test_a_random_projection_of_pixels_is_not_clear() -> None:
    """Untrained weights find crops of nothing: whatever comes first, it is not used unasked."""
    weights = np.random.default_rng(0).normal(size=(32 * 32 * 3, 64)).astype(np.float32)

    def projection(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.maximum(np.asarray(preprocess.feed(images_NHWC)).reshape(len(images_NHWC), -1) @ weights, 0)

    assert not rank(projection, candidates("NCHW", "float32", SIZE), TEXTURES).clear


def test_a_failing_model_says_why() -> None:
    """Where every convention fails, the model's own error comes through."""

    def failing(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise DistillError("the model fails", "mend it")

    with pytest.raises(DistillError, match="the model fails"):
        rank(failing, candidates("NCHW", "float32", SIZE), TEXTURES)


def test_overflow_puts_a_convention_out() -> None:
    """0 to 255 may be too much for float16."""
    inner = network(convention("tf"))

    def half(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = inner(preprocess, images_NHWC)
        return np.full_like(answers, np.inf) if np.abs(preprocess.feed(images_NHWC)).max() > 100 else answers

    found = rank(half, candidates("NCHW", "float32", SIZE), TEXTURES)
    assert found.best.family == "tf"
    assert {one.candidate.family for one in found.entries if one.score is None} == {"raw", "caffe"}


def test_at_most_32_images_and_every_pass_counted() -> None:
    """What a guess costs is what it says; the hopeless are not asked again."""
    asked = []

    def counting(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(len(images_NHWC))
        return network(convention("raw"))(preprocess, images_NHWC)

    found = rank(counting, candidates("NCHW", "float32", SIZE), [texture(number) for number in range(40)])
    assert found.images == guess.MOST == 32
    assert found.passes == sum(asked)
    assert found.passes < 32 * len(guess.VIEWS) * len(guess.FAMILIES)


def test_the_same_images_give_the_same_ranking() -> None:
    assert guessed(convention("caffe")) == guessed(convention("caffe"))


@pytest.fixture
def small_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that take no time."""
    monkeypatch.setattr(guess, "SIDES", (16, 32, 48))
    monkeypatch.setattr(guess, "USUAL_SIDE", 32)


@pytest.mark.usefixtures("small_sides")
def test_an_open_size_stays_usual_where_nothing_speaks_against_it() -> None:
    """All sides are tried with the family that won; this network works at any."""
    found = rank(network(convention("raw")), candidates("NCHW", "float32", None), TEXTURES)
    assert found.clear, found.why
    assert found.best.preprocess.size == (32, 32) and found.best.flags == ("raw",)
    assert {one.candidate.preprocess.size[0] for one in found.sides} == {16, 32, 48}


@pytest.mark.usefixtures("small_sides")
def test_an_open_size_is_changed_where_another_is_clearly_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that sees less clearly at other sides than 48, though well enough to tell conventions."""
    monkeypatch.setattr(guess, "FOUND", 0.7)
    monkeypatch.setattr(guess, "SIZE_LEAD", 0.1)
    inner = network(convention("raw"))

    def large(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = inner(preprocess, images_NHWC)
        rng = np.random.default_rng(int(images_NHWC.sum()))
        blur = 0.0 if preprocess.size[0] == 48 else 0.1
        return (answers + blur * rng.normal(size=answers.shape)).astype(np.float32)

    found = rank(large, candidates("NCHW", "float32", None), TEXTURES)
    assert found.clear, found.why
    assert found.best.flags == ("raw", "size=48")
    assert found.sides[0].candidate == found.best


def test_candidates_follow_the_graph() -> None:
    """Layout, dtype and size are the graph's where it says them; a flag is named for what it leaves open."""
    fixed = candidates("NHWC", "float16", (256, 128))
    assert {(one.preprocess.layout, one.preprocess.dtype, one.preprocess.size) for one in fixed} == {
        ("NHWC", "float16", (256, 128))
    }
    assert {one.name for one in fixed} >= {"imagenet", "clip", "tf", "unit", "raw", "raw-bgr", "caffe"}
    assert all(one.preprocess.source == "guessed" for one in fixed)
    assert {one.preprocess.size[0] for one in candidates("NCHW", "float32", None)} == set(guess.SIDES)
    assert {one.name for one in candidates("NCHW", "uint8", SIZE)} == {"raw", "raw-bgr"}


@pytest.mark.parametrize("one", candidates(None, "float32", None), ids=lambda one: " ".join(one.flags))
def test_flags_give_back_the_candidate(one: Candidate) -> None:
    """What is printed as the way to fix a choice does fix it."""
    graph: dict[str, Any] = {"layout": "NCHW", "dtype": "float32", "size": (224, 224)}
    found = merge([parse_flags(one.flags), graph])
    assert found is not None and found.identity() == one.preprocess.identity()


REAL = {  # file: true convention, tensor of the embedding
    "mobilenet_edgetpu_fp32": ("tf", "embedding"),
    "mobilenetv2_fp32": ("imagenet", "embedding"),
    "squeezenet1.1_three_outputs": ("imagenet", "embedding"),
    "squeezenet1.1_fp16_caffe": ("caffe", "fire9/concat_1"),
    "squeezenet1.0_nhwc_batch1": ("tf", "concat_62"),
    "mobilefacenet": ("tf", "output"),
    "person_reid_0287": ("raw-bgr", "Identity:0"),
}
UNSUITABLE = ("mobilefacenet", "person_reid_0287")  # photographs of things are not what they were made for


def real_guess(name: str, tensor: str, images: list[Image.Image]) -> Ranking:
    """The guess for a real file, its embedding taken from inside the graph where it has to be."""
    model = onnx.load(DATA / f"models/{name}.onnx")
    if tensor not in [one.name for one in model.graph.output]:
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    weights = {one.name for one in model.graph.initializer}
    image = next(one for one in session.get_inputs() if one.name not in weights)
    last = image.shape[3] == 3
    sides = image.shape[1:3] if last else image.shape[2:4]
    size = (sides[0], sides[1]) if isinstance(sides[0], int) else (224, 224)
    step = 1 if image.shape[0] == 1 else 8

    def embed(preprocess: Preprocess, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for at in range(0, len(images_NHWC), step):
            found = session.run([tensor], {image.name: preprocess.feed(images_NHWC[at : at + step])})[0]
            found = np.asarray(found, np.float32)
            parts.append(found.mean(axis=(2, 3)) if found.ndim == 4 else found)
        return np.concatenate(parts)

    dtype = "float16" if image.type == "tensor(float16)" else "float32"
    return rank(embed, candidates("NHWC" if last else "NCHW", dtype, size), images)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
@pytest.mark.parametrize("name", REAL)
def test_real_networks(name: str) -> None:
    """The true family first where the photographs suit the network, and never clear and wrong."""
    truth, tensor = REAL[name]
    paths = sorted((DATA / "caltech/train").glob("*.jpg"))
    images = [deploy.open_rgb(paths[at]) for at in np.random.default_rng(11).permutation(len(paths))[:32]]
    found = real_guess(name, tensor, images)
    assert found.best.name == truth or (name in UNSUITABLE and not found.clear), found.why
    assert not (found.clear and found.best.name != truth)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
def test_a_real_network_on_frames_of_one_corridor_is_not_clear() -> None:
    """Images that resemble each other cannot tell conventions; the guess says so."""
    paths = sorted((DATA / "corridor/query").glob("*.jpg"))[:24]
    found = real_guess("mobilenetv2_fp32", "embedding", [deploy.open_rgb(path) for path in paths])
    assert not found.clear and "too seldom" in found.why


def test_twins_differ_by_the_order_of_colours_alone() -> None:
    raw = next(one for one in candidates("NCHW", "float32", SIZE) if one.name == "raw")
    twin = next(one for one in candidates("NCHW", "float32", SIZE) if one.name == "raw-bgr")
    assert replace(twin.preprocess, channels="RGB") == raw.preprocess

"""A model's inputs: the one that takes images, and the others with what they are set to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.graph import Graph, Shape, Value
from distilltool.roles import Choice, image_inputs, input_role, is_pair_scorer

DTYPES = ("float32", "float16", "uint8")


def the_image(path: Path, graph: Graph) -> Value:
    """The one input that takes images; a pair scorer and what takes none are errors that say so."""
    images = image_inputs(graph)
    seen = ", ".join(f"{one.name} {shape_text(one)} {one.dtype}" for one in graph.inputs)
    if is_pair_scorer(graph):
        raise DistillError(
            f"{path} is a pair scorer: it wants two images at once ({seen})",
            "a model that embeds one image at a time is needed; pairwise teachers are not supported yet",
        )
    if len(images) != 1:
        four = [one for one in graph.inputs if one.shape is not None and len(one.shape) == 4]
        if len(four) == 1 and four[0].dtype not in DTYPES:
            raise DistillError(
                f"the input {four[0].name} of {path} is {four[0].dtype}", f"inputs may be {', '.join(DTYPES)}"
            )
        if len(four) == 1 and isinstance((four[0].shape or (0, 0))[1], int):
            raise DistillError(
                f"the input {four[0].name} is {shape_text(four[0])}, with {(four[0].shape or (0, 0))[1]} channels",
                "give a model for RGB images",
            )
        raise DistillError(
            f"{path} does not take one image batch; its inputs are {seen}",
            "give a model whose image input is (N, 3, H, W) or (N, H, W, 3)",
        )
    return images[0]


def shape_text(value: Value) -> str:
    return "×".join("?" if side is None else str(side) for side in value.shape or ())


def settings_of(
    path: Path, graph: Graph, choice: Choice, image: Value, given: Sequence[str]
) -> dict[str, tuple[NDArray[Any], Value]]:
    """Values for the inputs that the embedding depends on beside the image, each as `name=value` said it."""
    wanted = {one.name: one for one in graph.needed_inputs(choice.tensor) if one.name != image.name}
    said = dict(split_setting(text) for text in given)
    unknown = sorted(set(said) - {one.name for one in graph.inputs})
    if unknown:
        others = [one.name for one in graph.inputs if one.name != image.name]
        raise DistillError(
            f"{path.name} has no input {unknown[0]!r} to set", f"its other inputs are {', '.join(others) or 'none'}"
        )
    for one in wanted.values():
        if input_role(one) != "setting":
            raise DistillError(
                f"{choice.tensor} of {path.name} also depends on {one.name} ({shape_text(one)} {one.dtype})",
                "name an --output that depends on the image alone; inspect --tensors lists them",
            )
        if one.name not in said:
            raise DistillError(
                f"{path.name} also wants {one.name} ({shape_text(one) or 'one'} {one.dtype})",
                f"say it with --input {one.name}={'false' if one.dtype == 'bool' else '1'}",
            )
    return {name: (parse_setting(one, said[name]), one) for name, one in wanted.items()}


def spread(value: NDArray[Any], shape: Shape, count: int) -> NDArray[Any]:
    """A setting in the shape that the graph declares, a free first axis being the batch."""
    sides = [side if isinstance(side, int) else (count if place == 0 else 1) for place, side in enumerate(shape)]
    return np.ascontiguousarray(np.broadcast_to(value, sides))


def split_setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise DistillError(f"--input {text} is no setting", "write --input name=value, e.g. --input training=false")
    return name.strip(), value.strip()


def parse_setting(info: Value, text: str) -> NDArray[Any]:
    """One value, or several with commas between, in the type of the input."""
    words = {"true": 1, "false": 0, "yes": 1, "no": 0}
    try:
        numbers = [words[part.lower()] if part.lower() in words else float(part) for part in text.split(",")]
        value = np.asarray(numbers if len(numbers) > 1 else numbers[0]).astype(info.dtype)
        spread(value, info.shape or (), 1)
    except (ValueError, TypeError):
        raise DistillError(
            f"--input {info.name}={text} does not fit {shape_text(info) or 'one'} {info.dtype}",
            "write a number, true or false, or several with commas between",
        ) from None
    return value


def as_text(value: NDArray[Any]) -> str:
    """A setting as text that reads back as the same numbers of its type; part of what answers are kept under."""
    return ",".join(_number(one) if value.dtype.kind == "f" else str(one) for one in value.ravel())


def _number(value: Any) -> str:
    """A numpy float in six digits where they say it all, else in as many as its type takes."""
    short = f"{float(value):g}"
    return short if type(value)(short) == value else str(value)

"""What a model is fed when it is timed: numbers by its own signature, or real images through its preprocessing."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilltool import images
from distilltool.embedder import by_shape
from distilltool.errors import DistillError, Exit
from distilltool.graph import AS_IT_IS, CHAIN, RESHAPES, Graph, Shape, Value
from distilltool.inputs import parse_setting, shape_text, split_setting, spread, the_image
from distilltool.onnx_file import OnnxFile, describe, opset_of, read_model, settle_external
from distilltool.preprocess import parse_flags
from distilltool.report import BenchFed
from distilltool.said import fixed_size, layout_of, nominal_size, said_of, settle, unknown_preprocess

if TYPE_CHECKING:
    import onnx

FREE_SIDE = 128  # of an axis that is neither the batch nor a side of an image: tokens, most likely
MOST_BYTES = 4 << 30  # of one input


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the user says of the inputs. preprocess: as of `--preprocess`; settings: name=value; shapes:
    name=Nx3x224x224, N being the batch; photos: real images to feed, none for numbers by the signature."""

    preprocess: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    photos: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file that is to be timed, read without being run."""

    file: OnnxFile
    proto: "onnx.ModelProto"

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.proto)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def opset(self) -> int:
        """Of the standard operators."""
        return opset_of(self.proto)

    @property
    def signature(self) -> tuple[str, ...]:
        """Its inputs as the file declares them."""
        return tuple(" ".join(filter(None, (one.name, shape_text(one), one.dtype))) for one in self.graph.inputs)

    @cached_property
    def batch(self) -> int | None:
        """The one batch size it takes, None where that is free: the first axis of its first input that has several."""
        several = [one for one in self.graph.inputs if len(one.shape or ()) > 1]
        pictures = [one for one in several if is_image(one)]
        for one in [*pictures, *several][:1]:
            side = (one.shape or (None,))[0]
            return side if isinstance(side, int) else None
        return None

    def relocated(self) -> bytes | None:
        """The model with its external data named by where it really is, where links lead there; else None: onnxruntime
        follows no link out of a model's folder."""
        if not any(one.is_symlink() for one in self.file.external):
            return None
        copy = type(self.proto)()
        copy.CopyFrom(self.proto)
        settle_external(copy, self.path)
        return bytes(copy.SerializeToString())


def open_subject(path: Path) -> Subject:
    """Read and hash a file with its external data."""
    proto = read_model(path)
    return Subject(file=describe(path, proto), proto=proto)


def feeds_of(subject: Subject, batch: int, wish: Wish) -> dict[str, NDArray[Any]]:
    """Every input of the model for one run. Raises DistillError for what cannot be fed."""
    if subject.batch is not None and subject.batch != batch:
        raise DistillError(
            f"{subject.path} takes batches of {subject.batch} alone, not of {batch}",
            f"use --batch {subject.batch}, or export it with a free first axis",
        )
    names = [one.name for one in subject.graph.inputs]
    settings, shapes = _said("--input", wish.settings, names), _said("--shape", wish.shapes, names)
    flags = parse_flags(wish.preprocess)
    rng = np.random.default_rng(0)
    real = _real(subject, batch, wish) if wish.photos else {}
    found = dict[str, NDArray[Any]]()
    for one in subject.graph.inputs:
        shape = _asked_shape(one, shapes[one.name], batch) if one.name in shapes else _shape(subject, one, batch, flags)
        if one.name in real:
            found[one.name] = real[one.name]
        elif one.name in settings:
            found[one.name] = spread(parse_setting(one, settings[one.name]), shape, batch)
        else:
            found[one.name] = _numbers(subject, one, shape, rng)
    return found


def fed_of(subject: Subject, feeds: dict[str, NDArray[Any]], wish: Wish) -> tuple[BenchFed, ...]:
    """What `feeds_of` gave each input, and on whose word."""
    settings = dict(split_setting(text) for text in wish.settings)
    image = the_image(subject.path, subject.graph).name if wish.photos else None
    found = list[BenchFed]()
    for name, array in feeds.items():
        source, said = "drawn", ""
        if name == image:
            source, said = "images", hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        elif name in settings:
            source, said = "setting", settings[name]
        found.append(BenchFed(name=name, shape=tuple(array.shape), dtype=str(array.dtype), source=source, said=said))
    return tuple(found)


def is_image(value: Value) -> bool:
    """Four axes of numbers that a picture can be: a network's first input, most likely."""
    return len(value.shape or ()) == 4 and value.dtype in ("float32", "float16", "float64", "bfloat16", "uint8")


def _said(flag: str, texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """name=value by name; an unknown name is an error."""
    said = {}
    for text in texts:
        name, value = split_setting(text)
        if name not in names:
            raise DistillError(f"{flag} {text}: there is no input {name!r}", f"the inputs are {', '.join(names)}")
        said[name] = value
    return said


def _asked_shape(value: Value, text: str, batch: int) -> tuple[int, ...]:
    """Nx3x224x224 as numbers."""
    parts = text.replace("×", "x").split("x")
    if not all(part == "N" or (part.isdecimal() and int(part)) for part in parts):
        raise DistillError(
            f"--shape {value.name}={text} is no shape", f"write --shape {value.name}=Nx3x224x224", Exit.USAGE
        )
    shape = tuple(batch if part == "N" else int(part) for part in parts)
    declared = value.shape if value.shape is not None else shape
    clash = [1 for ours, theirs in zip(shape, declared, strict=False) if isinstance(theirs, int) and ours != theirs]
    if clash or len(shape) != len(declared):
        raise DistillError(f"--shape {value.name}={text} does not fit {shape_text(value)}", "keep the numbers it fixes")
    return shape


def _shape(subject: Subject, value: Value, batch: int, flags: dict[str, Any]) -> tuple[int, ...]:
    """The declared shape with its free axes filled: the batch, an image's sides and channels, else `FREE_SIDE`."""
    if value.shape is None:
        raise DistillError(
            f"nothing says the shape of the input {value.name} of {subject.path}", f"say --shape {value.name}=Nx3"
        )
    usual: dict[int, int] = {0: batch}
    if is_image(value):
        said = said_of(subject.file, subject.graph, value)
        height, width = nominal_size(value, flags.get("size"), said)
        usual |= {1: 3, 2: height, 3: width} if layout_of(value) == "NCHW" else {1: height, 2: width, 3: 3}
    sides = [
        side if isinstance(side, int) else usual.get(place, FREE_SIDE if side != (value.shape or ())[0] else batch)
        for place, side in enumerate(value.shape)
    ]
    return tuple(sides)


def _numbers(subject: Subject, value: Value, shape: Shape, rng: np.random.Generator) -> NDArray[Any]:
    """Random numbers that the model can take: images of their type, places in the table that they look up."""
    sides = tuple(side for side in shape if isinstance(side, int))
    kind = _dtype(subject, value)
    if math.prod(sides) * kind.itemsize > MOST_BYTES:
        raise DistillError(f"the input {value.name} of {sides} would take too much memory", "use a smaller --batch")
    if kind == np.bool_:
        return np.zeros(sides, np.bool_)  # training=false, most likely
    if kind.kind in "iu":
        return rng.integers(0, _most(subject.graph, value, kind), sides).astype(kind)
    return rng.standard_normal(sides, np.float32).astype(kind)


def _dtype(subject: Subject, value: Value) -> np.dtype[Any]:
    try:
        kind = np.dtype(value.dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "biuf":
        raise DistillError(
            f"the input {value.name} of {subject.path} is {value.dtype}, which cannot be made up",
            "time a model whose inputs are numbers",
        )
    return kind


def _most(graph: Graph, value: Value, kind: np.dtype[Any]) -> int:
    """One more than the largest whole number to feed: a byte, or a place in the smallest table it is looked up in."""
    if kind == np.uint8 and is_image(value):
        return 256
    tables = list[int]()
    reached = [value.name]
    for _ in range(CHAIN):
        users = [(node, name) for name in reached for node in graph.users.get(name, ())]
        for node, name in users:
            if node.op_type == "Gather" and node.input[1] == name and (dims := graph.weight_dims(node.input[0])):
                axis = int(graph.attribute(node, "axis", 0))
                tables.append(dims[axis])
        reached = [out for node, _ in users if node.op_type in RESHAPES | AS_IT_IS for out in node.output]
    return max(1, min(tables, default=2))


def _real(subject: Subject, batch: int, wish: Wish) -> dict[str, NDArray[Any]]:
    """A batch of real images as the model wants them, the same ones again where there are too few."""
    image = the_image(subject.path, subject.graph)
    sources = [one for one in (parse_flags(wish.preprocess), *said_of(subject.file, subject.graph, image)) if one]
    preprocess = settle(subject.path.name, fixed_size(image), sources)
    if preprocess is None:
        raise unknown_preprocess(subject.path.name)
    found, skipped = images.load_each(wish.photos[:batch], preprocess)
    if not found:
        raise DistillError(f"{skipped[0].path} {skipped[0].reason}", "give a folder of images that can be read")
    rows = np.stack([found[at] for at in by_shape(found)[0]])  # a batch is of one shape
    return {image.name: preprocess.feed(rows[np.arange(batch) % len(rows)])}

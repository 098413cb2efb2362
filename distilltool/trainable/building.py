"""From an ONNX model to a torch module that computes the same and can be trained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor, fx

import distilltool.trainable.operators  # noqa: F401  (registers every operator)
from distilltool.errors import DistillError
from distilltool.graph import Graph, Value
from distilltool.onnx_file import external_files, read_model
from distilltool.roles import image_inputs
from distilltool.said import layout_of
from distilltool.trainable.builder import Builder
from distilltool.trainable.fusion import fuse
from distilltool.trainable.numbers import read
from distilltool.trainable.regroup import BATCH
from distilltool.trainable.values import NotFree

FACTS = "distilltool"  # where a module keeps what it is, in its `meta`
SIDE = 224  # a free side while the graph is followed
TALLER, WIDER = 2, 5  # how the other probe's sides differ; neither is the batch's factor
DTYPES = {
    "uint8": torch.uint8,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a rebuilt module. layout: of its input, NCHW or NHWC. shape: of its input as declared, 0 free.

    free_batch, free_size: whether any batch, any height and width may come. output: the tensor it makes.
    """

    image: str
    output: str
    layout: str
    free_batch: bool
    free_size: bool
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    batch: int
    free_batch: bool
    free_size: bool


def facts(module: fx.GraphModule) -> Facts:
    """What is known of a module that `build` made."""
    found: Facts = module.meta[FACTS]
    return found


def read_whole(path: Path) -> onnx.ModelProto:
    """An ONNX file with the weights it keeps in other files."""
    model = read_model(path)
    if external_files(path, model):
        load_external_data_for_model(model, str(path.parent))
    return model


def build(
    model: onnx.ModelProto,
    output: str | None = None,
    image: str | None = None,
    settings: Mapping[str, Tensor] | None = None,
    size: tuple[int, int] | None = None,
    also: Sequence[str] = (),
) -> fx.GraphModule:
    """Rebuild a graph, up to a tensor, as a module that takes the image as the graph does; in evaluation mode.

    model: with its weights, or as `architecture` left it. output: the graph's first where it is None. settings: values
    for inputs other than the image. size: height and width to follow a graph at that leaves them free. also: tensors on
    the way to the output; where there are any, the module makes a tuple, the output first. The module is float32; an
    image of bytes may come as floats from 0 to 255. Raises DistillError with the operator and node that cannot be
    rebuilt.
    """
    whole = Graph(model)
    name = output or whole.outputs[0].name
    if name not in whole.maker:
        raise DistillError(f"the model has no tensor {name!r}", "see distilltool inspect MODEL --tensors")
    graph = Graph(whole.cut(name))
    source = _the_image(graph, image, settings or {})
    reason: Exception | None = None
    for one in _attempts(source):
        try:
            return _try(graph, source, (name, *also), dict(settings or {}), size, one)
        except (NotFree, DistillError) as error:  # what is not known at any size may be at the declared one
            reason = error
    if isinstance(reason, DistillError):
        raise reason
    raise DistillError(f"the graph up to {name} does not fit the input it declares ({reason})", "export it anew")


def _the_image(graph: Graph, image: str | None, settings: Mapping[str, Tensor]) -> Value:
    left = [one for one in graph.inputs if one.name not in settings]
    named = [one for one in left if one.name == image] if image else image_inputs(graph) or left
    if len(named) != 1:
        raise DistillError("the graph has no input that is the one image", "name it, or choose another --output")
    if len(left) > 1:
        extra = next(one.name for one in left if one is not named[0])
        raise DistillError(f"the graph also reads {extra!r}", f"give it a value with --set {extra}=VALUE")
    return named[0]


def _attempts(source: Value) -> Iterator[_Attempt]:
    """From the freest to the one the graph declares."""
    declared = source.shape[0] if source.shape and isinstance(source.shape[0], int) else None
    sized = len(source.shape or ()) == 4
    for batch in (declared,) if declared else (2, 1):
        for free_size in (True, False) if sized else (False,):
            yield _Attempt(batch=batch, free_batch=True, free_size=free_size)
    for free_size in (True, False) if sized else (False,):
        yield _Attempt(batch=declared or 1, free_batch=False, free_size=free_size)


def _try(
    graph: Graph,
    source: Value,
    outputs: Sequence[str],
    settings: Mapping[str, Tensor],
    size: tuple[int, int] | None,
    attempt: _Attempt,
) -> fx.GraphModule:
    layout = layout_of(source) if len(source.shape or ()) == 4 else "NC"
    here = _declared(source, layout, size or (SIDE, SIDE), attempt.batch)
    there = list(here)
    if attempt.free_batch:
        there[0] *= BATCH
    if attempt.free_size:
        at = layout.index("H")
        there[at], there[at + 1] = there[at] * TALLER, there[at + 1] * WIDER
    module, made = rebuild(graph, {source.name: (here, there)}, {source.name: source.dtype}, outputs, settings)
    _check_free(made[0], made[1], here, there, attempt)
    places = [layout.index(axis) if axis in layout else 0 for axis in "HW"]
    module.meta[FACTS] = Facts(
        image=source.name,
        output=outputs[0],
        layout=layout,
        free_batch=attempt.free_batch,
        free_size=attempt.free_size,
        height=here[places[0]],
        width=here[places[1]],
    )
    return module


def _declared(source: Value, layout: str, size: tuple[int, int], batch: int) -> list[int]:
    usual = {"N": batch, "C": 3, "H": size[0], "W": size[1]}
    shape = source.shape or ()
    return [
        one if isinstance(one, int) else usual.get(layout[at] if at < len(layout) else "C", 1)
        for at, one in enumerate(shape)
    ]


def _check_free(
    one: Sequence[int], other: Sequence[int], here: Sequence[int], there: Sequence[int], attempt: _Attempt
) -> None:
    """What comes out must be one row for each image, of a width that no size changes."""
    if attempt.free_batch and (not one or (one[0], other[0]) != (here[0], there[0])):
        raise NotFree("the output's first axis is not the batch")
    if attempt.free_size:
        fixed = {2: [(one[1], other[1])], 3: [(one[-1], other[-1])]} if len(one) in (2, 3) else {}
        if any(a != b for a, b in fixed.get(len(one), [])):
            raise NotFree("the output's width changes with the image's size")
        if len(one) == 4 and one[1] != other[1] and one[-1] != other[-1]:
            raise NotFree("the output's channels change with the image's size")


Shapes = Mapping[str, tuple[Sequence[int], Sequence[int]]]


def rebuild(
    graph: Graph, shapes: Shapes, dtypes: Mapping[str, str], outputs: Sequence[str], settings: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, tuple[tuple[int, ...], tuple[int, ...]]]:
    """A graph whose run-time inputs have these shapes at the two probes, as a module that takes them in order; with
    the shapes of the first of its outputs."""
    builder = Builder(graph)
    for name, (here, there) in shapes.items():
        kind = DTYPES.get(dtypes[name], torch.float32)
        probes = (torch.empty(tuple(one), dtype=kind, device="meta") for one in (here, there))
        node = builder.placeholder(name, *probes)
        builder.env[name] = node
        builder.image = builder.image or node
    builder.constants({name: one.float() if one.is_floating_point() else one for name, one in settings.items()})
    builder.constants({one.name: read(one) for one in graph.model.graph.initializer})
    builder.walk(graph.nodes)
    ends = [_end(builder, one) for one in outputs]
    builder.fx.output(tuple(ends) if len(ends) > 1 else ends[0])
    fuse(builder)
    made = (builder.shape(builder.result), builder.other_shape(builder.result))
    builder.drop_unused()
    builder.fx.lint()
    return fx.GraphModule(builder.root, builder.fx, "Imported").eval(), made


def _end(builder: Builder, output: str) -> fx.Node:
    if output not in builder.env:
        raise DistillError(f"the tensor {output!r} is a further output that cannot be made here", "name another one")
    made = builder.tensor(builder.env[output])
    return made if isinstance(made, fx.Node) else builder.hold(made)

"""Where a graph can be cut so that its early part is a network of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
import torch
from torch import Tensor

from distilltool.errors import DistillError
from distilltool.graph import Graph, Value, sides
from distilltool.roles import image_inputs, made_channels_last, reached, waists
from distilltool.said import fixed_size, layout_of

Kind = Literal["map", "tokens", "vector"]
SIDE = 224  # a free side while costs are counted
LEAST = 8  # channels below which a cut ranks nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A tensor that all later computation passes through, at one image.

    share: of the floating-point operations spent up to it. axis: of its channels, from the front. kind: a map (N, C, H,
    W) or (N, H, W, C), tokens (N, T, D) or a vector. pool: how it becomes a vector: avg, cls where the graph itself
    picks the first token later, none for a vector.
    """

    name: str
    shape: tuple[int, ...]
    share: float
    flops: int
    kind: Kind
    channels: int
    axis: int
    pool: str


def cuts(
    model: onnx.ModelProto, output: str, size: tuple[int, int] | None = None, image: str | None = None
) -> tuple[Cut, ...]:
    """The tensors a graph can be cut at on the way to an output, from the first to the output itself.

    Of several in a row between which nothing is multiplied, the last. size: height and width to count at where the
    graph leaves them free. A gate or a shape on the way is no cut. Raises DistillError where the output is unknown.
    """
    whole = Graph(model)
    if output not in whole.maker:
        raise DistillError(f"the model has no tensor {output!r}", "see distilltool inspect MODEL --tensors")
    graph = Graph(whole.cut(output))
    source = next((one for one in image_inputs(graph) if image in (None, one.name)), None)
    if source is None:
        raise DistillError(f"{output} does not depend on an image alone", "choose another --output")
    shapes = graph.shapes(source.name, fixed_size(source) or size or (SIDE, SIDE), layout_of(source))
    total = graph.cost(output, shapes).flops or 1
    found: list[Cut] = []
    for name in _in_order(graph, source.name, shapes):
        one = _cut(graph, name, output, shapes, total)
        if one is None:
            continue
        if found and found[-1].flops == one.flops and found[-1].kind == one.kind:
            found.pop()
        found.append(one)
    return tuple(found)


def choose(found: Sequence[Cut], wanted: str | float) -> Cut:
    """The cut named, or the last whose share is at most the one asked for."""
    if isinstance(wanted, str):
        one = next((one for one in found if one.name == wanted), None)
        if one is None:
            names = ", ".join(one.name for one in found)
            raise DistillError(f"{wanted!r} is no tensor that all later computation passes", f"cut at one of {names}")
        return one
    below = [one for one in found if one.share <= wanted]
    if not below:
        least = f"{found[0].share:.2f}" if found else "none"
        raise DistillError(f"no cut of the model takes {wanted:.0%} of its work or less", f"the least is {least}")
    return below[-1]


def _in_order(graph: Graph, image: str, shapes: Mapping[str, Value]) -> list[str]:
    """Waists of real numbers in the order of computation."""
    reach = {name for name in reached(graph, {image}) if name not in shapes or shapes[name].dtype.startswith("float")}
    narrow = waists(graph, reach) | {one.name for one in graph.outputs}
    return [name for node in graph.nodes for name in node.output if name in narrow]


def _cut(graph: Graph, name: str, output: str, shapes: Mapping[str, Value], total: int) -> Cut | None:
    """A waist as a cut; None where its shape is not known or it is too narrow to rank anything."""
    shape = shapes[name].shape if name in shapes else None
    if shape is None or not all(isinstance(side, int) for side in shape) or not 2 <= len(shape) <= 4:
        return None
    known = tuple(side for side in shape if isinstance(side, int))
    kind, axis = _kind(graph, name, known)
    flops = graph.cost(name, shapes).flops
    if known[axis] < LEAST or (flops == 0 and total > 1):
        return None
    return Cut(
        name=name,
        shape=known,
        share=flops / total,
        flops=flops // max(known[0], 1),
        kind=kind,
        channels=known[axis],
        axis=axis,
        pool={"vector": "none", "map": "avg", "tokens": "cls" if _picks_first(graph, name) else "avg"}[kind],
    )


def _kind(graph: Graph, name: str, shape: tuple[int, ...]) -> tuple[Kind, int]:
    """What a tensor is, and the axis of its channels."""
    wide = sides(shape)
    if len(wide) <= 1:
        return "vector", next((at for at in range(1, len(shape)) if shape[at] != 1), 1)
    if len(shape) == 3:
        return "tokens", 2
    last = made_channels_last(graph, name)
    if last is None:
        last = shape[1] == shape[2] != shape[3]
    return "map", 3 if last else 1


def _picks_first(graph: Graph, name: str) -> bool:
    """Whether what follows a tensor of tokens takes the first token alone, as networks with a class token do."""
    after = reached(graph, {name})
    for node in graph.nodes:
        if node.op_type not in ("Gather", "Slice") or not node.input or node.input[0] not in after:
            continue
        if node.op_type == "Gather" and len(node.input) > 1:
            index = graph.constant(str(node.input[1]))
            if index is not None and index.ravel().tolist() == [0] and graph.attribute(node, "axis", 0) == 1:
                return True
        if node.op_type == "Slice" and len(node.input) > 3:
            ends = [graph.constant(str(one)) for one in node.input[1:4]]
            if [one.ravel().tolist() if one is not None else None for one in ends] == [[0], [1], [1]]:
                return True
    return False


def pooled(x: Tensor, cut: Cut) -> Tensor:
    """What a module cut there makes, as one vector per image, (N, channels)."""
    if cut.kind == "vector":
        return x.flatten(1)
    if cut.kind == "tokens":
        return x[:, 0] if cut.pool == "cls" else x.mean(1)
    return torch.mean(x, (2, 3) if cut.axis == 1 else (1, 2))

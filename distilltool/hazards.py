"""What in a graph would hang or fill the machine it runs on, or break who reads it, found without running it.

These checks know what is written in the file. What a graph computes first and then does harm with, only a child process
with limits stops (`distilltool.isolate`).
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from distilltool.errors import DistillError
from distilltool.graph import MAX_NODES, Graph, Value, tensors

LARGEST = 2**28  # numbers in one tensor for one image or fixed batch, 1 GB in float32: no embedding model comes near
MOST_TURNS = 100_000  # of a loop whose count stands in the file
MOST_AXES = 64  # onnxruntime and numpy end there
LARGEST_BATCH = 4096  # of a graph that fixes it
UNKNOWN_SOURCE = "that is more than any embedding model needs; check where the file comes from"


def check_graph(path: Path, graph: Graph, image: Value) -> None:
    """Refuse nodes that make nothing, loops and ranges beyond reason, and a batch that nobody fixes."""
    for tensor in tensors(graph.model.graph):
        if len(tensor.dims) > MOST_AXES:
            raise DistillError(f"{path} holds a tensor {tensor.name} of {len(tensor.dims):,} axes", UNKNOWN_SOURCE)
    for node in all_nodes(graph.model.graph):
        if not node.op_type or not any(node.output):
            raise DistillError(
                f"{path} is no sound ONNX model (a node {node.name or node.op_type!r} makes nothing)",
                "export it anew, or fetch it again",
            )
        most = _count(graph, node)
        if most is not None and most > (MOST_TURNS if node.op_type == "Loop" else LARGEST):
            what = "loops" if node.op_type == "Loop" else "counts"
            raise DistillError(f"{path} {what} {most:,.0f} times in a node {node.name or node.op_type}", UNKNOWN_SOURCE)
    batch = image.shape[0] if image.shape else None
    if isinstance(batch, int) and batch > LARGEST_BATCH:
        raise DistillError(f"{path} wants {batch:,} images at once", "export it with a free batch axis")


def check_sizes(path: Path, shapes: Mapping[str, Value]) -> None:
    """Refuse a graph that would fill the machine's memory for one image."""
    for value in shapes.values():
        shape = value.shape or ()
        if len(shape) > MOST_AXES:
            raise DistillError(f"{path} holds a tensor {value.name} of {len(shape):,} axes", UNKNOWN_SOURCE)
        if math.prod(side if isinstance(side, int) else 1 for side in shape) > LARGEST:
            sides = "×".join("?" if side is None else str(side) for side in shape)
            raise DistillError(f"{path} holds a tensor {value.name} of {sides} numbers for one image", UNKNOWN_SOURCE)


def check_text(path: Path, model: onnx.ModelProto) -> None:
    """Refuse names that are no UTF-8, which the format asks for and every later step would stumble over."""
    if any(not isinstance(text, str) for text in _texts(model)):  # protobuf gives bytes where they are no text
        raise DistillError(
            f"{path} is no sound ONNX model (a name in it is no text)", "export it anew, or fetch it again"
        )


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Every text that is read of a model."""
    yield from (model.producer_name, model.graph.name)
    yield from (text for one in model.metadata_props for text in (one.key, one.value))
    yield from (one.domain for one in model.opset_import)
    for body in (model.graph, *model.functions):
        for node in all_nodes(body):
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (one.name for one in node.attribute)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    for tensor in tensors(model.graph):
        yield tensor.name
        yield from (text for one in tensor.external_data for text in (one.key, one.value))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        yield value.name
        yield from (one.dim_param for one in value.type.tensor_type.shape.dim)


def check_count(path: Path, model: onnx.ModelProto) -> None:
    """Refuse more nodes than any network has, also where functions that call functions only unfold to so many."""
    bodies = {(one.domain, one.name): one for one in model.functions}
    unfolded: dict[tuple[str, str], int] = {}
    for _ in range(len(bodies) + 1):  # each round knows the functions one level higher; a circle never ends
        for key, one in bodies.items():
            calls = [(node.domain, node.op_type) for node in all_nodes(one)]
            if key not in unfolded and all(call not in bodies or call in unfolded for call in calls):
                unfolded[key] = sum(unfolded.get(call, 1) for call in calls)
        if len(unfolded) == len(bodies):
            break
    if len(unfolded) < len(bodies):
        raise DistillError(f"{path} is no sound ONNX model (its functions call each other)", "export it anew")
    count = sum(unfolded.get((node.domain, node.op_type), 1) for node in all_nodes(model.graph))
    if count > MAX_NODES:
        raise DistillError(f"{path} has {count:,} nodes", UNKNOWN_SOURCE)


def all_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of the graphs inside nodes too."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [graph]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting += attribute.graphs


def _count(graph: Graph, node: onnx.NodeProto) -> float | None:
    """How often a loop turns or how far a range counts, where constants say it."""
    if node.op_type == "Loop" and node.input:
        return _number(graph, node.input[0])
    if node.op_type == "Range" and len(node.input) == 3:
        start, end, step = (_number(graph, name) for name in node.input)
        if start is not None and end is not None and step is not None:
            return abs((end - start) / step) if step else math.inf
    return None


def _number(graph: Graph, name: str) -> float | None:
    value = graph.constant(name)
    if value is None or value.size != 1 or value.dtype.kind not in "iuf":
        return None
    number = float(value.ravel()[0])
    return number if math.isfinite(number) else math.inf

"""What can be known of an ONNX file without running it, as plain values: the static half of `inspect`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distilltool import plain
from distilltool.errors import DistillError
from distilltool.graph import Graph, Value, parameters
from distilltool.inputs import the_image
from distilltool.isolate import Child
from distilltool.onnx_file import OnnxFile, check_path, describe, read_model
from distilltool.preprocess import parse_flags
from distilltool.report import TensorReport
from distilltool.roles import Choice, candidates, choose, image_inputs, input_role, is_pair_scorer, role_of
from distilltool.said import layout_of, nominal_size, said_of
from distilltool.teacher import TeacherOptions

# operators that onnxruntime brings along: ONNX's own, and what its optimisers and exporters write
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """A file taken apart. problem: why it is no embedder, with what to do; None where it is one.

    flops: for one image; counted: whether every shape needed for them was known. size: height and width reasoned with.
    """

    file: OnnxFile
    kind: str
    problem: tuple[str, str] | None
    ir_version: int
    opset: int
    domains: dict[str, int]
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    tensors: tuple[TensorReport, ...]
    choice: Choice | None
    params: int
    flops: int | None
    counted: bool
    size: tuple[int, int] | None
    said: tuple[dict[str, Any], ...]


def dissect(path: Path, options: TeacherOptions) -> Anatomy:
    """Take a file apart without running it; only what is no ONNX model at all is an error."""
    if options.isolate:
        return _isolated(path, options)
    proto = read_model(path)
    file, graph = describe(path, proto), Graph(proto)
    domains = {one.domain or "ai.onnx": one.version for one in proto.opset_import}
    problem, image, choice = _foreign(path, graph), None, None
    try:
        image = the_image(path, graph)
    except DistillError as error:
        problem = problem or (error.message, error.fix)
    said = said_of(file, graph, image) if image is not None else ()
    size = nominal_size(image, parse_flags(options.preprocess).get("size"), said) if image is not None else None
    shapes = graph.shapes(image.name if image else "", size, layout_of(image) if image else "NCHW")
    if image is not None:
        try:
            choice = choose(graph, image.name, shapes, options.output, options.pool)
        except DistillError as error:
            problem = problem or (error.message, error.fix)
    cost = graph.cost(choice.tensor, shapes) if choice is not None else None
    at_once = image.shape[0] if image is not None and image.shape and isinstance(image.shape[0], int) else 1
    return Anatomy(
        file=file,
        kind=_kind(graph, choice, [role_of(graph, one.name, shapes)[0] for one in graph.outputs]),
        problem=problem,
        ir_version=proto.ir_version,
        opset=domains.get("ai.onnx", 0),
        domains=domains,
        inputs=tuple(_input(one) for one in graph.inputs),
        outputs=tuple(_output(graph, one, shapes) for one in graph.outputs),
        tensors=tuple(_tensor(*one) for one in candidates(graph, image.name, shapes, choice.tensor if choice else None))
        if image
        else (),
        choice=choice,
        params=parameters(proto),
        flops=cost.flops // at_once if cost is not None else None,
        counted=cost is not None and cost.complete,
        size=size,
        said=said,
    )


def _isolated(path: Path, options: TeacherOptions) -> Anatomy:
    """The same from a child process, so that nothing here parses the file."""
    check_path(path)
    child = Child(path)
    try:
        said = child.dissect(plain.marked(asdict(replace(options, isolate=False))))
    finally:
        child.close()
    with plain.believed(path):
        return _told(path, said)


def _told(path: Path, said: dict[str, Any]) -> Anatomy:
    """The anatomy that a child sent; what it is no anatomy of raises anything."""
    facts = plain.unmarked(said["anatomy"])
    choice = facts.pop("choice")
    tensors = {
        kind: tuple(plain.made(TensorReport, one) for one in facts.pop(kind))
        for kind in ("inputs", "outputs", "tensors")
    }
    whole = {**facts, **tensors, "choice": plain.made(Choice, choice) if choice else None}
    return plain.made(Anatomy, {**whole, "file": plain.file_of(path, said)})


def _foreign(path: Path, graph: Graph) -> tuple[str, str] | None:
    """The problem of a file whose operators come from a library of their own; None where onnxruntime has them all."""
    found = sorted({f"{node.op_type} of {node.domain}" for node in graph.nodes if node.domain not in DOMAINS})
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{path} needs the operator {found[0]}{more}, which onnxruntime does not have",
        "custom operators are not supported: export it without them",
    )


def _kind(graph: Graph, choice: Choice | None, roles: Sequence[str]) -> str:
    """What the model is, in one word or two."""
    if is_pair_scorer(graph):
        return "pair scorer"
    if "detections" in roles:
        return "detector"
    if choice is not None:
        scores = {"logits", "probabilities"}
        return "classifier" if roles and set(roles) <= scores else "embedder"
    return "other" if image_inputs(graph) else "no image model"


def _input(value: Value) -> TensorReport:
    role = input_role(value)
    names = {"NCHW": ("batch", "channels", "height", "width"), "NHWC": ("batch", "height", "width", "channels")}
    layout = layout_of(value) if role == "image" else ""
    return TensorReport(
        name=value.name,
        shape=value.shape or (),
        dtype=value.dtype,
        role=role,
        why="its type and shape",
        layout=layout,
        dynamic=_free(value, names.get(layout, ())),
    )


def _free(value: Value, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The free axes, by what they are where that is known."""
    free = [place for place, side in enumerate(value.shape or ()) if not isinstance(side, int)]
    return tuple(names[place] if place < len(names) else ("batch" if place == 0 else f"axis {place}") for place in free)


def _output(graph: Graph, declared: Value, shapes: Mapping[str, Value]) -> TensorReport:
    role, why = role_of(graph, declared.name, shapes)
    inferred = shapes.get(declared.name)
    shape = declared.shape if declared.shape is not None else (inferred.shape if inferred else None)
    return TensorReport(
        name=declared.name,
        shape=shape or (),
        dtype=declared.dtype,
        role=role,
        why=why,
        layout="",
        dynamic=_free(declared),
    )


def _tensor(value: Value, role: str, why: str) -> TensorReport:
    return TensorReport(
        name=value.name, shape=value.shape or (), dtype=value.dtype, role=role, why=why, layout="", dynamic=()
    )

"""Rebuild an ONNX graph as a torch module, node after node, with every shape followed at two sizes of the input.

Each tensor at run time is a node of a torch.fx graph. Beside it stand two probes, tensors without numbers: one at the
size the graph declares, one with another batch and another height and width. What differs between them is free; a
constant that was baked into the graph for a fixed batch is set free where the two show how.
"""

import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from distilltool.errors import DistillError
from distilltool.graph import Graph
from distilltool.onnx_file import first_line
from distilltool.roles import FEW
from distilltool.trainable.functions import stack_numbers
from distilltool.trainable.numbers import is_mask, read
from distilltool.trainable.registry import OPERATORS
from distilltool.trainable.values import NotFree, Number, Sizes, Unsupported, Value

TRY = "cut before it with --output or teacher:cut=, or export the model from its framework with other operators"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A value at the declared size and at another one."""

    here: Any
    there: Any


class Op:
    """One node of the ONNX graph with its inputs as values."""

    def __init__(self, builder: "Builder", node: Any, opset: int) -> None:
        self.builder, self.node, self.opset = builder, node, opset
        self.kind: str = node.op_type
        self.inputs = [builder.env[name] if name else None for name in node.input]
        self.name: str = node.name or next((one for one in node.output if one), node.op_type)

    def has(self, at: int) -> bool:
        """Whether an optional input is there."""
        return at < len(self.inputs) and self.inputs[at] is not None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, text as str."""
        found = self.builder.graph.attribute(self.node, name, default)
        return found.decode() if isinstance(found, bytes) else found

    def value(self, at: int) -> Value:
        """An input that must be there."""
        if not self.has(at):
            raise Unsupported(f"its input {at} is missing")
        found = self.inputs[at]
        assert found is not None
        return found

    def tensor(self, at: int) -> Tensor | fx.Node:
        """An input as a constant or as a tensor at run time."""
        return self.builder.tensor(self.value(at))

    def constant(self, at: int, what: str) -> Tensor:
        """An input that must be known now."""
        found = self.tensor(at)
        if isinstance(found, fx.Node):
            raise Unsupported(f"its {what} is computed from the image")
        return found

    def numbers(self, at: int, what: str) -> tuple[Number, ...]:
        """An input as a list of whole numbers, some known at run time only."""
        found = self.value(at)
        if isinstance(found, Sizes):
            return found.numbers
        return tuple(self.constant(at, what).reshape(-1).tolist())

    def first_output_only(self) -> None:
        """Refuse a node of which a further output is read."""
        if any(name in self.builder.graph.users for name in self.node.output[1:] if name):
            raise Unsupported("a further output of it is read")

    def axes(self, at: int, name: str = "axes") -> list[int] | None:
        """Axes from the attribute of older operator sets or from an input; None where there are none."""
        if (found := self.attribute(name)) is not None:
            return [int(one) for one in found]
        return [int(one) for one in self.constant(at, name).reshape(-1)] if self.has(at) else None


class Builder:
    """The torch.fx graph under construction."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.root = nn.Module()
        self.fx = fx.Graph()
        self.env: dict[str, Value] = {}
        self.probes: dict[fx.Node, Probe] = {}
        self.read_as_float: set[str] = set()  # tensors of whole numbers that are carried as what they stand for
        self.opsets = {one.domain or "ai.onnx": int(one.version) for one in graph.model.opset_import}
        self.image: fx.Node | None = None
        self._held: dict[int, tuple[Tensor, fx.Node]] = {}
        self._named: dict[int, str] = {}
        self._taken: set[str] = set()
        self._scope = "graph"

    # values

    def tensor(self, value: Value) -> Tensor | fx.Node:
        """A value as a tensor: numbers become one, at run time where they are known then."""
        if not isinstance(value, Sizes):
            return value
        if not any(isinstance(one, fx.Node) for one in value.numbers):
            made = torch.tensor(value.numbers, dtype=torch.float32 if value.real else torch.int64)
            return made.reshape(()) if value.scalar else made
        found: fx.Node = self.emit(stack_numbers, value.numbers, value.scalar, value.real, self.image)
        return found

    def shape(self, value: Value) -> tuple[int, ...]:
        """Dimensions at the declared size."""
        return tuple(self.probe(self.tensor(value)).here.shape)

    def other_shape(self, value: Value) -> tuple[int, ...]:
        """Dimensions at the other size."""
        return tuple(self.probe(self.tensor(value)).there.shape)

    def rank(self, value: Value) -> int:
        """Number of axes."""
        return len(self.shape(value))

    def is_real(self, value: Value) -> bool:
        """Whether a value holds floating-point numbers."""
        if isinstance(value, Sizes):
            return value.real
        return bool(self.probe(value).here.dtype.is_floating_point)

    def probe(self, value: Any) -> Probe:
        """The two probes of a value; of a constant twice itself."""
        return self.probes[value] if isinstance(value, fx.Node) else Probe(here=value, there=value)

    def sizes(self, value: Value) -> tuple[Number, ...]:
        """Dimensions as numbers: those that do not change are known now."""
        found = self.tensor(value)
        here, there = self.shape(found), self.other_shape(found)
        return tuple(
            one if one == other else self.size(found, at)
            for at, (one, other) in enumerate(zip(here, there, strict=True))
        )

    def size(self, value: Tensor | fx.Node, axis: int) -> Number:
        """One dimension at run time."""
        found: Number = self.emit(torch.Tensor.size, value, axis)
        return found

    # nodes

    def emit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function at run time, or now where all that it is given is known; returns its result as a value."""
        if not _any_node((args, kwargs)):
            with torch.no_grad():
                return function(*args, **kwargs)
        args, kwargs = fx.node.map_aggregate(args, self._as_argument), fx.node.map_aggregate(kwargs, self._as_argument)
        node = self.fx.create_node("call_function", function, args, kwargs)
        return self._probed(node, lambda side: function(*side(args), **side(kwargs)))

    @property
    def result(self) -> fx.Node:
        """What the module returns; the first of several."""
        found: Any = next(iter(reversed(self.fx.nodes))).args[0]
        made: fx.Node = found[0] if isinstance(found, tuple) else found
        return made

    def item(self, several: Any, at: int) -> Any:
        """One of several results of a call."""
        return self.emit(operator.getitem, several, at) if isinstance(several, fx.Node) else several[at]

    def layer(self, module: nn.Module, name: str, x: fx.Node) -> fx.Node:
        """Call a module with one tensor; it is named after the ONNX node."""
        path = self._free_name(name)
        self.root.add_module(path, module)
        node = self.fx.create_node("call_module", path, (x,))
        bare = {key: one.to("meta") for key, one in (*module.named_parameters(), *module.named_buffers())}
        return self._probed(node, lambda side: functional_call(module.eval(), bare, (side(x),)))

    def _probed(self, node: fx.Node, call: Callable[[Callable[[Any], Any]], Any]) -> fx.Node:
        with torch.no_grad(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            here = call(lambda args: fx.node.map_arg(args, lambda one: self.probes[one].here))
            try:
                there = call(lambda args: fx.node.map_arg(args, lambda one: self.probes[one].there))
            except (RuntimeError, IndexError, ValueError) as error:
                raise NotFree(first_line(error)) from None
        self.probes[node] = Probe(here=here, there=there)
        return node

    def placeholder(self, name: str, here: Tensor, there: Tensor) -> fx.Node:
        """The module's argument."""
        node = self.fx.placeholder(_valid(name))
        self.probes[node] = Probe(here=here, there=there)
        return node

    def hold(self, tensor: Tensor) -> fx.Node:
        """A constant as part of the module: a parameter where it is a weight, a buffer elsewhere.

        A weight is floating point, of no fewer than FEW numbers (fewer are the preprocessing of three channels) and
        no mask. One that several nodes read, as exporters write equal ones, becomes one for each.
        """
        if id(tensor) in self._held:
            return self._held[id(tensor)][1]
        path = self._free_name(self._named.get(id(tensor), f"{self._scope}_constant"))
        own = tensor.detach().clone().contiguous()
        if own.dtype.is_floating_point and own.numel() >= FEW and not is_mask(own):
            self.root.register_parameter(path, nn.Parameter(own))
            return self._constant(path, own)
        self.root.register_buffer(path, own)
        node = self._constant(path, own)
        self._held[id(tensor)] = (tensor, node)
        return node

    def _constant(self, path: str, own: Tensor) -> fx.Node:
        node = self.fx.create_node("get_attr", path)
        bare = own.to("meta")
        self.probes[node] = Probe(here=bare, there=bare)
        return node

    def drop_unused(self) -> None:
        """Take out what nothing reads; everything here is without side effects."""
        for node in reversed(list(self.fx.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.fx.erase_node(node)

    def _as_argument(self, one: Any) -> Any:
        return self.hold(one) if isinstance(one, Tensor) else one

    def _free_name(self, name: str) -> str:
        base = _valid(name)
        path, count = base, 1
        while path in self._taken or hasattr(self.root, path):
            count += 1
            path = f"{base}_{count}"
        self._taken.add(path)
        return path

    def name(self, tensor: Tensor, name: str) -> None:
        """What a constant is called in the graph; the first name stays."""
        self._named.setdefault(id(tensor), name)

    # the walk

    def constants(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring the graph's weights in."""
        for name, one in tensors.items():
            self.env[name] = one
            self.name(one, name)

    def weights(self, tensors: Iterable[Any]) -> dict[str, Tensor]:
        """Initializers as tensors by name."""
        return {one.name: read(one) for one in tensors}

    def walk(self, nodes: Sequence[Any]) -> None:
        """Rebuild nodes in order."""
        for node in nodes:
            self._one(node)

    def _one(self, node: Any) -> None:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        function = OPERATORS.get(kind)
        said = f"the operator {kind} of the node {node.name or ', '.join(node.output)!r}"
        if function is None:
            raise DistillError(f"{said} cannot be trained here", TRY)
        opset = self.opsets.get(node.domain or "ai.onnx", self.opsets.get("ai.onnx", 1))
        self._scope = node.name or next((one for one in node.output if one), kind)
        try:
            made = function(self, Op(self, node, opset))
        except Unsupported as error:
            raise DistillError(f"{said} cannot be trained here ({error})", TRY) from None
        except KeyError as error:
            if error.args and error.args[0] in node.input:
                raise DistillError(f"{said} reads {error.args[0]!r}, which nothing makes", "export it anew") from None
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise DistillError(f"{said} cannot be rebuilt ({first_line(error)})", TRY) from error
        several = list(made) if isinstance(made, list | tuple) else [made]
        self._bind(node, several)

    def _bind(self, node: Any, made: list[Any]) -> None:
        carried = any(name in self.read_as_float for name in node.input) and node.op_type != "DequantizeLinear"
        for name, value in zip(node.output, made, strict=False):
            if name and value is not None:
                self.env[name] = value
                if isinstance(value, Tensor):
                    self.name(value, name)
                if carried:
                    self.read_as_float.add(name)


def _any_node(args: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(args, lambda one: found.append(one))
    return bool(found)


def _valid(name: str) -> str:
    """An ONNX name as a Python one."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "layer"
    found = (
        f"n{found}" if found[0].isdigit() or re.fullmatch(r"val_\d+", found) else found
    )  # torch's exporter owns val_0
    return f"{found}_" if found in RESERVED else found


RESERVED = set(dir(nn.Module)) | {"training", "graph", "code", "meta", "forward", "class_", "self", "input", "lambda"}

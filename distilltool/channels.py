"""Which channels of a network can only be taken out together, found by following each of them through its graph.

A channel is born where a layer makes it. Every later tensor says along which one of its axes channels stand, and which.
Where tensors are added, multiplied or normalised together, their channels are the same one from then on. What is not
known to keep channels apart fixes those that come into it: they stay, so that what is left always computes.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distilltool.trainable import functions

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
OUTPUT = "the vector that comes out"
NONE = -1  # stands for what is no channel, in an axis that holds channels too

# each number alone, of one tensor or of several that are broadcast
ALONE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.square, torch.sqrt, torch.rsqrt),
    *(torch.abs, torch.exp, torch.log, torch.erf, torch.sigmoid, torch.tanh, torch.clamp, torch.relu, torch.sign),
    *(torch.minimum, torch.maximum, torch.where, torch.reciprocal, torch.clone, torch.sin, torch.cos),
    *(F.relu, functions.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.celu, F.selu),
    *(F.softplus, F.mish, F.softsign, F.threshold, F.logsigmoid, F.hardtanh, torch.Tensor.float, torch.Tensor.to),
    *(functions.same_kind, functions.mean_of),
}
# each channel alone, places changed: (N, C, ...) stays that
PLACES = {
    *(*functions.MAX_POOLS.values(), *functions.POOLS.values(), F.interpolate, F.pad),
    *(functions.pad_same, functions.average_pool_uneven, functions.dilated_average_pool, functions.lp_pool),
}
# every number by all of an axis: fewer channels change them, and it still computes
TOGETHER = {functions.normalise_over, functions.rms_over, functions.standardise, functions.lp_normalise, F.softmax}
REDUCED = {torch.mean, torch.amax, torch.amin, torch.sum, torch.linalg.vector_norm}
MOVED = {
    *(torch.permute, torch.transpose, torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze, torch.cat),
    *(torch.split, operator.getitem, torch.select, torch.Tensor.expand, torch.Tensor.repeat, functions.slice_along),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Channels of a tensor: along which axis, and which ones, (places,) int64."""

    at: int
    ids: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An axis of a parameter or buffer along which channels stand."""

    path: str
    axis: Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """A layer that mixes channels. path: its name; read, made: its channels, None where what it reads is none."""

    path: str
    read: Axis | None
    made: Axis


@dataclass(slots=True)
class Channels:
    """What is known of a network's channels.

    held: where weights stand for channels; dense: layers that mix them; depthwise: layers with a group for each;
    numbers: nodes that make a tensor of fixed sides, with its channels; fixed: why a channel must stay.
    """

    held: list[Held] = field(default_factory=list)
    dense: list[Dense] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    numbers: list[tuple[str, Axis]] = field(default_factory=list)
    fixed: dict[int, str] = field(default_factory=dict)
    _same: list[int] = field(default_factory=list)  # a forest: channels that are one
    _together: list[int] = field(default_factory=list)  # and axes whose channels are

    def born(self, count: int) -> Tensor:
        """New channels of one axis."""
        first = len(self._same)
        self._same.extend(range(first, first + count))
        self._together.extend([first] * count)
        return torch.arange(first, first + count)

    def one(self, channel: int) -> int:
        """The channel that stands for all it is the same as."""
        return _root(self._same, channel)

    def layer(self, channel: int) -> int:
        """What names the axis that a channel is counted in."""
        return _root(self._together, channel)

    def join(self, ids: Tensor, others: Tensor) -> None:
        """Two axes whose channels are the same ones."""
        for one, other in zip(ids.tolist(), others.tolist(), strict=True):
            if NONE in (one, other):
                self.fix([max(one, other)], "a sum with what is no channel")
            else:
                self._same[self.one(one)] = self.one(other)
                self._together[self.layer(one)] = self.layer(other)

    def fix(self, ids: Iterable[int], why: str) -> None:
        """Channels that must stay."""
        for one in ids:
            if one != NONE:
                self.fixed.setdefault(one, why)

    def layers(self) -> dict[int, list[int]]:
        """The channels that can be taken out, by the axis they are counted in, in order."""
        stay = {self.one(channel) for channel in self.fixed}
        found: dict[int, list[int]] = {}
        for channel in range(len(self._same)):
            if self.one(channel) == channel and channel not in stay:
                found.setdefault(self.layer(channel), []).append(channel)
        made = {self.layer(int(one)) for dense in self.dense for one in dense.made.ids[:1]}
        return {name: channels for name, channels in found.items() if name in made}

    def why_fixed(self) -> str:
        """What most channels must stay for, other than being what comes out."""
        counts: dict[str, int] = {}
        for why in self.fixed.values():
            counts[why] = counts.get(why, 0) + (why != OUTPUT)
        return max(counts, key=lambda why: counts[why]) if counts else "no layer that makes channels"


def _root(forest: list[int], at: int) -> int:
    while forest[at] != at:
        forest[at] = forest[forest[at]]
        at = forest[at]
    return at


@torch.no_grad()
def channels(module: fx.GraphModule, example: Tensor) -> Channels:
    """Follow every channel of a network, which is run once on an example input of one image."""
    walk = _Walk(module)
    walk.run(example)
    return walk.found


class _Walk(fx.Interpreter):
    """Runs the network, and keeps of each tensor which channels it holds."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found = Channels()
        self.axes: dict[fx.Node, Any] = {}  # Axis, None, or a tuple of them for several results
        self._held: dict[str, Axis] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, then follow the channels through it."""
        made = super().run_node(n)
        self.env[n] = made
        self.axes[n] = self._follow(n, made)
        return made

    def _follow(self, n: fx.Node, made: Any) -> Any:
        if n.op == "get_attr":
            return self._constant(str(n.target), made)
        if n.op == "output":
            self._fix(n, OUTPUT)
        if n.op == "call_module":
            return self._layer(n, made)
        if n.op != "call_function" or isinstance(made, int | float):
            return None
        if n.target in ALONE:
            return self._alone(n, made)
        if n.target in PLACES or n.target in TOGETHER:
            return self._kept(n, made)
        if n.target in REDUCED:
            return self._reduced(n, made)
        if n.target in MOVED:
            return self._moved(n, made)
        return self._unknown(n)

    def _given(self, n: fx.Node) -> list[tuple[fx.Node, Axis]]:
        """What a node reads that holds channels."""
        read = [(one, self.axes.get(one)) for one in n.all_input_nodes]
        return [
            (one, axis)
            for one, axes in read
            for axis in (axes if isinstance(axes, tuple) else (axes,))
            if isinstance(axis, Axis)
        ]

    def _fix(self, n: fx.Node, why: str) -> None:
        for _, axis in self._given(n):
            self.found.fix(axis.ids.tolist(), why)

    def _unknown(self, n: fx.Node, why: str | None = None) -> Axis | None:
        """What comes in stays, and what comes out holds no channels."""
        self._fix(n, why or f"the operation {getattr(n.target, '__name__', n.target)}")
        return None

    def _constant(self, path: str, made: Any) -> Axis | None:
        """Numbers held beside the layers: biases, scales, places; channels stand along what is usual."""
        if not isinstance(made, Tensor) or not made.dtype.is_floating_point or made.numel() < 2:
            return None
        if path not in self._held:
            wide = [at for at, side in enumerate(made.shape) if side > 1]
            at = wide[0] if len(wide) == 1 else (1 if made.ndim == 4 else made.ndim - 1)
            self._held[path] = Axis(at=at, ids=self.found.born(made.shape[at]))
            self.found.held.append(Held(path=path, axis=self._held[path]))
        return self._held[path]

    # layers

    def _layer(self, n: fx.Node, made: Any) -> Axis | None:
        path = str(n.target)
        layer: Any = self.fetch_attr(path)
        given = next((axis for _, axis in self._given(n)), None)
        if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
            return self._grouped(n, path, layer, given)
        if isinstance(layer, CONVOLUTIONS):
            return self._dense(n, path, layer, given, 1)
        if isinstance(layer, nn.Linear):
            return self._dense(n, path, layer, given, made.ndim - 1)
        if isinstance(layer, NORMS):
            return self._scaled(n, path, layer, given, 1)
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
            return self._scaled(n, path, layer, given, made.ndim - 1)
        return self._unknown(n, f"the layer {type(layer).__name__}")

    def _dense(self, n: fx.Node, path: str, layer: Any, given: Axis | None, at: int) -> Axis:
        if given is not None and given.at != at:
            self._unknown(n, f"the layer {type(layer).__name__} along another axis")
            given = None
        made = Axis(at=at, ids=self.found.born(layer.weight.shape[0]))
        self._hold(path, layer, made.ids)
        if given is not None:
            self.found.held.append(Held(path=f"{path}.weight", axis=Axis(at=1, ids=given.ids)))
        self.found.dense.append(Dense(path=path, read=given, made=made))
        return made

    def _grouped(self, n: fx.Node, path: str, layer: Any, given: Axis | None) -> Axis | None:
        if given is None or given.at != 1 or layer.groups != layer.in_channels or bool((given.ids == NONE).any()):
            return self._unknown(n, "the convolution in groups")
        made = given.ids.repeat_interleave(layer.out_channels // layer.groups)
        self._hold(path, layer, made)
        self.found.depthwise.append(path)
        return Axis(at=1, ids=made)

    def _scaled(self, n: fx.Node, path: str, layer: Any, given: Axis | None, at: int) -> Axis | None:
        single = isinstance(layer, nn.PReLU) and layer.weight.numel() == 1
        if given is not None and given.at != at and not single:
            return self._unknown(n, f"the layer {type(layer).__name__} along another axis")
        if given is not None and not single:
            self._hold(path, layer, given.ids)
        return given

    def _hold(self, path: str, layer: nn.Module, ids: Tensor) -> None:
        for name, one in (*layer.named_parameters(), *layer.named_buffers()):
            if one.ndim:
                self.found.held.append(Held(path=f"{path}.{name}", axis=Axis(at=0, ids=ids)))

    # functions

    def _alone(self, n: fx.Node, made: Any) -> Axis | None:
        """Several tensors, aligned at their last axes; a side of 1 goes with any channel."""
        if not isinstance(made, Tensor):
            return None
        given = []
        for node, axis in self._given(n):
            at = axis.at + made.ndim - self.env[node].ndim
            if made.shape[at] == len(axis.ids):
                given.append((node, Axis(at=at, ids=axis.ids)))
            else:
                self.found.fix(axis.ids.tolist(), "a sum with what is no channel")
        if not given:
            return None
        first = given[0][1]
        if any(axis.at != first.at for _, axis in given) or self._meets_others(n, made, first.at, given):
            return self._unknown(n)
        for _, axis in given[1:]:
            self.found.join(first.ids, axis.ids)
        return first

    def _meets_others(self, n: fx.Node, made: Tensor, at: int, given: Sequence[tuple[fx.Node, Axis]]) -> bool:
        """Whether a tensor without channels has as many numbers where the others have theirs."""
        known = {node for node, _ in given}
        for node in n.all_input_nodes:
            tensor = self.env[node]
            if node in known or not isinstance(tensor, Tensor):
                continue
            place = at - (made.ndim - tensor.ndim)
            if place >= 0 and tensor.shape[place] != 1:
                return True
        return False

    def _kept(self, n: fx.Node, made: Any) -> Axis | None:
        given = self._given(n)
        if len(given) != 1 or not isinstance(made, Tensor):
            return self._unknown(n) if given else None
        node, axis = given[0]
        spatial = n.target in PLACES and (axis.at != 1 or made.ndim < 3)
        if made.ndim != self.env[node].ndim or made.shape[axis.at] != len(axis.ids) or spatial:
            return self._unknown(n)
        return axis

    def _reduced(self, n: fx.Node, made: Any) -> Axis | None:
        given = self._given(n)
        if not given or not isinstance(made, Tensor):
            return None
        node, axis = given[0]
        rank = self.env[node].ndim
        place = 2 if n.target is torch.linalg.vector_norm else 1
        named: Any = n.kwargs.get("dim", n.args[place] if len(n.args) > place else None)
        if not isinstance(named, int | tuple | list):
            return None if made.ndim == 0 else self._unknown(n)
        dims = {one % rank for one in ([named] if isinstance(named, int) else named)}
        if axis.at in dims:
            return None
        gone = sum(one < axis.at for one in dims) if made.ndim < rank else 0
        return Axis(at=axis.at - gone, ids=axis.ids)

    def _moved(self, n: fx.Node, made: Any) -> Any:
        """The same move, made by the numbers of the channels."""
        if not self._given(n):
            return None
        source = self.axes.get(n.all_input_nodes[0])
        if isinstance(source, tuple):  # one of several results
            index: Any = n.args[1]
            return source[index]
        function: Any = n.target
        args: Any = fx.node.map_arg(n.args, self._numbered)
        numbered = function(*args, **n.kwargs)
        several = numbered if isinstance(numbered, tuple | list) else (numbered,)
        axes = tuple(self._along(one) for one in several)
        if any(axis is None and not bool((one == NONE).all()) for axis, one in zip(axes, several, strict=True)):
            return self._unknown(n)
        if n.target in NUMBERED and not self._settles(n, axes):
            return self._unknown(n)
        return axes if isinstance(numbered, tuple | list) else axes[0]

    def _settles(self, n: fx.Node, axes: Sequence[Axis | None]) -> bool:
        """Note the sides that a node fixes; False where channels are counted in a way that is not followed."""
        args: Any = n.args
        target: Any = n.target
        cut = {
            torch.select: args[1:2],
            torch.split: args[2:3] or (0,),
            functions.slice_along: args[3] if len(args) > 3 else (),
        }.get(target)
        if cut is not None:
            (_, axis), rank = self._given(n)[0], self.env[n.all_input_nodes[0]].ndim
            return all(one % rank != axis.at for one in cut)
        if axes[0] is not None:
            self.found.numbers.append((n.name, axes[0]))
        return True

    def _numbered(self, node: fx.Node) -> Any:
        """A value with each number replaced by the channel it belongs to."""
        value, axis = self.env[node], self.axes.get(node)
        if not isinstance(value, Tensor):
            return value
        if not isinstance(axis, Axis):
            return torch.full(value.shape, NONE)
        shape = [1] * value.ndim
        shape[axis.at] = -1
        return axis.ids.reshape(shape).expand(value.shape)

    def _along(self, numbered: Tensor) -> Axis | None:
        """The one axis along which channels change; None where there is none or several."""
        varies = [at for at in range(numbered.ndim) if not bool((numbered == numbered.narrow(at, 0, 1)).all())]
        if len(varies) != 1:
            return None
        first = [0] * numbered.ndim
        index = tuple(slice(None) if at == varies[0] else 0 for at in range(len(first)))
        return Axis(at=varies[0], ids=numbered[index].clone())


NUMBERED = {torch.reshape, torch.Tensor.expand, torch.split, torch.select, functions.slice_along}


def with_side(n: fx.Node, at: int, side: int) -> tuple[Any, ...]:
    """A node's arguments with another number where they fix this side of what it makes."""
    sides = list(n.args[1])  # type: ignore[arg-type]
    if isinstance(sides[at], int) and sides[at] != -1:
        sides[at] = side
    return (n.args[0], tuple(sides), *n.args[2:])

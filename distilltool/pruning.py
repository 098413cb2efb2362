"""A narrower network from a wide one: the channels that matter least on the user's images are taken out.

What is left is fitted, layer after layer, to make what it made before: each layer that mixes channels by least squares,
from the channels that are left, as the narrow network makes them, to what the wide one made (He, Zhang and Sun 2017,
"Channel Pruning for Accelerating Very Deep Neural Networks", section 3).
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from distilltool.channels import NONE, Axis, Channels, Dense, channels, with_side
from distilltool.errors import DistillError

STEP = 8  # channels are counted in eights where there are many, as processors do (and MobileNets are made)
MANY = 2 * STEP
ROWS = 8  # times as many rows as unknowns are enough to fit a layer
LEAST_ROWS = 4096
MOST_INPUTS = 5000  # of a layer that is fitted: its Gram matrix stays below 200 MB
RIDGE = 0.3  # over unknowns / rows, in mean variances of an input: what few rows cannot tell stays as it was
SLICE = 16  # images at once
RANKED = 48  # images by which channels are ranked, at least, where there are so many


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrow:
    """How a network differs from the one its graph describes. shapes: of parameters and buffers that shrank; groups: of
    convolutions with one for each channel; sides: of tensors whose sides the graph fixes, by node."""

    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, int]
    sides: Mapping[str, tuple[int, int]]

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what `to_json` wrote."""
        values = json.loads(text)
        return cls(
            shapes={name: tuple(map(int, one)) for name, one in values["shapes"].items()},
            groups={name: int(one) for name, one in values["groups"].items()},
            sides={name: (int(at), int(count)) for name, (at, count) in values["sides"].items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """A narrow network. narrow: how to make its shape again; share: of the wide one's floating-point operations."""

    module: fx.GraphModule
    narrow: Narrow
    share: float


@torch.no_grad()
def prune(module: fx.GraphModule, width: float, images: Tensor, seed: int, name: str, refit: bool = True) -> Pruned:
    """A copy of a network with a share `width` of its channels, chosen and fitted on images as it takes them.

    The share holds for every axis along which channels can be taken out: from 16 channels on in eights, as MobileNet's
    width multiplier counts, else at least one. What comes out keeps its width. name: of the file, for messages. Raises
    DistillError where nothing can be taken out, with the operation that forbids it.
    """
    module.eval()
    found = channels(module, images[:1])
    if not found.layers():
        raise DistillError(
            f"{name} cannot be made narrower: its channels must stay for {found.why_fixed()}",
            "leave width= away: cut=0.6 or a smaller --input makes a student cheaper too",
        )
    gone = _least(found, importance(module, found, images), width)
    thin = copy.deepcopy(module)
    narrow = _take_out(thin, found, gone)
    if refit and gone:
        _Lockstep(module, thin, found, gone, seed).run(images)
    return Pruned(module=thin, narrow=narrow, share=_flops(thin, images[:1]) / max(_flops(module, images[:1]), 1))


def _flops(module: fx.GraphModule, example: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops())


# which channels


@torch.no_grad()
def importance(module: fx.GraphModule, found: Channels, images: Tensor) -> dict[int, float]:
    """How much each channel gives to the layers that read it: its energy on the images times its weights' there.

    In shares of what each layer reads, summed over the layers. Where a layer adds a bias, the mean counts for nothing:
    the bias can stand in for it.
    """
    seen = _moments(module, found, images)
    total: dict[int, float] = {}
    for dense in found.dense:
        if dense.read is None:
            continue
        layer: Any = module.get_submodule(dense.path)
        mean, square = seen[dense.path]
        energy = square - mean.square() if layer.bias is not None else square
        weight = layer.weight.double().square().transpose(0, 1).flatten(1).sum(1)
        given = (energy.clamp(min=0) * weight).cpu()
        for channel, one in zip(dense.read.ids.tolist(), (given / given.sum().clamp(min=1e-30)).tolist(), strict=True):
            if channel != NONE:
                total[found.one(channel)] = total.get(found.one(channel), 0.0) + one
    return total


@dataclass(frozen=True, slots=True)
class _Moments:
    """First and second moment of each input of a layer, (inputs,)."""

    mean: Tensor
    square: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.mean, self.square))


def _moments(module: fx.GraphModule, found: Channels, images: Tensor) -> dict[str, _Moments]:
    sums: dict[str, list[tuple[int, Tensor]]] = {}

    def add(path: str, x: Tensor, axis: Axis) -> None:
        variance, mean = torch.var_mean(x, [at for at in range(x.ndim) if at != axis.at % x.ndim], correction=0)
        now = torch.stack([mean.double(), variance.double() + mean.double().square()])
        sums.setdefault(path, []).append((x.numel(), now))

    hooks = [
        module.get_submodule(dense.path).register_forward_hook(
            lambda _m, given, _o, dense=dense: add(dense.path, given[0], dense.read)
        )
        for dense in found.dense
        if dense.read is not None
    ]
    try:
        some = images[:: max(1, len(images) // RANKED)]
        for part in torch.split(some, SLICE):
            module(part)
    finally:
        for hook in hooks:
            hook.remove()
    whole = {
        path: torch.stack([count * one for count, one in parts]).sum(0) / sum(count for count, _ in parts)
        for path, parts in sums.items()
    }
    return {path: _Moments(one[0], one[1]) for path, one in whole.items()}


def kept_of(count: int, width: float) -> int:
    """How many of an axis' channels are kept."""
    if count < MANY:
        return max(1, round(width * count))
    kept = max(STEP, int(width * count + STEP / 2) // STEP * STEP)
    return min(count, kept + STEP if kept < 0.9 * width * count else kept)  # Howard et al. 2017's released code


def _least(found: Channels, matters: Mapping[int, float], width: float) -> set[int]:
    """The channels to take out."""
    gone: set[int] = set()
    for members in found.layers().values():
        order = sorted(members, key=lambda one: matters.get(one, 0.0), reverse=True)
        gone.update(order[kept_of(len(members), width) :])
    return gone


def _stays(found: Channels, ids: Tensor, gone: set[int]) -> Tensor:
    """Places of an axis that stay, as indices."""
    return torch.tensor([at for at, one in enumerate(ids.tolist()) if one == NONE or found.one(one) not in gone])


# taking them out


def _take_out(module: fx.GraphModule, found: Channels, gone: set[int]) -> Narrow:
    """Shrink a network in place."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: tuple(one.shape) for name, one in tensors.items()}
    for held in found.held:
        stay = _stays(found, held.axis.ids, gone)
        tensors[held.path] = tensors[held.path].detach().index_select(held.axis.at, stay)
    shapes = {name: tuple(one.shape) for name, one in tensors.items() if tuple(one.shape) != before[name]}
    sides = {name: (axis.at, len(_stays(found, axis.ids, gone))) for name, axis in found.numbers}
    groups = {path: shapes[f"{path}.weight"][0] for path in found.depthwise if f"{path}.weight" in shapes}
    for path in groups:
        layer: Any = module.get_submodule(path)
        groups[path] = groups[path] // (layer.out_channels // layer.groups)
    narrow = Narrow(shapes=shapes, groups=groups, sides=sides)
    shrink(module, narrow, {name: tensors[name] for name in shapes})
    return narrow


def shrink(module: fx.GraphModule, narrow: Narrow, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Give a network the shape of a narrow one, in place. tensors: the numbers; zeros, to be loaded, without them."""
    for name, shape in narrow.shapes.items():
        path, _, last = name.rpartition(".")
        layer: Any = module.get_submodule(path)
        old = getattr(layer, last)
        if len(shape) != old.ndim or any(not 0 < one <= side for one, side in zip(shape, old.shape, strict=True)):
            raise ValueError(f"{name} of {tuple(old.shape)} cannot become {shape}")
        new = tensors[name] if tensors is not None else torch.zeros(shape, dtype=old.dtype)
        setattr(layer, last, nn.Parameter(new.contiguous()) if isinstance(old, nn.Parameter) else new.contiguous())
    for path in {name.rpartition(".")[0] for name in narrow.shapes} - {""}:
        _describe(module.get_submodule(path), narrow.groups.get(path))
    for node in module.graph.nodes:
        if node.name in narrow.sides:
            node.args = with_side(node, *narrow.sides[node.name])
    module.recompile()


def _describe(layer: Any, groups: int | None) -> None:
    """Bring what a layer says of itself in line with its weights."""
    shape = layer.weight.shape
    if hasattr(layer, "out_channels"):
        layer.groups = groups or layer.groups
        layer.in_channels, layer.out_channels = shape[1] * layer.groups, shape[0]
    elif hasattr(layer, "out_features"):
        layer.out_features, layer.in_features = shape
    elif hasattr(layer, "num_features"):
        layer.num_features = shape[0]
    elif hasattr(layer, "normalized_shape"):
        layer.normalized_shape = tuple(shape)
    elif hasattr(layer, "num_parameters"):
        layer.num_parameters = shape[0]


# fitting what is left


class _Lockstep:
    """Runs the wide and the narrow network side by side, and fits each layer of the narrow one before it runs."""

    def __init__(
        self, module: fx.GraphModule, thin: fx.GraphModule, found: Channels, gone: set[int], seed: int
    ) -> None:
        self.sides = (fx.Interpreter(module), fx.Interpreter(thin))
        self.nodes = (tuple(module.graph.nodes), tuple(thin.graph.nodes))
        self.found, self.gone = found, gone
        self.dense: dict[str, Dense] = {one.path: one for one in found.dense}
        self.random = torch.Generator().manual_seed(seed)

    def run(self, images: Tensor) -> None:
        """Both on these images, node after node."""
        for side in self.sides:
            side.args_iter = iter([images])
        for one, other in zip(*self.nodes, strict=True):
            if one.op == "output":
                return
            made = self.sides[0].env[one] = self.sides[0].run_node(one)
            if one.op == "call_module" and one.target in self.dense:
                self._fit(self.dense[str(one.target)], other, made)
            self.sides[1].env[other] = self.sides[1].run_node(other)
            for side, node in zip(self.sides, (one, other), strict=True):
                for spent in side.user_to_last_uses.get(node, []):
                    del side.env[spent]

    def _fit(self, dense: Dense, node: fx.Node, wanted: Tensor) -> None:
        """Fit one layer where what it reads is narrower than it was."""
        layer: Any = self.sides[1].fetch_attr(dense.path)
        inputs = math.prod(layer.weight.shape[1:])
        if dense.read is None or inputs > MOST_INPUTS or layer.weight.ndim not in (2, 4):
            return
        given = self.sides[1].env[node.args[0]]  # type: ignore[index]
        fit(layer, given, wanted, self.random, _stays(self.found, dense.made.ids, self.gone))


def fit(layer: Any, given: Tensor, wanted: Tensor, random: torch.Generator, made: Tensor | None = None) -> None:
    """Change a layer's weights so that it makes of `given` what is wanted, as near as least squares come.

    The weights it has are where few rows leave it: ridge regression around them. made: which channels of what is
    wanted it makes, as indices, all without them.
    """
    inputs = math.prod(layer.weight.shape[1:])
    rows = max(LEAST_ROWS, ROWS * inputs)
    gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
    cross = torch.zeros(inputs + 1, len(layer.weight), dtype=torch.float64)
    count, origin = 0, torch.zeros(inputs)
    for x, y in zip(torch.split(given, SLICE), torch.split(wanted, SLICE), strict=True):
        parts = _rows(layer, x, y, math.ceil(rows * len(x) / len(given)), random)
        if not count and layer.bias is not None:
            origin = parts[0].mean(0)  # near their mean, float32 tells how little they vary
        left = F.pad(parts[0] - origin, (0, 1), value=1.0)
        right = parts[1] if made is None else parts[1].index_select(1, made)
        missing = right - layer_of_rows(layer, parts[0])
        gram += left.T @ left
        cross += left.T @ missing
        count += len(left)
    _solve(layer, gram / count, cross / count, origin, inputs / count)


def _rows(layer: Any, x: Tensor, y: Tensor, most: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some places of some images: what the layer reads there, (R, inputs), and what it should make, (R, outputs)."""
    if isinstance(layer, nn.Linear):
        left, right = x.flatten(0, -2), y.flatten(0, -2)
        chosen = torch.randperm(len(left), generator=random)[:most]
        return left[chosen], right[chosen]
    places = y.shape[2] * y.shape[3]
    chosen = torch.randperm(places, generator=random)[: max(1, math.ceil(most / len(x)))]
    left, right = _windows(layer, x, chosen, y.shape[3]), y.flatten(2)[:, :, chosen]
    return left.transpose(1, 2).flatten(0, 1), right.transpose(1, 2).flatten(0, 1)


def _windows(layer: Any, x: Tensor, places: Tensor, across: int) -> Tensor:
    """What a convolution reads at some places of what it makes, of which `across` are in a row: (N, inputs, places)."""
    if any(layer.padding):
        x = F.pad(x, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))
    down, right = (
        (at * stride)[:, None] + dilation * torch.arange(size)
        for at, stride, dilation, size in zip(
            (places // across, places % across), layer.stride, layer.dilation, layer.kernel_size, strict=True
        )
    )
    at = down[:, :, None] * x.shape[3] + right[:, None, :]  # (places, height, width) of the kernel
    found = x.flatten(2)[:, :, at.permute(1, 2, 0).flatten()]
    return found.reshape(len(x), -1, len(places))


def layer_of_rows(layer: Any, rows: Tensor) -> Tensor:
    """What a layer makes of what it reads at some places, (R, inputs) → (R, outputs)."""
    made: Tensor = F.linear(rows, layer.weight.flatten(1), layer.bias)
    return made


def _solve(layer: Any, gram: Tensor, cross: Tensor, origin: Tensor, scarcity: float) -> None:
    """Add to a layer's weights what is missing. The last input is the bias's, which is not held back; the others are
    counted from an origin."""
    if layer.bias is None:
        gram, cross, mean, missing = gram[:-1, :-1], cross[:-1], gram.new_zeros(len(gram) - 1), None
    else:
        mean, missing = gram[-1, :-1], cross[-1]
        gram, cross = gram[:-1, :-1] - torch.outer(mean, mean), cross[:-1] - torch.outer(mean, missing)
    held = RIDGE * scarcity + 1e-6
    gram.diagonal().add_(held * gram.diagonal().mean().clamp(min=1e-12))
    change = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
    layer.weight.add_(change.T.reshape(layer.weight.shape).to(layer.weight))
    if missing is not None:
        layer.bias.add_((missing - (mean + origin) @ change).to(layer.bias))

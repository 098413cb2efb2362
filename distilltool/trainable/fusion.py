"""Put together again what exporters took apart: activations, normalisations, attention, biases.

One function of torch's takes a fraction of the time and memory of the five to ten operations it was written as. An
activation is recognised by what it computes, at a few hundred points; everything else by its structure.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder

REACH = 14  # operations that one activation is taken apart into, at most
CLOSE = 2e-5  # of an activation's value at every point; its closest relatives differ by 5e-4
ELEMENTWISE: set[Any] = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    torch.neg,
    torch.erf,
    torch.tanh,
    torch.sigmoid,
    torch.exp,
    torch.log,
    torch.square,
    torch.pow,
    torch.sqrt,
    torch.reciprocal,
    torch.abs,
    torch.clamp,
    torch.clamp_min,
    torch.minimum,
    torch.maximum,
    F.relu,
    functions.relu6,
    F.hardsigmoid,
    F.softplus,
}
ENDS: set[Any] = {operator.mul, operator.truediv, operator.add, torch.clamp}


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A function of torch's for which there are other ways to write it."""

    function: Callable[..., Tensor]
    options: dict[str, Any]


ACTIVATIONS = (
    Known(function=F.gelu, options={}),
    Known(function=F.gelu, options={"approximate": "tanh"}),
    Known(function=F.silu, options={}),
    Known(function=F.hardswish, options={}),
    Known(function=F.hardsigmoid, options={}),
    Known(function=F.mish, options={}),
    Known(function=torch.sigmoid, options={}),
)


def fuse(b: Builder) -> None:
    """Fuse all that is recognised; what is no longer read stays in the graph until it is dropped."""
    for step in (_activations, _normalisations, _attention, _biases):
        b.drop_unused()
        for node in reversed(list(b.fx.nodes)):
            if node.op == "call_function" and node.users:
                with b.fx.inserting_before(node):
                    step(b, node)
    b.drop_unused()


def _replace(node: Any, by: Any) -> None:
    node.replace_all_uses_with(by)


def _called(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


# activations


def _activations(b: Builder, end: Any) -> None:
    """Replace the longest way from some tensor to `end` that computes a known activation of it."""
    if end.target not in ENDS:
        return
    region = _region(end)
    best: tuple[fx.Node, Known, int] | None = None
    for start in _starts(region, end):
        inside = _between(start, end, region)
        if inside is None or len(inside) < 2 or (best and len(inside) <= best[2]):
            continue
        found = _recognised(start, end, inside)
        if found is not None:
            best = start, found, len(inside)
    if best is not None:
        _replace(end, b.emit(best[1].function, best[0], **best[1].options))


def _region(end: Any) -> set[fx.Node]:
    """Elementwise operations that lead to a node, the nearest first and no more than REACH."""
    region, waiting = {end}, [end]
    while waiting and len(region) < REACH:
        for one in waiting.pop(0).all_input_nodes:
            if one not in region and _called(one, *ELEMENTWISE) and len(region) < REACH:
                region.add(one)
                waiting.append(one)
    return region


def _starts(region: set[fx.Node], end: Any) -> list[fx.Node]:
    found = {one: None for node in region for one in node.all_input_nodes}
    return [one for one in found if one is not end and one.op != "get_attr"]


def _between(start: Any, end: Any, region: set[fx.Node]) -> set[fx.Node] | None:
    """What computes `end` from `start` alone and is read by nothing else; None where there is more to it."""
    inside, waiting = {end}, [end]
    while waiting:
        for one in waiting.pop().all_input_nodes:
            if one is start or one in inside:
                continue
            if one not in region:
                return None
            inside.add(one)
            waiting.append(one)
    alone = all(user in inside for one in inside if one is not end for user in one.users)
    return inside if alone else None


POINTS = torch.cat([torch.linspace(-12, 12, 481, dtype=torch.float64), torch.tensor([-3.0, 3.0, 0.0, 1e-3])])


def _recognised(start: Any, end: Any, inside: set[fx.Node]) -> Known | None:
    values: dict[fx.Node, Any] = {start: POINTS}
    for node in start.graph.nodes:
        if node in inside:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: values[one])
            values[node] = node.target(*args, **kwargs)
    got = values[end]
    for known in ACTIVATIONS:
        wanted = known.function(POINTS, **known.options)
        if bool(((got - wanted).abs() <= CLOSE * (1 + wanted.abs())).all()):
            return known
    return None


# normalisations


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statistics:
    """What a square root of a variance is the root of. mean: None where it is of the mean square."""

    x: Any
    mean: Any
    axes: tuple[int, ...]
    eps: float


def _normalisations(b: Builder, root: Any) -> None:
    """Replace x - mean over the root of its variance, and the scale and shift behind it."""
    found: _Statistics | None = _statistics(b, root)
    if found is None:
        return
    for node in list(root.users):
        if _called(node, operator.truediv) and node.args[1] is root and _is_centred(node.args[0], found):
            _normalised(b, node, found)
        elif _called(node, torch.reciprocal) or (_called(node, operator.truediv) and node.args[0] == 1.0):
            _by_reciprocal(b, node, found)
    if root.target is torch.pow and root.args[1] == -0.5:
        _by_reciprocal(b, root, found)


def _by_reciprocal(b: Builder, inverse: Any, found: _Statistics) -> None:
    """The same, multiplied by the inverse of the root; TensorFlow scales that first."""
    for node in list(inverse.users):
        if not _called(node, operator.mul):
            continue
        other = _other(node, inverse)
        if _is_centred(other, found):
            _normalised(b, node, found)
        elif isinstance(other, fx.Node) and other.op == "get_attr" and found.mean is not None:
            _scaled_first(b, node, other, found)


def _scaled_first(b: Builder, scaled: Any, weight: Any, found: _Statistics) -> None:
    """x · (weight / root) + (bias - mean · (weight / root))."""
    for node in list(scaled.users):
        if not (_called(node, operator.mul) and _other(node, scaled) is found.x and len(node.users) == 1):
            continue
        last = next(iter(node.users))
        rest: Any = _other(last, node) if _called(last, operator.add) else None
        if _called(rest, operator.sub) and _called(rest.args[1], operator.mul):
            if set(rest.args[1].args) == {scaled, found.mean} and _is_held(rest.args[0]):
                with b.fx.inserting_before(last):
                    _replace(last, _as_layer(b, last, found, weight, rest.args[0]))


def _other(node: Any, one: Any) -> Any:
    return node.args[1] if node.args[0] is one else node.args[0]


def _is_held(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _statistics(b: Builder, root: Any) -> _Statistics | None:
    """Read a square root backwards: of eps plus the mean of squares, of x less its mean or of x itself."""
    if not _called(root, torch.sqrt) and not (_called(root, torch.pow) and root.args[1] in (0.5, -0.5)):
        return None
    added = root.args[0]
    if not _called(added, operator.add):
        return None
    eps = next((one for one in added.args if isinstance(one, float)), None)
    mean: Any = next((one for one in added.args if isinstance(one, fx.Node)), None)
    if eps is None or not _called(mean, torch.mean) or not _keeps(mean):
        return None
    squared = _squared(mean.args[0])
    if squared is None:
        return None
    axes = _axes(b, mean)
    if _called(squared, operator.sub) and _called(squared.args[1], torch.mean) and _keeps(squared.args[1]):
        inner = squared.args[1]
        if inner.args[0] is squared.args[0] and _axes(b, inner) == axes:
            return _Statistics(x=squared.args[0], mean=inner, axes=axes, eps=eps)
    return _Statistics(x=squared, mean=None, axes=axes, eps=eps)


def _keeps(mean: Any) -> bool:
    return len(mean.args) > 2 and bool(mean.args[2])


def _axes(b: Builder, mean: Any) -> tuple[int, ...]:
    rank = b.rank(mean.args[0])
    return tuple(sorted(int(one) % rank for one in mean.args[1]))


def _squared(node: Any) -> Any:
    """What a node is the square of."""
    if _called(node, torch.square) or (_called(node, torch.pow) and node.args[1] == 2):
        return node.args[0]
    return node.args[0] if _called(node, operator.mul) and node.args[0] is node.args[1] else None


def _is_centred(node: Any, found: _Statistics) -> bool:
    """Whether a node is x less its mean (exporters write it twice), or x where no mean is taken."""
    if found.mean is None:
        return node is found.x
    if not _called(node, operator.sub) or node.args[0] is not found.x:
        return False
    mean = node.args[1]
    return mean is found.mean or (_called(mean, torch.mean) and mean.args == found.mean.args)


def _normalised(b: Builder, node: Any, found: _Statistics) -> None:
    """Replace a normalisation with the scale and shift that follow it, where they do."""
    weight = bias = None
    last = node
    if (user := _only_user(last, operator.mul)) is not None and _fits(b, _other(user, last), found):
        weight, last = _other(user, last), user
        if (user := _only_user(last, operator.add)) is not None and _fits(b, _other(user, last), found):
            bias, last = _other(user, last), user
    with b.fx.inserting_before(last):
        _replace(last, _as_layer(b, last, found, weight, bias))


def _only_user(node: Any, target: Any) -> Any:
    user: Any = next(iter(node.users)) if len(node.users) == 1 else None
    return user if _called(user, target) else None


def _fits(b: Builder, node: Any, found: _Statistics) -> bool:
    """Whether a constant has one number for each place that is normalised over, and nothing else."""
    if not _is_held(node):
        return False
    shape, whole = b.shape(node), b.shape(found.x)
    padded = (1,) * (len(whole) - len(shape)) + shape
    return padded == tuple(side if at in found.axes else 1 for at, side in enumerate(whole))


def _as_layer(b: Builder, last: Any, found: _Statistics, weight: Any, bias: Any) -> Any:
    """The normalisation as torch has it, on whichever axes it works."""
    x, rank = found.x, b.rank(found.x)
    fits = all(one is None or _fits(b, one, found) for one in (weight, bias))
    trailing = found.axes == tuple(range(rank - len(found.axes), rank))
    if fits and found.mean is not None and (trailing or (found.axes == (1,) and rank == 4)):
        sides = [b.shape(x)[at] for at in found.axes]
        if sides == [b.other_shape(x)[at] for at in found.axes]:
            turned = x if trailing else b.emit(torch.permute, x, [0, 2, 3, 1])
            made = b.layer(_layer_norm(b, sides, found.eps, weight, bias), str(last.name), turned)
            return made if trailing else b.emit(torch.permute, made, [0, 3, 1, 2])
    if found.mean is None:
        made = b.emit(functions.rms_over, x, list(found.axes), found.eps)
    else:
        made = b.emit(functions.normalise_over, x, list(found.axes), found.eps)
    made = made if weight is None else b.emit(operator.mul, made, weight)
    return made if bias is None else b.emit(operator.add, made, bias)


def _layer_norm(b: Builder, sides: list[int], eps: float, weight: Any, bias: Any) -> nn.LayerNorm:
    affine = weight is not None or bias is not None
    layer = nn.LayerNorm(sides, eps, elementwise_affine=affine)
    for name, node in (("weight", weight), ("bias", bias)):
        if node is not None:
            setattr(layer, name, nn.Parameter(_numbers(b, node).reshape(sides)))
    return layer


def _numbers(b: Builder, node: Any) -> Tensor:
    """The constant that a node stands for."""
    found: Tensor = getattr(b.root, str(node.target))
    return found.detach().clone()


# attention


def _attention(b: Builder, node: Any) -> None:
    """Replace softmax(q · k · scale + mask) · v."""
    if not _called(node, torch.matmul) or not _called(node.args[0], F.softmax, functions.softmax_flat):
        return
    weights, v = node.args[0], node.args[1]
    if b.rank(weights) != 4 or weights.args[1] not in (-1, 3) or len(weights.users) > 1 or not isinstance(v, fx.Node):
        return
    scores, mask, scale = weights.args[0], None, 1.0
    if _called(scores, operator.add) and len(scores.users) == 1:
        inner = next((one for one in scores.args if _called(one, torch.matmul, operator.mul, operator.truediv)), None)
        if inner is None:
            return
        mask, scores = _other(scores, inner), inner
    if _called(scores, operator.mul, operator.truediv) and len(scores.users) == 1:
        factor = next((one for one in scores.args if isinstance(one, float)), None)
        if factor is None or scores.args[1] != factor and scores.target is operator.truediv:
            return
        scale = factor if scores.target is operator.mul else 1 / factor
        scores = _other(scores, factor) if scores.args[0] is not factor else scores.args[1]
    if not _called(scores, torch.matmul) or len(scores.users) != 1 or not _is_mask(b, mask, scores):
        return
    q, k = scores.args
    if not isinstance(q, fx.Node) or not isinstance(k, fx.Node) or b.rank(q) != 4 or b.rank(k) != 4 or b.rank(v) != 4:
        return
    q, scale = _factored(q, scale)
    k, scale = _factored(k, scale)
    k = b.emit(torch.transpose, k, -1, -2)
    _replace(node, b.emit(F.scaled_dot_product_attention, q, k, v, mask, scale=scale))


def _is_mask(b: Builder, mask: Any, scores: Any) -> bool:
    """Whether what is added to the scores can be broadcast to them."""
    if mask is None:
        return True
    if not isinstance(mask, fx.Node) or b.rank(mask) > 4 or b.rank(mask) < 2 or not b.is_real(mask):
        return False
    sides = zip(reversed(b.shape(mask)), reversed(b.shape(scores)), strict=False)
    return all(one in (1, other) for one, other in sides)


def _factored(x: Any, scale: float) -> tuple[fx.Node, float]:
    """A product with a number, taken apart."""
    if _called(x, operator.mul) and len(x.users) == 1:
        for one in x.args:
            if isinstance(one, float):
                return _other(x, one) if x.args[0] is not one else x.args[1], scale * one
    return x, scale


# biases


BIASED: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _biases(b: Builder, node: Any) -> None:
    """Put a bias that is added behind a layer into it."""
    if not _called(node, operator.add):
        return
    called = next((one for one in node.args if isinstance(one, fx.Node) and one.op == "call_module"), None)
    held = next((one for one in node.args if _is_held(one)), None)
    if called is None or held is None or len(called.users) != 1:
        return
    layer: Any = b.root.get_submodule(str(called.target))
    if not isinstance(layer, BIASED) or layer.bias is not None:
        return
    shape, numbers = b.shape(held), _numbers(b, held)
    axis = b.rank(called) - 1 if isinstance(layer, nn.Linear) else 1
    padded = (1,) * (b.rank(called) - len(shape)) + shape
    wanted = tuple(layer.weight.shape[0] if at == axis else 1 for at in range(b.rank(called)))
    if padded == wanted and len(shape) <= b.rank(called) and math.prod(shape) == numbers.numel():
        layer.bias = nn.Parameter(numbers.reshape(-1))
        _replace(node, called)

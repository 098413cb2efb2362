"""Batch normalisation that was folded into convolutions put back, changing nothing, and folded again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from distilltool.trainable.layers import NORMS

SUFFIX = "_norm"  # what a normalisation that was put back is called, after its convolution
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(slots=True)
class _Seen:
    """Sums over all images and places of a convolution's output."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    places: int = 0

    def add(self, output: Tensor) -> None:
        """Take in one batch, (N, C, ...)."""
        axes = [0, *range(2, output.ndim)]
        exact = output.detach().double()
        self.count += exact.numel() // exact.shape[1]
        self.total = self.total + exact.sum(axes)
        self.squares = self.squares + exact.square().sum(axes)
        self.places = max(self.places, exact[0, 0].numel())


@torch.no_grad()
def reinsert_norms(module: fx.GraphModule, batches: Iterable[Tensor], frozen: bool = False) -> tuple[str, ...]:
    """Give each convolution a batch normalisation of the statistics seen on images, undone by its scale and shift.

    Only convolutions that add a bias, make more than one place and have no normalisation behind them get one. The
    module, changed in place, computes what it computed (Ioffe and Szegedy 2015, equation 4, read backwards). frozen:
    whether training leaves the statistics as they are. Returns the new layers' names.
    """
    nodes = [node for node in module.graph.nodes if _is_bare(module, node)]
    seen = _statistics(module, [str(node.target) for node in nodes], batches)
    made = []
    for node in nodes:
        one, path = seen[str(node.target)], f"{node.target}{SUFFIX}"
        if one.places < 2:
            continue
        convolution: Any = module.get_submodule(str(node.target))
        layer = _undone(one, NORMS[convolution.weight.ndim]).to(convolution.weight)
        layer.frozen = frozen
        module.add_module(path, layer.train(module.training))
        with module.graph.inserting_after(node):
            new = module.graph.call_module(path, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        made.append(path)
    module.recompile()
    return tuple(made)


def _is_bare(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a convolution with a bias and without a normalisation behind it."""
    if node.op != "call_module" or not node.users:
        return False
    layer = module.get_submodule(str(node.target))
    return isinstance(layer, CONVOLUTIONS) and layer.bias is not None and _norm_behind(module, node) is None


def _norm_behind(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    for user in node.users:
        if user.op == "call_module" and isinstance(module.get_submodule(str(user.target)), tuple(NORMS.values())):
            return user
    return None


def _statistics(module: fx.GraphModule, paths: list[str], batches: Iterable[Tensor]) -> dict[str, _Seen]:
    """What the convolutions make of the images, in evaluation mode."""
    seen = {path: _Seen() for path in paths}
    hooks = [
        module.get_submodule(path).register_forward_hook(lambda _m, _i, output, one=one: one.add(output))
        for path, one in seen.items()
    ]
    training = module.training
    module.eval()
    try:
        for batch in batches:
            module(batch)
    finally:
        for hook in hooks:
            hook.remove()
        module.train(training)
    if any(one.count == 0 for one in seen.values()):
        raise ValueError("no images came to take statistics of")
    return seen


def _undone(seen: _Seen, kind: Any) -> Any:
    """A normalisation that changes nothing while its statistics are these."""
    mean = seen.total / seen.count
    variance = (seen.squares / seen.count - mean.square()).clamp(min=0)
    layer = kind(len(mean))
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    layer.weight.copy_((layer.running_var + layer.eps).sqrt())
    layer.bias.copy_(mean)
    return layer


@torch.no_grad()
def fold_norms(module: fx.GraphModule) -> int:
    """Fold every batch normalisation behind a convolution into it, in place; returns how many."""
    pairs = list(_pairs(module))
    for node, behind in pairs:
        convolution, norm = module.get_submodule(str(node.target)), module.get_submodule(str(behind.target))
        _fold(convolution, norm)
        behind.replace_all_uses_with(node)
        module.graph.erase_node(behind)
        module.delete_submodule(str(behind.target))
    module.recompile()
    return len(pairs)


def _pairs(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), CONVOLUTIONS):
            behind = _norm_behind(module, node)
            if behind is not None and len(node.users) == 1:
                yield node, behind


def _fold(convolution: Any, norm: Any) -> None:
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = convolution.weight
    bias = convolution.bias.double() if convolution.bias is not None else 0.0
    shifted = (bias - norm.running_mean.double()) * factor + norm.bias.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    convolution.weight = nn.Parameter(folded.to(weight))
    convolution.bias = nn.Parameter(shifted.to(weight))

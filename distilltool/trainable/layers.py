"""Layers that torch does not have in the form an imported graph needs."""

from typing import Any, Self

from torch import Tensor, nn


class _Frozen:
    """Batch normalisation that keeps the statistics it came with, also while training, until it is told otherwise.

    Re-estimating them from few images costs a pretrained network most of what it knows.
    """

    frozen: bool = True

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the statistics, where they are frozen."""
        super().train(mode and not self.frozen)  # type: ignore[misc]
        return self


class BatchNorm1d(_Frozen, nn.BatchNorm1d):
    """Over (N, C) or (N, C, L)."""


class BatchNorm2d(_Frozen, nn.BatchNorm2d):
    """Over (N, C, H, W)."""


class BatchNorm3d(_Frozen, nn.BatchNorm3d):
    """Over (N, C, D, H, W)."""


NORMS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


def freeze_statistics(module: nn.Module, frozen: bool) -> None:
    """Keep (as they come) or re-estimate the running statistics of every batch normalisation in a module."""
    for one in module.modules():
        if isinstance(one, _Frozen):
            one.frozen = frozen
            one.train(module.training)


def filled(layer: Any, weight: Tensor, bias: Any) -> Any:
    """A layer with these numbers."""
    layer.weight = nn.Parameter(weight.detach().float().clone().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float().clone().contiguous())
    return layer

"""Weights of several training runs from one start, averaged."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Soup:
    """The average of weights, each counted by the steps it was trained for.

    Runs that start from the same pretrained weights end in one basin: their average ranks unlike images better than
    any of them, at the price of one (model soups, Wortsman et al., ICML 2022). There runs of several settings are
    averaged, here runs of one setting through the images in other orders.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """weights: of which it takes names, shapes and device. Counters, no numbers to average, are left out."""
        self.mean = {name: torch.zeros_like(one) for name, one in weights.items() if one.is_floating_point()}

    def pour(self, weights: Mapping[str, Tensor], steps: int, before: int) -> None:
        """Add weights trained for so many steps to those of as many as there were before, in place."""
        for name, mean in self.mean.items():
            mean.lerp_(weights[name], steps / (before + steps))

    def including(self, weights: Mapping[str, Tensor], steps: int, before: int) -> dict[str, Tensor]:
        """What it would be with these added; the counters are theirs."""
        share = steps / (before + steps)
        return {
            name: torch.lerp(self.mean[name], one, share) if name in self.mean else one for name, one in weights.items()
        }

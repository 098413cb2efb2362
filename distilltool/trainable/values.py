"""What a tensor of the ONNX graph is while it is rebuilt: known now, known as whole numbers, or known at run time."""

from dataclasses import dataclass

import torch
from torch import fx

Number = int | float | bool | fx.Node  # a node here stands for a Python number at run time


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A short list of numbers of which some are known at run time only: shapes and what graphs compute of them.

    They stay Python numbers, so that no tensor is made of them and a free batch stays free when the module is exported.
    scalar: a single number without an axis. real: floating point.
    """

    numbers: tuple[Number, ...]
    scalar: bool = False
    real: bool = False


Value = torch.Tensor | fx.Node | Sizes  # a constant, a tensor at run time, numbers


class Unsupported(Exception):
    """A combination of attributes or inputs that an operator's function does not cover; said in a few words."""


class NotFree(Exception):
    """The graph holds together at its own size, not at another batch or image size."""

"""Kinds of student: one file a kind, its name is what stands before the colon of `--student KIND:NAME`.

Each file holds one function `kind(name, start) -> Backbone`; everything after the pooled features is common to all.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distilltool import extensions
from distilltool.errors import DistillError


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a student's weights come from. weights: a safetensors file. fetch: "online" may ask a hub, "cached" looks
    only at what was fetched before, "none" leaves the weights as the architecture makes them. seed: for those.
    input: side of the images in pixels."""

    input: int
    seed: int
    fetch: str = "none"
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A network from normalised images, (N, 3, H, W) float, to pooled features (N, width).

    mean, std: of pixels / 255 in RGB. start: where the weights came from, "scratch" where from nowhere.
    """

    module: nn.Module
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    start: str


def build(spec: str, start: Start) -> Backbone:
    """Build the backbone that a spec KIND:NAME names."""
    kind, colon, name = spec.partition(":")
    if not colon or not name:
        raise DistillError(
            f"the student {spec!r} is not KIND:NAME",
            f"write timm:NAME; the kinds are {', '.join(extensions.names(__name__))}",
        )
    backbone: Backbone = extensions.find(__name__, "kind of student", kind)(name, start)
    return backbone

"""A student's backbone made of an ONNX graph: the whole of it or an early part, with its weights, at any size."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import onnx
from torch import Tensor, nn

from distilltool import trainable
from distilltool.errors import DistillError
from distilltool.sources import Source
from distilltool.trainable import Cut

WIRING = "distilltool.wiring"  # where an architecture file says how its graph is fed and read


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """How much of a graph is taken. cut: a tensor by name, or the share of the floating-point operations up to it."""

    cut: str | float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """How a graph is fed and read. mean, std: of pixels / 255 in RGB; bgr, nhwc: what the graph takes; tensor: what it
    makes; kind, axis, pool: what that is, and how it becomes a vector; side: height and width it is followed at."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    nhwc: bool
    tensor: str
    kind: str
    axis: int
    pool: str
    width: int
    side: tuple[int, int]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back what `asdict` wrote to JSON."""
        whole: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
        return cls(**whole)


class Imported(nn.Module):
    """Normalised RGB images, (N, 3, H, W) → pooled features (N, width)."""

    def __init__(self, graph: nn.Module, wiring: Wiring) -> None:
        super().__init__()
        self.graph = graph
        self.wiring = wiring

    def forward(self, images_NCHW: Tensor) -> Tensor:
        fed = images_NCHW.flip(1) if self.wiring.bgr else images_NCHW
        made: Tensor = self.graph(fed.permute(0, 2, 3, 1) if self.wiring.nhwc else fed)
        return pool(made, self.wiring)


def pool(made: Tensor, wiring: Wiring) -> Tensor:
    """A map, tokens or a vector as one vector an image, (N, width)."""
    if wiring.kind == "vector":
        return made.flatten(1)
    if wiring.kind == "tokens":
        return made[:, 0] if wiring.pool == "cls" else made.mean(dim=1)
    places = (2, 3) if wiring.axis == 1 else (1, 2)
    if wiring.pool == "max":
        return made.amax(dim=places)
    if wiring.pool == "gem":  # p = 3, as where an embedding is read from a map
        return made.clamp(min=1e-6).pow(3).mean(dim=places).pow(1 / 3)
    return made.mean(dim=places)


def backbone(source: Source, part: Part, input_side: int | None) -> "Grown":
    """The network up to `part` of a file, its weights as they are, ready to be trained.

    input_side: longer side of the images in pixels, None for the file's own. A graph that only works at its own size is
    an error where another is asked for.
    """
    model = trainable.read_whole(source.path)
    own = source.preprocess.size
    size = own if input_side is None else scaled(own, input_side)
    found = trainable.cuts(model, source.output, own)
    cut = _chosen(found, part, source)
    module = trainable.build(model, cut.name, size=own)
    known = trainable.facts(module)
    if not known.free_batch:
        raise DistillError(f"{source.name} works on {known.image} one batch at a time", "choose another --student")
    if not known.free_size and size != (known.height, known.width):
        raise DistillError(
            f"{source.name} only works on images of {known.height}×{known.width}",
            f"use --input {max(known.height, known.width)}, or another --student",
        )
    wiring = _wiring(source, cut, known.layout == "NHWC", own)
    return Grown(module=Imported(module, wiring), architecture=_kept(model, wiring), cut=cut)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """A backbone made of a file. architecture: the graph without its weights' numbers, to rebuild it from."""

    module: Imported
    architecture: bytes
    cut: Cut


def scaled(own: tuple[int, int], longer: int) -> tuple[int, int]:
    """Height and width in the proportions of `own`, with this longer side, in pixels."""
    scale = longer / max(own)
    return max(16, round(own[0] * scale)), max(16, round(own[1] * scale))


def rebuild(architecture: bytes) -> Imported:
    """The network of an architecture, its weights still to be loaded."""
    model = onnx.load_model_from_string(architecture)
    said = {one.key: one.value for one in model.metadata_props}
    wiring = Wiring.from_dict(json.loads(said[WIRING]))
    return Imported(trainable.build(model, wiring.tensor, size=wiring.side), wiring)


def _chosen(found: tuple[Cut, ...], part: Part, source: Source) -> Cut:
    if not found:
        raise DistillError(f"{source.name} cannot be read up to {source.output}", "choose another --student")
    if part.cut is not None:
        return trainable.choose(found, part.cut)
    return found[-1]


def _wiring(source: Source, cut: Cut, nhwc: bool, side: tuple[int, int]) -> Wiring:
    how = source.preprocess
    factor = 255 * how.scale  # the file is fed (pixel · scale − mean) / std; the student (pixel / 255 − mean) / std
    mean, std = ([one / factor for one in values] for values in (how.mean, how.std))
    if how.channels == "BGR":
        mean, std = mean[::-1], std[::-1]
    ends = cut.name == source.output
    return Wiring(
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        bgr=how.channels == "BGR",
        nhwc=nhwc,
        tensor=cut.name,
        kind=cut.kind,
        axis=cut.axis,
        pool=(source.pool or cut.pool) if ends else cut.pool,
        width=cut.channels,
        side=side,
    )


def _kept(model: onnx.ModelProto, wiring: Wiring) -> bytes:
    bare = trainable.architecture(model, wiring.tensor)
    onnx.helper.set_model_props(bare, {WIRING: json.dumps(asdict(wiring))})
    kept: bytes = bare.SerializeToString()
    return kept


def part_of(settings: Mapping[str, str]) -> Part:
    """What of a graph a spec's settings ask for; a cut between 0 and 1 is a share of the work, else a name."""
    wanted = settings.get("cut")
    if wanted is None:
        return Part()
    try:
        share = float(wanted)
    except ValueError:
        return Part(cut=wanted)
    if not 0 < share <= 1:
        raise DistillError(f"cut={wanted} is no share of the work", "give one between 0 and 1, as in cut=0.6")
    return Part(cut=share)

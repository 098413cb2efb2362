"""A student's backbone made of an ONNX graph: the whole of it or an early part, with its weights, at any size."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilltool import images, plain, pruning, trainable
from distilltool.errors import DistillError
from distilltool.graph import Graph, tensors
from distilltool.hazards import check_graph
from distilltool.onnx_file import first_line, read_model
from distilltool.preprocess import Preprocess
from distilltool.pruning import Narrow, Pruned
from distilltool.roles import image_inputs
from distilltool.sources import Source
from distilltool.trainable import Cut

WIRING = "distilltool.wiring"  # where an architecture file says how its graph is fed and read
NARROW = "distilltool.narrow"  # and what of it was taken out
TAPS = "distilltool.taps"  # and where features are taken from on the way
MOST_WEIGHTS = 2**31  # numbers, 8 GB: no network that embeds images on a machine of ours has as many
WIDEST = 2**20  # features
FEW_IMAGES = 8  # from fewer no channel is chosen
MOST_IMAGES = 256
EARLIEST = 0.15  # share of the work before which a tensor is too near to the pixels to compare images by
PIXELS = 1_800_000  # of all images that channels are chosen on, so that a batch of them fits into memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """How much of a graph is taken. cut: a tensor by name, or the share of the floating-point operations up to it.
    width: the share of the channels that is kept wherever some can be taken out."""

    cut: str | float | None = None
    width: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """What a student will look at. input: longer side of the images in pixels; prepared: as the teacher's images are
    prepared, whose proportions they keep; None for the source's own. photos: some of them; seed: for drawing those.
    rough: only its shape is asked for, so a narrower one's channels are taken by noise and not fitted."""

    input: int
    prepared: Preprocess | None = None
    photos: Sequence[Path] = ()
    seed: int = 0
    rough: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """How a graph is fed and read. mean, std: of pixels / 255 in RGB; bgr, nhwc: what the graph takes; tensor: what it
    makes; kind, axis, pool: what that is, and how it becomes a vector; side: height and width it is followed at."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    nhwc: bool
    tensor: str
    kind: Literal["map", "tokens", "vector"]
    axis: int
    pool: str
    width: int
    side: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tap:
    """A tensor on the way whose pooled features stand beside the last ones. kind, axis, pool: as of `Wiring`; width:
    how many; gain: their length, that of the last ones being 1."""

    tensor: str
    kind: Literal["map", "tokens", "vector"]
    axis: int
    pool: str
    width: int
    gain: float = 1.0


class Imported(nn.Module):
    """Normalised RGB images, (N, 3, H, W) → pooled features (N, width), those of taps after the last ones."""

    def __init__(self, graph: nn.Module, wiring: Wiring, taps: tuple[Tap, ...] = ()) -> None:
        super().__init__()
        self.graph = graph
        self.wiring = wiring
        self.taps = taps

    @property
    def width(self) -> int:
        """How many features it makes."""
        return self.wiring.width + sum(one.width for one in self.taps)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        made = self.graph(fed(images_NCHW, self.wiring))
        if not self.taps:
            return pool(made, self.wiring)
        last, *earlier = made
        features = [F.normalize(pool(last, self.wiring), dim=1)]
        features += [
            one.gain * F.normalize(pool(map_, one), dim=1) for one, map_ in zip(self.taps, earlier, strict=True)
        ]
        return torch.cat(features, dim=1)


def fed(images_NCHW: Tensor, wiring: Wiring) -> Tensor:
    """Normalised RGB images as the graph takes them."""
    turned = images_NCHW.flip(1) if wiring.bgr else images_NCHW
    return turned.permute(0, 2, 3, 1) if wiring.nhwc else turned


def pool(made: Tensor, wiring: Wiring | Tap) -> Tensor:
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


def backbone(source: Source, part: Part, looks: Looks) -> "Grown":
    """The network up to `part` of a file, its weights as they are, ready to be trained.

    A graph that only works at its own size is an error where the images have another.
    """
    model = trainable.read_whole(source.path)
    own = source.preprocess.size
    cut = _chosen(trainable.cuts(model, source.output, own), part, source)
    module = trainable.build(model, cut.name, size=own)
    size = scaled(looks.prepared.size if looks.prepared else own, looks.input)
    _check_works(module, source, size)
    wiring = _wiring(source, cut, trainable.facts(module).layout == "NHWC", own)
    whole = Imported(module, wiring)
    pruned = _narrowed(whole, source, part.width, looks, size) if part.width < 1 else None
    return Grown(
        module=Imported(pruned.module, wiring) if pruned else whole,
        architecture=_kept(model, wiring, pruned.narrow if pruned else None),
        cut=cut,
        share=cut.share * (pruned.share if pruned else 1),
    )


def only_side(source: Source, part: Part) -> int | None:
    """Longer side of the images that a part of a graph works on, where it works at no other size."""
    if source.fixed is None:
        return None
    model = trainable.read_whole(source.path)
    own = source.preprocess.size
    cut = _chosen(trainable.cuts(model, source.output, own), part, source)
    known = trainable.facts(trainable.build(model, cut.name, size=own))
    return None if known.free_size else max(known.height, known.width)


def _check_works(module: Any, source: Source, size: tuple[int, int]) -> None:
    """Fail where a network does not take single images of this height and width."""
    known = trainable.facts(module)
    if not known.free_batch:
        raise DistillError(f"{source.name} takes no other number of images than its own", "choose another --student")
    if not known.free_size and size != (known.height, known.width):
        raise DistillError(
            f"{source.name} only works on images of {known.height}×{known.width}, not of {size[0]}×{size[1]}",
            f"use --input {max(known.height, known.width)}, or another --student",
        )
    shape = (1, *size, 3) if known.layout == "NHWC" else (1, 3, *size)
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(shape))
    except RuntimeError as error:  # a window larger than what is left of a small image
        raise DistillError(
            f"{source.name} does not work on images of {size[0]}×{size[1]} ({first_line(error)})",
            "use a larger --input",
        ) from None


def _narrowed(whole: Imported, source: Source, width: float, looks: Looks, size: tuple[int, int]) -> Pruned:
    """The network with a share of its channels, chosen on some of the images."""
    wiring = whole.wiring
    graph: Any = whole.graph
    if looks.rough and len(looks.photos) >= FEW_IMAGES:
        noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        return pruning.prune(graph, width, fed(noise, wiring), looks.seed, source.name, refit=False)
    order = np.random.default_rng((looks.seed, 7)).permutation(len(looks.photos))[: looked_at(size)]
    found, _ = images.load([looks.photos[at] for at in order], (looks.prepared or source.preprocess).at(size))
    if len(found) < FEW_IMAGES:
        raise DistillError(
            f"width={width:g} chooses channels by {FEW_IMAGES} images or more, and {len(found)} can be read",
            "give more images, or leave width= away",
        )
    torch.set_num_threads(images.workers())
    mean, std = (torch.tensor(one).reshape(1, 3, 1, 1) for one in (wiring.mean, wiring.std))
    pixels = torch.from_numpy(found).permute(0, 3, 1, 2).float()
    return pruning.prune(graph, width, fed((pixels / 255 - mean) / std, wiring), looks.seed, source.name)


def looked_at(size: tuple[int, int]) -> int:
    """On how many images of this height and width a narrower network is fitted."""
    return min(MOST_IMAGES, max(FEW_IMAGES, PIXELS // (size[0] * size[1])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """A backbone made of a file. architecture: the graph without its weights' numbers, to rebuild it from. share: of
    the floating-point operations that the file's embedding takes."""

    module: Imported
    architecture: bytes
    cut: Cut
    share: float


def scaled(own: tuple[int, int], longer: int) -> tuple[int, int]:
    """Height and width in the proportions of `own`, with this longer side, in pixels."""
    scale = longer / max(own)
    return max(16, round(own[0] * scale)), max(16, round(own[1] * scale))


def rebuild(path: Path) -> Imported:
    """The network of an architecture file, its weights still to be loaded.

    What the file says is believed in nothing: whatever is wrong with it is a DistillError of one line.
    """
    model = read_model(path)
    graph = Graph(model)
    for one in image_inputs(graph)[:1]:
        check_graph(path, graph, one)
    if sum(math.prod(one.dims) for one in tensors(model.graph)) > MOST_WEIGHTS:
        raise DistillError(f"{path} describes more weights than any student has", REMADE)
    return _remade(model, str(path))


def _remade(model: onnx.ModelProto, name: str) -> Imported:
    said = {one.key: one.value for one in model.metadata_props}
    try:
        wiring = plain.made(Wiring, frozen(json.loads(said[WIRING])))
        narrow = Narrow.from_json(said[NARROW]) if NARROW in said else None
        taps = tuple(plain.made(Tap, dict(one)) for one in json.loads(said.get(TAPS, "[]")))
        if not all(0 < width <= WIDEST for width in (wiring.width, *(one.width for one in taps))):
            raise ValueError("no vector is that long")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise DistillError(f"{name} does not say how its graph is fed and read", REMADE) from None
    module = trainable.build(model, wiring.tensor, size=wiring.side, also=[one.tensor for one in taps])
    if narrow is not None:
        try:
            pruning.shrink(module, narrow)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DistillError(f"{name} narrows what it does not hold ({first_line(error)})", REMADE) from None
    return Imported(module, wiring, taps)


def on_the_way(architecture: bytes) -> tuple[Tap, ...]:
    """Tensors of a network at which features can be taken, from the first to the last but one."""
    model = onnx.load_model_from_string(architecture)
    said = {one.key: one.value for one in model.metadata_props}
    wiring = Wiring(**frozen(json.loads(said[WIRING])))
    found = [one for one in trainable.cuts(model, wiring.tensor, wiring.side) if EARLIEST <= one.share < 1]
    taps = [Tap(tensor=one.name, kind=one.kind, axis=one.axis, pool=one.pool, width=one.channels) for one in found]
    return tuple(_as_wide(model, taps) if NARROW in said else taps)


@torch.no_grad()
def _as_wide(model: onnx.ModelProto, taps: Sequence[Tap]) -> list[Tap]:
    """Taps of a narrow network, of the graph of a wide one, with as many features as it makes there."""
    model.metadata_props.add(key=TAPS, value=json.dumps([asdict(one) for one in taps]))
    narrow = _remade(model, "the student").eval()
    _, *made = narrow.graph(fed(torch.zeros(1, 3, *narrow.wiring.side), narrow.wiring))
    return [replace(one, width=pool(tensor, one).shape[1]) for one, tensor in zip(taps, made, strict=True)]


@torch.no_grad()
def tapped(whole: Imported, architecture: bytes, taps: Sequence[Tap]) -> tuple[Imported, bytes]:
    """The same network with features taken on the way, and its architecture.

    Raises RuntimeError where a tensor lies within what was put together again, as an activation is.
    """
    model = onnx.load_model_from_string(architecture)
    model.metadata_props.add(key=TAPS, value=json.dumps([asdict(one) for one in taps]))
    made = _remade(model, "the student")
    made.graph.load_state_dict(whole.graph.state_dict())
    return made.to(next(whole.parameters()).device), model.SerializeToString()


REMADE = "remove the run and make it again"


def frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values as the fields of a frozen dataclass: lists become tuples."""
    return {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}


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


def _kept(model: onnx.ModelProto, wiring: Wiring, narrow: Narrow | None) -> bytes:
    bare = trainable.architecture(model, wiring.tensor)
    said = {WIRING: json.dumps(asdict(wiring)), **({NARROW: narrow.to_json()} if narrow else {})}
    onnx.helper.set_model_props(bare, said)
    kept: bytes = bare.SerializeToString()
    return kept


def part_of(settings: Mapping[str, str]) -> Part:
    """What of a graph a spec's settings ask for; a cut between 0 and 1 is a share of the work, else a name."""
    width = _share("width", settings.get("width", "1"), "the channels")
    wanted = settings.get("cut")
    if wanted is None:
        return Part(width=width)
    try:
        float(wanted)
    except ValueError:
        return Part(cut=wanted, width=width)
    return Part(cut=_share("cut", wanted, "the work"), width=width)


def _share(key: str, text: str, of: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise DistillError(f"{key}={text} is no share of {of}", f"give one between 0 and 1, as in {key}=0.6")
    return share

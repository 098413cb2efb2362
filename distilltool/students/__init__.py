"""Kinds of student: one file a kind, its name is what stands before the colon of `--student KIND:NAME`.

Each file holds one function `kind(name, start) -> Backbone`; everything after the pooled features is common to all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from distilltool import extensions, imported
from distilltool.errors import DistillError
from distilltool.imported import Imported, Looks, Tap
from distilltool.preprocess import Preprocess
from distilltool.sources import Source

NEARLY = 0.95  # of a network's work: with so much it is as good as whole
WHOLE = ("teacher",)  # kinds that need no name


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a student's weights come from. weights: a safetensors file. fetch: "online" may ask a hub, "cached" looks
    only at what was fetched before, "none" leaves the weights as the architecture makes them. seed: for those.
    input: longer side of the images in pixels. source: the file whose graph the student is made of, where it is;
    prepared: how the teacher's images are prepared; photos: images to choose a narrower student's channels by; rough:
    what it costs is asked, not what it makes."""

    input: int
    seed: int
    fetch: str = "none"
    weights: Path | None = None
    source: Source | None = None
    teacher: str = ""
    prepared: Preprocess | None = None
    photos: tuple[Path, ...] = ()
    rough: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A network from normalised images, (N, 3, H, W) float, to pooled features (N, width).

    mean, std: of pixels / 255 in RGB. start: where the weights came from, "scratch" where from nowhere. architecture:
    the graph without its weights' numbers, for networks that no library can rebuild by name. native: longer side in
    pixels of the images it was trained on, 0 where unknown or where the teacher itself would be run at it. whole: it is
    all of the teacher's own network; fitted: its weights were fitted to images just now, as it has fewer channels than
    its file.
    """

    module: nn.Module
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    start: str
    architecture: bytes | None = None
    native: int = 0
    whole: bool = False
    fitted: bool = False


def build(spec: str, start: Start) -> Backbone:
    """Build the backbone that a spec KIND:NAME names."""
    kind, colon, name = spec.partition(":")
    if kind not in WHOLE and not name:
        raise DistillError(
            f"the student {spec!r} is not KIND:NAME",
            f"write timm:NAME, onnx:FILE or teacher; the kinds are {', '.join(extensions.names(__name__))}",
        )
    backbone: Backbone = extensions.find(__name__, "kind of student", kind)(name, start)
    return backbone


def grown(settings: Mapping[str, str], start: Start) -> Backbone:
    """A backbone made of the graph of `start.source`, as the settings of its spec ask."""
    if start.weights is not None:
        raise DistillError("a student made of an ONNX file has its weights already", "leave --weights away")
    assert start.source is not None  # opened before anything is built
    looks = Looks(input=start.input, prepared=start.prepared, photos=start.photos, seed=start.seed, rough=start.rough)
    part = imported.part_of(settings)
    made = imported.backbone(start.source, part, looks)
    said = [f"the weights of {start.source.name}"]
    if part.cut is not None:
        said.append(f"up to {made.cut.name}")
    if part.width < 1:
        said.append(f"{100 * part.width:g} % of its channels")
    share = f" ({100 * made.share:.0f} % of its work)" if len(said) > 1 else ""
    made_of = _backbone(made.module, ", ".join(said) + share, made.architecture)
    whole = made.share > NEARLY and start.source.sha256 == start.teacher  # at its native size it would be the teacher
    native = 0 if whole else max(start.source.preprocess.size)
    return replace(made_of, native=native, whole=whole, fitted=part.width < 1)


def on_the_way(backbone: Backbone) -> tuple[Tap, ...]:
    """Tensors of a network at which features can be taken; none where it was not made of a graph."""
    return () if backbone.architecture is None else imported.on_the_way(backbone.architecture)


def with_taps(backbone: Backbone, taps: Sequence[Tap]) -> Backbone:
    """The network with features taken on the way too."""
    assert isinstance(backbone.module, Imported) and backbone.architecture is not None
    module, architecture = imported.tapped(backbone.module, backbone.architecture, taps)
    return replace(backbone, module=module, width=module.width, architecture=architecture)


def tapped(backbone: Backbone, tensor: str, gain: float) -> Backbone:
    """The network with features taken at one tensor too, at this length."""
    return with_taps(backbone, [replace(one, gain=gain) for one in on_the_way(backbone) if one.tensor == tensor])


def rebuilt(architecture: Path, start: str) -> Backbone:
    """The backbone of an architecture file, its weights still to be loaded."""
    return _backbone(imported.rebuild(architecture), start, architecture.read_bytes())


def _backbone(module: Imported, start: str, architecture: bytes) -> Backbone:
    wiring = module.wiring
    return Backbone(
        module=module, width=module.width, mean=wiring.mean, std=wiring.std, start=start, architecture=architecture
    )

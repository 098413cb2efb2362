"""What is said of how a model wants its images: by metadata, sidecar files, and the graph itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilltool.errors import DistillError
from distilltool.graph import Graph, Value
from distilltool.onnx_file import OnnxFile
from distilltool.preprocess import METADATA_KEY, PRESETS, Preprocess, from_sidecar, merge, partial
from distilltool.roles import said_by_head

SIDECARS = ("preprocessor_config.json", "open_clip_config.json", "config.json")
USUAL_SIDE = 224  # what a network of free size was most likely trained at


def layout_of(image: Value) -> str:
    """NCHW or NHWC, by where an input's three channels are."""
    shape = image.shape or ()
    if len(shape) != 4 or shape[1] == 3:
        return "NCHW"
    return "NHWC" if shape[3] == 3 or "channel" in str(shape[3]).lower() else "NCHW"  # "num_channels", as hubs name it


def fixed_size(image: Value) -> tuple[int, int] | None:
    """Height and width where an input's shape fixes them."""
    shape = image.shape or ()
    height, width = shape[1:3] if layout_of(image) == "NHWC" else shape[2:4]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def nominal_size(image: Value, wanted: tuple[int, int] | None, said: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Height and width to infer shapes with: the graph's own, those asked for, those said, else the usual."""
    if (fixed := fixed_size(image)) is not None:
        return fixed
    if wanted is not None:
        return wanted
    return next((tuple(one["size"]) for one in said if "size" in one), (USUAL_SIDE, USUAL_SIDE))


def said_of(file: OnnxFile, graph: Graph, image: Value) -> tuple[dict[str, Any], ...]:
    """What metadata, sidecar and graph say of preprocessing, the most believed first."""
    said = (_said_by_metadata(file), _said_by_sidecar(file.path), _said_by_graph(graph, image))
    return tuple(one for one in said if one)


def settle(name: str, fixed: tuple[int, int] | None, sources: Sequence[Mapping[str, Any]]) -> Preprocess | None:
    """One preprocessing out of what was said, the most believed first; None where none says how pixels are scaled.

    name: of the model, for messages. fixed: height and width that it takes and no other, None where they are free.
    """
    if fixed is None and not any("size" in source for source in sources):
        sources = [*sources, {"size": (USUAL_SIDE, USUAL_SIDE)}]
    found = merge(sources)
    if found is not None and fixed is not None and found.resize == "longest":
        raise DistillError(
            f"{name} takes images of {fixed[0]}x{fixed[1]} alone, and resize=longest keeps the shape of each",
            "export it with free height and width, or use --preprocess resize=stretch or shortest",
        )
    if found is not None and fixed is not None and fixed != found.size:
        raise DistillError(
            f"{name} takes images of {fixed[0]}x{fixed[1]}, the preprocessing says {found.size[0]}x{found.size[1]}",
            f"use --preprocess size={fixed[0]}x{fixed[1]}",
        )
    return found


def unknown_preprocess(name: str, seen: str = "", likeliest: str = "") -> DistillError:
    """The error where nothing says how images are prepared. seen: what a guess came to, and its flags."""
    first = f"say {likeliest} if that is right, else" if likeliest else "say it with"
    return DistillError(
        f"nothing says how {name} wants its images prepared{seen}",
        f"{first} --preprocess {'|'.join(PRESETS)}, a sidecar FILE, or single fields such as "
        f"--preprocess scale=1/255 --preprocess mean=0.5,0.5,0.5 --preprocess std=0.5,0.5,0.5",
    )


def _said_by_metadata(file: OnnxFile) -> dict[str, Any]:
    if METADATA_KEY not in file.metadata:
        return {}
    try:
        values = json.loads(file.metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DistillError(
            f"the metadata {METADATA_KEY} of {file.path.name} is no JSON object", "say it with --preprocess instead"
        ) from None
    values.pop("source", None)
    return {**partial(values, "the model's metadata"), "said_by": "metadata of the model"}


def _said_by_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar file beside the model, or one folder up as model hubs lay out onnx/model.onnx."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    for folder in folders:
        for name in SIDECARS:
            try:
                values = json.loads((folder / name).read_text("utf-8"))
            except (OSError, ValueError, RecursionError):
                continue
            found = from_sidecar(values) if isinstance(values, dict) else None
            if found:
                return {**found, "said_by": f"sidecar {name}"}
    return {}


def _said_by_graph(graph: Graph, image: Value) -> dict[str, Any]:
    """What the input declares, and what the graph itself does to pixels: leading arithmetic of a known convention."""
    said, head = declared(image), said_by_head(graph, image.name, layout_of(image))
    if image.dtype == "uint8":  # bytes go in as they are; their order is all that is left to say
        return said | ({"channels": head["channels"]} if "channels" in head else {})
    return said | head


def declared(image: Value) -> dict[str, Any]:
    """Layout, dtype and fixed size of an input; a uint8 one also says that pixels go in as they are."""
    said: dict[str, Any] = {"layout": layout_of(image), "dtype": image.dtype}
    if (size := fixed_size(image)) is not None:
        said["size"] = size
    if image.dtype == "uint8":
        said |= {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "said_by": "graph (uint8 input)"}
    return said

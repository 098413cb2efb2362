"""Students from timm's registry of architectures."""

import difflib
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file

from distilltool.errors import DistillError
from distilltool.students import Backbone, Start

WEIGHTS = "model.safetensors"  # never a pickle
PATIENCE = 5  # seconds to wait for a hub before going on without it


def timm(name: str, start: Start) -> Backbone:
    """Build a timm architecture without its classifier; weights from a file, timm's hub repository, or nowhere.

    The name may carry a tag of pretrained weights, as in `resnet18.a1_in1k`.
    """
    library = _library()
    _check_name(library, name)
    torch.manual_seed(start.seed)
    module = _create(library, name, start.input)
    cfg = module.pretrained_cfg
    said = "scratch"
    if start.weights is not None:
        _load(module, start.weights)
        said = f"file {start.weights.name}"
    elif start.fetch != "none" and (found := _pretrained(cfg.get("hf_hub_id"), start.fetch)):
        _load(module, found)
        said = f"pretrained {cfg['hf_hub_id']}"
    width = _width(module, name, start.input)
    native = max(cfg["input_size"][1:]) if said != "scratch" else 0
    return Backbone(
        module=module, width=width, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]), start=said, native=native
    )


def _library() -> Any:
    """timm itself; the torchvision of the package index misses its operators beside a CPU-only torch."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    import timm as library

    return library


def _check_name(library: Any, name: str) -> None:
    if name.partition(".")[0] not in library.list_models():
        near = difflib.get_close_matches(name, library.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise DistillError(f"timm has no model {name!r}", hint)


def _create(library: Any, name: str, side: int) -> Any:
    try:
        try:
            return library.create_model(name, num_classes=0, img_size=side)  # transformers are built for one size
        except TypeError:
            return library.create_model(name, num_classes=0)
    except RuntimeError:  # an unknown tag of pretrained weights
        raise DistillError(f"timm has no weights {name!r}", f"use {name.partition('.')[0]}") from None


def _width(module: torch.nn.Module, name: str, side: int) -> int:
    """Length of the pooled features, found by running the network once."""
    try:
        with torch.no_grad():
            return int(module.eval()(torch.zeros(1, 3, side, side)).shape[1])
    except (AssertionError, RuntimeError, TypeError) as error:
        said = str(error).split("\n")[0]
        raise DistillError(f"{name} does not work at {side} pixels ({said})", "choose another --input") from None


def _pretrained(repository: str | None, fetch: str) -> Path | None:
    """The weights of a hub repository as a local file, or None where they cannot be had."""
    if not repository:
        return None
    cached = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    if fetch != "online" or HF_HUB_OFFLINE:
        return None
    try:
        urlopen(Request(ENDPOINT, method="HEAD"), timeout=PATIENCE).close()  # the download retries for half a minute
        return Path(hf_hub_download(repository, WEIGHTS, etag_timeout=PATIENCE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None  # the caller warns: the student starts from scratch


def _load(module: torch.nn.Module, path: Path) -> None:
    """Load a safetensors file; a classifier in it is left out, anything else must fit."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DistillError(
            f"{path} is no readable safetensors file ({error})",
            "give weights saved with safetensors; pickles are not read",
        ) from None
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    misfit = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or misfit:
        raise DistillError(
            f"{path.name} does not fit this student ({len(missing + misfit)} tensors, first {(missing + misfit)[0]})",
            "give weights of the same architecture",
        )
    module.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)

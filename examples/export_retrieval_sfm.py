"""Export a network of cnnimageretrieval-pytorch (Radenović, Tolias & Chum) to ONNX, as a teacher for distilltool.

    python examples/export_retrieval_sfm.py retrievalSfM120k-resnet101-gem-b80fb85.pth teacher.onnx

The checkpoint is a torch file with `meta` (architecture, pooling, mean, std, whitening, Lw) and `state_dict`, as
https://github.com/filipradenovic/cnnimageretrieval-pytorch publishes them (cirtorch/examples/test.py) and as its
training script keeps them. The ONNX file takes images (N, 3, H, W) of any number and size, normalised by `meta`, and
gives vectors (N, D) of length 1: convolutions, pooling, length 1 and, where the checkpoint has it, whitening and length
1. Its metadata says how images are prepared, proportions kept and no side longer than --size, and the power of its
pooling, which `distilltool eval --combine gem` takes.

Nothing in the checkpoint is run: it is read by torch's weights-only reader, which knows tensors and arrays alone.
"""

import argparse
import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from distilltool.preprocess import METADATA_KEY, Preprocess
from distilltool.views import POWER_KEY

EPS = 1e-6  # of pooling and of length 1, as in cirtorch/layers/functional.py
SIZE = 1024  # pixels of the longer side, as in cirtorch/examples/test.py
OPSET = 18
POOLS = ("gem", "gemmp", "mac", "spoc")
# what arrays in `meta` are pickled with; the first name is that of numpy before 2.0
ARRAYS: tuple[Any, ...] = (
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(one)) for one in ("float32", "float64", "int32", "int64")),
)


def fail(what: str, fix: str) -> NoReturn:
    """End with one line that says what is wrong and what to do."""
    sys.exit(f"{what}: {fix}")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`meta` and `state_dict` of a checkpoint, without running anything that is in it."""
    try:
        with torch.serialization.safe_globals(list(ARRAYS)):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError) as error:
        fail(
            f"{path} cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})",
            "get the file anew from its source",
        )
    except pickle.UnpicklingError as error:
        why = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        fail(
            f"{path} holds more than tensors and arrays, and unpickling it could run anything: {why.strip()}",
            "where you trust it, load it once where it was made, and save {'meta': ..., 'state_dict': ...} again of "
            "plain numbers, texts, arrays and tensors",
        )
    if not isinstance(found, Mapping) or not {"meta", "state_dict"} <= set(found):
        fail(f"{path} has no meta and state_dict", "give a checkpoint of cnnimageretrieval-pytorch")
    return dict(found["meta"]), dict(found["state_dict"])


class Network(nn.Module):
    """Names of parameters are those of ImageRetrievalNet, so that its state is loaded strictly."""

    def __init__(self, meta: Mapping[str, Any], state: Mapping[str, Tensor], lw: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.features = nn.Sequential(*convolutions(meta["architecture"]))
        self.pooling = meta["pooling"]
        self.pool = nn.Module()
        if "pool.p" in state:
            self.pool.p = nn.Parameter(torch.ones_like(state["pool.p"]))
        self.whiten = linear(state["whiten.weight"]) if "whiten.weight" in state else None
        self.after = None if lw is None else learned(lw)

    def forward(self, images: Tensor) -> Tensor:
        vectors = length_one(self.pooled(self.features(images)))
        for layer in (self.whiten, self.after):
            vectors = vectors if layer is None else length_one(layer(vectors))
        return vectors

    def pooled(self, maps_NDHW: Tensor) -> Tensor:
        """(N, D); of GeM the mean of the p-th powers over all places, to the power of 1 / p."""
        if self.pooling == "mac":
            return maps_NDHW.amax(dim=(2, 3))
        if self.pooling == "spoc":
            return maps_NDHW.mean(dim=(2, 3))
        power = self.pool.p.view(1, -1)
        raised = maps_NDHW.clamp(min=EPS).pow(power[..., None, None])
        return raised.mean(dim=(2, 3)).pow(1 / power)


def length_one(vectors_ND: Tensor) -> Tensor:
    return vectors_ND / (vectors_ND.norm(dim=1, keepdim=True) + EPS)


def linear(weight_ED: Tensor) -> nn.Linear:
    return nn.Linear(weight_ED.shape[1], weight_ED.shape[0])


def learned(lw: Mapping[str, Any]) -> nn.Linear:
    """P (x − m) as a layer (cirtorch/utils/whiten.py, whitenapply)."""
    mean, basis = (torch.from_numpy(np.asarray(lw[name], np.float64)) for name in ("m", "P"))
    layer = linear(basis)
    with torch.no_grad():
        layer.weight.copy_(basis)
        layer.bias.copy_(-(basis @ mean.reshape(-1)))
    return layer


def convolutions(architecture: str) -> list[nn.Module]:
    """The layers before pooling, as init_network takes them from torchvision."""
    for operator in ("nms", "qnms"):  # torchvision of the package index misses them beside a CPU-only torch
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from torchvision import models

    if not architecture.startswith(("resnet", "vgg", "alexnet")) or not hasattr(models, architecture):
        fail(f"the architecture {architecture!r} is not known here", "known are resnet18 to resnet152, vgg and alexnet")
    network = getattr(models, architecture)(weights=None)
    if architecture.startswith("resnet"):
        return list(network.children())[:-2]
    return list(network.features.children())[:-1]


def build(meta: Mapping[str, Any], state: Mapping[str, Tensor], whitening: str | None) -> Network:
    """The network with the checkpoint's weights, each of which must have its place."""
    unknown = [name for name in ("local_whitening", "regional") if meta.get(name, False)]
    if unknown or meta["pooling"] not in POOLS:
        fail(f"pooling {meta['pooling']!r} {' '.join(unknown)} is not known here", f"known are {', '.join(POOLS)}")
    lw = None
    if whitening is not None:
        kept = meta.get("Lw") or {}
        if whitening not in kept:
            fail(f"the checkpoint has no whitening {whitening!r}", f"it has {', '.join(kept) or 'none'}")
        lw = kept[whitening]["ss"]  # of single-scale vectors; those of several scales come about outside the graph
    network = Network(meta, state, lw)
    own = {f"after.{name}": value for name, value in (network.after.state_dict() if network.after else {}).items()}
    try:
        network.load_state_dict({**state, **own}, strict=True)
    except RuntimeError as error:
        fail(
            f"the weights do not fit {meta['architecture']} ({str(error).splitlines()[1].strip()[:200]})",
            "is the file whole, and of cnnimageretrieval-pytorch?",
        )
    return network.eval()


def export(network: Network, meta: Mapping[str, Any], size: int, path: Path) -> onnx.ModelProto:
    """Write the ONNX file: `images` (N, 3, H, W) → `embedding` (N, D), N, H and W free."""
    free = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=32),
        3: torch.export.Dim("width", min=32),
    }
    with quiet():
        program = torch.onnx.export(
            network,
            (torch.rand(2, 3, 96, 128),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes={"images": free},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:  # they carry paths of this machine
        del node.metadata_props[:]
    how = Preprocess(
        size=(size, size),
        resize="longest",
        interpolation="lanczos",
        scale=1 / 255,
        mean=three(meta["mean"]),
        std=three(meta["std"]),
    )
    said = {name: value for name, value in how.to_dict().items() if name not in ("source", "resize_to")}
    props = {METADATA_KEY: json.dumps(said)}
    if meta["pooling"] == "gem" and network.whiten is None and network.after is None:  # as test.py of cirtorch chooses
        props[POWER_KEY] = repr(network.pool.p.item())
    onnx.helper.set_model_props(model, props)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter tells of its own insides."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(one) for one in values)
    return red, green, blue


def check(network: Network, path: Path) -> float:
    """The largest difference between torch and onnxruntime in a number of a vector, on images of two shapes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count, height, width in ((1, 96, 160), (3, 128, 96)):
        images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            expected = network(images).numpy()
        worst = max(worst, float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="the ONNX file to write")
    parser.add_argument("--size", type=int, default=SIZE, help="longest side of the images that it is shown")
    parser.add_argument(
        "--whitening",
        metavar="NAME",
        help="put the checkpoint's whitening of single-scale vectors behind, meta['Lw'][NAME]",
    )
    args = parser.parse_args()
    meta, state = read(args.checkpoint)
    network = build(meta, state, args.whitening)
    export(network, meta, args.size, args.out)
    worst = check(network, args.out)
    if worst > 1e-4:
        fail(
            f"onnxruntime's vectors differ from torch's by {worst:.1e}",
            "this should not be: tell us with the checkpoint",
        )
    power = "" if meta["pooling"] != "gem" else f", p = {network.pool.p.item():.3f}"
    print(
        f"{args.out}: {meta['architecture']}, {meta['pooling']}{power}, images up to {args.size} px; "
        f"vectors differ from torch's by {worst:.1e} at most"
    )


if __name__ == "__main__":
    main()

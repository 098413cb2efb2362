"""How often the label-free guess of a preprocessing is right, and whether it is ever clear and wrong.

    python benchmarks/guess_preprocess.py DATA [--seeds 5] [--stress-seeds 2] [--models NAME ...]

DATA holds models/, caltech/train and corridor/query. Two parts. Native: each model as it is, with 8, 16 and 32 images
of either collection. Stress: the float models with an exact inverse in front, so that another convention is the true
one: (v · std + mean) ÷ scale of the new convention, then the model's own. Raw results:
benchmarks/results/guess_preprocess.json (one line a case; `clear` and the figures it is made of).
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from distilltool import deploy, guess
from distilltool.guess import FAMILIES, Ranking
from distilltool.preprocess import Preprocess, merge, parse_flags

RESULTS = Path(__file__).parent / "results" / "guess_preprocess.json"
STRESS = ("imagenet", "tf", "unit", "raw", "raw-bgr", "caffe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model file and what is true of it. tensor: where its embedding is, inside the graph for mere classifiers."""

    file: str
    truth: str
    tensor: str
    size: tuple[int, int] = (224, 224)
    layout: str = "NCHW"
    dtype: str = "float32"
    one_by_one: bool = False


MODELS = (
    Model(file="mobilenet_edgetpu_fp32", truth="tf", tensor="embedding", layout="NHWC"),
    Model(file="mobilenetv2_fp32", truth="imagenet", tensor="embedding"),
    Model(file="squeezenet1.1_three_outputs", truth="imagenet", tensor="embedding"),
    Model(file="squeezenet1.0_nhwc_batch1", truth="tf", tensor="concat_62", layout="NHWC", one_by_one=True),
    Model(file="squeezenet1.1_fp16_caffe", truth="caffe", tensor="fire9/concat_1", dtype="float16", one_by_one=True),
    Model(file="resnet50v2_stage3", truth="imagenet", tensor="embedding"),
    Model(file="mobilefacenet", truth="tf", tensor="output", size=(112, 112), one_by_one=True),
    Model(
        file="person_reid_0287", truth="raw-bgr", tensor="Identity:0", size=(256, 128), layout="NHWC", one_by_one=True
    ),
)  # the two uint8 files say themselves that pixels go in as they are


def convention(name: str, model: Model) -> Preprocess:
    """A named convention for a model's input."""
    found = merge([parse_flags([name]), {"size": model.size, "layout": model.layout, "dtype": model.dtype}])
    assert found is not None
    return found


class Network:
    """A model behind which, where asked, another convention is made the true one. Answers are kept by input."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.model = model
        loaded = onnx.load(folder / f"{model.file}.onnx")
        if model.tensor not in [one.name for one in loaded.graph.output]:
            loaded.graph.output.append(onnx.ValueInfoProto(name=model.tensor))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(loaded.SerializeToString(), options, providers=["CPUExecutionProvider"])
        weights = {one.name for one in loaded.graph.initializer}
        self.input = next(one.name for one in loaded.graph.input if one.name not in weights)
        self.native = convention(model.truth, model)
        self.kept: dict[bytes, NDArray[np.float32]] = {}

    def embed(self, truth: Preprocess, preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers to pixels fed by `preprocess` where `truth` would be right, (N, D)."""
        fed = [self._translated(truth, replace(preprocess, dtype="float32").feed(one[None]))[0] for one in pixels]
        return np.stack([self._answer(one) for one in fed])

    def _translated(self, truth: Preprocess, fed: NDArray[np.float32]) -> NDArray[np.float32]:
        values = fed.astype(np.float64)
        if truth != self.native:
            values = values if self.model.layout == "NHWC" else values.transpose(0, 2, 3, 1)
            pixels = (values * np.array(truth.std) + np.array(truth.mean)) / truth.scale
            pixels = pixels if truth.channels == self.native.channels else pixels[..., ::-1]
            values = (pixels * self.native.scale - np.array(self.native.mean)) / np.array(self.native.std)
            values = values if self.model.layout == "NHWC" else values.transpose(0, 3, 1, 2)
        return np.round(values, 4).astype(self.model.dtype)

    def _answer(self, one: NDArray[np.float32]) -> NDArray[np.float32]:
        key = hashlib.sha256(one.tobytes()).digest()
        if key not in self.kept:
            found = self.session.run([self.model.tensor], {self.input: np.ascontiguousarray(one[None])})[0]
            found = np.asarray(found, np.float32)
            self.kept[key] = (found.mean(axis=(2, 3)) if found.ndim == 4 else found).reshape(-1)
        return self.kept[key]


def photographs(folder: Path, count: int, seed: int) -> list[Image.Image]:
    """Some of a folder's photographs, drawn by seed."""
    paths = sorted(folder.glob("*.jpg"))
    return [deploy.open_rgb(paths[at]) for at in np.random.default_rng(seed).permutation(len(paths))[:count]]


def case(network: Network, truth: str, images: list[Image.Image]) -> dict[str, object]:
    """One guess, and what became of it."""
    model, started = network.model, time.perf_counter()
    known = convention(truth, model)
    field = guess.candidates(model.layout, model.dtype, model.size)  # type: ignore[arg-type]
    found: Ranking = guess.rank(lambda pre, pixels: network.embed(known, pre, pixels), field, images)
    ranked = [one.candidate.name for one in found.entries]
    return {
        "model": model.file,
        "truth": truth,
        "images": len(images),
        "first": ranked[0],
        "right": ranked[0] == truth,
        "family_right": found.best.family == truth.removesuffix("-bgr"),
        "clear": found.clear,
        "why": found.why,
        "score": found.entries[0].score,
        "found": found.entries[0].found,
        "margin": found.margin,
        "lead": found.lead,
        "red_over_blue": found.red_over_blue,
        "colour_errors": found.colour_errors,
        "passes": found.passes,
        "seconds": round(time.perf_counter() - started, 1),
        "ranked": ranked,
    }


def cases(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """All of them, model by model."""
    for model in MODELS:
        if args.models and model.file not in args.models:
            continue
        network = Network(args.data / "models", model)
        for collection in args.collections:
            for seed in range(args.seeds):
                images = photographs(args.data / collection, 32, seed)
                for count in (8, 16, 32):
                    about = {"part": "native", "collection": collection, "seed": seed}
                    yield about | case(network, model.truth, images[:count])
                network.kept.clear()
        for seed in range(100, 100 + args.stress_seeds):
            images = photographs(args.data / "caltech/train", 32, seed)
            for truth in STRESS:
                about = {"part": "stress", "collection": "caltech/train", "seed": seed}
                yield about | case(network, truth, images)
            network.kept.clear()


def show(rows: list[dict[str, object]]) -> None:
    """Print counts by part, collection and number of images, then by model."""
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["collection"], row["images"], ""), []).append(row)
        groups.setdefault((row["part"], row["collection"], row["images"], row["model"]), []).append(row)
    print(f"{'part':7} {'collection':15} {'n':>2} {'model':28} cases right family clear clear+wrong passes")
    for (part, collection, count, model), found in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        total = {name: sum(bool(row[name]) for row in found) for name in ("right", "family_right", "clear")}
        wrong = sum(bool(row["clear"]) and not row["right"] for row in found)
        passes = np.mean([float(str(row["passes"])) for row in found])
        print(
            f"{part:7} {collection:15} {count:>2} {model or 'all':28} {len(found):5} {total['right']:5} "
            f"{total['family_right']:6} {total['clear']:5} {wrong:11} {passes:6.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stress-seeds", type=int, default=2)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--collections", nargs="*", default=["caltech/train", "corridor/query"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    assert set(STRESS) >= set(FAMILIES) - {"clip"}
    rows: list[dict[str, object]] = []
    for row in cases(args):
        rows.append(row)
        args.out.write_text("[\n" + ",\n".join(json.dumps(one, allow_nan=False) for one in rows) + "\n]\n", "utf-8")
    show(rows)


if __name__ == "__main__":
    main()

"""Train the demonstration teacher from scratch on rendered photographs and export it to ONNX.

The teacher is a compact residual network with an ArcFace head that is dropped after training. It
sees training instances only, and never a view that belongs to the demonstration set::

    python examples/train_teacher.py --epochs 16
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import generate
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[Any]
Photo = NDArray[np.uint8]

INSTANCES = range(0, 800)
VIEWS = range(100, 116)  # the demonstration set uses views 0..9
SIZE = 112
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = (32, 64, 128, 160)
DIM = 256
BATCH = 80
RATE = 2e-3
DECAY = 0.05
SCALE, MARGIN = 24.0, 0.25
STAGES = ((0.5, 64), (0.8, 88), (1.0, SIZE))  # (share of the training, picture size)
PREPROCESS = {
    "size": [SIZE, SIZE],
    "resize": "stretch",
    "resize_to": None,
    "interpolation": "bilinear",
    "mean": list(MEAN),
    "std": list(STD),
    "scale": 1 / 255,
    "channels": "RGB",
    "layout": "NCHW",
    "dtype": "float32",
}


# --- network ---------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = inside == outside and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.skip(x))


class Teacher(nn.Module):
    """Residual embedding network: picture (N, 3, H, W) to embedding (N, DIM), not normalised."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(a, a, 1), Block(a, b, 2), Block(b, b, 1), Block(b, c, 2), Block(c, c, 1), Block(c, d, 2)
        )
        self.project = nn.Linear(d, DIM)

    def forward(self, image: Tensor) -> Tensor:
        """Pool by generalised mean (power 3), which favours the thing over its background."""
        x = self.blocks(self.stem(image)).float()
        x = functional.adaptive_avg_pool2d(x.clamp(min=1e-4) ** 3, 1).flatten(1) ** (1 / 3)
        embedding: Tensor = self.project(x)
        return embedding


class ArcFace(nn.Module):
    """Cosine classifier with an additive angular margin on the true class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, DIM) * 0.05)

    def forward(self, embedding: Tensor, label: Tensor, margin: float) -> Tensor:
        """Give the mean loss of embeddings (N, DIM) with labels (N,)."""
        cosine = functional.normalize(embedding.float()) @ functional.normalize(self.weight).T
        true = cosine.gather(1, label[:, None]).clamp(-0.999, 0.999)
        shifted = torch.cos((torch.acos(true) + margin).clamp(max=math.pi))
        return functional.cross_entropy(SCALE * cosine.scatter(1, label[:, None], shifted), label)


# --- photographs -----------------------------------------------------------------------------


def _render(job: tuple[str, int, range]) -> int:
    """Render the missing views of one instance below a folder."""
    folder, instance, views = Path(job[0]), job[1], job[2]
    for view in views:
        path = folder / f"{instance}_{view}.jpg"
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(generate.render_jpeg(instance, view))
            part.replace(path)
    return len(views)


def photographs(cache: Path, instances: range, views: range) -> tuple[list[Photo], Array]:
    """Give pictures (H, W, 3) and class labels (N,), rendered once and kept in the cache folder."""
    cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(_render, [(str(cache), i, views) for i in instances], chunksize=4))
    pictures, labels = [], []
    for k, instance in enumerate(instances):
        for view in views:
            data = (cache / f"{instance}_{view}.jpg").read_bytes()
            pictures.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
            labels.append(k)
    return pictures, np.array(labels)


def prepared(pictures: list[Photo]) -> Tensor:
    """Apply the preprocessing that the ONNX file declares: (N, 3, SIZE, SIZE) float32."""
    small = [Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in pictures]
    return _normalised(torch.from_numpy(np.stack([np.asarray(p) for p in small])).float() / 255)


def _normalised(x: Tensor) -> Tensor:
    """Standardise (N, H, W, 3) in 0..1 and move channels first."""
    return ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def _augmented(pictures: list[Photo], size: int, rng: np.random.Generator) -> Tensor:
    """Crop, resize as declared, and vary light and colour; never mirror, since labels have a sense."""
    small = []
    for p in pictures:
        h, w = p.shape[:2]
        left, top, right, bottom = rng.uniform(0, 0.16, 4) * (w, h, w, h)
        picture = Image.fromarray(p)
        box = (left, top, w - right, h - bottom)
        small.append(np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box)))
    n = len(small)
    x = np.stack(small).astype(np.float32) / 255
    gain = rng.uniform(0.8, 1.25, (n, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 1, 1, 3))
    x = (x - 0.5) * rng.uniform(0.8, 1.25, (n, 1, 1, 1)) + 0.5
    return _normalised(torch.from_numpy(np.clip(x * gain, 0, 1).astype(np.float32)))


# --- training --------------------------------------------------------------------------------


@dataclass
class Clock:
    """Progress of the training in 0..1, by pictures shown or by minutes."""

    total: int
    minutes: float | None
    start: float
    shown: int = 0

    def progress(self) -> float:
        """Give the share of the training that is done."""
        if self.minutes is not None:
            return (time.perf_counter() - self.start) / (60 * self.minutes)
        return self.shown / self.total


def _batches(labels: Array, rng: np.random.Generator) -> Iterator[Array]:
    """Give shuffled index batches (BATCH,) without end."""
    while True:
        order = rng.permutation(len(labels))
        for k in range(0, len(order) - BATCH + 1, BATCH):
            yield order[k : k + BATCH]


def train(pictures: list[Photo], labels: Array, epochs: float, minutes: float | None) -> Teacher:
    """Train with ArcFace, AdamW, a warm-up and a cosine schedule, at growing picture size."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, head = Teacher(), ArcFace(int(labels.max()) + 1)
    weights = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, RATE, weight_decay=DECAY)
    clock = Clock(int(epochs * len(labels)), minutes, time.perf_counter())
    batches, mean_loss, step = _batches(labels, rng), 0.0, 0
    while (done := clock.progress()) < 1:
        size = next(s for share, s in STAGES if done < share)
        rate = RATE * min(1.0, done / 0.03 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate
        index = next(batches)
        image = _augmented([pictures[i] for i in index], size, rng)
        with torch.autocast("cpu", torch.bfloat16):
            embedding = model(image.contiguous(memory_format=torch.channels_last))
        loss = head(embedding, torch.from_numpy(labels[index]), MARGIN * min(1.0, done / 0.3))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimiser.step()
        clock.shown += len(index)
        step += 1
        mean_loss += (loss.item() - mean_loss) / min(step, 100)
        if step % 100 == 0:
            seconds = time.perf_counter() - clock.start
            print(f"{done:6.1%} {seconds:5.0f} s  size {size}  loss {mean_loss:.3f}", flush=True)
    print(f"trained on {clock.shown} pictures in {(time.perf_counter() - clock.start) / 60:.1f} min")
    model.eval()
    return model


# --- measuring -------------------------------------------------------------------------------


def retrieval(embedding: Array, label: Array) -> tuple[float, float]:
    """Leave-one-out mAP and recall at 1 of embeddings (N, D) by cosine, self excluded."""
    e = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    score = e @ e.T
    precisions, firsts = [], []
    for i in range(len(e)):
        order = np.argsort(-score[i], kind="stable")
        hit = label[order[order != i]] == label[i]
        rank = np.flatnonzero(hit)
        precisions.append(((np.arange(len(rank)) + 1) / (rank + 1)).mean())
        firsts.append(hit[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def histograms(pictures: list[Photo]) -> Array:
    """Give root colour histograms (N, 512) with 8 levels a channel."""
    rows = []
    for p in pictures:
        q = (p // 32).astype(np.int64)
        counts = np.bincount((q[..., 0] * 64 + q[..., 1] * 8 + q[..., 2]).ravel(), minlength=512)
        rows.append(np.sqrt(counts / counts.sum()))
    return np.stack(rows)


def embedded(model: Teacher, x: Tensor) -> Array:
    """Run the network in float32 over (N, 3, H, W) and give (N, DIM)."""
    with torch.inference_mode():
        return np.concatenate([model(part).numpy() for part in torch.split(x, 96)])


def report(model: Teacher, cache: Path) -> None:
    """Print retrieval on the unseen instances: teacher, untrained network, colour histogram."""
    pictures, label = photographs(cache, generate.UNSEEN_IDS, generate.UNSEEN_VIEWS)
    x = prepared(pictures)
    torch.manual_seed(1)
    rows = {
        "trained teacher": embedded(model, x),
        "untrained network": embedded(Teacher().eval(), x),
        "colour histogram": histograms(pictures),
    }
    for name, rows_of in rows.items():
        m, r = retrieval(rows_of, label)
        print(f"{name:18s} mAP {m:.3f}  R@1 {r:.3f}")


# --- export ----------------------------------------------------------------------------------


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter notes about source files, and declare the preprocessing."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for field in ("metadata_props", "doc_string"):
        model.graph.ClearField(field)
        model.ClearField(field)
    entry = model.metadata_props.add()
    entry.key, entry.value = "distilltool.preprocess", json.dumps(PREPROCESS)
    return model


def export(model: Teacher, path: Path) -> None:
    """Write the network as one ONNX file with dynamic batch and check it against torch."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, SIZE, SIZE),),
        input_names=["image"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    stripped = _stripped(program.model_proto)
    onnx.checker.check_model(stripped, full_check=True)
    data = stripped.SerializeToString()
    assert not any(mark in data for mark in (b"/work", b"/tmp", b"/home", str(Path.cwd()).encode()))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for n in (1, 2, 7):
        x = torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(n))
        got, want = session.run(None, {"image": x.numpy()})[0], embedded(model, x)
        assert got.shape == (n, DIM) and np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
    opset = stripped.opset_import[0].version
    print(f"{path.name}: {len(data)} bytes, opset {opset}, equals torch at batch 1, 2, 7")


def main() -> None:
    """Render, train, export and measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=float, default=16, help="passes over the rendered photographs")
    parser.add_argument("--minutes", type=float, help="train for this long instead (not reproducible)")
    parser.add_argument("--instances", type=int, default=len(INSTANCES), help="training instances")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for torch")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "teacher-photographs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "teacher.onnx")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache = args.cache / f"v{generate.VERSION}"
    pictures, labels = photographs(cache, INSTANCES[: args.instances], VIEWS)
    model = train(pictures, labels, args.epochs, args.minutes)
    export(model, args.out)
    report(model, cache)


if __name__ == "__main__":
    main()

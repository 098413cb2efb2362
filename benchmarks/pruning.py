"""What a narrower network keeps of the whole one's lists before any training, beside a smaller image at like cost.

    python benchmarks/pruning.py $DATA/models/mobilenetv2_fp32.onnx $DATA/caltech/train --preprocess imagenet \
        --input 128 --smaller 104 72

overlap@10 with the file at its own size, on 400 held-out images, for the whole network at the input and smaller ones,
and for each width with and without fitting; channels are chosen on other images. One JSON object on stdout.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import images, imported, pruning
from distilltool.imported import Looks, Part
from distilltool.progress import Silent
from distilltool.sources import Source, open_source
from distilltool.student import Student, embed
from distilltool.students import Backbone
from distilltool.teacher import OnnxEmbedder, TeacherOptions, open_teacher

HELD, NEAREST, STEP = 400, 10, 40


def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The NEAREST of each row among the others."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :NEAREST]


def kept(teacher: OnnxEmbedder, found: imported.Imported, held: list[Path], side: int, wanted: Any) -> dict[str, float]:
    """Mean share of the teacher's nearest, and its standard error."""
    wiring = found.wiring
    whole = Backbone(module=found, width=wiring.width, mean=wiring.mean, std=wiring.std, start="")
    size = imported.scaled(teacher.preprocess.size, side)
    pixels, _ = images.load(held, teacher.preprocess.at(size))
    made = nearest(embed(Student(whole, 0, bias=False), pixels))
    shares = [len(set(one) & set(other)) / NEAREST for one, other in zip(made, wanted, strict=True)]
    return {"overlap@10": float(np.mean(shares)), "se": float(np.std(shares) / len(shares) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preprocess", required=True)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--smaller", type=int, nargs="*", default=[])
    parser.add_argument("--widths", type=float, nargs="*", default=[0.75, 0.5])
    args = parser.parse_args()
    torch.set_num_threads(images.workers())
    teacher = open_teacher(args.model, TeacherOptions(preprocess=(args.preprocess,)))
    source = open_source("teacher", teacher, False, [], Silent())
    assert isinstance(source, Source)
    paths = sorted(images.find(args.data), key=lambda one: hashlib.sha256(one.name.encode()).digest())
    held, photos = paths[:HELD], paths[HELD:]
    pixels, _ = images.load(held, teacher.preprocess)
    wanted = nearest(np.concatenate([teacher.embed(pixels[at : at + STEP]) for at in range(0, len(pixels), STEP)]))
    arms = []
    for side in (args.input, *args.smaller):
        made = imported.backbone(source, Part(), Looks(input=side, prepared=teacher.preprocess))
        cost = (side / args.input) ** 2
        arms.append({"input": side, "width": 1.0, "share": cost, **kept(teacher, made.module, held, side, wanted)})
    fitted = pruning.prune
    for width in args.widths:
        for fit in (False, True):
            began = time.perf_counter()
            pruning.prune = lambda *given, fit=fit: fitted(*given, refit=fit)
            looks = Looks(input=args.input, prepared=teacher.preprocess, photos=photos)
            made = imported.backbone(source, Part(width=width), looks)
            arm = {"input": args.input, "width": width, "fitted": fit, "share": made.share}
            seconds = time.perf_counter() - began
            arms.append(arm | {"seconds": seconds} | kept(teacher, made.module, held, args.input, wanted))
    print(json.dumps({"model": args.model.name, "data": args.data.name, "arms": arms}, indent=2))


if __name__ == "__main__":
    main()

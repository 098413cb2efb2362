"""What parts of a network and narrower ones keep of its lists before any training, at like cost.

    python benchmarks/pruning.py $DATA/models/resnet50v2_stage3.onnx $DATA/caltech/train \
        --preprocess imagenet size=224 --arms 1@64 1:add_88@80 0.7@96 0.5@112 --unseen $DATA/caltech/val

overlap@10 with the file at its own size, for each WIDTH[:CUT]@SIDE: on images that narrower networks are fitted to
(`fitted to`), on others of the same folder (`others`), and on those of another (`unseen`), so many of each; share: of
the file's floating-point operations. `--unfitted` does without the fit. One JSON object on stdout.
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

NEAREST, STEP = 10, 40


def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The NEAREST of each row among the others."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :NEAREST]


def kept(
    teacher: OnnxEmbedder, found: imported.Imported, paths: list[Path], side: int, wanted: Any
) -> dict[str, float]:
    """Mean share of the teacher's nearest, and its standard error."""
    wiring = found.wiring
    whole = Backbone(module=found, width=wiring.width, mean=wiring.mean, std=wiring.std, start="")
    size = imported.scaled(teacher.preprocess.size, side)
    pixels, _ = images.load(paths, teacher.preprocess.at(size))
    features = embed(Student(whole, 0, bias=False), pixels)
    made = nearest(features - features.mean(axis=0))
    shares = [len(set(one) & set(other)) / NEAREST for one, other in zip(made, wanted, strict=True)]
    return {"overlap@10": float(np.mean(shares)), "se": float(np.std(shares) / len(shares) ** 0.5)}


def some(folder: Path) -> list[Path]:
    """Its images, in an order that has nothing to do with what they show."""
    return sorted(images.find(folder), key=lambda one: hashlib.sha256(str(one.relative_to(folder)).encode()).digest())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preprocess", required=True, nargs="+")
    parser.add_argument("--arms", required=True, nargs="+", metavar="WIDTH[:CUT]@SIDE")
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--unfitted", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(images.workers())
    teacher = open_teacher(args.model, TeacherOptions(preprocess=tuple(args.preprocess)))
    source = open_source("teacher", teacher, False, [], Silent())
    assert isinstance(source, Source)
    found = some(args.data)
    sets = {"fitted to": found[: args.images], "others": found[args.images : 2 * args.images]}
    if args.unseen:
        sets["unseen"] = some(args.unseen)[: args.images]
    wanted = {}
    for name, paths in sets.items():
        pixels, _ = images.load(paths, teacher.preprocess)
        wanted[name] = nearest(
            np.concatenate([teacher.embed(pixels[at : at + STEP]) for at in range(0, len(pixels), STEP)])
        )
    fitted, arms = pruning.prune, []
    if args.unfitted:
        pruning.prune = lambda *given: fitted(*given, refit=False)
    for arm in args.arms:
        part, _, side = arm.partition("@")
        width, _, cut = part.partition(":")
        looks = Looks(input=int(side), prepared=teacher.preprocess, photos=sets["fitted to"])
        began = time.process_time()
        made = imported.backbone(source, Part(width=float(width), cut=cut or None), looks)
        spent = {"cpu seconds": time.process_time() - began}
        share = made.share * (int(side) / max(teacher.preprocess.size)) ** 2
        overlap = {name: kept(teacher, made.module, paths, int(side), wanted[name]) for name, paths in sets.items()}
        arms.append({"arm": arm, "share": share, **spent, **overlap})
    print(json.dumps({"model": args.model.name, "images": args.images, "arms": arms}, indent=2))


if __name__ == "__main__":
    main()

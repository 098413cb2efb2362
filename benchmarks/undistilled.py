"""mAP of a student that was never distilled: what one would deploy without this tool.

    python benchmarks/undistilled.py timm:mobilenetv2_100 --weights mobilenetv2.safetensors --input 128 --data val/

The pooled features of the pretrained network, on class folders, images stretched to the input.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from distilltool import images, metrics
from distilltool.datasets import open_dataset
from distilltool.metrics import Task
from distilltool.preprocess import Preprocess
from distilltool.report import to_json
from distilltool.student import Student, embed
from distilltool.students import Start, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(images.workers())
    student = Student(build(args.student, Start(input=args.input, seed=0, weights=args.weights)), dim=0, bias=False)
    dataset = open_dataset(args.data, "folders")
    assert dataset.labels is not None
    rows, _ = images.load(dataset.paths, Preprocess(size=(args.input, args.input), layout="NHWC", dtype="uint8"))
    vectors = embed(student, rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    every = np.arange(len(rows), dtype=np.int64)
    task = Task(query=every, gallery=every, labels=np.unique(dataset.labels, return_inverse=True)[1])
    found = {
        name: to_json(metrics.interval(values)) for name, values in metrics.labelled(task, vectors, vectors).items()
    }
    print(
        json.dumps({"student": args.student, "input": args.input, "data": args.data.name, "metrics": found}, indent=2)
    )


if __name__ == "__main__":
    main()

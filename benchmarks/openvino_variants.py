"""What OpenVINO makes of a bundle's files, the one of 8 bits among them: vectors, ranking and time.

    pip install openvino
    python benchmarks/openvino_variants.py runs/mine/bundle $DATA/caltech/val --json benchmarks/results/openvino.json

Beside onnxruntime on the same processor: least and mean cosine of the vectors, the share of the ten nearest, and p50 of
one image at one thread, all timed in turns. onnxruntime's float32 is what rankings are compared with.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from distilltool import images, latency, machine, metrics
from distilltool.embedder import unit
from distilltool.metrics import Task
from distilltool.teacher import open_teacher
from distilltool.versus import speedup

FILES = {
    "float32": "student.onnx",
    "int8-static": "student.int8-static.onnx",
    "int8-dynamic": "student.int8-dynamic.onnx",
}
AT_ONCE = 16


def compiled(path: Path) -> Any:
    """A file on one thread; without the hint OpenVINO computes in bfloat16 where the processor can."""
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(str(path), "CPU", hints)


def embedded(model: Any, rows_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    parts = [model(rows_NHWC[at : at + AT_ONCE])[0] for at in range(0, len(rows_NHWC), AT_ONCE)]
    return unit(np.concatenate(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=500, help="images, drawn with seed 0")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each file and runtime")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = {name: args.bundle / file for name, file in FILES.items() if (args.bundle / file).is_file()}
    plain = open_teacher(files["float32"])
    found = images.find(args.images)
    paths = [found[at] for at in np.random.default_rng(0).permutation(len(found))[: args.count]]
    rows, _ = images.load(paths, plain.preprocess)
    every = np.arange(len(rows))
    task = Task(query=every, gallery=every, labels=None)
    vectors, runs = dict[tuple[str, str], NDArray[np.float32]](), dict[tuple[str, str], Callable[[], Any]]()
    for name, file in files.items():
        theirs, ours = compiled(file), open_teacher(file, threads=1)
        vectors["onnxruntime", name], vectors["openvino", name] = unit(ours.embed(rows)), embedded(theirs, rows)
        ready = ours.model.ready
        assert ready is not None
        runs["onnxruntime", name] = ready(plain.preprocess.feed(rows[:1]))
        request, one = theirs.create_infer_request(), np.ascontiguousarray(rows[:1])
        runs["openvino", name] = lambda request=request, one=one: request.infer([one])
    timed = dict(zip(runs, latency.together(list(runs.values()), args.seconds), strict=True))
    table = []
    for (runtime, name), own in vectors.items():
        cosine = (own * vectors["onnxruntime", name]).sum(axis=1)
        overlap = metrics.interval(metrics.overlap(task, vectors["onnxruntime", "float32"], own, 10))
        ratio = speedup(timed[runtime, name], timed[runtime, "float32"])
        table.append(
            {
                "runtime": runtime,
                "file": name,
                "cosine to onnxruntime, least": round(float(cosine.min()), 5),
                "cosine to onnxruntime, mean": round(float(cosine.mean()), 5),
                "overlap@10 with float32": [round(float(one), 4) for one in (overlap.value, overlap.low, overlap.high)],
                "p50 ms": round(float(np.median(timed[runtime, name].samples)) * 1000, 3),
                "times as fast as float32": [round(one, 3) for one in (ratio.value, ratio.low, ratio.high)],
            }
        )
        print(table[-1])
    if args.json:
        versions = {
            "openvino": openvino.__version__,
            "machine": machine.facts(),
            "command": " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv[1:]),
        }
        args.json.write_text(json.dumps({"images": len(rows), "rows": table, **versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()

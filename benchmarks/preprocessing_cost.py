"""What it costs that a student's file takes bytes: its time over that of the bare network, which takes scaled pixels.

    python benchmarks/preprocessing_cost.py RUN... --json benchmarks/results/preprocessing_cost.json

Both graphs come from the same exporter and run in turns in onnxruntime, batch 1, one thread; the bare one is fed
float32 planes that are scaled and normalised already, and ends in the same vectors of length 1.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distilltool
from distilltool import latency, versus
from distilltool.defaults import OPSET
from distilltool.onnx_export import to_onnx
from distilltool.runtime import open_session
from distilltool.stages.distill import environment
from distilltool.student import Student


class Bare(nn.Module):
    """The network without what makes pixels of bytes."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, planes_NCHW: Tensor) -> Tensor:
        student = self.student
        features = F.normalize(student.backbone(planes_NCHW).float(), dim=1)
        return F.normalize(student.head(features - student.centre), dim=1)


def bare(student: Student, size: tuple[int, int]) -> bytes:
    """The bare network as an ONNX file."""
    program = torch.onnx.export(
        Bare(student).eval(),
        (torch.zeros(2, 3, *size),),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        input_names=["planes"],
        output_names=["embedding"],
        dynamic_shapes={"planes_NCHW": {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def compared(run: Path, seconds: float) -> dict[str, float]:
    """Time of the file over that of the bare network, with its interval, and how near their vectors are."""
    embedder = distilltool.load_student(run)
    size = embedder.preprocess.size
    whole = open_session(to_onnx(embedder.student, size, OPSET).SerializeToString(), 1)
    plain = open_session(bare(embedder.student, size), 1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    factor, shift = embedder.student.factor.numpy(), embedder.student.shift.numpy()
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32) * factor - shift)
    near = float(np.abs(whole.run(None, {"images": pixels})[0] - plain.run(None, {"planes": planes})[0]).max())
    ours, theirs = latency.interleaved(
        lambda: whole.run(None, {"images": pixels}), lambda: plain.run(None, {"planes": planes}), seconds
    )
    ratio = versus.speedup(theirs, ours)
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "largest difference": near}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {run.resolve().name: compared(run, args.seconds) for run in args.runs}
    for name, one in found.items():
        print(name, {key: round(value, 6) for key, value in one.items()})
    if args.json:
        kept = {
            "onnxruntime": ort.__version__,
            "machine": latency.machine(),
            "environment": environment(),
            "runs": found,
        }
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

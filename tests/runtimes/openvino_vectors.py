"""Embed prepared pixels with OpenVINO on the processor: openvino_vectors.py MODEL PIXELS.npy OUT.npy BATCH...

PIXELS holds (N, H, W, 3) uint8. The first images are embedded once for each batch size; OUT gets the vectors, one batch
after the other. Without the hint OpenVINO computes in bfloat16 where the processor can.
"""

import sys

import numpy as np
import openvino

model, file, out, *batches = sys.argv[1:]
pixels = np.load(file)
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(out, np.concatenate([compiled(pixels[: int(batch)])[0] for batch in batches]))

"""Distil any ONNX image-embedding model into a compact one that ranks images the same way."""

import os
from typing import TYPE_CHECKING, Any

# onnxruntime's wheels report their use to Microsoft and keep a device id below HOME unless this is set before loading
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# torch's threads wait for each other in 300,000 rounds before they sleep, milliseconds in which they hold a processor
# (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html): two trainings at once ran at a tenth of their speed
# each, at a quarter with so few rounds, which cost one alone nothing (docs/LOG.md)
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
__version__ = "0.2.0"
__all__ = ["DistillError", "bench", "distill", "evaluate", "export", "inspect", "load_student", "query", "verify"]

if TYPE_CHECKING:
    from distilltool.api import bench, distill, evaluate, export, inspect, load_student, query, verify
    from distilltool.errors import DistillError


def __getattr__(name: str) -> Any:
    if name == "DistillError":
        from distilltool.errors import DistillError

        return DistillError
    if name in __all__:
        import distilltool.api

        return getattr(distilltool.api, name)
    raise AttributeError(f"module 'distilltool' has no attribute {name!r}")

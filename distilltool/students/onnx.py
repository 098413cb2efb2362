"""Any ONNX file's network, an early part of it or a narrower one, as the student."""

from distilltool import sources
from distilltool.students import Backbone, Start, grown


def onnx(name: str, start: Start) -> Backbone:
    """The graph of a file with its weights: `onnx:FILE`, `onnx:FILE,cut=0.6`, `onnx:FILE,width=0.5`."""
    return grown(sources.settings(name.partition(",")[2]), start)

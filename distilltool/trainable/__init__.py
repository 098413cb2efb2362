"""An ONNX graph as a torch module that can be trained: rebuilt, cut, kept without its weights' numbers."""

from distilltool.trainable.building import Facts, build, facts, read_whole
from distilltool.trainable.layers import freeze_statistics
from distilltool.trainable.numbers import architecture

__all__ = ["Facts", "architecture", "build", "facts", "freeze_statistics", "read_whole"]

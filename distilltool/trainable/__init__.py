"""An ONNX graph as a torch module that can be trained: rebuilt, cut, kept without its weights' numbers."""

from distilltool.trainable.building import Facts, build, facts, read_whole
from distilltool.trainable.cutting import Cut, choose, cuts, pooled
from distilltool.trainable.layers import freeze_statistics
from distilltool.trainable.norms import fold_norms, reinsert_norms
from distilltool.trainable.numbers import architecture

__all__ = [
    "Cut",
    "Facts",
    "architecture",
    "build",
    "choose",
    "cuts",
    "facts",
    "fold_norms",
    "freeze_statistics",
    "pooled",
    "read_whole",
    "reinsert_norms",
]

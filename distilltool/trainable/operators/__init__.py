"""One function for each operator, in files by what the operators are about; importing this registers them all."""

from distilltool.trainable.operators import (
    activation,
    arithmetic,
    attention,
    control,
    convolution,
    gather,
    linear,
    normalisation,
    pooling,
    quantised,
    reduction,
    resize,
    shape,
)

__all__ = [
    "activation",
    "arithmetic",
    "attention",
    "control",
    "convolution",
    "gather",
    "linear",
    "normalisation",
    "pooling",
    "quantised",
    "reduction",
    "resize",
    "shape",
]

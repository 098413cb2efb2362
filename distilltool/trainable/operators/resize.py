"""Resize and Upsample: by torch's own functions where they agree, else as a product with a matrix for each axis."""

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.nn import functional as F

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.registry import operator
from distilltool.trainable.resampling import resample
from distilltool.trainable.values import Number, Unsupported, Value


@operator("Resize", "Upsample")
def resize(b: Builder, op: Op) -> Value:
    """Resize of places; batch and channels stay."""
    x = op.tensor(0)
    rank = b.rank(x)
    axes = [int(one) % rank for one in op.attribute("axes", range(rank))]
    scales, sizes = _scales(op), _sizes(op)
    if sizes is not None and op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("keep_aspect_ratio_policy")
    coordinates = "asymmetric" if op.opset < 11 else op.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates == "tf_crop_and_resize":
        raise Unsupported("coordinate_transformation_mode tf_crop_and_resize")
    given = list(sizes if sizes is not None else scales or [])
    moving = [at for at, axis in enumerate(axes) if not _stays(b, x, axis, given[at], sizes is not None)]
    spatial = [axes[at] for at in moving]
    if not moving:
        return x
    wanted = [given[at] for at in moving]
    if sizes is None:
        wanted = [float(one) if not isinstance(one, fx.Node) else one for one in wanted]
    mode = op.attribute("mode", "nearest")
    nearest = op.attribute("nearest_mode", "round_prefer_floor") if op.opset > 10 else "floor"
    quick = _quick(b, op, x, spatial, wanted, sizes is not None, mode, coordinates, nearest)
    if quick is not None:
        return quick
    made: Value = b.emit(
        resample,
        x,
        spatial,
        tuple(wanted),
        sizes is not None,
        mode,
        coordinates,
        nearest,
        float(op.attribute("cubic_coeff_a", -0.75)),
        bool(op.attribute("exclude_outside", 0)),
        bool(op.attribute("antialias", 0)),
    )
    return made


def _scales(op: Op) -> Sequence[Number] | None:
    """Factors for each axis, where they are given."""
    if op.attribute("scales") is not None:
        return [float(one) for one in op.attribute("scales")]
    at = 2 if op.opset > 10 else 1
    if not op.has(at):
        return None
    found = op.numbers(at, "scales")
    return found or None


def _sizes(op: Op) -> Sequence[Number] | None:
    """Sides asked for, where they are given."""
    return op.numbers(3, "sizes") or None if op.has(3) else None


def _stays(b: Builder, x: Any, axis: int, wanted: Number, by_size: bool) -> bool:
    """Whether an axis keeps its size."""
    if axis == 0 and b.rank(x) > 2:
        return True
    if isinstance(wanted, fx.Node):
        here, there = b.probe(wanted).here, b.probe(wanted).there
        return by_size and (here, there) == (b.shape(x)[axis], b.other_shape(x)[axis])
    if by_size:
        return wanted == b.shape(x)[axis] == b.other_shape(x)[axis]
    return float(wanted) == 1.0


def _quick(
    b: Builder,
    op: Op,
    x: Any,
    axes: list[int],
    wanted: Sequence[Number],
    by_size: bool,
    mode: str,
    coordinates: str,
    nearest: str,
) -> Value | None:
    """torch's own function, where it computes the same."""
    rank = b.rank(x)
    if rank != 4 or not set(axes) <= {2, 3} or not isinstance(x, fx.Node):
        return None
    usual = float(op.attribute("cubic_coeff_a", -0.75)) == -0.75 and not op.attribute("exclude_outside", 0)
    whole = _whole_factors(b, x, axes, wanted, by_size)
    blends = {"linear": "bilinear", "cubic": "bicubic"}
    if op.attribute("antialias", 0):
        return None
    if mode == "nearest" and ((coordinates == "asymmetric" and nearest == "floor") or whole):
        if mode == "nearest" and coordinates == "align_corners":
            return None
        if whole and coordinates != "asymmetric" and nearest not in ("round_prefer_floor", "round_prefer_ceil"):
            return None
        if whole and coordinates == "asymmetric" and nearest != "floor":
            return None
        name, corners = "nearest", None
    elif mode in blends and coordinates in ("half_pixel", "align_corners") and (mode == "linear" or usual):
        name, corners = blends[mode], coordinates == "align_corners"
    else:
        return None
    if by_size:
        sides = [wanted[axes.index(axis)] if axis in axes else b.sizes(x)[axis] for axis in (2, 3)]
        made: Value = b.emit(F.interpolate, x, size=tuple(sides), mode=name, align_corners=corners)
        return made
    if any(isinstance(one, fx.Node) for one in wanted):
        return None
    factors = tuple(wanted[axes.index(axis)] if axis in axes else 1.0 for axis in (2, 3))
    scaled: Value = b.emit(F.interpolate, x, scale_factor=factors, mode=name, align_corners=corners)
    return scaled


def _whole_factors(b: Builder, x: Any, axes: list[int], wanted: Sequence[Number], by_size: bool) -> bool:
    """Whether every side becomes a whole multiple, at both sizes."""
    for axis, one in zip(axes, wanted, strict=True):
        for shape, side in ((b.shape(x), "here"), (b.other_shape(x), "there")):
            number = getattr(b.probe(one), side)
            factor = number / shape[axis] if by_size else number
            if factor < 1 or factor != int(factor):
                return False
    return True

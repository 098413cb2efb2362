"""Resizing as ONNX defines it, in every mode: for each axis a matrix from old places to new ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def resample(
    x: Tensor,
    axes: Sequence[int],
    wanted: Sequence[float],
    by_size: bool,
    mode: str,
    coordinates: str,
    nearest: str,
    a: float,
    exclude: bool,
    antialias: bool,
) -> Tensor:
    """Resize along axes, by sides or by factors. a: of the cubic kernel."""
    for axis, one in zip(axes, wanted, strict=True):
        side = x.shape[axis]
        made = int(one) if by_size else math.floor(side * one)
        factor = made / side if by_size else one
        where = _coordinates(made, side, factor, coordinates)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(where, side, nearest).to(x.device))
        else:
            reach = 1.0 if mode == "linear" else 2.0
            wide = max(1.0, 1 / factor) if antialias else 1.0
            matrix = _weights(where, side, reach, wide, a, exclude)
            x = torch.tensordot(x, matrix.to(x), ([axis], [1])).movedim(-1, axis)
    return x


def _coordinates(made: int, side: int, factor: float, kind: str) -> Tensor:
    """Where the new places lie among the old ones."""
    places = torch.arange(made, dtype=torch.float64)
    if kind == "asymmetric":
        return places / factor
    if kind == "align_corners":
        return places * (side - 1) / (made - 1) if made > 1 else places * 0
    if kind == "pytorch_half_pixel" and made == 1:
        return places * 0
    found = (places + 0.5) / factor - 0.5
    if kind == "half_pixel_symmetric":
        found = found + side / 2 * (1 - made / (factor * side))
    return found


def _nearest(where: Tensor, side: int, kind: str) -> Tensor:
    if kind in ("floor", "round_prefer_ceil"):
        rounded = torch.floor(where if kind == "floor" else where + 0.5)
    else:
        rounded = torch.ceil(where if kind == "ceil" else where - 0.5)
    return rounded.clamp(0, side - 1).to(torch.int64)


def _weights(where: Tensor, side: int, reach: float, wide: float, a: float, exclude: bool) -> Tensor:
    """(new, old): how much of each old place is in each new one. exclude: places outside weigh nothing, else as the
    place at the edge."""
    span = math.ceil(reach * wide) + 1
    first = torch.floor(where)[:, None]
    places = first + torch.arange(1 - span, span + 1, dtype=torch.float64)
    distance = (where[:, None] - places).abs() / wide
    weight = _cubic(distance, a) if reach == 2 else (1 - distance).clamp(min=0)
    if exclude:
        weight = weight * ((places >= 0) & (places < side))
    weight = weight / weight.sum(1, keepdim=True)
    matrix = torch.zeros(len(where), side, dtype=torch.float64)
    return matrix.scatter_add(1, places.clamp(0, side - 1).to(torch.int64), weight)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))

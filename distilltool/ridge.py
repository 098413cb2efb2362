"""A linear head in closed form: ridge regression whose strength is chosen by leave-one-out, also in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**exponent for exponent in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear map x ↦ W x + b. weight: (E, F); bias: (E,); strength: ridge over the mean diagonal of the Gram
    matrix; cosine: mean leave-one-out cosine to the targets at that strength."""

    weight: Tensor
    bias: Tensor
    strength: float
    cosine: float


def ridge(features_NF: Tensor, targets_NE: Tensor, strengths: tuple[float, ...] = STRENGTHS) -> Head:
    """Fit targets from features; of the strengths the one with the best leave-one-out cosine is taken.

    The residual of a left-out row is its residual over 1 − h, h its leverage (Allen's PRESS); one eigendecomposition
    serves all strengths, so that nothing is fitted twice.
    """
    x, t = features_NF.double(), targets_NE.double()
    mean_x, mean_t = x.mean(dim=0), t.mean(dim=0)
    x, centred = x - mean_x, t - mean_t
    values, vectors = axes(x)
    rotated = x @ vectors  # = U S, with S² = values
    inner = rotated.T @ centred
    scale = (values.sum() / x.shape[1]).clamp(min=1e-12)
    best: Head | None = None
    for strength in strengths:
        inverse = 1 / (values + strength * scale)
        fitted = rotated @ (inverse[:, None] * inner)
        leverage = (rotated**2 @ inverse + 1 / len(x)).clamp(max=1 - 1e-6)
        left_out = t - (centred - fitted) / (1 - leverage)[:, None]
        cosine = torch.nn.functional.cosine_similarity(left_out, t, dim=1).mean().item()
        if best is None or cosine > best.cosine:
            weight = (vectors @ (inverse[:, None] * inner)).T
            best = Head(
                weight=weight.float(), bias=(mean_t - weight @ mean_x).float(), strength=strength, cosine=cosine
            )
    assert best is not None
    return best


def predict(
    known_NF: Tensor, targets_NE: Tensor, asked_MF: Tensor, strengths: tuple[float, ...]
) -> dict[float, Tensor]:
    """What ridge regression on some rows says of others, (M, E), for each strength.

    The same as fitting a `Head` and applying it, by the N × N matrix of inner products: few rows of many features are
    solved in a fraction of the time, and one eigendecomposition serves all strengths and any number of columns.
    """
    x, t, asked = known_NF.double(), targets_NE.double(), asked_MF.double()
    mean_x, mean_t = x.mean(dim=0), t.mean(dim=0)
    x, asked = x - mean_x, asked - mean_x
    values, vectors = torch.linalg.eigh(x @ x.T)
    values = values.clamp(min=0)
    scale = (values.sum() / x.shape[1]).clamp(min=1e-12)
    inner, across = (vectors.T @ (t - mean_t)).float(), asked @ x.T @ vectors
    return {one: (across / (values + one * scale)).float() @ inner + mean_t.float() for one in strengths}


def axes(rows_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of rows that are centred where they should be, the largest first: the sums of squares along
    them, (R,), and themselves, (F, R), R at most N and F; by one eigendecomposition of the smaller Gram matrix."""
    few = len(rows_NF) < rows_NF.shape[1]
    values, vectors = torch.linalg.eigh(rows_NF @ rows_NF.T if few else rows_NF.T @ rows_NF)
    kept = values > 1e-9 * values.max().clamp(min=1e-12)
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    return values, rows_NF.T @ vectors / values.sqrt() if few else vectors


def principal(features_NF: Tensor, dim: int) -> Tensor:
    """The `dim` directions that keep most of the features' inner products, (dim, F): uncentred PCA."""
    x = features_NF.double()
    _, vectors = torch.linalg.eigh(x.T @ x)
    directions: Tensor = vectors.flip(1)[:, :dim].T.float().contiguous()
    return directions

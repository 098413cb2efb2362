"""PCA whitening: in which directions vectors of a model vary, and how much, learned on images apart from the test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distilltool.embedder import unit
from distilltool.errors import DistillError

REGULARISATION = 1e-12  # of the largest variance, added to each
FLAT = 1e-10  # of the largest variance: below it a direction holds what float32 rounds
CHUNK = 4096  # vectors in float64 at once
CONVENTION = (
    "PCA of the model's own vectors of images apart: less their mean, onto the eigenvectors of their covariance "
    f"(divided by N − 1), each coordinate over the root of its variance plus {REGULARISATION:g} of the largest, "
    "then to length 1; queries and gallery alike. In the teacher's gallery both sides are whitened as the teacher's"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whitening:
    """mean: (D,) float64. basis: (D, K) float64, eigenvectors over the root of their variances, the largest first."""

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]

    def apply(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whitened vectors of length 1, (N, K) float32."""
        made = np.empty((len(vectors_ND), self.basis.shape[1]), np.float32)
        for at in range(0, len(vectors_ND), CHUNK):
            some = (vectors_ND[at : at + CHUNK].astype(np.float64) - self.mean) @ self.basis
            length = np.linalg.norm(some, axis=1, keepdims=True)  # before float32, in which it could overflow
            made[at : at + CHUNK] = some / np.maximum(length, 1e-12)
        return unit(made)


def check(count: int, whole: int, dim: int | None, model: str) -> int:
    """How many directions are kept of vectors of `whole` numbers; DistillError where `count` of them are too few."""
    kept = whole if dim is None else dim
    if kept > whole:
        raise DistillError(f"--whiten-dim {kept} is more than the {whole} numbers of {model}", f"use at most {whole}")
    if count < kept + 1:
        raise DistillError(
            f"{count:,} images are too few to whiten {kept:,} directions of {model}: {kept + 1:,} are needed",
            f"give more images, or keep fewer directions with --whiten-dim {max(1, (count - 1) // 4)}",
        )
    return kept


def learn(vectors_ND: NDArray[np.float32], dim: int | None, model: str) -> Whitening:
    """Learn the whitening of a model's vectors of length 1, (N, D).

    dim: how many directions are kept, None for all. model: its name, for messages. Raises DistillError where the
    vectors are too few, or vary in fewer directions.
    """
    count, whole = vectors_ND.shape
    kept = check(count, whole, dim, model)
    mean = np.asarray(np.mean(vectors_ND, axis=0, dtype=np.float64))
    covariance = np.zeros((whole, whole))
    for at in range(0, count, CHUNK):
        some = vectors_ND[at : at + CHUNK].astype(np.float64) - mean
        covariance += some.T @ some
    variance, directions = np.linalg.eigh(covariance / (count - 1))
    variance, directions = variance[::-1], directions[:, ::-1]
    spread = int((variance > FLAT * max(float(variance[0]), 1e-30)).sum())
    if spread < kept:
        raise DistillError(
            f"the vectors of {model} vary in {spread:,} directions of {kept:,} on these {count:,} images",
            f"keep those with --whiten-dim {spread}, or give images that differ more"
            if spread
            else "give other images",
        )
    scaled = directions[:, :kept] / np.sqrt(variance[:kept] + REGULARISATION * variance[0])
    return Whitening(mean=mean, basis=scaled)

"""Samples made by interpolation: the same images and shares on both sides, each in its own space."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distilltool.recipe import Mix


@dataclass(frozen=True, kw_only=True, slots=True)
class Bank:
    """Vectors of all training images to mix with. student: (N, D) as last seen, without gradient; teacher: (N, E)."""

    student: Tensor
    teacher: Tensor

    def remember(self, rows: NDArray[np.int64], student_BD: Tensor) -> None:
        """Keep the student's newest vectors of these images; the first where one is in the batch twice."""
        once, first = np.unique(rows, return_index=True)
        self.student[torch.from_numpy(once)] = student_BD.detach()[torch.from_numpy(first)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """What A mixed samples are made of, (A, width) each. rows: of the batch in the first column, of the batch or the
    bank in the others; shares: sum to 1."""

    rows: NDArray[np.int64]
    shares: NDArray[np.float32]


def mix(
    student_BD: Tensor,
    teacher_BE: Tensor,
    how: Mix,
    seed: tuple[int, int, int],
    bank: Bank | None = None,
    rows: NDArray[np.int64] | None = None,
) -> tuple[Tensor, Tensor]:
    """Append `how.ratio` · B interpolated samples to both sides: the same images and shares, each in its own space.

    → (B + A, D) and (B + A, E). No query and no forward pass is spent on them. Laskar & Kannala, ACCV 2020.
    bank: where the partners of an image come from instead of the batch; rows: (B,) which images of it the batch is.
    """
    extra = round(how.ratio * len(student_BD))
    if not extra:
        return student_BD, teacher_BE
    rng = np.random.default_rng(seed)
    drawn = _from_batch(rng, extra, len(student_BD), how) if bank is None else _from_bank(rng, extra, rows, how, bank)
    sources = (student_BD, teacher_BE) if bank is None else (bank.student, bank.teacher)
    student = _joined(student_BD, sources[0], drawn, how.normalise)
    return student, _joined(teacher_BE, sources[1], drawn, how.normalise)


def _from_batch(rng: np.random.Generator, extra: int, count: int, how: Mix) -> _Draw:
    """Different images of the batch for each sample."""
    width = min(how.width, count)
    rows = rng.random((extra, count)).argpartition(width - 1, axis=1)[:, :width]
    return _Draw(rows=rows, shares=_shares(rng, extra, width, how.alpha))


def _from_bank(rng: np.random.Generator, extra: int, rows: NDArray[np.int64] | None, how: Mix, bank: Bank) -> _Draw:
    """An image of the batch and others of the whole bank, never the same one."""
    assert rows is not None
    first = rng.integers(0, len(rows), (extra, 1))
    partners = rng.integers(0, len(bank.teacher) - 1, (extra, how.width - 1))
    partners += partners >= rows[first]
    return _Draw(rows=np.hstack([first, partners]), shares=_shares(rng, extra, how.width, how.alpha))


def _shares(rng: np.random.Generator, extra: int, width: int, alpha: float) -> NDArray[np.float32]:
    """Dirichlet(alpha, ..., alpha); of two, the first share is Beta(alpha, alpha)."""
    return rng.dirichlet(np.full(width, alpha), extra).astype(np.float32)


def _joined(batch_BD: Tensor, source_ND: Tensor, drawn: _Draw, normalise: bool) -> Tensor:
    """The batch with its mixed samples, (B + A, D)."""
    shares = torch.from_numpy(drawn.shares).to(batch_BD.device)
    rows = torch.from_numpy(drawn.rows).to(batch_BD.device)
    more = shares[:, :1] * batch_BD[rows[:, 0]]
    for column in range(1, rows.shape[1]):
        more = more + shares[:, column : column + 1] * source_ND[rows[:, column]]
    return torch.cat([batch_BD, F.normalize(more, dim=1) if normalise else more])

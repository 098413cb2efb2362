"""Similarities among the samples of a batch and lists of the nearest, which relational losses are made of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORK = 1 << 21  # similarities to the bank that one call makes at most: 8 MB, and about as long as those in a batch
LEAST = 16  # samples compared with the bank however large it is


class _Gram(torch.autograd.Function):
    """rows · rowsᵀ. The gradient is (G + Gᵀ) · rows: one product where autograd, not knowing of the symmetry, makes
    two."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor) -> Tensor:
        ctx.save_for_backward(rows_MD)
        return rows_MD @ rows_MD.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rows_MD,) = ctx.saved_tensors
        product: Tensor = (gradients[0] + gradients[0].T) @ rows_MD
        return product


def gram(rows_MD: Tensor) -> Tensor:
    """All inner products, (M, M): the cosines of rows of length 1."""
    products: Tensor = _Gram.apply(rows_MD)  # type: ignore[no-untyped-call]
    return products


def squared_distances(rows_MD: Tensor) -> Tensor:
    """All squared Euclidean distances, (M, M), never below zero; rows may have any length."""
    squares = rows_MD.square().sum(dim=1)
    return (squares[:, None] + squares - 2 * gram(rows_MD)).clamp(min=0)


def others(scores_MM: Tensor, fill: float = -1e9) -> Tensor:
    """The scores with those of a sample with itself replaced; -1e9 is as good as nothing in a softmax."""
    own = torch.eye(len(scores_MM), dtype=torch.bool, device=scores_MM.device)
    return scores_MM.masked_fill(own, fill)


def nearest(scores_MK: Tensor, count: int) -> Tensor:
    """Columns of the `count` highest scores of each row, (M, count), best first, equal ones by their number.

    Which of several equal scores at the end of the list belong to it is not defined.
    """
    found = scores_MK.detach().topk(count, dim=1).indices.sort(dim=1).values
    order = scores_MK.detach().gather(1, found).sort(dim=1, descending=True, stable=True).indices
    return found.gather(1, order)


def spread(count: int, most: int) -> Tensor:
    """At most `most` of the numbers below `count`, evenly spaced, so that images and mixed samples are both among
    them; all where they are few enough."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def unlikely(scores_ML: Tensor, rest_M: Tensor | None = None) -> Tensor:
    """−log probability that the best is drawn first, then the second, and so on (Plackett & Luce), (M, L) by place.

    scores: in the order that is to come out. rest: logsumexp of the scores that may be drawn but are not in the list.
    """
    ahead = scores_ML.flip(1) if rest_M is None else torch.cat([rest_M[:, None], scores_ML.flip(1)], dim=1)
    left = torch.logcumsumexp(ahead, dim=1)[:, -scores_ML.shape[1] :].flip(1)
    return left - scores_ML


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """Similarities of A samples to their L nearest of the bank by the teacher, best first, (A, L) each."""

    student: Tensor
    teacher: Tensor


def near_in_bank(student_ME: Tensor, teacher_ME: Tensor, bank_KE: Tensor, rows_M: Tensor, count: int) -> Near:
    """Compare student and teacher vectors with the bank's images that are nearest to the teacher's.

    rows: which image of the bank a sample is, and so not its own neighbour; -1 for none. Where all samples against the
    whole bank would be more than WORK similarities, evenly spaced samples stand for all.
    """
    at = spread(len(rows_M), max(LEAST, WORK // len(bank_KE))).to(rows_M.device)
    teacher_AK = teacher_ME[at] @ bank_KE.T
    known = torch.nonzero(rows_M[at] >= 0).flatten()
    teacher_AK[known, rows_M[at][known]] = -torch.inf
    index = nearest(teacher_AK, min(count, len(bank_KE) - 1))
    student_AK = student_ME[at] @ bank_KE.T
    return Near(student=student_AK.gather(1, index), teacher=teacher_AK.gather(1, index))

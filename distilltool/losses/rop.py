"""The order of the teacher's gallery, as the student's query sees it."""

import torch
from torch import Tensor

from distilltool.relations import near_in_bank


def rop(
    student_ME: Tensor,
    teacher_ME: Tensor,
    *,
    bank_KE: Tensor,
    rows_M: Tensor,
    tau: float = 0.1,
    neighbours: int = 32,
) -> Tensor:
    """Squared difference of which of two comes first, for all pairs of the teacher's nearest stored vectors, mean.

    The teacher's side is 1, 0, or 1/2 where equal; the student's is sigmoid((s_i − s_j) / tau), s being its similarity
    with the same stored vectors. Source: rank order preservation, Wu et al., ICLR 2023. Every pair weighs the same.
    """
    near = near_in_bank(student_ME, teacher_ME, bank_KE, rows_M, neighbours)
    i, j = torch.triu_indices(near.teacher.shape[1], near.teacher.shape[1], 1, device=near.teacher.device)
    first = (torch.sign(near.teacher[:, i] - near.teacher[:, j]) + 1) / 2
    return (torch.sigmoid((near.student[:, i] - near.student[:, j]) / tau) - first).square().mean()

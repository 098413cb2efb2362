"""The teacher's order alone, pair by pair."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import gram, nearest, others


def ranknet(student_MD: Tensor, teacher_ME: Tensor, *, tau: float = 0.1, near: int = 16, far: int = 16) -> Tensor:
    """log(1 + exp(−(s_a − s_b))) where the teacher puts a before b, mean over pairs; s is similarity / tau.

    Seen from each sample, pairs are made of its `near` nearest by the teacher and of `far` others at even steps through
    the batch, or of all others where they are fewer; equal ones make no pair. Of the teacher only the order is used.
    Source: Burges et al., ICML 2005.
    """
    teacher_MM = others(gram(teacher_ME))
    index = _listed(teacher_MM, near, far)
    teacher_ML, student_ML = teacher_MM.gather(1, index), gram(student_MD).gather(1, index) / tau
    before = teacher_ML[:, :, None] > teacher_ML[:, None, :]
    costs = F.softplus(student_ML[:, None, :] - student_ML[:, :, None])
    return (costs * before).sum() / before.sum().clamp(min=1)


def _listed(scores_MM: Tensor, near: int, far: int) -> Tensor:
    """Who is compared as seen from each sample, (M, L), never the sample itself."""
    count = len(scores_MM)
    if near + far >= count - 1:
        near, far = 0, count - 1
    steps = 1 + torch.arange(far, device=scores_MM.device) * (count - 1) // far
    away = (torch.arange(count, device=scores_MM.device)[:, None] + steps) % count
    return torch.cat([nearest(scores_MM, near), away], dim=1)

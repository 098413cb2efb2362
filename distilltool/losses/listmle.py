"""The teacher's order alone, as one list."""

import torch
from torch import Tensor

from distilltool.relations import gram, nearest, others, unlikely


def listmle(student_MD: Tensor, teacher_ME: Tensor, *, tau: float = 0.1, neighbours: int = 32) -> Tensor:
    """−log probability that similarity / tau draws the teacher's nearest in the teacher's order before all others.

    Mean over the list's places and the samples. Of the teacher only the order is used. Sources: Xia et al., ICML 2008;
    the first `neighbours` places in order and no order among the rest, Xia et al., NeurIPS 2009 (top-k).
    """
    order = nearest(others(gram(teacher_ME)), min(neighbours, len(teacher_ME) - 1))
    scores_MM = others(gram(student_MD) / tau)
    rest_M = torch.logsumexp(scores_MM.scatter(1, order, -1e9), dim=1)
    return unlikely(scores_MM.gather(1, order), rest_M).mean()

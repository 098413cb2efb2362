"""Relations among the samples of a batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rkd(student_MD: Tensor, teacher_ME: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Smooth L1 of mean-normalised distances, and of the cosines of all triplets' angles.

    distance, angle: weights of the two. Source: Park et al., CVPR 2019 (weights as in their retrieval experiments).
    """
    near = F.smooth_l1_loss(_distances(student_MD), _distances(teacher_ME))
    bent = F.smooth_l1_loss(_angles(student_MD), _angles(teacher_ME))
    return distance * near + angle * bent


def _distances(rows_MD: Tensor) -> Tensor:
    """All Euclidean distances over their mean, (M, M); the diagonal is 0 and takes no part in the mean."""
    squared = (2 - 2 * rows_MD @ rows_MD.T).clamp(min=0)
    off = ~torch.eye(len(rows_MD), dtype=torch.bool, device=rows_MD.device)
    lengths = torch.where(off, squared.clamp(min=1e-12), 1.0).sqrt() * off
    return lengths / lengths[off].mean()


def _angles(rows_MD: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, (M, M, M)."""
    edges_MMD = F.normalize(rows_MD[None] - rows_MD[:, None], dim=2)
    return edges_MMD @ edges_MMD.transpose(1, 2)

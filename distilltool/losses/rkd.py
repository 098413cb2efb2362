"""Relations among the samples of a batch."""

from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import others, spread, squared_distances

CORNERS = 48  # samples whose triplets' angles are compared at most: 48³ angles, as many as 1/15 of 1280² distances


def rkd(student_MD: Tensor, teacher_ME: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Smooth L1 of mean-normalised distances, and of the cosines of triplets' angles.

    distance, angle: weights of the two. Angles are those among CORNERS samples, evenly spaced in a larger batch, where
    the source takes all triplets. Source: Park et al., CVPR 2019 (weights as in their retrieval experiments).
    """
    near = F.smooth_l1_loss(_distances(student_MD), _distances(teacher_ME))
    corners = spread(len(student_MD), CORNERS).to(student_MD.device)
    bent = F.smooth_l1_loss(_angles(student_MD[corners]), _angles(teacher_ME[corners]))
    return distance * near + angle * bent


def _distances(rows_MD: Tensor) -> Tensor:
    """All Euclidean distances over their mean, (M, M); the diagonal is 0 and takes no part in the mean."""
    count = len(rows_MD)
    lengths = others(others(squared_distances(rows_MD).clamp(min=1e-12), 1.0).sqrt(), 0.0)
    return lengths / (lengths.sum() / (count * (count - 1)))


def _angles(rows_MD: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, (M, M, M)."""
    edges_MMD = F.normalize(rows_MD[None] - rows_MD[:, None], dim=2)
    return edges_MMD @ edges_MMD.transpose(1, 2)

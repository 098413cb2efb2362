"""Relations among the samples of a batch."""

from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import others, spread, squared_distances

CORNERS = 64  # samples whose triplets' angles are compared at most: 64³ angles, a sixth of 1280² distances
SAME = 1e-10  # squared distance up to which two samples have no direction from one to the other


def rkd(student_MD: Tensor, teacher_ME: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Smooth L1 of mean-normalised distances, and of the cosines of triplets' angles.

    distance, angle: weights of the two. Angles are those among CORNERS samples, evenly spaced in a larger batch, where
    the source takes all triplets. Source: Park et al., CVPR 2019 (weights as in their retrieval experiments).
    """
    near = F.smooth_l1_loss(_distances(student_MD), _distances(teacher_ME))
    corners = spread(len(student_MD), CORNERS).to(student_MD.device)
    bent = F.smooth_l1_loss(_angles(student_MD[corners]), _angles(teacher_ME[corners]))
    return distance * near + angle * bent.to(near.dtype)


def _distances(rows_MD: Tensor) -> Tensor:
    """All Euclidean distances over their mean, (M, M); the diagonal is 0 and takes no part in the mean."""
    count, squared_MM = len(rows_MD), others(squared_distances(rows_MD), 0.0)
    apart = squared_MM > SAME  # a root has no gradient at 0
    lengths_MM = squared_MM.where(apart, 1.0).sqrt() * apart
    return lengths_MM / (lengths_MM.sum() / (count * (count - 1))).clamp(min=1e-6)


def _angles(rows_MD: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, (M, M, M) float64; 0 where two of them are the same.

    From inner products, in double precision because they cancel: (j − i) · (k − i) over the two lengths.
    """
    rows_MD = rows_MD.double()
    products_MM = rows_MD @ rows_MD.T
    squares_M = products_MM.diagonal()
    squared_MM = squares_M[:, None] + squares_M - 2 * products_MM
    apart = squared_MM > SAME
    lengths_MM = squared_MM.where(apart, 1.0).sqrt()
    seen = products_MM[None] - products_MM[:, :, None] - products_MM[:, None, :] + squares_M[:, None, None]
    cosines: Tensor = seen / (lengths_MM[:, :, None] * lengths_MM[:, None, :])
    return cosines * (apart[:, :, None] & apart[:, None, :])

"""The order of the nearest, as a probability of permutations."""

from torch import Tensor

from distilltool.relations import nearest, others, squared_distances, unlikely


def darkrank(
    student_MD: Tensor, teacher_ME: Tensor, *, alpha: float = 3.0, beta: float = 3.0, neighbours: int = 4
) -> Tensor:
    """−log probability of the teacher's order of the nearest under scores −alpha · distance^beta, mean over samples.

    The hard variant: of all orders only the teacher's. Source: Chen et al., AAAI 2018; constants, and the top 4 of all
    samples as the list, as in the code of Park et al., CVPR 2019 (lenscloth/RKD).
    """
    order = nearest(others(-squared_distances(teacher_ME)), min(neighbours, len(teacher_ME) - 1))
    squared = squared_distances(student_MD).gather(1, order).clamp(min=1e-12)
    return unlikely(-alpha * squared ** (beta / 2)).sum(dim=1).mean()

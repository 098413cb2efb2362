"""The student's vector against the teacher's."""

from torch import Tensor


def regression(student_ME: Tensor, teacher_ME: Tensor) -> Tensor:
    """1 − cosine of student and teacher vector, mean over samples; both live in the teacher's space.

    Source: asymmetric regression of Budnik & Avrithis, CVPR 2021.
    """
    return 1 - (student_ME * teacher_ME).sum(dim=1).mean()

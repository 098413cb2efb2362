"""The student's vector against where it should be in the teacher's space."""

from torch import Tensor


def regression(student_ME: Tensor, aim_ME: Tensor) -> Tensor:
    """1 − cosine of the student's vector and its aim, mean over samples.

    The aim is the teacher's vector, centred and levelled (`distilltool.aim`). Source: asymmetric regression of Budnik &
    Avrithis, CVPR 2021, where it is the vector as it is.
    """
    return 1 - (student_ME * aim_ME).sum(dim=1).mean()

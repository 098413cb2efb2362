"""The neighbourhood in the teacher's gallery, as the student's query sees it."""

from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import near_in_bank


def csd(
    student_ME: Tensor,
    teacher_ME: Tensor,
    *,
    bank_KE: Tensor,
    rows_M: Tensor,
    tau_teacher: float = 0.05,
    tau_student: float = 0.05,
    neighbours: int = 96,
) -> Tensor:
    """KL(teacher ‖ student) of softmax(similarity / tau) to the teacher's nearest stored vectors, mean over samples.

    Both sides are compared with the same stored vectors of the teacher. Source: contextual similarity distillation, Wu
    et al., CVPR 2022. Equal temperatures are ours, so that the teacher itself is the minimum.
    """
    near = near_in_bank(student_ME, teacher_ME, bank_KE, rows_M, neighbours)
    log_p = F.log_softmax(near.teacher / tau_teacher, dim=1)
    log_q = F.log_softmax(near.student / tau_student, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

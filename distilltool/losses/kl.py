"""Similarity distributions within the joint batch."""

from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import gram, nearest, others


def kl(student_MD: Tensor, teacher_ME: Tensor, *, tau: float = 0.07, neighbours: int = 0) -> Tensor:
    """KL(teacher ‖ student) of softmax(similarity / tau) from each sample to all others, mean over samples.

    neighbours: only the teacher's nearest so many take part, 0 for all; this is `csd` in the student's own space.
    The instance-similarity distributions of SEED (Fang et al., ICLR 2021) and CompRess (Abbasi Koohpayegani et al.,
    NeurIPS 2020), taken within the batch instead of against a queue.
    """
    student_MM, teacher_MM = others(gram(student_MD)), others(gram(teacher_ME))
    if 0 < neighbours < len(student_MD) - 1:
        index = nearest(teacher_MM, neighbours)
        student_MM, teacher_MM = student_MM.gather(1, index), teacher_MM.gather(1, index)
    log_q, log_p = F.log_softmax(student_MM / tau, dim=1), F.log_softmax(teacher_MM / tau, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

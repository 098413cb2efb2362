"""Similarity distributions within the joint batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(student_MD: Tensor, teacher_ME: Tensor, *, tau: float = 0.07) -> Tensor:
    """KL(teacher ‖ student) of softmax(similarity / tau) from each sample to all others, mean over samples.

    The instance-similarity distributions of SEED (Fang et al., ICLR 2021) and CompRess (Abbasi Koohpayegani et al.,
    NeurIPS 2020), taken within the batch instead of against a queue.
    """
    own = torch.eye(len(student_MD), dtype=torch.bool, device=student_MD.device)
    log_q = F.log_softmax((student_MD @ student_MD.T / tau).masked_fill(own, -1e9), dim=1)
    log_p = F.log_softmax((teacher_ME @ teacher_ME.T / tau).masked_fill(own, -1e9), dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

"""Similarities as probabilities of being a neighbour."""

from torch import Tensor

from distilltool.relations import gram, others

LEAST = 1e-7  # a probability whose logarithm is taken: opposite vectors have 0


def pkt(student_MD: Tensor, teacher_ME: Tensor) -> Tensor:
    """KL(teacher ‖ student) of (1 + cosine) / 2 over its sum from each sample to all others, mean over samples.

    Source: probabilistic knowledge transfer, Passalis & Tefas, ECCV 2018, whose conditional probability leaves out the
    sample itself; the code that goes round keeps it and takes the mean over all pairs.
    """
    p, q = _probabilities(teacher_ME), _probabilities(student_MD)
    return (p * (p.clamp(min=LEAST).log() - q.clamp(min=LEAST).log())).sum(dim=1).mean()


def _probabilities(rows_MD: Tensor) -> Tensor:
    kernel = others((1 + gram(rows_MD)) / 2, 0.0)
    return kernel / kernel.sum(dim=1, keepdim=True)

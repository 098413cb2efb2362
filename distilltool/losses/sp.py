"""Matrices of similarities, row by row."""

from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import gram


def sp(student_MD: Tensor, teacher_ME: Tensor) -> Tensor:
    """Squared difference of the similarity matrices, each row at length 1, over M².

    Source: similarity-preserving distillation, Tung & Mori, ICCV 2019; a sample's similarity with itself takes part.
    """
    return (F.normalize(gram(student_MD), dim=1) - F.normalize(gram(teacher_ME), dim=1)).square().mean()

"""Distributions over neighbours within the joint batch, whose temperatures follow from the similarities themselves."""

from torch import Tensor

from distilltool.divergence import divergences
from distilltool.relations import gram


def sne(student_MD: Tensor, teacher_ME: Tensor, *, perplexity: float = 0.2) -> Tensor:
    """KL(teacher ‖ student) of softmax(similarity / temperature) from each sample to all others, mean over samples.

    The teacher's temperature gives its lists this perplexity, as a share of the others in the list; the student's is
    the one under which its own lists fit best. So teachers whose similarities lie close together teach as those whose
    lie far apart do, and a student is not taught the teacher's scale, which no ranking depends on.
    Source: stochastic neighbour embedding, Hinton & Roweis, NeurIPS 2002, with cosines; one temperature for the whole
    batch, and the student's fitted, are ours.
    """
    return divergences(gram(student_MD), gram(teacher_ME), perplexity=perplexity).mean()

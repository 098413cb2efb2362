"""How far the distributions over neighbours that two sets of similarities make are apart, at temperatures that follow
from the similarities themselves."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool.relations import others

ROUNDS = 8  # of Newton's method at most
NEAR = 1e-5  # a step of it after which the next would be of this squared
FEWEST = 2.0  # neighbours that a short list has at least
SHARPEST = 1e4  # inverse temperature at most, over the standard deviation of the similarities
BLUNTEST = 0.3  # and at least: below, a student that knows nothing yet would be told nothing


def divergences(student_MM: Tensor, teacher_MM: Tensor, *, perplexity: float = 0.2) -> Tensor:
    """From similarities of each sample to all, (M, M) each: the divergence of each, (M,); those to itself do not count.

    perplexity: see `distilltool.losses.sne`.
    """
    entropy = math.log(max(FEWEST, perplexity * (len(teacher_MM) - 1)))
    log_p = F.log_softmax(others(_with_entropy(teacher_MM, entropy) * teacher_MM), dim=1)
    log_q = F.log_softmax(others(_fitting(student_MM, log_p) * student_MM), dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


@torch.no_grad()
def _with_entropy(scores_MM: Tensor, entropy: float) -> Tensor:
    """The inverse temperature at which the distributions over the others have this entropy on average."""
    scores_MM, spread = _apart(scores_MM)
    wide = max(0.1, math.log(len(scores_MM) - 1) - entropy)
    log_beta = math.log(math.sqrt(2 * wide)) - spread.log()  # exact where scores are normally distributed
    for _ in range(ROUNDS):
        log_p, _, variance_M = _moments(scores_MM, log_beta.exp())
        now = -(log_p.exp() * log_p).sum(dim=1).mean()
        slope = -(log_beta.exp().square() * variance_M).mean()
        before, log_beta = log_beta, _stepped(log_beta, (entropy - now) / slope.clamp(max=-1e-9), spread)
        if (log_beta - before).abs() < NEAR:
            break
    return log_beta.exp()


@torch.no_grad()
def _fitting(scores_MM: Tensor, log_p_MM: Tensor) -> Tensor:
    """The inverse temperature at which the distributions over the others are nearest to given ones."""
    scores_MM, spread = _apart(scores_MM)
    wanted_M = (log_p_MM.exp() * scores_MM).sum(dim=1)
    log_beta = -spread.log()
    for _ in range(ROUNDS):
        _, mean_M, variance_M = _moments(scores_MM, log_beta.exp())
        gap = (wanted_M - mean_M).mean()
        before, log_beta = (
            log_beta,
            _stepped(log_beta, gap / (log_beta.exp() * variance_M.mean()).clamp(min=1e-9), spread),
        )
        if (log_beta - before).abs() < NEAR:
            break
    return log_beta.exp()


def _moments(scores_MM: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of softmax(beta · score) over the others: its logarithm, and mean and variance of each row's scores."""
    log_p = F.log_softmax(others(beta * scores_MM), dim=1)
    p = log_p.exp()
    mean_M = (p * scores_MM).sum(dim=1)
    return log_p, mean_M, (p * scores_MM.square()).sum(dim=1) - mean_M.square()


def _stepped(log_beta: Tensor, step: Tensor, spread: Tensor) -> Tensor:
    """A step of Newton's method, no longer than a factor of e, within what temperatures make sense."""
    least, most = math.log(BLUNTEST) - spread.log(), math.log(SHARPEST) - spread.log()
    return torch.clamp(log_beta + step.clamp(-1, 1), min=least, max=most)


def _apart(scores_MM: Tensor) -> tuple[Tensor, Tensor]:
    """The similarities less the mean of those to others, which no softmax sees but rounding does, and their standard
    deviation."""
    to_others = scores_MM[~torch.eye(len(scores_MM), dtype=torch.bool, device=scores_MM.device)]
    return scores_MM - to_others.mean(), to_others.std().clamp(min=1e-6)

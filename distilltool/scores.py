"""How well a student ranks held-out images, image by image, and when one is better than another."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from distilltool import metrics
from distilltool.divergence import divergences
from distilltool.metrics import Task
from distilltool.report import Fidelity, Gain


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How held-out images are ranked, image by image, (V,) each. overlap: of the nearest with the teacher's; spearman:
    rank correlation with its similarities; divergence: of the student's distribution over the others from the
    teacher's (`distilltool.divergence`), the less the better. Overlap is what is reported; the divergence sees every
    similarity and tells smaller differences."""

    overlap: NDArray[np.float64]
    spearman: NDArray[np.float64]
    divergence: NDArray[np.float64]

    def nearer(self, other: "Scores", errors: float) -> bool:
        """Whether it is nearer to the teacher's distributions than another by more than so many standard errors."""
        return metrics.ahead(other.divergence, self.divergence, errors)

    def nearer_as_a_rule(self, other: "Scores", effect: float) -> bool:
        """Whether the typical image is nearer: the mean gain is so many standard deviations of single images' gains."""
        gains = other.divergence - self.divergence
        return float(gains.mean()) >= effect * float(gains.std())

    def means(self) -> dict[str, float]:
        """The mean of each by its name, as the log has it."""
        return {name: round(float(values.mean()), 5) for name, values in self.lists().items()}

    def lists(self) -> dict[str, NDArray[np.float64]]:
        """Each by its name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def fidelity_scores(
    teacher_VE: NDArray[np.float32],
    student_VD: NDArray[np.float32],
    k: int,
    gallery_VD: NDArray[np.float32] | None = None,
) -> Scores:
    """How vectors of held-out images, (V, E) and (V, D), rank each against all others.

    gallery_VD: what the student's vectors are put to, themselves where it is None.
    """
    task = Task.among(np.arange(len(teacher_VE), dtype=np.int64))
    theirs_VE, ours_VD = (torch.from_numpy(np.ascontiguousarray(one, np.float32)) for one in (teacher_VE, student_VD))
    put_to_VD = ours_VD if gallery_VD is None else torch.from_numpy(np.ascontiguousarray(gallery_VD, np.float32))
    apart = divergences(ours_VD @ put_to_VD.T, theirs_VE @ theirs_VE.T)
    return Scores(
        overlap=metrics.overlap(task, teacher_VE, student_VD, k, gallery_VD),
        spearman=metrics.spearman(task, teacher_VE, student_VD, gallery_VD),
        divergence=apart.double().numpy(),
    )


def averaged(every: Sequence[Scores]) -> Scores:
    """The mean of several scores, image by image."""
    return Scores(**{name: np.mean([one.lists()[name] for one in every], axis=0) for name in every[0].lists()})


def worse(scores: Scores, others: Scores) -> bool:
    """Whether held-out images are ranked worse than by others, by both measures together.

    Overlap takes few values and looks at the nearest alone: of a hundred images it hardly tells what the correlation of
    all ranks does. The paired gains of both are added, each in its own standard deviation; an overlap that is lower by
    more than a standard error is worse by itself.
    """
    gains = [scores.overlap - others.overlap, scores.spearman - others.spearman]
    sizes = [float(gain.mean() / max(gain.std(), 1e-12)) for gain in gains]
    return metrics.ahead(others.overlap, scores.overlap, 1) or sum(sizes) < 0


def gain(after: Scores, before: Scores) -> Gain:
    """What changed from one to the other, image by image."""
    changed = {name: metrics.interval(values - before.lists()[name]) for name, values in after.lists().items()}
    return Gain(overlap_at_10=changed["overlap"], spearman=changed["spearman"], divergence=changed["divergence"])


def as_fidelity(scores: Scores) -> Fidelity:
    return Fidelity(overlap_at_10=metrics.interval(scores.overlap), spearman=metrics.interval(scores.spearman))

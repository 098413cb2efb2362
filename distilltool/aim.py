"""Where a student in the teacher's space puts an image, so that its vector finds in the teacher's gallery what the
teacher's own would."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool import ridge

Level = float | None  # how far large directions are held back; None for the teacher's vectors as they are
LEVELS: tuple[Level, ...] = (None, 0.0, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """The teacher's vectors less their mean, their large directions held back, at length 1.

    A vector that is predicted from few images is drawn to the mean and to the directions in which the teacher's vary
    most; what lies there in the gallery is then near to every query, a hub (Radovanović et al., JMLR 2010). Without the
    mean, and with each principal direction over 1 + level · its variance in mean variances, the product with the
    teacher's vectors as they are ranks them better. Where the student can say the teacher's vector itself, that is the
    aim: mean and what is held back are zero. mean: (E,); axes: (E, R) principal directions; held: (R,) what is
    taken out along each, 0 to 1.
    """

    mean: Tensor
    axes: Tensor
    held: Tensor

    def __call__(self, teacher_ME: Tensor) -> Tensor:
        """Vectors of the teacher's, at any length, as aims, (M, E)."""
        centred = teacher_ME - self.mean
        return F.normalize(centred - (centred @ self.axes * self.held) @ self.axes.T, dim=1)

    def to(self, device: torch.device | str) -> "Aim":
        """The same elsewhere."""
        return Aim(mean=self.mean.to(device), axes=self.axes.to(device), held=self.held.to(device))


def fit(targets_NE: Tensor, levels: tuple[Level, ...] = LEVELS) -> dict[Level, Aim]:
    """Aims for the answers about some images, (N, E), by level; one eigendecomposition of the smaller Gram matrix
    serves all."""
    mean = targets_NE.mean(dim=0)
    rows = (targets_NE - mean).double()
    values, axes = ridge.axes(rows)
    shares = values / (values.sum() / rows.shape[1]).clamp(min=1e-12)  # in mean variances

    def at(level: Level) -> Aim:
        held = (level or 0) * shares / (1 + (level or 0) * shares)
        return Aim(mean=torch.zeros_like(mean) if level is None else mean, axes=axes.float(), held=held.float())

    return {level: at(level) for level in levels}

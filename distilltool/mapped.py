"""A student's features in the teacher's space, in closed form: where the teacher would put an image, and beside it, in
directions that the teacher hardly uses, the features themselves."""

import numpy as np
import torch
from torch import Tensor

from distilltool import ridge
from distilltool.aim import Aim
from distilltool.ridge import Head

BESIDE = (0.0, 0.1, 0.2, 0.3)  # shares of the energy that the features themselves may have
USED = 0.98  # share of the variance of the teacher's vectors that lies in the directions it is said to use


class Map:
    """A linear map of features onto vectors of the teacher's space, for any share of the features themselves.

    What a student of little work says of the teacher's vector is coarse, and two such vectors compare worse than the
    features they were made of. In the directions beyond those that hold most of the teacher's variance its gallery
    vectors are nearly nothing: what stands there leaves the product with them alone, and counts where two vectors of
    the student meet.
    """

    def __init__(self, features_NF: Tensor, targets_NE: Tensor, where: Aim, strength: float) -> None:
        """Fit on images whose answers are known. targets_NE: the teacher's vectors at length 1; where: where the
        student should put them; strength: of the ridge."""
        self.head = ridge.ridge(features_NF, where(targets_NE), (strength,))
        centre = features_NF.double().mean(dim=0)
        used_ER, unused = _split(targets_NE)
        values, axes_FK = ridge.axes(features_NF.double() - centre)
        kept = min(unused.shape[1], len(values))
        own_EF = unused[:, :kept] @ axes_FK[:, :kept].T
        weight, bias = self.head.weight.double(), self.head.bias.double()
        self._inside = used_ER @ (used_ER.T @ weight), used_ER @ (used_ER.T @ bias)
        energy = (features_NF.double() @ self._inside[0].T + self._inside[1]).square().sum(dim=1).mean()
        gain = (energy / (values[:kept].sum() / len(features_NF)).clamp(min=1e-12)).sqrt()
        self._own = gain * own_EF, -gain * own_EF @ centre

    def at(self, share: float) -> Head:
        """The map with this share of the energy for the features themselves; 0 leaves them out."""
        if not share:
            return self.head
        weight, bias = (
            np.sqrt(1 - share) * inside + np.sqrt(share) * own
            for inside, own in zip(self._inside, self._own, strict=True)
        )
        return Head(weight=weight.float(), bias=bias.float(), strength=self.head.strength, cosine=self.head.cosine)


def _split(targets_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Directions that the teacher uses, (E, R), and those at right angles to them, (E, E − R)."""
    rows = targets_NE.double()
    values, axes_ER = ridge.axes(rows - rows.mean(dim=0))
    shares = values.cumsum(dim=0) / values.sum().clamp(min=1e-12)
    used = int((shares < USED).sum()) + 1
    used_ER = axes_ER[:, :used]
    return used_ER, torch.linalg.qr(used_ER, mode="complete").Q[:, used_ER.shape[1] :]

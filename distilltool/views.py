"""Several views of each image, at other scales and mirrored, and the one vector that is made of their vectors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from distilltool.embedder import Embedder, unit
from distilltool.errors import DistillError, Exit
from distilltool.preprocess import Preprocess

LEAST, MOST = 0.1, 4.0  # of a scale
MOST_POWER = 20.0  # beyond it float32 holds no power of what a number of a vector usually is
CHUNK = 4096  # vectors in float64 at once
GEM_POWER = 3.0  # where nobody says another one; Radenovic et al. 2018
POWER_KEY = "distilltool.gem_power"  # in the metadata of an ONNX file: the power that its own pooling has
COMBINE = ("mean", "gem")
EXAMPLES = {"--scales": "1,0.7,1.4", "--combine": "gem:2.9"}

Model = TypeVar("Model", bound=Embedder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """Which views of an image are embedded, and how their vectors become one.

    scales: of the sides that the model's own preprocessing gives. flip: each of them mirrored left to right too.
    power: of the generalised mean, 1 for the mean; None where it is the one that the teacher's file says.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    combine: str = "mean"
    power: float | None = 1.0

    @property
    def are_one(self) -> bool:
        """Whether an image is seen as always, once."""
        return self.scales == (1.0,) and not self.flip

    @property
    def count(self) -> int:
        """Views of each image."""
        return len(self.scales) * (2 if self.flip else 1)

    def of(self, how: Preprocess) -> list[Preprocess]:
        """How each view is prepared."""
        return [how.view(scale, mirrored) for scale in self.scales for mirrored in ((False, True)[: 1 + self.flip])]

    def models(self, model: Model) -> list[Model]:
        """The model as it is asked for each view, in the order of `of`; itself where an image is seen as always."""
        return [model] if self.are_one else [cast(Model, model.viewed(how)) for how in self.of(model.preprocess)]

    def describe(self) -> str:
        """A few words for people."""
        if self.are_one:
            return "one view of each image"
        scales = ", ".join(f"{one:g}" for one in self.scales)
        pooled = "mean" if self.combine == "mean" else f"generalised mean with power {self.power or GEM_POWER:g}"
        mirrored = ", each also mirrored" if self.flip else ""
        return f"scales {scales}{mirrored}: {self.count} views of each image, combined by {pooled}"

    def convention(self) -> str:
        """How the vector of an image comes about."""
        if self.are_one:
            return "one view of each image, as each model's own preprocessing makes it"
        how = "their mean"
        if self.combine == "gem":
            how = (
                f"(mean of sign(v)·|v|^p)^(1/p) with p = {self.power or GEM_POWER:g}, the sign kept "
                "(cnnimageretrieval-pytorch, extract_ms, for vectors of one sign)"
            )
        return (
            f"{self.describe()}; sides are the model's own times the scale, rounded down; each view's vector at length "
            f"1, then {how}, brought to length 1"
        )

    def combined(self, parts_VND: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """One vector of length 1 an image, (N, D), from those of its views, each (N, D) of any length."""
        total: NDArray[np.float32] | None = None
        power = self.power or GEM_POWER
        for part in parts_VND:
            ones = unit(part)
            if self.are_one:
                return ones
            total = np.zeros_like(ones) if total is None else total
            for at in range(0, len(ones), CHUNK):
                total[at : at + CHUNK] += signed_power(ones[at : at + CHUNK].astype(np.float64), power)
        assert total is not None  # there is a view at least
        for at in range(0, len(total), CHUNK):
            total[at : at + CHUNK] = signed_power(total[at : at + CHUNK].astype(np.float64) / self.count, 1 / power)
        return unit(total)


ONE = Views()


def signed_power(values: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """sign(v)·|v|^power of each number."""
    if power == 1:
        return values
    raised: NDArray[np.float64] = np.copysign(np.abs(values) ** power, values)
    return raised


def parse(scales: str | Sequence[float] | None, flip: bool, combine: str) -> Views:
    """Views as `--scales 1,0.7,1.4`, `--flip` and `--combine mean|gem|gem:2.9` say them."""
    found = _scales(scales)
    name, colon, text = combine.partition(":")
    power: float | None = 1.0
    if name not in COMBINE or (colon and name != "gem"):
        raise DistillError(
            f"--combine {combine} is unknown", "use mean, gem, or gem with its power: gem:2.9", Exit.USAGE
        )
    if name == "gem":
        power = _number("--combine", text, MOST_POWER) if colon else None
        if power is not None and power < 1:
            raise DistillError(
                f"--combine {combine} has a power below 1", f"use gem:1 to gem:{MOST_POWER:g}", Exit.USAGE
            )
    views = Views(scales=found, flip=flip, combine=name, power=power)
    if views.are_one and name != "mean":
        raise DistillError(f"--combine {combine} means nothing for one view", "give --scales or --flip", Exit.USAGE)
    return views


def _scales(said: str | Sequence[float] | None) -> tuple[float, ...]:
    if said is None:
        return (1.0,)
    texts = said.split(",") if isinstance(said, str) else [str(one) for one in said]
    found = tuple(_number("--scales", text, MOST) for text in texts)
    if not found or min(found) < LEAST or len(set(found)) < len(found):
        raise DistillError(
            f"--scales {','.join(texts)} cannot be used",
            f"give different numbers of {LEAST:g} to {MOST:g}, as in 1,0.7,1.4",
            Exit.USAGE,
        )
    return found


def _number(flag: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise DistillError(
            f"{flag}: {text!r} is no number of 0 to {most:g}", f"as in {flag} {EXAMPLES[flag]}", Exit.USAGE
        )
    return value


def said_power(metadata: Mapping[str, str]) -> float:
    """The power of the pooling inside a model, by its file's metadata; that of Radenovic et al. where it says none."""
    try:
        power = float(metadata.get(POWER_KEY, GEM_POWER))
    except ValueError:
        return GEM_POWER
    return power if 1 <= power <= MOST_POWER else GEM_POWER

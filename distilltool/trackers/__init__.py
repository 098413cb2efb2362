"""Where else a training is shown: one file a tracker, its name is what `--log` takes.

Each file holds `NEEDS`, the package to install, and one function `name(given) -> Tracker`, which opens the tracker
where it was left. Nothing of a tracker may reach for a network unless the user's own environment says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from distilltool import extensions
from distilltool.errors import DistillError

Setting = str | int | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a tracker is opened with. folder: its own, inside the run; name: of the run; settings: what the run is made
    from, flat; step: the last one it was told of by an earlier process, None where it is new."""

    folder: Path
    name: str
    settings: Mapping[str, Setting]
    step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Figures of one step by name, and when it was done, in seconds since 1970."""

    step: int
    time: float
    figures: Mapping[str, float]


class Tracker(Protocol):
    """A place that shows curves. Whatever it raises costs the curves, never the training.

    told: the last step it still knows of, None where it knows nothing and is to be told everything from the start.
    """

    told: int | None

    def log(self, points: Sequence[Point]) -> None:
        """Take some points, in order of step, and keep them safe."""
        ...

    def finish(self, figures: Mapping[str, float]) -> None:
        """Take the figures that the run ended with, and close."""
        ...

    def stop(self) -> None:
        """Close in the middle of a run that may go on later."""
        ...


def check(names: Sequence[str]) -> None:
    """Fail on an unknown tracker, or one whose package is missing, before anything is asked or trained."""
    for name in names:
        extensions.find(__name__, "tracker", name)
        needs = import_module(f"{__name__}.{name}").NEEDS
        if find_spec(needs) is None:
            raise DistillError(f"--log {name} needs {needs}", f"pip install 'distilltool[{name}]'")

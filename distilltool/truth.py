"""Who answers whom, as lists, and which figures a protocol reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Ground truth as lists of rows, one for each query in the order of the queries.

    positives: rows of the gallery that answer it. ignored: rows that are neither right nor wrong (junk): the ranking
    is taken as if they were not there.
    """

    positives: tuple[NDArray[np.int64], ...]
    ignored: tuple[NDArray[np.int64], ...]

    def among(self, rows: Sequence[int], queries: Sequence[int]) -> "Truth":
        """The same of those rows alone, named by their places. queries: the row of each query that there was."""
        place = {row: at for at, row in enumerate(rows)}
        kept = [at for at, row in enumerate(queries) if row in place]

        def moved(lists: tuple[NDArray[np.int64], ...]) -> tuple[NDArray[np.int64], ...]:
            return tuple(listed(place[row] for row in lists[at].tolist() if row in place) for at in kept)

        return Truth(positives=moved(self.positives), ignored=moved(self.ignored))


def listed(rows: Iterable[int]) -> NDArray[np.int64]:
    """Distinct rows in order, (P,) int64."""
    return np.array(sorted(set(rows)), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number that a protocol reports. measure: which of `distilltool.measures`; cut: its k, where it has one; level:
    which ground truth of several it is about, "" where there is one."""

    measure: str
    cut: int | None = None
    level: str = ""

    @property
    def name(self) -> str:
        """What reports and gates call it: recall@10, map, map-medium, mp@5-hard."""
        base = {"trapezoid": "map"}.get(self.measure, self.measure)
        return base + ("" if self.cut is None else f"@{self.cut}") + (f"-{self.level}" if self.level else "")


def recalls(*cuts: int) -> tuple[Figure, ...]:
    """Recall at each cut."""
    return tuple(Figure(measure="recall", cut=cut) for cut in cuts)


LABELLED = (Figure(measure="map"), Figure(measure="map@r"), *recalls(1, 5, 10))  # what class labels are judged by

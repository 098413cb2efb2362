"""Figures of rankings, per query: pure functions of where the positives stand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Where some queries' positives stand.

    rank: (Q, P) ranks from 1 of those that were found, rising, then 0; neither the query itself nor an ignored image
    takes part in the ranking. positives: (Q,) how many there are, found or not.
    """

    rank: NDArray[np.int64]
    positives: NDArray[np.int64]

    def within(self, last: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """Which of the ranks are no lower than the last that counts, (Q, P); last: one for all or (Q,)."""
        return (self.rank > 0) & (self.rank <= np.reshape(last, (-1, 1)))


Values = NDArray[np.float64]


def average_precision(ranked: Ranked, cut: int | None) -> Values:
    """Rectangle AP: precision at the rank of each positive, over all positives; of those within `cut` alone, over as
    many of them as fit (Google Landmarks v2)."""
    if cut is None:
        return _share(_precision(ranked).sum(axis=1), ranked.positives)
    return _share((_precision(ranked) * ranked.within(cut)).sum(axis=1), np.minimum(ranked.positives, cut))


def map_at_r(ranked: Ranked, cut: int | None) -> Values:
    """Rectangle AP cut at R, over R, the number of positives (Musgrave et al. 2020, equation 2)."""
    return _share((_precision(ranked) * ranked.within(ranked.positives)).sum(axis=1), ranked.positives)


def r_precision(ranked: Ranked, cut: int | None) -> Values:
    """Share of positives among the first R, the number of positives."""
    return _share(ranked.within(ranked.positives).sum(axis=1), ranked.positives)


def trapezoid(ranked: Ranked, cut: int | None) -> Values:
    """AP by the trapezoid rule: at each positive the mean of the precision before it and at it, over all positives
    (Oxford5k's compute_ap, Radenovic et al. 2018)."""
    before = np.where(ranked.rank > 1, np.arange(ranked.rank.shape[1]) / np.maximum(ranked.rank - 1, 1), 1.0)
    area = np.where(ranked.rank > 0, before + _precision(ranked), 0.0) / 2
    return _share(area.sum(axis=1), ranked.positives)


def mean_precision(ranked: Ranked, cut: int | None) -> Values:
    """Share of positives among the first k, or as far as the last positive where that comes before (mP@k of
    Radenovic et al. 2018)."""
    last = np.minimum(ranked.rank.max(axis=1, initial=0), cut or 1)
    hits = ranked.within(last).sum(axis=1)
    return np.where(ranked.positives > 0, hits / np.maximum(last, 1), np.nan)


def recall(ranked: Ranked, cut: int | None) -> Values:
    """Whether at least one positive stands among the first k."""
    return np.where(ranked.positives > 0, ranked.within(cut or 1).any(axis=1), np.nan)


def ndcg(ranked: Ranked, cut: int | None) -> Values:
    """Sum of 1/log2(rank + 1) over the positives within the cut, over what the best ranking has (Järvelin 2002)."""
    counted = ranked.rank > 0 if cut is None else ranked.within(cut)
    gain = np.where(counted, 1 / np.log2(np.maximum(ranked.rank, 1) + 1), 0.0).sum(axis=1)
    most = ranked.positives if cut is None else np.minimum(ranked.positives, cut)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, most.max(initial=0) + 2)))])
    return _share(gain, ideal[most])


def ns_score(ranked: Ranked, cut: int | None) -> Values:
    """How many of the four of an object stand among the first four, the query itself counted first (Nister 2006)."""
    return np.where(ranked.positives > 0, 1.0 + ranked.within(3).sum(axis=1), np.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A measure and what it is, in words. reach: how many ranks decide it, by its cut and the most positives of a
    query; None for all of them."""

    of: Callable[[Ranked, int | None], Values]
    convention: str
    reach: Callable[[int | None, int], int | None]


def _all(cut: int | None, positives: int) -> int | None:
    return None


def _cut(cut: int | None, positives: int) -> int | None:
    return cut


def _positives(cut: int | None, positives: int) -> int | None:
    return positives


MEASURES = {
    "map": Measure(
        of=average_precision,
        convention="mean over queries of rectangle AP: precision at the rank of each positive, over all positives",
        reach=_cut,
    ),
    "map@r": Measure(
        of=map_at_r,
        convention="MAP@R of Musgrave et al. 2020: rectangle AP cut at R, over R, the number of positives",
        reach=_positives,
    ),
    "r-precision": Measure(
        of=r_precision,
        convention="share of positives among the first R, the number of positives",
        reach=_positives,
    ),
    "trapezoid": Measure(
        of=trapezoid,
        convention="mean over queries of trapezoid AP: at each positive the mean of the precision before it and at it, "
        "over all positives; never more than rectangle AP",
        reach=_all,
    ),
    "mp": Measure(
        of=mean_precision,
        convention="share of positives among the first k, or as far as the last positive where that comes before",
        reach=_all,
    ),
    "recall": Measure(
        of=recall,
        convention="share of queries with at least one positive among the first k",
        reach=_cut,
    ),
    "ndcg": Measure(
        of=ndcg,
        convention="nDCG of binary gains: 1/log2(rank + 1) summed over positives, over the best ranking's sum",
        reach=_cut,
    ),
    "ns": Measure(
        of=ns_score,
        convention="N-S score: of the four images of an object how many stand among the first four, the query itself "
        "counted first; 4 at most",
        reach=lambda cut, positives: 3,
    ),
}
CUT_MAP = "rectangle AP of the first k ranks, over the number of positives or k, whichever is less"


def _precision(ranked: Ranked) -> Values:
    """Precision at the rank of each positive, (Q, P); 0 where there is none."""
    found = np.arange(1, ranked.rank.shape[1] + 1) / np.maximum(ranked.rank, 1)
    return np.where(ranked.rank > 0, found, 0.0)


def _share(part: NDArray[np.float64] | NDArray[np.int64], whole: NDArray[np.float64] | NDArray[np.int64]) -> Values:
    """One over the other, NaN where there is nothing to share."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)

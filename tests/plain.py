"""Figures of a ranking, written a second time as their definitions read: slowly, one query at a time, no numpy."""

import math
from collections.abc import Collection, Sequence


def ranking(scores: Sequence[float], own: int = -1, ignored: Collection[int] = ()) -> list[int]:
    """Gallery images by falling score, equal ones by rising id, without the query and without ignored ones."""
    left_out = {own, *ignored}
    return [at for at in sorted(range(len(scores)), key=lambda at: (-scores[at], at)) if at not in left_out]


def revisitop(
    scores: Sequence[float], ok: Collection[int], junk: Collection[int], kappas: Sequence[int], own: int = -1
) -> tuple[float, list[float]]:
    """AP and P@k of one query as revisitop's evaluate.py has them: ranks, then junk taken off each positive's rank."""
    ranks = ranking(scores, own)
    ok, junk = {one for one in ok if one != own}, set(junk)
    if not ok:
        return math.nan, [math.nan] * len(kappas)
    pos = [place for place, image in enumerate(ranks) if image in ok]
    bad = [place for place, image in enumerate(ranks) if image in junk]
    pos = [place - sum(one < place for one in bad) for place in pos]
    step, ap = 1.0 / len(ok), 0.0
    for found, place in enumerate(pos):
        before = 1.0 if place == 0 else found / place
        after = (found + 1) / (place + 1)
        ap += (before + after) * step / 2.0
    precisions = []
    for kappa in kappas:
        kq = min(max(pos) + 1, kappa)
        precisions.append(sum(place + 1 <= kq for place in pos) / kq)
    return ap, precisions


def average_precision(ranks: Sequence[int], ok: Collection[int], cut: int | None = None) -> float:
    """Precision at the rank of each positive, over all of them or as many as fit."""
    if not ok:
        return math.nan
    found, total = 0, 0.0
    for place, image in enumerate(ranks[:cut], 1):
        if image in ok:
            found += 1
            total += found / place
    return total / (len(ok) if cut is None else min(len(ok), cut))


def ns_score(ranks: Sequence[int], ok: Collection[int]) -> float:
    """The query, and how many of its three others are among the next three."""
    return 1 + sum(image in ok for image in ranks[:3]) if ok else math.nan


def recall(ranks: Sequence[int], ok: Collection[int], k: int) -> float:
    """Whether one of the first k is right."""
    return float(any(image in ok for image in ranks[:k])) if ok else math.nan

"""Two models' times against each other: the ratio with its interval, the machine's own noise, and a verdict.

What is decided, in this order. Ratios are model over baseline, above 1 is slower. A block's time is the mean of its
runs. Where more programs than processors run, each run is interrupted or not, and a block's median leaps where that is
as likely as not: a model of 1.16 times the work was seen at 1.3 to 1.7 by medians, one of 2.6 times at 5.4 by lower
quartiles. Interruptions take their share of every block, so means keep the ratio, and a spoilt block is one of many.
The ratio of the medians of all runs is told beside it and decides nothing.

1. A against A: the baseline against itself in a second process, measured in the same turns as the model, so that it
   meets the same machine. How far its ratio lies from 1 is the bias: what one process has of luck with its memory, and
   noise that lasts longer than a turn, neither of which a bootstrap can see.
2. A against B: the median over turns of the log ratio, with a 95 % interval from a bootstrap of runs of neighbouring
   turns (Kuensch 1989), as disturbances outlast one turn. The interval is widened by the bias on either side.
3. `slower` or `faster`: the widened interval lies wholly beyond the tolerance, and the Mann-Whitney test of the blocks'
   times gives p < 0.002. `same`: it lies wholly within the tolerance. Else `inconclusive`, which is no verdict.

Many short turns are worth more than few long ones: other work that comes and goes spoils the turns it begins or ends
in, and the median does not mind as long as those are few.

Against an earlier measurement turns cancel nothing: medians of the blocks' times are compared, and stretches of an
eighth of a measurement are drawn. Where other work comes and goes for a sixth of it, stretches of six turns gave false
verdicts of a model against itself in 15 of 150 simulations, these in 6; they find 15 % in 71 instead of 91.

So where the baseline differs from itself by as much as the tolerance, or a gate, no verdict is given about a difference
of that size, while a model that takes twice the time is found on a noisy machine too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distilltool.latency import Timed
from distilltool.report import Interval, Speedup

P = 0.002  # of the Mann-Whitney test, at most, for a difference
DRAWS, MEDIAN_DRAWS = 2000, 500
LEVEL = (0.025, 0.975)

Verdict = Literal["faster", "slower", "same", "inconclusive"]
EXACT = Interval(value=1.0, low=1.0, high=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """ratio: model over baseline. noise: baseline over itself. widened: the ratio's interval with the bias. p: of the
    Mann-Whitney test."""

    ratio: Interval
    noise: Interval
    widened: Interval
    p: float


def compare(model: Timed, baseline: Timed, again: Timed) -> Compared:
    """Compare blocks that were measured in turns. again: the baseline in a process of its own."""
    ours, first, second = (_times(one) for one in (model, baseline, again))
    # the mean of the two on either side takes off a drift within the turn
    ratio = _interval(np.log(ours) - (np.log(first) + np.log(second)) / 2)
    noise = _interval(np.log(second) - np.log(first))
    p = mann_whitney(ours, np.concatenate([first, second]))
    return Compared(ratio=ratio, noise=noise, widened=widen(ratio, noise), p=p)


def speedup(model: Timed, baseline: Timed, noise: Interval = EXACT) -> Speedup:
    """Baseline over model of blocks that were measured in turns: above 1 is faster. noise: of the baseline over itself,
    by which the interval is widened where it is known."""
    found = widen(_interval(np.log(_times(baseline)) - np.log(_times(model))), noise)
    return Speedup(value=found.value, low=found.low, high=found.high)


def noise_of(one: Timed, again: Timed) -> Interval:
    """A model over itself, opened a second time, block by block."""
    return _interval(np.log(_times(again)) - np.log(_times(one)))


def compare_apart(model: Timed, baseline: Timed, noises: Sequence[Interval]) -> Compared:
    """Compare blocks of two measurements not taken in turns. noises: of each of them, as `noise_of` gives it."""
    ours, theirs = _times(model), _times(baseline)
    value = math.log(float(np.median(ours)) / float(np.median(theirs)))
    rng = np.random.default_rng(0)
    drawn = [
        np.log(np.median(one[_neighbours(rng, len(one), stretch=_long(len(one)))], axis=1)) for one in (ours, theirs)
    ]
    low, high = np.quantile(drawn[0] - drawn[1], LEVEL)
    ratio = Interval(value=math.exp(value), low=math.exp(low), high=math.exp(high))
    noise = max(noises, key=_bias, default=EXACT)
    return Compared(ratio=ratio, noise=noise, widened=widen(ratio, noise), p=mann_whitney(ours, theirs))


def medians(model: Timed, baseline: Timed, *, in_turns: bool) -> Interval:
    """The ratio of the medians of all runs, with an interval from a bootstrap of neighbouring blocks. in_turns: both
    were measured so, and are drawn from the same turns; their numbers of blocks are then equal."""
    rng = np.random.default_rng(0)
    stretches = [None if in_turns else _long(len(one.blocks)) for one in (model, baseline)]
    ours = _neighbours(rng, len(model.blocks), MEDIAN_DRAWS, stretches[0])
    theirs = ours if in_turns else _neighbours(rng, len(baseline.blocks), MEDIAN_DRAWS, stretches[1])
    low, high = np.quantile(_drawn(model, 50, ours) / _drawn(baseline, 50, theirs), LEVEL)
    value = float(np.median(model.samples)) / float(np.median(baseline.samples))
    return Interval(value=value, low=float(low), high=float(high))


def widen(ratio: Interval, noise: Interval) -> Interval:
    """An interval with the bias of the machine on either side."""
    factor = math.exp(_bias(noise))
    return Interval(value=ratio.value, low=ratio.low / factor, high=ratio.high * factor)


def judge(found: Compared, tolerance: float) -> Verdict:
    """tolerance: the share by which times may differ and still be the same, 0.05 for 5 %."""
    most = 1 + tolerance
    if found.widened.low > most and found.p < P:
        return "slower"
    if found.widened.high < 1 / most and found.p < P:
        return "faster"
    return "same" if found.widened.low > 1 / most and found.widened.high < most else "inconclusive"


def percentile_interval(timed: Timed, percentile: int) -> Interval:
    """A percentile of all runs in milliseconds, with an interval from a bootstrap of neighbouring blocks."""
    drawn = _drawn(timed, percentile, _neighbours(np.random.default_rng(0), len(timed.blocks), 1000))
    low, high = np.quantile(drawn, LEVEL) * 1000
    value = float(np.percentile(timed.samples, percentile)) * 1000
    return Interval(value=value, low=float(low), high=float(high))


def mann_whitney(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Two-sided p of the Mann-Whitney test: the normal approximation with corrections for ties and continuity
    (Mann & Whitney 1947; Lehmann, Nonparametrics, 1.5)."""
    n, m = len(ours), len(theirs)
    values, place, counts = np.unique(np.concatenate([ours, theirs]), return_inverse=True, return_counts=True)
    if len(values) == 1:
        return 1.0
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    over = float(ranks[:n].sum()) - n * (n + 1) / 2 - n * m / 2
    whole = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (whole * (whole - 1))
    spread = math.sqrt(n * m / 12 * (whole + 1 - ties))
    return min(1.0, math.erfc(max(0.0, abs(over) - 0.5) / spread / math.sqrt(2)))


def _drawn(timed: Timed, percentile: int, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """A percentile of all runs of the blocks in each draw, (draws,), in seconds. places: (draws, blocks)."""
    return np.array(
        [float(np.percentile(np.concatenate([timed.blocks[at] for at in row]), percentile)) for row in places]
    )


def _times(timed: Timed) -> NDArray[np.float64]:
    """What a run took in each block, on average."""
    return np.array([float(block.mean()) for block in timed.blocks])


def _bias(noise: Interval) -> float:
    """How far a model was from itself, as a logarithm."""
    return abs(math.log(noise.value))


def _interval(logs: NDArray[np.float64]) -> Interval:
    """The median of logarithms, as a ratio with its interval."""
    medians = np.median(logs[_neighbours(np.random.default_rng(0), len(logs))], axis=1)
    low, high = np.quantile(medians, LEVEL)
    return Interval(value=math.exp(float(np.median(logs))), low=math.exp(low), high=math.exp(high))


def _long(count: int) -> int:
    """Neighbours in a draw where nothing met the same machine: other work that stays for a while is not one of many."""
    return max(count // 8, _few(count))


def _few(count: int) -> int:
    """Neighbours in a draw where each turn met the same machine."""
    return max(1, int(round(math.cbrt(count))))


def _neighbours(
    rng: np.random.Generator, count: int, draws: int = DRAWS, stretch: int | None = None
) -> NDArray[np.int64]:
    """Draws of `count` places in stretches of neighbours, (draws, count); the end is followed by the beginning."""
    stretch = stretch or _few(count)
    starts = rng.integers(0, count, (draws, -(-count // stretch), 1))
    places: NDArray[np.int64] = (starts + np.arange(stretch)).reshape(draws, -1)[:, :count] % count
    return places

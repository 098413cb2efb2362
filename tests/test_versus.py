"""Verdicts: right about what is known, silent where the machine is too noisy to tell."""

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from distilltool.latency import Timed
from distilltool.report import Interval
from distilltool.versus import (
    Compared,
    compare,
    compare_apart,
    judge,
    mann_whitney,
    medians,
    noise_of,
    percentile_interval,
)

TURNS = 60


def lanes(rng: np.random.Generator, slow: float, weather: NDArray[np.float64]) -> tuple[Timed, Timed, Timed]:
    """Model, baseline, and the baseline again, which take turns forwards and backwards under the same weather.

    weather: the factor on every block, in the order they are run, (turns · 3).
    """
    blocks: list[list[NDArray[np.float64]]] = [[], [], []]
    for turn in range(len(weather) // 3):
        order = (1, 0, 2) if turn % 2 == 0 else (2, 0, 1)
        for place, lane in enumerate(order):
            base = 0.01 * (slow if lane == 0 else 1.0) * weather[3 * turn + place]
            blocks[lane].append(base * np.exp(rng.normal(0, 0.02, 4)))
    model, baseline, again = (Timed(blocks=tuple(one)) for one in blocks)
    return model, baseline, again


def calm(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.ones(3 * TURNS)


def drifting(rng: np.random.Generator) -> NDArray[np.float64]:
    """A machine that gets a half slower."""
    return np.linspace(1, 1.5, 3 * TURNS)


def bimodal(rng: np.random.Generator) -> NDArray[np.float64]:
    """Another program that comes and goes and takes 60 %: on for some blocks, off for some."""
    states = np.repeat(np.arange(200) % 2, rng.geometric(1 / 12, 200))[: 3 * TURNS]
    return 1 + 0.6 * states


def wandering(rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise that remembers: an autoregressive walk."""
    walk = [0.0]
    for _ in range(3 * TURNS - 1):
        walk.append(0.95 * walk[-1] + rng.normal(0, 0.03))
    return np.exp(np.array(walk))


WEATHER = (calm, drifting, bimodal, wandering)


@pytest.mark.parametrize("weather", WEATHER)
def test_the_same_model_is_never_another(weather: object) -> None:
    """One false verdict in forty at most, whatever the machine does."""
    found = Counter(verdicts(weather, 1.0, 40))
    assert found["faster"] + found["slower"] <= 1, found


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize(("slow", "verdict"), [(1.15, "slower"), (1 / 1.15, "faster")])
def test_fifteen_percent_are_found(weather: object, slow: float, verdict: str) -> None:
    """Nine times in ten, in either direction."""
    found = Counter(verdicts(weather, slow, 40))
    assert found[verdict] >= 36, found
    assert found["faster" if verdict == "slower" else "slower"] == 0


def verdicts(weather: object, slow: float, count: int) -> list[str]:
    """Judgements of so many measurements."""
    assert callable(weather)
    rngs = [np.random.default_rng((3, seed)) for seed in range(count)]
    return [judge(compare(*lanes(rng, slow, weather(rng))), 0.05) for rng in rngs]


@pytest.mark.parametrize("slow", [1.15, 3.0])
def test_interruptions_do_not_stretch_the_ratio(slow: float) -> None:
    """Another program takes every other 3 ms: a longer run is interrupted more often, its median takes a leap."""
    rng = np.random.default_rng(5)

    def block(seconds: float) -> NDArray[np.float64]:
        return seconds * np.exp(rng.normal(0, 0.01, 8)) + 0.003 * np.floor(rng.random(8) + seconds / 0.003)

    times = (0.0014 * slow, 0.0014, 0.0014)
    model, baseline, again = (Timed(blocks=tuple(block(each) for _ in range(200))) for each in times)
    assert np.median(model.samples) / np.median(baseline.samples) > 1.3 * slow
    found = compare(model, baseline, again)
    assert found.ratio.value == pytest.approx(slow, rel=0.06) and judge(found, 0.05) == "slower"
    # so a gate in x is not about the medians: they would fail one that the model keeps
    assert medians(model, baseline, in_turns=True).low > 1.2 * slow > found.widened.high


def test_equal_on_a_calm_machine_is_the_same() -> None:
    assert Counter(verdicts(calm, 1.0, 20)) == {"same": 20}


def test_chaos_gives_no_verdict() -> None:
    """Each block of another speed: nothing can be said of 15 %."""

    def chaos(rng: np.random.Generator) -> NDArray[np.float64]:
        return np.exp(rng.normal(0, 0.8, 3 * 16))

    found = Counter(verdicts(chaos, 1.15, 40)) + Counter(verdicts(chaos, 1.0, 40))
    assert found["inconclusive"] >= 76, found


def test_a_process_that_is_slow_by_chance_is_not_blamed_on_the_model() -> None:
    """The baseline's second process is 8 % slower, the model as slow: no verdict, though the interval is narrow."""
    rng = np.random.default_rng(0)
    model, baseline, again = lanes(rng, 1.10, np.ones(3 * TURNS))
    odd = Timed(blocks=tuple(block * 1.08 for block in again.blocks))
    assert judge(compare(model, baseline, again), 0.05) == "slower"
    assert judge(compare(model, baseline, odd), 0.05) == "inconclusive"


def test_ratio_by_hand() -> None:
    """Model over the geometric mean of the two processes of the baseline; a drift within each turn cancels."""
    steps = np.arange(3 * 16) * 0.001
    blocks: list[list[NDArray[np.float64]]] = [[], [], []]
    for turn in range(16):
        for place, lane in enumerate((1, 0, 2) if turn % 2 == 0 else (2, 0, 1)):
            blocks[lane].append(np.full(3, (2.0 if lane == 0 else 1.0) * np.exp(steps[3 * turn + place])))
    model, baseline, again = (Timed(blocks=tuple(one)) for one in blocks)
    found = compare(model, baseline, again)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((2, 2, 2))
    assert found.noise.value == pytest.approx(1) and found.noise.low < 1 < found.noise.high
    assert noise_of(baseline, again) == found.noise


def test_the_verdicts_by_hand() -> None:
    """Interval, bias and p decide together."""

    def found(low: float, high: float, p: float = 1e-6) -> Compared:
        interval = Interval(value=(low * high) ** 0.5, low=low, high=high)
        return Compared(ratio=interval, noise=Interval(value=1, low=1, high=1), widened=interval, p=p)

    assert judge(found(1.06, 1.2), 0.05) == "slower"
    assert judge(found(0.7, 0.9), 0.05) == "faster"
    assert judge(found(0.97, 1.03), 0.05) == "same"
    assert judge(found(1.01, 1.04), 0.05) == "same"
    assert judge(found(1.03, 1.09), 0.05) == "inconclusive"
    assert judge(found(1.06, 1.2, p=0.01), 0.05) == "inconclusive"
    assert judge(found(1.06, 1.2), 0.25) == "same"


def test_apart() -> None:
    """Two measurements not taken in turns: medians of blocks, and the larger of both biases."""
    rng = np.random.default_rng(2)
    model, baseline, _ = lanes(rng, 1.3, np.ones(3 * TURNS))
    exact, biased = Interval(value=1, low=1, high=1), Interval(value=0.8, low=0.7, high=0.9)
    found = compare_apart(model, baseline, [exact])
    assert found.ratio.value == pytest.approx(1.3, rel=0.01) and judge(found, 0.05) == "slower"
    assert 0.005 < found.ratio.high - found.ratio.low < 0.03
    assert judge(compare_apart(model, baseline, [exact, biased]), 0.05) == "inconclusive"


def test_apart_beside_what_comes_and_goes() -> None:
    """Two other programs, there for 60 blocks and gone for 90 on average: the measurements meet other hours."""

    def other(rng: np.random.Generator) -> NDArray[np.float64]:
        lengths = rng.exponential(np.tile([60, 90], 40)).astype(np.int64) + 1
        start = int(rng.integers(0, 300))
        return np.repeat(np.arange(80) % 2 == 0, lengths)[start : start + 400]

    def alone(rng: np.random.Generator) -> tuple[Timed, Timed]:
        slowed = np.array([1.0, 1.1, 2.0])[other(rng).astype(int) + other(rng)]
        blocks = 0.01 * slowed[:, None] * np.exp(rng.normal(0, 0.02, (400, 4)))
        return Timed(blocks=tuple(blocks[::2])), Timed(blocks=tuple(blocks[1::2]))

    found = Counter[str]()
    for seed in range(100):
        rng = np.random.default_rng((11, seed))
        (model, again), (baseline, before) = alone(rng), alone(rng)
        noises = [noise_of(model, again), noise_of(baseline, before)]
        found[judge(compare_apart(model, baseline, noises), 0.05)] += 1
    assert found["faster"] + found["slower"] <= 3, found


@pytest.mark.parametrize("in_turns", [True, False])
def test_medians(in_turns: bool) -> None:
    """The ratio of what stands in the table; a drift is in both draws alike where they took turns."""
    rng = np.random.default_rng(4)
    model, baseline, _ = lanes(rng, 1.3, drifting(rng))
    found = medians(model, baseline, in_turns=in_turns)
    assert found.value == pytest.approx(float(np.median(model.samples) / np.median(baseline.samples)))
    assert found.low < 1.3 < found.high and found.low <= found.value <= found.high
    assert (found.high - found.low < 0.06) == in_turns


def test_mann_whitney_by_counting() -> None:
    """Against all ways of dealing ten values, half of them ties, into two hands."""
    ours, theirs = np.array([1.0, 2, 2, 3, 5]), np.array([2.0, 4, 5, 6, 7])
    values = np.concatenate([ours, theirs])

    def wins(chosen: tuple[int, ...]) -> float:
        rest = [at for at in range(10) if at not in chosen]
        return sum((values[i] > values[j]) + 0.5 * (values[i] == values[j]) for i in chosen for j in rest)

    seen = abs(wins((0, 1, 2, 3, 4)) - 12.5)
    every = [abs(wins(chosen) - 12.5) >= seen for chosen in itertools.combinations(range(10), 5)]
    assert mann_whitney(ours, theirs) == pytest.approx(np.mean(every), abs=0.02)


def test_mann_whitney_as_known() -> None:
    """Without ties, U = 0 of 15 and 15: z = 112 / sqrt(15 · 15 · 31 / 12); one value for all says nothing."""
    low, high = np.arange(15.0), np.arange(15.0) + 100
    assert mann_whitney(low, high) == pytest.approx(3.4e-6, rel=0.02) == mann_whitney(high, low)
    assert mann_whitney(np.ones(9), np.ones(9)) == 1
    assert mann_whitney(low, low) == 1


def test_percentile_interval() -> None:
    """The percentile of all runs, wider where blocks differ."""
    rng = np.random.default_rng(0)
    blocks = [0.01 * np.exp(rng.normal(0, 0.02, 10)) for _ in range(30)]
    even = percentile_interval(Timed(blocks=tuple(blocks)), 90)
    uneven = percentile_interval(Timed(blocks=tuple(b * (1 + at % 2) for at, b in enumerate(blocks))), 50)
    assert even.low <= even.value <= even.high < even.low * 1.05
    assert even.value == pytest.approx(np.percentile(np.concatenate(blocks), 90) * 1000)
    assert uneven.high > 1.3 * uneven.low

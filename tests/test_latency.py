"""Latency: percentiles that are earned, and ratios that are fair."""

import numpy as np
import pytest

from distilltool import latency
from distilltool.latency import EARNED, Timed, interleaved, summarise
from distilltool.versus import noise_of, speedup

pytestmark = pytest.mark.alone


def timed(samples: np.ndarray, blocks: int = 4) -> Timed:
    """Samples in seconds, dealt into blocks."""
    return Timed(blocks=tuple(np.array_split(samples, blocks)))


@pytest.mark.parametrize("count", [2, 63, 64, 129, 130, 661, 662, 2000])
def test_percentiles_must_be_earned(count: int) -> None:
    """One sample too few and the percentile is None."""
    found = summarise(timed(np.linspace(0.001, 0.002, count)), provider="x", threads=1, batch=1, ratio=None)
    for value, wanted in ((found.p90_ms, 64), (found.p95_ms, 130), (found.p99_ms, 662)):
        assert (value is None) == (count < wanted)
    assert found.n == count


def test_earned_is_as_stated() -> None:
    """The samples that MLPerf's early stopping asks for."""
    assert EARNED == {90: 64, 95: 130, 99: 662}


def test_summary_by_hand() -> None:
    """Milliseconds, in order, over all blocks; throughput counts images."""
    samples = np.arange(1, 1002) / 1000
    shuffled = np.random.default_rng(0).permutation(samples)
    found = summarise(timed(shuffled, 7), provider="CPU", threads=2, batch=4, ratio=None)
    assert (found.min_ms, found.p50_ms, found.p90_ms) == pytest.approx((1, 501, 901))
    assert (found.p95_ms, found.p99_ms) == pytest.approx((951, 991))
    assert found.throughput == pytest.approx(4 / 0.501)
    assert (found.provider, found.threads, found.batch, found.speedup) == ("CPU", 2, 4, None)


def test_speedup_by_hand() -> None:
    """Baseline over model, the median of the blocks' ratios: one disturbed block does not move it."""
    model = Timed(blocks=tuple(np.full(5, 0.010) for _ in range(15)))
    slow = [np.full(5, 0.030) for _ in range(15)]
    slow[3] = np.full(5, 9.0)
    found = speedup(model, Timed(blocks=tuple(slow)))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    back = speedup(Timed(blocks=tuple(slow)), model)
    assert back.value == pytest.approx(1 / 3)


def test_speedup_interval_tells_noise() -> None:
    """Noise between blocks widens the interval, and the value lies within."""
    rng = np.random.default_rng(1)

    def noisy(spread: float) -> Timed:
        return Timed(blocks=tuple(0.01 * np.exp(rng.normal(0, spread, 1)).repeat(5) for _ in range(16)))

    calm, wild = speedup(noisy(0.01), noisy(0.01)), speedup(noisy(0.3), noisy(0.3))
    assert calm.low <= calm.value <= calm.high and wild.low <= wild.value <= wild.high
    assert calm.high / calm.low < 1.1 < wild.high / wild.low


def test_what_a_model_differs_from_itself_widens_a_speedup() -> None:
    """A gain of 4 % is none where the baseline was 5 % from itself."""
    model, base, again = (Timed(blocks=tuple(np.full(5, value) for _ in range(16))) for value in (0.96, 1.0, 1.05))
    assert speedup(model, base).low > 1
    found = speedup(model, base, noise_of(base, again))
    assert found.value == pytest.approx(1 / 0.96)
    assert (found.low, found.high) == pytest.approx((1 / 0.96 / 1.05, 1.05 / 0.96))


def test_the_same_thing_is_as_fast_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of one piece of work: the ratio is near 1, and both are run equally often in turn."""
    monkeypatch.setattr(latency, "WARM_SECONDS", 0.02)
    work = np.random.default_rng(0).normal(size=40_000)
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        np.sort(work)

    ours, theirs = interleaved(lambda: run("a"), lambda: run("b"), 0.8)
    assert len(ours.blocks) == len(theirs.blocks) == latency.BLOCKS
    assert min(len(block) for block in (*ours.blocks, *theirs.blocks)) >= 2
    assert 0.8 < speedup(ours, theirs).value < 1.25
    turns = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert 2 + latency.BLOCKS - 2 <= len(turns) <= 2 + latency.BLOCKS + 2


def test_twice_the_work_is_half_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The direction of the ratio: a model that does a quarter of the work is faster than its baseline."""
    monkeypatch.setattr(latency, "WARM_SECONDS", 0.02)
    small, large = np.random.default_rng(0).normal(size=20_000), np.random.default_rng(0).normal(size=80_000)
    ours, theirs = interleaved(lambda: np.sort(small), lambda: np.sort(large), 0.8)
    assert speedup(ours, theirs).value > 2


def test_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of a quick thing fill the time asked for, no more."""
    monkeypatch.setattr(latency, "WARM_SECONDS", 0.01)
    ours, theirs = interleaved(lambda: sum(range(1000)), lambda: sum(range(1000)), 0.4)
    assert 0.2 < ours.samples.sum() + theirs.samples.sum() < 0.6


def test_machine() -> None:
    """What it was measured on."""
    found = latency.machine()
    assert {"cpu", "vector", "load_1min", "onnxruntime", "system"} <= set(found)

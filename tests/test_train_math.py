"""The arithmetic of training: the schedule, and the average of the weights."""

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from distilltool.train import _ramped, _schedule


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.05), (1000, 0.2), (40, 0.0), (1, 0.05), (3, 0.9)])
def test_schedule(total: int, warmup: float) -> None:
    """A straight rise to 1, then a cosine that ends near zero; never zero, never above 1."""
    shares = np.array([_schedule(step, total, warmup) for step in range(total)])
    rise = max(1, round(warmup * total))
    assert (shares > 0).all() and (shares <= 1).all()
    np.testing.assert_allclose(shares[:rise], np.arange(1, rise + 1) / rise)
    steps = np.arange(rise, total)
    np.testing.assert_allclose(shares[rise:], (1 + np.cos(np.pi * (steps - rise) / max(1, total - rise))) / 2)
    assert _schedule(total, total, warmup) == pytest.approx(0) or rise >= total
    assert _schedule(total + 5, total, warmup) <= 1


def test_schedule_half_way() -> None:
    """Half of the way down the rate is one half."""
    assert _schedule(10 + 45, 100, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_ramps_up(decay: float) -> None:
    """Against a loop: the n-th update keeps min(decay, (1 + n) / (10 + n)) of the average."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=_ramped(decay), use_buffers=True)
    wanted = 0.0
    for seen, value in enumerate(np.random.default_rng(2).normal(size=60)):
        with torch.no_grad():
            model.weight.fill_(float(value))
        average.update_parameters(model)
        keep = min(decay, (1 + seen) / (10 + seen)) if seen else 0.0
        wanted = keep * wanted + (1 - keep) * float(value)
        assert average.module.weight.item() == pytest.approx(wanted, abs=1e-5)


def test_average_covers_batch_norm() -> None:
    """Running statistics are averaged with the weights, the count of batches is copied."""
    model = torch.nn.BatchNorm1d(2)
    average = AveragedModel(model, multi_avg_fn=_ramped(0.9), use_buffers=True)
    means = []
    for value in (1.0, 3.0, 5.0):
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(int(value))
        average.update_parameters(model)
        means.append(average.module.running_mean[0].item())
    second = 1.0 * 2 / 11 + 3.0 * 9 / 11
    assert means == pytest.approx([1.0, second, second * 3 / 12 + 5.0 * 9 / 12])
    assert average.module.num_batches_tracked.item() == 5

"""The arithmetic of training: mixing, the schedule, and the average of the weights."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from distilltool.mixing import mix
from distilltool.recipe import Mix
from distilltool.train import _ramped, _schedule


def teacher_rows(rows: int, dim: int = 5) -> Tensor:
    """Random rows of length 1."""
    return F.normalize(torch.from_numpy(np.random.default_rng(1).normal(size=(rows, dim)).astype(np.float32)), dim=1)


def recipe_of(mixed: Tensor) -> list[tuple[int, int, float]]:
    """Which two rows each sample is made of, and the share of the first; for students that are unit coordinates."""
    found = []
    for row in mixed:
        i, j = (int(at) for at in torch.nonzero(row).flatten())
        found.append((i, j, float(row[i])))
    return found


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_both_sides_are_mixed_alike(ratio: float) -> None:
    """The same pairs and shares on both sides, shares of a pair sum to 1, and nothing is mixed with itself."""
    count, extra = 8, round(8 * ratio)
    student, teacher = torch.eye(count), teacher_rows(count)
    s, t = mix(student, teacher, Mix(ratio=ratio, normalise=False), (0, 3, 1))
    assert s.shape == (count + extra, count) and t.shape == (count + extra, 5)
    assert torch.equal(s[:count], student) and torch.equal(t[:count], teacher)
    assert ((s[count:] > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(s[count:].sum(dim=1), torch.ones(extra))
    torch.testing.assert_close(t[count:], s[count:] @ teacher)


def test_normalised_mixes_have_length_one() -> None:
    """By default mixes are brought back to the sphere, in the direction that they had."""
    student, teacher = torch.eye(6), teacher_rows(6)
    plain = mix(student, teacher, Mix(ratio=3.0, normalise=False), (0, 3, 1))
    unit = mix(student, teacher, Mix(ratio=3.0), (0, 3, 1))
    for before, after in zip(plain, unit, strict=True):
        torch.testing.assert_close(after.norm(dim=1), torch.ones(len(after)))
        torch.testing.assert_close(after, F.normalize(before, dim=1))
    assert (plain[1][6:].norm(dim=1) < 0.999).any()


def test_no_mixing_changes_nothing() -> None:
    """A ratio of zero gives back what came in."""
    student, teacher = torch.eye(6), teacher_rows(6)
    s, t = mix(student, teacher, Mix(ratio=0.0), (0, 3, 1))
    assert s is student and t is teacher


def test_every_pair_occurs_and_steps_differ() -> None:
    """Partners are drawn evenly, and anew for each step and seed."""
    student, teacher = torch.eye(4), teacher_rows(4)
    s, _ = mix(student, teacher, Mix(ratio=64.0, normalise=False), (0, 3, 1))
    pairs = [(i, j) for i, j, _ in recipe_of(s[4:])]
    counts = [pairs.count((i, j)) for i in range(4) for j in range(i + 1, 4)]
    assert len(counts) == 6 and min(counts) > 20
    for seed in ((0, 3, 2), (1, 3, 1)):
        assert not torch.equal(s, mix(student, teacher, Mix(ratio=64.0, normalise=False), seed)[0])
    assert torch.equal(s, mix(student, teacher, Mix(ratio=64.0, normalise=False), (0, 3, 1))[0])


@pytest.mark.parametrize(("alpha", "spread"), [(1.0, 1 / 12), (50.0, 1 / (4 * 101)), (0.1, 1 / (4 * 1.2))])
def test_shares_follow_beta(alpha: float, spread: float) -> None:
    """Mean one half, variance 1 / (4 (2 alpha + 1))."""
    s, _ = mix(torch.eye(32), teacher_rows(32), Mix(ratio=60.0, alpha=alpha, normalise=False), (5, 3, 1))
    shares = torch.where(s[32:] > 0, s[32:], 0).max(dim=1).values.double()
    second_moment = ((shares - 0.5) ** 2).mean().item()
    assert second_moment == pytest.approx(spread, rel=0.1)


def test_gradients_flow_through_mixes() -> None:
    """Mixed samples teach both of their images."""
    student = torch.eye(6).requires_grad_()
    s, _ = mix(student, teacher_rows(6), Mix(ratio=8.0), (0, 3, 1))
    s[6:, 0].sum().backward()
    assert student.grad is not None and (student.grad.abs().sum(dim=1) > 0).all()


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

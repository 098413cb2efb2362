"""Mixing: the same images and shares on both sides, from the batch or from the bank."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool.mixing import Bank, mix
from distilltool.recipe import Mix


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


@pytest.mark.parametrize("width", [3, 5, 8])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 20.0])
def test_several_images_in_a_mix(width: int, alpha: float) -> None:
    """As many different images as asked for, shares of sum 1 with the Dirichlet's variance."""
    count = 16
    how = Mix(ratio=60.0, width=width, alpha=alpha, normalise=False)
    s, t = mix(torch.eye(count), teacher_rows(count), how, (0, 3, 1))
    shares = s[count:]
    assert ((shares > 0).sum(dim=1) <= width).all() and ((shares > 0).sum(dim=1) == width).float().mean() > 0.95
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(shares)))
    torch.testing.assert_close(t[count:], shares @ teacher_rows(count))
    variance = (width - 1) / (width**2 * (width * alpha + 1))  # of each share
    second = (shares.double() ** 2).sum() / len(shares) / width - 1 / width**2
    assert second.item() == pytest.approx(variance, rel=0.1)


def test_a_mix_is_never_wider_than_the_batch() -> None:
    """A batch of four with eight asked for: all four."""
    s, _ = mix(torch.eye(4), teacher_rows(4), Mix(ratio=4.0, width=8), (0, 3, 1))
    assert s.shape == (20, 4) and torch.isfinite(s).all()


def banked(count: int = 12) -> tuple[Bank, np.ndarray]:
    """A bank whose student vectors are unit coordinates (12 to 23 for what it remembers), and a batch of four."""
    student = torch.cat([torch.zeros(count, count), torch.eye(count)], dim=1)
    return Bank(student=student, teacher=teacher_rows(count)), np.array([7, 0, 11, 3])


@pytest.mark.parametrize("width", [2, 4])
def test_partners_from_the_bank(width: int) -> None:
    """The first image is of the batch, the others as the bank remembers them, never the image itself; both sides alike.

    The student's vectors of now are coordinates 0 to 11, those remembered 12 to 23, so that each share can be read.
    """
    bank, rows = banked()
    now = torch.eye(24)[torch.from_numpy(rows)].requires_grad_()
    how = Mix(ratio=200.0, partners="bank", width=width, normalise=False)
    s, t = mix(now, bank.teacher[torch.from_numpy(rows)], how, (0, 3, 1), bank, rows)
    shares = s[4:].detach()
    mine, theirs = shares[:, :12], shares[:, 12:]
    assert ((mine > 0).sum(dim=1) == 1).all() and set(mine.argmax(dim=1).tolist()) == set(rows.tolist())
    assert ((theirs > 0).sum(dim=1) <= width - 1).all() and ((theirs > 0).sum(dim=1) >= 1).all()
    assert theirs[torch.arange(len(theirs)), mine.argmax(dim=1)].max() == 0
    assert set(torch.nonzero(theirs)[:, 1].tolist()) == set(range(12))
    torch.testing.assert_close(t[4:], (mine + theirs) @ bank.teacher)
    s[4:].sum().backward()
    assert now.grad is not None and now.grad.abs().sum() > 0


def test_the_bank_remembers_the_newest() -> None:
    """Rows of the batch are replaced, detached, others stay; of an image that is there twice the first counts."""
    bank, _ = banked()
    before = bank.student.clone()
    new = torch.full((3, 24), 0.5) * torch.tensor([[1.0], [2.0], [3.0]])
    bank.remember(np.array([5, 2, 5]), new.requires_grad_())
    assert not bank.student.requires_grad
    assert (bank.student[5] == 0.5).all() and (bank.student[2] == 1.0).all()
    kept = [row for row in range(12) if row not in (2, 5)]
    assert torch.equal(bank.student[kept], before[kept])

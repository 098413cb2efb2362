"""Every loss there is: finite, differentiable, and against slow arithmetic."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool import extensions, recipe
from distilltool.errors import DistillError
from distilltool.objective import check_losses

NAMES = extensions.names("distilltool.losses")
ROWS, DIM = 6, 4  # student and teacher of one dimension, so that losses within the teacher's space take part
Loss = Callable[..., Tensor]


def loss_of(name: str) -> Loss:
    """The function in the file of that name."""
    return extensions.find("distilltool.losses", "loss", name)


def unit_rows(seed: int, rows: int = ROWS, dim: int = DIM) -> Tensor:
    """Random rows of length 1, float64."""
    return F.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))), dim=1)


def test_the_three_of_the_recipes_are_there() -> None:
    """What the recipes name exists."""
    assert {"kl", "regression", "rkd"} <= set(NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_a_finite_scalar(name: str, dtype: torch.dtype) -> None:
    """One number, of the student's precision, with a gradient for the student alone."""
    student, teacher = unit_rows(1).to(dtype).requires_grad_(), unit_rows(2).to(dtype)
    loss = loss_of(name)(student, teacher)
    assert loss.shape == () and loss.dtype == dtype and torch.isfinite(loss)
    loss.backward()
    assert student.grad is not None and torch.isfinite(student.grad).all() and student.grad.abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str) -> None:
    """The gradient is that of finite differences, through the normalisation."""
    teacher = unit_rows(4)
    raw = torch.from_numpy(np.random.default_rng(3).normal(size=(ROWS, DIM))).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: loss_of(name)(F.normalize(rows, dim=1), teacher), (raw,))


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_itself_is_no_worse_than_chance(name: str) -> None:
    """A student equal to the teacher is better than unrelated ones."""
    teacher = unit_rows(5)
    own = loss_of(name)(teacher, teacher)
    assert all(own < loss_of(name)(unit_rows(seed), teacher) for seed in range(10, 20))


@pytest.mark.parametrize("name", ["kl", "regression", "rkd"])
def test_the_teacher_itself_is_the_minimum(name: str) -> None:
    """For these the loss is zero there, and no small step on the sphere goes below."""
    teacher = unit_rows(6)
    raw = teacher.clone().requires_grad_()
    loss = loss_of(name)(F.normalize(raw, dim=1), teacher)
    loss.backward()
    assert raw.grad is not None
    assert abs(loss.item()) < 1e-12 and raw.grad.abs().max() < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    """The same samples in another order give the same loss."""
    student, teacher, order = unit_rows(7), unit_rows(8), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss_of(name)(student, teacher), loss_of(name)(student[order], teacher[order]))


@pytest.mark.parametrize("name", NAMES)
def test_equal_samples_do_no_harm(name: str) -> None:
    """The same image twice in a batch: values and gradients stay finite, in single precision too."""
    student, teacher = unit_rows(9).float(), unit_rows(10).float()
    student[1], teacher[1] = student[0], teacher[0]
    student.requires_grad_()
    loss = loss_of(name)(student, teacher)
    loss.backward()
    assert torch.isfinite(loss) and student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", ["kl", "rkd"])
def test_relations_need_no_common_dimension(name: str) -> None:
    """Losses on relations take any two dimensions, and do not see a rotation of the student's space."""
    student, teacher = unit_rows(11), unit_rows(12, dim=9)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))
    torch.testing.assert_close(
        loss_of(name)(student, teacher), loss_of(name)(student @ torch.from_numpy(turn), teacher)
    )


def slow_regression(student: np.ndarray, teacher: np.ndarray) -> float:
    """1 − cosine, row by row."""
    return float(
        np.mean([1 - sum(s * t for s, t in zip(a, b, strict=True)) for a, b in zip(student, teacher, strict=True)])
    )


def slow_kl(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    """KL of the softmax over all others, sample by sample."""
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        p = np.exp([teacher[i] @ teacher[j] / tau for j in others])
        q = np.exp([student[i] @ student[j] / tau for j in others])
        p, q = p / p.sum(), q / q.sum()
        total += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))
    return total / len(student)


def smooth_l1(difference: float) -> float:
    """Huber's function at 1."""
    size = abs(difference)
    return 0.5 * size * size if size < 1 else size - 0.5


def slow_distances(rows: np.ndarray) -> np.ndarray:
    """Distances of all pairs over the mean of those of two different samples."""
    found = np.array([[np.sqrt(sum((a - b) ** 2)) for b in rows] for a in rows])
    return found / np.mean([found[i, j] for i in range(len(rows)) for j in range(len(rows)) if i != j])


def slow_angle(at: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle at one point between two others; 0 where there is none."""
    a, b = one - at, other - at
    length = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / length) if length > 0 else 0.0


def slow_rkd(student: np.ndarray, teacher: np.ndarray, distance: float, angle: float) -> float:
    """Park et al. 2019, pair by pair and triplet by triplet."""
    count = range(len(student))
    ours, theirs = slow_distances(student), slow_distances(teacher)
    near = np.mean([smooth_l1(ours[i, j] - theirs[i, j]) for i in count for j in count])
    bent = np.mean(
        [
            smooth_l1(slow_angle(student[i], student[j], student[k]) - slow_angle(teacher[i], teacher[j], teacher[k]))
            for i in count
            for j in count
            for k in count
        ]
    )
    return float(distance * near + angle * bent)


@pytest.mark.parametrize("seed", [20, 21])
def test_regression_by_hand(seed: int) -> None:
    """Against a loop."""
    student, teacher = unit_rows(seed), unit_rows(seed + 100)
    got = loss_of("regression")(student, teacher).item()
    assert got == pytest.approx(slow_regression(student.numpy(), teacher.numpy()), abs=1e-12)


@pytest.mark.parametrize("tau", [None, 0.05, 0.5])
def test_kl_by_hand(tau: float | None) -> None:
    """Against a loop, at the default temperature (0.07) and at others."""
    student, teacher = unit_rows(22, rows=7), unit_rows(23, rows=7, dim=5)
    got = loss_of("kl")(student, teacher, **({} if tau is None else {"tau": tau})).item()
    assert got == pytest.approx(slow_kl(student.numpy(), teacher.numpy(), tau or 0.07), rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"distance": 0.0}, {"angle": 0.0}, {"distance": 3.0, "angle": 0.5}])
def test_rkd_by_hand(options: dict[str, float]) -> None:
    """Against loops; the weights are 1 for distances and 2 for angles unless said otherwise."""
    student, teacher = unit_rows(24), unit_rows(25, dim=7)
    got = loss_of("rkd")(student, teacher, **options).item()
    wanted = slow_rkd(student.numpy(), teacher.numpy(), **{"distance": 1.0, "angle": 2.0, **options})
    assert got == pytest.approx(wanted, rel=1e-5)


def test_kl_sees_order_and_strength() -> None:
    """Swapping two neighbours costs; so does the right order with the wrong strength."""
    teacher = torch.tensor([[1.0, 0.0], [0.9, 0.4359], [0.0, 1.0]], dtype=torch.float64)
    swapped = teacher[[0, 2, 1]]
    blunt = F.normalize(teacher + 2.0, dim=1)
    loss = loss_of("kl")
    assert loss(swapped, teacher) > loss(blunt, teacher) > loss(teacher, teacher)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_numbers_with_defaults(name: str) -> None:
    """What a recipe may set: keyword-only, each with a number to begin with."""
    function = loss_of(name)
    assert function.__code__.co_argcount == 2
    assert all(isinstance(value, int | float) for value in (function.__kwdefaults__ or {}).values())
    assert len(function.__kwdefaults__ or {}) == function.__code__.co_kwonlyargcount


def test_recipes_are_checked_against_the_losses() -> None:
    """Unknown losses and options are told before anything is spent; regression wants the teacher's space."""
    check_losses(recipe.load("drd"), same_space=False)
    check_losses(recipe.load("regression"), same_space=True)
    for name, changes, says in (
        ("drd", ["loss.kl.tua=1"], "tua"),
        ("drd", ["loss.kl.name=kll"], "kll"),
        ("regression", ["space=own"], "space"),
    ):
        with pytest.raises(DistillError, match=says):
            check_losses(recipe.load(name, changes), same_space=False)

"""The weighted sum of a recipe's losses, and what is checked about it before anything is spent."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool import extensions
from distilltool.aim import Aim
from distilltool.errors import DistillError
from distilltool.recipe import LossTerm, Recipe, Space

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # student (M, D), teacher (M, E), rows of the bank (M,) → scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class _Term:
    """One loss of the sum. aims: it wants aims instead of the teacher's vectors; asks: what it wants besides, of
    `bank_KE` and `rows_M`."""

    function: Callable[..., Tensor]
    weight: float
    options: dict[str, float]
    aims: bool
    asks: tuple[str, ...]

    @property
    def needs_teacher_space(self) -> bool:
        """Whether it compares the student with the teacher's vectors: its first parameter says so."""
        return next(iter(inspect.signature(self.function).parameters)) == "student_ME"

    def __call__(self, student_MD: Tensor, teacher_ME: Tensor, given: dict[str, Tensor]) -> Tensor:
        asked = {name: given[name] for name in self.asks}
        return self.weight * self.function(student_MD, teacher_ME, **asked, **self.options)


def sum_of_losses(recipe: Recipe, bank_KE: Tensor, aim: Aim | None = None) -> Loss:
    """The weighted sum of a recipe's losses as one function of student, teacher and rows.

    aim: where the student puts an image in the teacher's space; the teacher's own vector where it is None.
    """
    terms = _terms(recipe)

    def loss(student_MD: Tensor, teacher_ME: Tensor, rows_M: Tensor) -> Tensor:
        aims = teacher_ME if aim is None or not any(term.aims for term in terms) else aim(teacher_ME)
        given = {"bank_KE": bank_KE, "rows_M": rows_M}
        return torch.stack([term(student_MD, aims if term.aims else teacher_ME, given) for term in terms]).sum()

    return loss


def _terms(recipe: Recipe) -> list[_Term]:
    """A recipe's losses, found; unknown names and options are errors."""
    return [_found(term) for term in recipe.loss]


def _found(term: LossTerm) -> _Term:
    function = extensions.find("distilltool.losses", "loss", term.name)
    defaults = function.__kwdefaults__ or {}
    unknown = set(term.options) - set(defaults)
    if unknown:
        raise DistillError(
            f"the loss {term.name} has no option {', '.join(sorted(unknown))}",
            f"it has {', '.join(sorted(defaults)) or 'none'}",
        )
    for name, value in term.options.items():
        if type(defaults[name]) is int and (type(value) is not int or value < 0):
            raise DistillError(
                f"{name} of the loss {term.name} is {value}, must be a whole number from 0",
                f"its default is {defaults[name]}",
            )
    wants = inspect.signature(function).parameters
    asks = tuple(one for one in ("bank_KE", "rows_M") if one in wants)
    return _Term(function=function, weight=term.weight, options=term.options, aims="aim_ME" in wants, asks=asks)


def in_space(recipe: Recipe, space: Space) -> Recipe:
    """The recipe for vectors in the teacher's space, or in one of their own.

    In the student's own, what compares it with the teacher's vectors is left out. Raises DistillError where nothing is
    left then.
    """
    if space == "teacher":
        return replace(recipe, space=space)
    left = tuple(loss for loss, term in zip(recipe.loss, _terms(recipe), strict=True) if not term.needs_teacher_space)
    if not left:
        raise DistillError(
            f"every loss of the recipe {recipe.name} compares the student with the teacher's vectors",
            "use --recipe best, or leave --space own away",
        )
    return replace(recipe, space=space, loss=left)


def mapped_last(recipe: Recipe) -> bool:
    """Whether features are trained in their own space and mapped into the teacher's at the end: no loss draws vectors
    there."""
    return recipe.space == "teacher" and not any(term.needs_teacher_space for term in _terms(recipe))


def check_losses(recipe: Recipe, same_space: bool) -> None:
    """Fail on a recipe whose losses do not exist, cannot be computed, or need the teacher's space where vectors are
    elsewhere, before anything is spent."""
    terms = _terms(recipe)
    drawn = [term.function.__name__ for term in terms if term.needs_teacher_space]
    if not same_space and drawn:
        raise DistillError(
            f"the loss {drawn[0]} compares student and teacher vectors one to one",
            'it needs space = "teacher" in the recipe (--set space=teacher)',
        )
    for term in terms:
        _try(term)


def needs_answers(recipe: Recipe) -> str:
    """A loss of the recipe that is computed with the teacher's vectors, not with what stands in for them; "" where
    there is none."""
    needy = (term.function.__name__ for term in _terms(recipe) if term.needs_teacher_space or term.asks)
    return next(needy, "")


def _try(term: _Term) -> None:
    """Compute a loss once on eight vectors: options that make it infinite, or blind, show now and not in training."""
    rows = F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)), dim=1)
    student = rows.flip(0).requires_grad_()
    said = ", ".join(f"{name}={value:g}" for name, value in term.options.items())
    try:
        loss = term(student, rows, {"bank_KE": rows, "rows_M": torch.arange(8)})
        loss.backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        fine = bool(torch.isfinite(loss) and torch.isfinite(student.grad).all() and student.grad.any())
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, IndexError):
        fine = False
    if not fine:
        defaults = ", ".join(f"{name}={value:g}" for name, value in (term.function.__kwdefaults__ or {}).items())
        raise DistillError(
            f"the loss {term.function.__name__} cannot be computed with {said or 'its defaults'}",
            f"its defaults are {defaults or 'none'}",
        )

"""The closed-form head, against refitting for every left-out row."""

import numpy as np
import pytest
import torch

from distilltool.ridge import STRENGTHS, principal, ridge


def problem(rows: int, features: int, targets: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a low rank with an offset, and unit targets that depend on them."""
    rng = np.random.default_rng((rows, features))
    x = rng.normal(size=(rows, features)) * np.linspace(2, 0.05, features) + rng.normal(size=features)
    t = x @ rng.normal(size=(features, targets)) + noise * rng.normal(size=(rows, targets)) + 0.5
    return torch.from_numpy(x), torch.from_numpy(t / np.linalg.norm(t, axis=1, keepdims=True))


def fit(x: np.ndarray, t: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge with a free intercept, by solving the normal equations: weight (E, F) and bias (E,)."""
    centred = x - x.mean(axis=0)
    inner = centred.T @ centred + penalty * np.eye(x.shape[1])
    weight = np.linalg.solve(inner, centred.T @ (t - t.mean(axis=0))).T
    return weight, t.mean(axis=0) - weight @ x.mean(axis=0)


def penalty_of(x: np.ndarray, strength: float) -> float:
    """The strength is counted in mean diagonals of the Gram matrix of all centred rows."""
    centred = x - x.mean(axis=0)
    return strength * float(np.trace(centred.T @ centred)) / x.shape[1]


def left_out_cosine(x: np.ndarray, t: np.ndarray, strength: float) -> float:
    """Mean cosine of each row's target and its prediction by a head fitted without that row."""
    found = []
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        weight, bias = fit(x[rest], t[rest], penalty_of(x, strength))
        said = weight @ x[row] + bias
        found.append(said @ t[row] / np.linalg.norm(said) / np.linalg.norm(t[row]))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(40, 8, 5), (12, 30, 4), (25, 25, 3)])
@pytest.mark.parametrize("strength", [1e-2, 1.0, 10.0])
def test_leave_one_out_is_exact(shape: tuple[int, int, int], strength: float) -> None:
    """The closed form equals refitting without each row, with fewer and with more features than rows."""
    x, t = problem(*shape)
    head = ridge(x, t, (strength,))
    assert head.strength == strength
    assert head.cosine == pytest.approx(left_out_cosine(x.numpy(), t.numpy(), strength), abs=1e-7)


@pytest.mark.parametrize("shape", [(40, 8, 5), (12, 30, 4)])
def test_weights_solve_the_normal_equations(shape: tuple[int, int, int]) -> None:
    """Weight and bias are those of a plain solver, all rows included."""
    x, t = problem(*shape)
    head = ridge(x, t, (0.1,))
    weight, bias = fit(x.numpy(), t.numpy(), penalty_of(x.numpy(), 0.1))
    assert head.weight.dtype == torch.float32 and head.weight.shape == (shape[2], shape[1])
    np.testing.assert_allclose(head.weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(head.bias.numpy(), bias, atol=1e-5)


@pytest.mark.parametrize(("rows", "noise"), [(30, 0.0), (30, 5.0), (14, 1.0)])
def test_the_strength_that_generalises_is_chosen(rows: int, noise: float) -> None:
    """Of all strengths the one with the best left-out cosine, by brute force."""
    x, t = problem(rows, 12, 4, noise)
    scores = {strength: left_out_cosine(x.numpy(), t.numpy(), strength) for strength in STRENGTHS}
    head = ridge(x, t)
    assert scores[head.strength] == pytest.approx(max(scores.values()), abs=1e-9)


def test_noise_asks_for_more_strength() -> None:
    """Clean targets are followed closely, noisy ones are not."""
    assert ridge(*problem(30, 12, 4, noise=0.0)).strength < ridge(*problem(30, 12, 4, noise=8.0)).strength


def test_single_precision_is_enough() -> None:
    """float32 features give the head of float64 ones."""
    x, t = problem(40, 8, 5)
    one, other = ridge(x, t), ridge(x.float(), t.float())
    assert one.strength == other.strength
    torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("rows", "features", "dim"), [(50, 10, 3), (50, 10, 10), (8, 20, 5)])
def test_principal_is_the_svd(rows: int, features: int, dim: int) -> None:
    """The same subspace, in order, as numpy's singular vectors of the uncentred features."""
    x = np.random.default_rng(1).normal(size=(rows, features)) * np.linspace(3, 0.3, features) + 1
    found = principal(torch.from_numpy(x), dim).numpy()
    wanted = np.linalg.svd(x, full_matrices=False)[2][:dim]
    assert found.shape == (dim, features)
    np.testing.assert_allclose(np.abs((found * wanted).sum(axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(dim), atol=1e-5)


def test_principal_keeps_inner_products() -> None:
    """Features of a low rank lose nothing."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 16))
    directions = principal(torch.from_numpy(x), 4).double().numpy()
    np.testing.assert_allclose((x @ directions.T) @ (x @ directions.T).T, x @ x.T, atol=1e-4)

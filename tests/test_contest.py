"""Starts are judged on images that nothing was fitted on."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distilltool import contest, ridge
from distilltool.contest import Contest, Score
from distilltool.embedder import unit

Rows = NDArray[np.float32]


def groups(count: int, dim: int, seed: int, spread: float = 0.5) -> Rows:
    """Vectors of length 1 in eight groups."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(8, dim))
    return unit(middles[rng.integers(0, 8, count)] + spread * rng.normal(size=(count, dim))).astype(np.float32)


def test_predictions_are_those_of_the_fitted_head() -> None:
    rng = np.random.default_rng(0)
    for count in (20, 90):  # fewer and more rows than features
        x, t, asked = (torch.from_numpy(rng.normal(size=shape)) for shape in ((count, 40), (count, 7), (11, 40)))
        found = ridge.predict(x, t, asked, (0.1, 3.0))
        for strength in (0.1, 3.0):
            head = ridge.ridge(x, t, (strength,))
            expected = asked.float() @ head.weight.T + head.bias
            torch.testing.assert_close(found[strength], expected, atol=1e-5, rtol=1e-4)


def test_folds_keep_clusters_together_and_are_of_like_size() -> None:
    rows = groups(400, 16, seed=1, spread=0.02)
    fold = contest.folds(rows, seed=0)
    sizes = np.bincount(fold, minlength=contest.FOLDS)
    assert sizes.min() > 0 and sizes.max() < 2.5 * sizes.min()
    same_cluster = rows @ rows.T > 0.999
    together = (fold[:, None] == fold[None])[same_cluster].mean()
    apart = (fold[:, None] == fold[None]).mean()
    assert together > apart + 0.3


def test_the_teachers_own_vectors_are_perfect_and_noise_is_not() -> None:
    targets = groups(300, 24, seed=2)
    fold = contest.folds(targets, seed=0)
    means = targets - targets.mean(axis=0)
    assert Contest(unit(means), fold).as_they_are(unit(means)).mean > 0.95
    off = unit(means + 2)
    held = Contest(off, fold)
    assert held.as_they_are(off, centre=False).mean == 1 > held.as_they_are(off).mean
    noise = np.random.default_rng(3).normal(size=targets.shape).astype(np.float32)
    assert Contest(targets, fold).as_they_are(noise).mean < 0.4


def test_a_linear_map_that_is_hidden_is_found_by_mapping_alone() -> None:
    rng = np.random.default_rng(4)
    targets = groups(500, 12, seed=4)
    hide = rng.normal(size=(12, 30)) * np.exp(rng.normal(size=(12, 1)) * 0.8)  # unequal stretch
    features = (targets @ hide + 2).astype(np.float32)
    held = Contest(targets, contest.folds(targets, seed=0))
    plain, mapped = held.as_they_are(features), held.mapped(features, galleries=("own",))
    assert mapped.beats(plain) and not plain.beats(mapped)
    assert mapped.strength == min(contest.STRENGTHS)  # nothing here is noise
    assert held.mapped(features, galleries=("own", "teacher")).mean > 0.7


def test_what_is_judged_took_no_part_in_the_fit() -> None:
    """Features of noise as long as there are images fit anything they have seen, and nothing else."""
    targets = groups(200, 10, seed=5)
    features = np.random.default_rng(5).normal(size=(200, 400)).astype(np.float32)
    fold = contest.folds(targets, seed=0)
    assert Contest(targets, fold).mapped(features, galleries=("own", "teacher")).mean < 0.45


@pytest.mark.parametrize(
    ("gain", "spread", "better"), [(0.05, 0.1, True), (0.001, 0.1, False), (-0.05, 0.1, False), (0.0, 0.0, False)]
)
def test_better_means_by_more_than_a_standard_error(gain: float, spread: float, better: bool) -> None:
    rng = np.random.default_rng(6)
    base = rng.uniform(0, 1, 200)
    wobble = rng.normal(0, spread, 200)
    other = Score(overlap=base + gain + wobble - wobble.mean())
    assert other.beats(Score(overlap=base)) is better


def test_equal_answers_still_make_folds() -> None:
    """One cluster that holds all images is cut across, and nothing is divided by nothing."""
    targets = unit(np.ones((40, 6), np.float32) + 1e-6 * np.random.default_rng(7).normal(size=(40, 6)))
    fold = contest.folds(targets.astype(np.float32), seed=0)
    assert np.bincount(fold, minlength=contest.FOLDS).min() >= contest.SMALLEST
    features = np.random.default_rng(8).normal(size=(40, 9)).astype(np.float32)
    assert 0 <= Contest(targets.astype(np.float32), fold).mapped(features, galleries=("own",)).mean <= 1


def test_folds_too_small_to_rank_are_left_out() -> None:
    targets = groups(60, 8, seed=9)
    lumpy = np.array([0] * 57 + [1, 2, 3])
    perfect = Contest(targets, lumpy).as_they_are(targets, centre=False)
    assert perfect.mean == 1 and np.isnan(perfect.overlap[-3:]).all()

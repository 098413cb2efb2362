"""Where a student in the teacher's space puts an image: by definition, by what it is good for, and in the loss."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import onnx_teacher, photo_folder
from numpy.typing import NDArray
from torch.nn import functional as F

import distilltool
from distilltool import aim, contest, recipe
from distilltool.contest import Contest
from distilltool.embedder import unit
from distilltool.objective import sum_of_losses

SCALED = ("scale=1/255", "mean=0.5", "std=0.5")


@pytest.mark.parametrize("count", [9, 60])
def test_an_aim_is_centred_and_divided_by_its_variances(count: int) -> None:
    """Against the matrix inverse written out, for fewer and for more answers than numbers; also of other vectors."""
    rows, others = (F.normalize(torch.randn(size, 16) + 0.5, dim=1) for size in (count, 5))
    centred = (rows - rows.mean(dim=0)).double()
    spread = centred.T @ centred
    for level, one in aim.fit(rows).items():
        if level is None:
            torch.testing.assert_close(one(others), others)
            continue
        divided = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + level * spread / spread.diagonal().mean())
        for asked in (rows, others):
            wanted = F.normalize((asked - rows.mean(dim=0)).double() @ divided, dim=1)
            torch.testing.assert_close(one(asked).double(), wanted, atol=1e-5, rtol=1e-4)


def test_equal_answers_have_an_aim_too() -> None:
    for one in aim.fit(torch.ones(5, 4) / 2).values():
        assert torch.isfinite(one(torch.ones(5, 4) / 2)).all()


def drawn(noise: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What two networks that end in a rectifier make of the same things: a student that is unsure, and the teacher."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(400, 16)) / 4
    teacher = np.maximum(things @ rng.normal(size=(16, 48)) + 0.3, 0)
    student = things @ rng.normal(size=(16, 60))
    student = np.maximum(student + noise * rng.normal(size=student.shape), 0)
    return student.astype(np.float32), unit(teacher.astype(np.float32))


@pytest.mark.parametrize(("noise", "helps"), [(3.0, True), (0.05, False)])
def test_what_is_predicted_badly_aims_away_from_hubs_and_what_is_known_does_not(noise: float, helps: bool) -> None:
    features, targets = drawn(noise)
    held = Contest(targets, contest.folds(targets, seed=0))
    plain, best = (
        held.mapped(features, galleries=("own", "teacher"), levels=(None,)),
        held.mapped(features, galleries=("own", "teacher")),
    )
    assert best.beats(plain, 2) is helps and (best.level is not None) is helps


def test_regression_is_drawn_to_the_aim_and_the_other_losses_are_not() -> None:
    student, teacher = (F.normalize(torch.randn(12, 8), dim=1) for _ in range(2))
    rows, bank = torch.arange(12), teacher
    where = aim.fit(teacher, (0.3,))[0.3]
    regression, kl = recipe.load("regression", []), recipe.load("kl", [])
    wanted = 1 - (student * where(teacher)).sum(dim=1).mean()
    torch.testing.assert_close(sum_of_losses(regression, bank, where)(student, teacher, rows), wanted)
    plain = sum_of_losses(kl, bank)(student, teacher, rows)
    torch.testing.assert_close(sum_of_losses(kl, bank, where)(student, teacher, rows), plain)


@pytest.mark.slow
def test_the_level_is_chosen_once_a_run_and_kept(tmp_path: Path) -> None:
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 80)
    report = distilltool.distill(
        tmp_path / "t.onnx",
        tmp_path / "imgs",
        out=tmp_path / "run",
        store=tmp_path / "l.sqlite",
        preprocess=SCALED,
        student="teacher:cut=hidden",
        space="teacher",
        changes=("schedule.epochs=2", "schedule.batch=16", "schedule.evaluations=2"),
    )
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert not choice["mapped"] and choice["level"] in aim.LEVELS and choice["strength"] > 0
    assert report.student.dim == 16 and report.student.space == "teacher"

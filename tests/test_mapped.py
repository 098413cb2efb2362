"""A student mapped into the teacher's space after training: the map by itself, and a run that makes one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import onnx_teacher, photo_folder
from torch import Tensor
from torch.nn import functional as F

import distilltool
from distilltool import aim, contest, metrics, ridge, train
from distilltool.contest import Contest
from distilltool.embedder import unit
from distilltool.mapped import BESIDE, USED, Map
from distilltool.metrics import Task
from distilltool.report import DistillReport
from distilltool.ridge import Head
from distilltool.scores import Scores

SCALED = ("scale=1/255", "mean=0.5", "std=0.5")
CENTRED = aim.LEVELS[1]


def things(count: int, rank: int, noise: float, width: int = 40, dim: int = 48) -> tuple[Tensor, Tensor]:
    """What a student sees of some things, features of many numbers, and a teacher's vectors in few directions."""
    rng = np.random.default_rng(count + rank)
    seen = rng.normal(size=(count, rank))
    teacher = seen @ np.linalg.qr(rng.normal(size=(dim, rank)))[0].T + 0.3
    features = seen @ rng.normal(size=(rank, width)) + noise * rng.normal(size=(count, width))
    return F.normalize(torch.from_numpy(features).float(), dim=1), F.normalize(torch.from_numpy(teacher).float(), dim=1)


def applied(head: Head, features: Tensor) -> Tensor:
    return features @ head.weight.T + head.bias


@pytest.mark.parametrize("count", [30, 200])
def test_without_features_beside_it_is_the_ridge(count: int) -> None:
    features, targets = things(count, 6, 0.2)
    where = aim.fit(targets, (0.1,))[0.1]
    plain = ridge.ridge(features, where(targets), (0.3,))
    found = Map(features, targets, where, 0.3).at(0)
    torch.testing.assert_close(found.weight, plain.weight)
    torch.testing.assert_close(found.bias, plain.bias)


@pytest.mark.parametrize(("count", "width", "dim"), [(30, 40, 48), (200, 40, 48), (200, 12, 48), (200, 60, 16)])
@pytest.mark.parametrize("share", BESIDE[1:])
def test_features_beside_have_their_share_and_leave_the_gallery_alone(
    count: int, width: int, dim: int, share: float
) -> None:
    """The gallery lies in few directions: what stands in the others alters no order in it."""
    features, targets = things(count, 6, 0.5, width, dim)
    found = Map(features, targets, aim.fit(targets, (CENTRED,))[CENTRED], 0.3)
    plain, beside = applied(found.at(0), features), applied(found.at(share), features)
    rows = targets.double() - targets.double().mean(dim=0)
    values, axes = ridge.axes(rows)
    used = axes[:, : int((values.cumsum(0) / values.sum() < USED).sum()) + 1].float()
    inside, whole = (beside @ used).square().sum(), beside.square().sum()
    assert 1 - inside / whole == pytest.approx(share, abs=0.002)
    torch.testing.assert_close(beside @ used, np.sqrt(1 - share) * (plain @ used), atol=1e-4, rtol=1e-3)


def test_features_beside_are_judged_as_they_would_be_used() -> None:
    """Fitted on three folds and judged on the fourth: none beside is the map of the contest, and where the teacher's
    vectors lie in few directions any share finds as much in its gallery."""
    features, targets = things(400, 12, 0.6, width=60)
    held = Contest(targets.numpy(), contest.folds(targets.numpy(), seed=0))
    found = held.beside(features.numpy(), 1.0, CENTRED)
    plain = held.mapped(features.numpy(), galleries=("own", "teacher"), strengths=(1.0,), levels=(CENTRED,))
    assert set(found) == set(BESIDE)
    np.testing.assert_allclose(found[0.0].mean, plain.mean, atol=0.002)
    asked, told = things(500, 12, 0.6, width=60)
    known, task = slice(0, 120), Task(query=np.arange(380), gallery=np.arange(380), labels=None)
    made = Map(asked[known], told[known], aim.fit(told[known], (CENTRED,))[CENTRED], 1.0)
    theirs = told[120:].numpy()
    kept = [
        metrics.overlap(task, theirs, unit(applied(made.at(share), asked[120:]).numpy()), 10, theirs).mean()
        for share in BESIDE
    ]
    assert max(kept) - min(kept) < 0.01 and min(kept) > 0.5


def test_equal_answers_and_equal_features_are_mapped_too() -> None:
    same = torch.ones(40, 6) / np.sqrt(6)
    features, _ = things(40, 4, 0.1)
    for seen, told in ((features, same), (torch.ones(40, 6), F.normalize(torch.randn(40, 5), dim=1))):
        head = Map(seen, told, aim.fit(told, (CENTRED,))[CENTRED], 0.3).at(0.2)
        assert torch.isfinite(applied(head, seen)).all()


@pytest.mark.parametrize(
    ("overlap", "spearman", "is_worse"),
    [(0.0, 0.0, False), (0.1, 0.1, False), (-0.001, 0.1, False), (-0.1, 0.1, True), (0.001, -0.1, True)],
)
def test_both_measures_say_what_is_worse(overlap: float, spearman: float, is_worse: bool) -> None:
    """A little less overlap with a far better order is not worse; an overlap that is surely lower is."""
    rng = np.random.default_rng(0)
    start, order = rng.uniform(0.4, 0.6, 100), rng.uniform(0.4, 0.6, 100)
    noise = np.tile((-0.02, 0.02), 50) if overlap or spearman else np.zeros(100)
    first = Scores(overlap=start, spearman=order, divergence=np.zeros(100))
    last = Scores(overlap=start + overlap + noise, spearman=order + spearman + noise, divergence=np.zeros(100))
    assert train.worse(last, first) is is_worse


@pytest.mark.slow
def test_a_run_trains_in_a_space_of_its_own_and_ends_in_the_teachers(tmp_path: Path) -> None:
    """Old gallery, new queries; the same run twice has the same weights."""
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 80)

    def run(name: str) -> DistillReport:
        return distilltool.distill(
            tmp_path / "t.onnx",
            tmp_path / "imgs",
            out=tmp_path / name,
            store=tmp_path / "l.sqlite",
            preprocess=SCALED,
            student="teacher:cut=hidden",
            space="teacher",
            changes=("schedule.epochs=4", "schedule.batch=16", "schedule.evaluations=2"),
        )

    report, again = run("a"), run("b")
    assert json.loads((tmp_path / "a" / "choice.json").read_text())["beside"] in BESIDE
    assert report.student.dim == 16 and report.student.space == "teacher"
    assert (tmp_path / "a/student.safetensors").read_bytes() == (tmp_path / "b/student.safetensors").read_bytes()
    assert report.fidelity == again.fidelity
    student = distilltool.load_student(tmp_path / "a")
    assert student.space_id == json.loads((tmp_path / "a" / "run.json").read_text())["teacher"]["space_id"]
    vectors = student.embed(np.zeros((2, *student.card.input, 3), np.uint8))
    np.testing.assert_allclose(vectors, unit(vectors), atol=1e-6)

"""What one step of training computes, term by term, and what a hard end leaves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import onnx_teacher, photo_folder
from test_accumulate import COUNT, DIM, SIDE, trainer
from test_chain import SMALL
from test_soup import souped
from torch import Tensor, nn
from torch.nn import functional as F

import distilltool
from distilltool import images, train
from distilltool.augment import Augment, Batch, make_batch, together
from distilltool.train import LEAST, _Trainer, sizes
from distilltool.weights import weights_of

VIEWS, WIDE = 3, 5


def shown(one: _Trainer) -> Batch:
    """Some images with a view each."""
    return make_batch(0, one.data.pixels, (SIDE, SIDE), 8, Augment(), 0, views=VIEWS)


def kl_by_hand(student_BD: Tensor, teacher_BE: Tensor) -> float:
    """KL(teacher ‖ student) of softmax(similarity / 0.1) over the others, in float64."""
    student, teacher = student_BD.detach().double().numpy(), teacher_BE.double().numpy()
    total = 0.0
    for row in range(len(student)):
        others = [at for at in range(len(student)) if at != row]
        ours, theirs = (one[others] @ one[row] / 0.1 for one in (student, teacher))
        p, q = (np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in (theirs, ours))
        total += float((p * np.log(p / q)).sum())
    return total / len(student)


@pytest.mark.parametrize(("anchor", "weight"), [(0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_the_loss_is_the_sum_of_what_the_recipe_names(tmp_path: Path, anchor: float, weight: float) -> None:
    """The relational loss; the anchor on the teacher's vectors; the untrained student's own larger views."""
    one = trainer(tmp_path, 8, 1, name="kl", changes=[f"anchor_finetune={anchor}", f"reference.weight={weight}"])
    rng = np.random.default_rng(3)
    known = rng.normal(size=(COUNT, VIEWS, DIM)).astype(np.float16)
    mean = torch.from_numpy(known[:, 0].astype(np.float32).mean(axis=0))
    if weight:
        one = trainer(
            tmp_path, 8, 1, name="kl", changes=[f"anchor_finetune={anchor}", "reference.weight=3"], reference=known
        )
    if anchor:
        one.student.anchor = nn.Linear(DIM, DIM)
    batch = shown(one)
    features = one._features(batch.pixels, 0)
    found = one._loss(features, together([batch]), (0, 3, 0)).item()
    centred = features - one.student.centre
    targets = one.targets[torch.from_numpy(batch.rows)]
    expected = kl_by_hand(F.normalize(centred, dim=1), targets)
    if anchor:
        assert one.student.anchor is not None
        toward = F.normalize(one.student.anchor(centred), dim=1)
        expected += anchor * (1 - (toward * targets).sum(dim=1).mean().item())
    if weight:
        asked = torch.from_numpy(known[batch.rows, batch.views].astype(np.float32)) - mean
        expected += weight * (1 - F.cosine_similarity(centred, asked).mean().item())
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_tensor_moves_by_its_own_size(tmp_path: Path) -> None:
    """The learning rate of a pretrained tensor is a share of the root mean square of its weights."""
    one = trainer(tmp_path, 8, 1, name="kl")
    with torch.no_grad():
        one.student.backbone.mixer.bias.mul_(100)
    one.scales.copy_(sizes(one.student))
    expected = [one._rate() * max(tensor.square().mean().sqrt().item(), LEAST) for tensor in one.student.parameters()]
    one._step(iter([shown(one)]))
    found = [group["lr"] for group in one.optimiser.param_groups]
    assert found == pytest.approx(expected) and max(found) > 10 * min(found)


def test_every_length_is_trained(tmp_path: Path) -> None:
    """The loss of nested vectors is the mean of the losses of each front part, brought to length 1."""
    one = trainer(tmp_path, 8, 1, name="kl", changes=[f"student.dims=[{DIM}, {WIDE}, 2]"])
    batch = shown(one)
    features = one._features(batch.pixels, 0)
    found = one._loss(features, together([batch]), (0, 3, 0)).item()
    whole, targets = F.normalize(features - one.student.centre, dim=1), one.targets[torch.from_numpy(batch.rows)]
    each = [kl_by_hand(F.normalize(whole[:, :dim], dim=1), targets) for dim in (DIM, WIDE, 2)]
    assert found == pytest.approx(np.mean(each), rel=1e-4) and found != pytest.approx(each[0], rel=1e-2)


@pytest.mark.parametrize("stop", [2, 5, 6, 11, 17])
@pytest.mark.parametrize("where", ["_step", "_evaluate", "_blend"])
def test_a_hard_end_changes_nothing(tmp_path: Path, stop: int, where: str) -> None:
    """Power is cut after so many calls, nothing is saved on the way out: the last checkpoint gives the same weights."""
    whole = souped(tmp_path / "whole", total=20)
    whole.run()
    cut = souped(tmp_path / "cut", total=20)
    method, calls = getattr(cut, where), list[int]()

    def until_the_end(*given: object) -> object:
        made = method(*given)
        calls.append(1)
        if len(calls) == (1 if where == "_blend" else stop):
            raise SystemExit
        return made

    setattr(cut, where, until_the_end)
    with pytest.raises(SystemExit):
        cut.run()
    again = souped(tmp_path / "cut", total=20)
    again.run()
    expected, found = weights_of(whole.student), weights_of(again.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_nothing_is_decoded_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are decoded before the first step and, for `eval --drift`, after the last."""
    onnx_teacher(tmp_path / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(tmp_path / "imgs", 64)
    decode, real = images._decode, train.train
    decoded: dict[bool, int] = {False: 0, True: 0}
    training = [False]

    def counted(*given: object, **named: object) -> object:
        decoded[training[0]] += 1
        return decode(*given, **named)  # type: ignore[arg-type]

    def watched(*given: object, **named: object) -> object:
        training[0] = True
        try:
            return real(*given, **named)  # type: ignore[arg-type]
        finally:
            training[0] = False

    monkeypatch.setattr(images, "_decode", counted)
    monkeypatch.setattr(train, "train", watched)
    report = distilltool.distill(
        tmp_path / "teacher.onnx",
        tmp_path / "imgs",
        out=tmp_path / "run",
        store=tmp_path / "ledger.sqlite",
        **SMALL,  # type: ignore[arg-type]
    )
    assert report.steps > 2 and decoded[False] >= 64 and decoded[True] == 0

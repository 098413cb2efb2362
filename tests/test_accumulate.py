"""Steps of several batches: the same as one of all their images, lists and mixes among them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import drawn
from numpy.typing import NDArray
from torch import Tensor, nn

from distilltool import train
from distilltool.augment import Augment, Batch, make_batch, together
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.progress import Silent
from distilltool.recipe import Recipe, load
from distilltool.rundir import RunDir
from distilltool.student import Student
from distilltool.students import Backbone
from distilltool.tracking import RunLog
from distilltool.train import Data, Unanswered, _Trainer

SIDE, COUNT, DIM = 12, 24, 6


class Tiny(nn.Module):
    """Colours of four quarters, mixed linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(12, DIM)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        made: Tensor = self.mixer(nn.functional.adaptive_avg_pool2d(images_NCHW, 2).flatten(1))
        return made


def trainer(
    tmp_path: Path,
    batch: int,
    parts: int,
    *,
    name: str = "drd",
    finetune: bool = True,
    unasked: int = 0,
    share: float = 0.0,
    after: float = 0.0,
    changes: Sequence[str] = (),
    reference: NDArray[np.float16] | None = None,
) -> _Trainer:
    """A trainer of a student by a recipe. unasked: images that nobody was asked about; reference: (COUNT, V, DIM) what
    the untrained student makes of larger views."""
    torch.manual_seed(0)
    student = Student(Backbone(module=Tiny(), width=DIM, mean=(0.5,) * 3, std=(0.5,) * 3, start="made"), 0, bias=False)
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(COUNT, DIM)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    pixels = np.stack([np.asarray(drawn(number, (SIDE, SIDE))) for number in range(COUNT)])
    data = Data(pixels=pixels, targets=targets, held_pixels=pixels, held_targets=targets, names=("",) * COUNT)
    data = replace(data, reference=reference)
    if unasked:
        others = np.stack([np.asarray(drawn(100 + number, (SIDE, SIDE))) for number in range(unasked)])
        vectors = unit(rng.normal(size=(unasked, 3)).astype(np.float32))
        data = replace(
            data,
            unasked=Unanswered(
                pixels=others, vectors=vectors, names=("other",) * unasked, hashes=(b"",) * unasked, share=share
            ),
        )
    changes = [
        *changes,
        f"schedule.batch={batch}",
        f"schedule.batches_finetune={parts}",
        "optimiser.clip=1e6",
        f"unasked.after={after}",
    ]
    recipe: Recipe = load(name, changes)
    tmp_path.mkdir(exist_ok=True)
    return _Trainer(
        student, data, recipe, RunDir(tmp_path), finetune, None, 0.0, RunLog(RunDir(tmp_path), (), Silent()), Silent()
    )


def in_thirds() -> tuple[Batch, list[Batch]]:
    """A batch of all images, and the same in three."""
    pixels = np.stack([np.asarray(drawn(number, (SIDE, SIDE))) for number in range(COUNT)])
    whole = make_batch(0, pixels, (SIDE, SIDE), COUNT, Augment(), 0)
    thirds = [
        Batch(rows=whole.rows[at : at + 8], pixels=whole.pixels[at : at + 8], views=whole.views[at : at + 8])
        for at in (0, 8, 16)
    ]
    return whole, thirds


def gradients(one: _Trainer, batches: list[Batch]) -> list[Tensor]:
    one._step(iter(batches))
    return [p.grad.clone() for p in one.student.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["regression", "kl", "drd", "rkd"])
def test_a_step_of_three_batches_is_one_of_all_their_images(tmp_path: Path, name: str) -> None:
    whole, thirds = in_thirds()
    one, three = trainer(tmp_path / "a", COUNT, 1, name=name), trainer(tmp_path / "b", 8, 3, name=name)
    assert (one.parts, three.parts) == (1, 3)
    for ours, theirs in zip(gradients(three, thirds), gradients(one, [whole]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 1e-4
    assert one.state.step == three.state.step == 1


@pytest.mark.parametrize("keeps", [1, 2, 3])
def test_first_passes_that_there_is_room_for_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: int
) -> None:
    """What each holds is measured, weights left out; the gradient is that of one batch, however many are kept."""
    whole, thirds = in_thirds()
    one, three = trainer(tmp_path / "a", COUNT, 1), trainer(tmp_path / "b", 8, 3)
    with train._holding(three.student) as held:
        three._features(thirds[0].pixels)
    assert sum(held.values()) == 8 * 4 * (12 + DIM + 2)  # what the layer and the scaling to length 1 read, and lengths
    monkeypatch.setattr(train, "KEPT", (keeps + 0.5) * sum(held.values()))
    features, passes = three._features, list[bool]()

    def counted(pixels_NCHW: Tensor) -> Tensor:
        passes.append(torch.is_grad_enabled())
        return features(pixels_NCHW)

    monkeypatch.setattr(three, "_features", counted)
    for ours, theirs in zip(gradients(three, thirds), gradients(one, [whole]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 1e-4
    assert passes == [True] * keeps + [False] * (3 - keeps) + [True] * (3 - keeps)


@pytest.mark.parametrize(("batch", "parts", "taken"), [(8, 4, 3), (8, 2, 2), (24, 4, 1), (64, 4, 1)])
def test_no_more_batches_than_there_are_images_for(tmp_path: Path, batch: int, parts: int, taken: int) -> None:
    found = trainer(tmp_path, batch, parts)
    assert found.parts == taken
    assert found.state.total == max(1, 60 * -(-COUNT // min(batch, COUNT)) // taken)
    assert trainer(tmp_path, batch, parts, finetune=False).parts == 1  # from nothing many steps are worth more


def test_every_step_takes_its_own_batches(tmp_path: Path) -> None:
    """Steps go through the images in the order of single batches, also after a stop."""
    three, single = trainer(tmp_path / "a", 8, 3), trainer(tmp_path / "b", 8, 1)
    ours, ones = three._batches(), single._batches()
    assert all((next(ours).rows == next(ones).rows).all() for _ in range(6))
    three.state.step, single.state.step = 2, 6
    assert (next(three._batches()).rows == next(single._batches()).rows).all()


def test_some_steps_are_about_images_nobody_was_asked_about(tmp_path: Path) -> None:
    """Whole steps, each kind in its own order without gaps, the same after a stop."""
    some, none = (trainer(tmp_path / str(n), 8, 2, unasked=n, share=0.4) for n in (10, 0))
    batches, plain = some._batches(), none._batches()
    found = [next(batches) for _ in range(20)]
    assert [one.asked for one in found[::2]] == [one.asked for one in found[1::2]]
    assert [one.asked for one in found[::2]] == [True, True, False, True, False] * 2
    about = [one for one in found if one.asked]
    assert all((one.rows == next(plain).rows).all() for one in about)
    assert sorted(np.concatenate([one.rows for one in found if not one.asked])[:10]) == list(range(10))
    some.state.step = 4
    again = next(some._batches())
    assert not again.asked and (again.rows == found[8].rows).all() and (again.pixels == found[8].pixels).all()


def test_first_come_some_passes_over_the_images_that_were_asked_about(tmp_path: Path) -> None:
    one = trainer(tmp_path, 8, 1, unasked=10, share=0.5, after=2.5)
    passes = -(-5 * COUNT // 16)
    batches = one._batches()
    found = [next(batches).asked for _ in range(passes + 6)]
    assert found == [True] * passes + [True, False] * 3


@pytest.mark.parametrize("name", ["kl", "drd", "rkd"])
def test_images_nobody_was_asked_about_are_compared_with_what_is_known_of_them(tmp_path: Path, name: str) -> None:
    """With vectors of another length, by the recipe's losses alone, in several batches as in one."""
    one, two = (trainer(tmp_path / str(n), 16 // n, n, name=name, unasked=16, share=0.9) for n in (1, 2))
    assert one.data.unasked is not None
    whole = make_batch(0, one.data.unasked.pixels, (SIDE, SIDE), 16, Augment(), 0, asked=False)
    halves = [
        replace(whole, rows=whole.rows[at], views=whole.views[at], pixels=whole.pixels[at])
        for at in (slice(8), slice(8, 16))
    ]
    for ours, theirs in zip(gradients(one, [whole]), gradients(two, halves), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    features = one._features(whole.pixels).detach()
    before = one._loss(features, together([whole]), (0, 0, 0))
    one.anchor, one.targets = 1e3, one.targets * 0
    assert torch.equal(before, one._loss(features, together([whole]), (0, 0, 0)))
    one.unasked = one.unasked.flip(0)
    assert not torch.equal(before, one._loss(features, together([whole]), (0, 0, 0)))


def test_a_loss_of_an_image_nobody_was_asked_about_that_is_not_finite_names_it(tmp_path: Path) -> None:
    one = trainer(tmp_path, 8, 1, unasked=8, share=0.5)
    one.unasked[:] = float("nan")
    assert one.data.unasked is not None
    batch = make_batch(0, one.data.unasked.pixels, (SIDE, SIDE), 8, Augment(), 0, asked=False)
    with pytest.raises(DistillError, match="images other, other"):
        one._step(iter([batch]))

"""Steps of several batches: the same as one of all their images, lists and mixes among them."""

import copy
import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import drawn
from numpy.typing import NDArray
from torch import Tensor, nn

from distilltool import gradcache, memory
from distilltool.augment import Augment, Batch, make_batch, together
from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.gradcache import GradientCache
from distilltool.progress import Silent
from distilltool.recipe import Recipe, load
from distilltool.rundir import RunDir
from distilltool.student import Student
from distilltool.students import Backbone
from distilltool.tracking import RunLog
from distilltool.train import AHEAD, Data, Unanswered, _Trainer

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
    network: Callable[[], nn.Module] = Tiny,
) -> _Trainer:
    """A trainer of a student by a recipe. unasked: images that nobody was asked about; reference: (COUNT, V, DIM) what
    the untrained student makes of larger views."""
    torch.manual_seed(0)
    student = Student(
        Backbone(module=network(), width=DIM, mean=(0.5,) * 3, std=(0.5,) * 3, start="made"), 0, bias=False
    )
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


class Folded(nn.Module):
    """Convolutions, as a network has them; where asked for, batch normalisation or features left out by chance."""

    def __init__(self, *, normed: bool = False, dropped: float = 0.0) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(16) if normed else nn.Dropout(dropped)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(16, DIM, 3, stride=2))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        made: Tensor = self.layers(images_NCHW).mean(dim=(2, 3))
        return made


def convolutional(*, normed: bool = False) -> Student:
    torch.manual_seed(0)
    backbone = Backbone(module=Folded(normed=normed), width=DIM, mean=(0.5,) * 3, std=(0.5,) * 3, start="made")
    return Student(backbone, 0, bias=False).train()


HELD = SIDE * SIDE * 4 * (3 + 2 * 16)  # an image's: the pixels, what is normalised, and what the second layer reads
ALL = 1000  # tensors that a pass makes for the gradient, and more


@pytest.mark.parametrize("forgets", [(ALL, ALL, 0), (ALL, 0, 0), (0, 0, 0), (2, 1, 0), (0, 3, 1), (ALL, 4, 2)])
def test_what_is_forgotten_of_first_passes_is_made_again(tmp_path: Path, forgets: tuple[int, ...]) -> None:
    """The gradient is that of one batch, however much is kept, and to the last bit the same for anything that is; only
    what is forgotten is made again, no further than it reaches."""
    whole, thirds = in_thirds()
    one, three, all_twice = (
        trainer(tmp_path / name, COUNT // n, n, network=Folded) for name, n in (("a", 1), ("b", 3), ("c", 3))
    )
    three.cache, all_twice.cache = (GradientCache(part=8, forgets=which) for which in (forgets, (ALL,) * 3))
    features, begun, ended = three._features, list[tuple[int, Tensor]](), list[int]()

    def counted(pixels_NCHW: Tensor, part: int) -> Tensor:
        begun.append((part, pixels_NCHW))
        made = features(pixels_NCHW, part)
        ended.append(part)
        return made

    three._features = counted  # type: ignore[method-assign]
    found = gradients(three, thirds)
    for ours, theirs in zip(found, gradients(one, [whole]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 1e-4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, gradients(all_twice, thirds), strict=True))
    assert [part for part, _ in begun] == [0, 1, 2, *(part for part in (2, 1, 0) if forgets[part])]
    assert all(torch.equal(pixels, thirds[part].pixels) for part, pixels in begun)
    assert ended == [0, 1, 2]


@pytest.mark.parametrize("forgets", [(1, 2, 3), (ALL, 4, 1), (5, ALL, ALL)])
def test_no_more_is_held_than_is_kept(forgets: tuple[int, ...]) -> None:
    """What lies in memory when the loss is known is what was planned; nothing is left when the gradient is."""
    student = convolutional()
    pixels = torch.rand(24, 3, SIDE, SIDE)
    planned = gradcache.held_by(student, made_by, pixels[:8])
    planned += [0] * ALL

    def alive() -> int:
        every = (one.untyped_storage() for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter))
        return sum({one.data_ptr(): one.nbytes() for one in every}.values())

    def loss(known_BF: Tensor) -> Tensor:
        held.append(alive() - before - 2 * known_BF.nbytes)
        return known_BF.square().sum()

    gc.collect()  # what other tests left
    before, held = alive(), list[int]()
    GradientCache(part=8, forgets=forgets).backward(lambda part, number: student.features(part), [pixels], loss)
    assert held == [sum(planned[count] for count in forgets)]
    gradient = sum(one.grad.nbytes for one in student.parameters() if one.grad is not None)
    assert alive() - before == gradient > 0


class Attending(nn.Module):
    """Attention with a bias that is learned, for which torch takes another way where it needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 2, stride=2)
        self.table = nn.Parameter(torch.randn(2, 71))  # of relative positions
        self.last = nn.Linear(32, DIM)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        tokens = self.stem(images_NCHW).flatten(2).transpose(1, 2).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        places = torch.arange(36)
        bias = self.table[:, places[:, None] - places + 35][None]
        seen = nn.functional.scaled_dot_product_attention(*tokens.contiguous(), attn_mask=bias)
        made: Tensor = self.last(seen.transpose(1, 2).flatten(2).mean(dim=1))
        return made


def test_kept_or_not_attention_is_the_same(tmp_path: Path) -> None:
    _, thirds = in_thirds()
    one, pixels = trainer(tmp_path, 8, 3, network=Attending), thirds[0].pixels
    with torch.no_grad():
        differs = one._features(pixels, 0)
    assert not torch.equal(one._features(pixels, 0), differs)  # or this shows nothing
    found = list[list[Tensor]]()
    for forgets in ((ALL, ALL, ALL), (ALL, 3, 0), (0, 0, 0)):
        one = trainer(tmp_path / str(forgets), 8, 3, network=Attending)
        one.cache = GradientCache(part=8, forgets=forgets)
        found.append(gradients(one, thirds))
    for every in zip(*found, strict=True):
        assert all(torch.equal(ours, every[0]) for ours in every) and every[0].abs().max() > 1e-5


def test_as_much_is_kept_as_the_recipe_has_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first step is to make is counted, batches ahead, and one more pass; in a step that goes on the first is
    there already."""
    _, thirds = in_thirds()
    for spare, whole in ((1.1, 1), (1.8, 1), (2.1, 2), (3.1, 3)):
        one = trainer(tmp_path / str(spare), 8, 3, network=Folded, changes=["schedule.memory=3"])
        held = gradcache.held_by(one.student, one._made_by, torch.zeros(8, 3, SIDE, SIDE))
        weights = sum(4 * parameter.numel() for parameter in one.student.parameters())
        assert one._to_come() == 3 * weights > 0.15 * held[0]
        used = 3e9 - (1 + spare) * held[0] - one._to_come() - AHEAD * thirds[0].pixels.nbytes
        monkeypatch.setattr(memory, "in_use", lambda field, used=used: used)
        gradients(one, thirds)
        assert one.cache is not None and one.cache.forgets.count(0) == whole
        every = [held[count] for count in one.cache.forgets]
        assert sum(every) <= max(spare, 1) * held[0] and one.cache.kept == pytest.approx(sum(every) / (3 * held[0]))
        assert sum(every) > (spare - 1) * held[0]  # nothing between is left out
        assert one._to_come() == 0


def test_batch_normalisation_counts_every_image_once(tmp_path: Path) -> None:
    """Its averages, too, are the same however many passes are kept."""
    _, thirds = in_thirds()
    found = list[dict[str, Tensor]]()
    for forgets in ((ALL, ALL, ALL), (ALL, 5, 2), (ALL, ALL, 0), (0, 0, 0)):
        one = trainer(tmp_path / str(forgets), 8, 3, network=partial(Folded, normed=True))
        one.student.train()
        one.cache = replace(gradcache.planned(one.student, one._made_by, (SIDE, SIDE), 8, 3, 0), forgets=forgets)
        gradients(one, thirds)
        found.append(one.student.state_dict())
    assert found[0]["backbone.layers.1.num_batches_tracked"] == 3
    assert found[0]["backbone.layers.1.running_mean"].abs().max() > 1e-3
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)
    assert one.cache.norms[0].track_running_stats


def test_chance_is_the_same_again(tmp_path: Path) -> None:
    """What a network leaves out of a part is left out of its second pass too, and after a stop; of every part and in
    every step it is something else."""
    _, thirds = in_thirds()
    found = list[list[list[Tensor]]]()
    for forgets in ((ALL, 4, 3), (0, 0, 0)):
        one = trainer(tmp_path / str(forgets), 8, 3, network=partial(Folded, dropped=0.5))
        one.student.train()
        one.cache = GradientCache(part=8, forgets=forgets)
        torch.manual_seed(forgets[1])
        found.append([gradients(one, thirds), gradients(one, thirds)])
        same = thirds[0].pixels
        first, other, again = (one._features(same, part) for part in (0, 1, 0))
        assert torch.equal(first, again) and not torch.equal(first, other)
        one.state.step += 1
        assert not torch.equal(first, one._features(same, 0))
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def made_by(student: Student, pixels_NCHW: Tensor) -> Tensor:
    return student.features(pixels_NCHW)


def test_what_a_pass_holds_is_measured() -> None:
    """Weights are left out; nothing of the student changes, no random number is drawn."""
    student = convolutional(normed=True)
    student.backbone = nn.Sequential(student.backbone, nn.Dropout(0.5))
    before, drawn_before = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    held = [gradcache.held_by(student, made_by, torch.zeros(count, 3, SIDE, SIDE)) for count in (4, 8)]
    per_image = (held[1][0] - held[0][0]) / 4
    assert per_image == pytest.approx(HELD, rel=0.01)
    assert held[0][-1] == 0 and sorted(held[0], reverse=True) == held[0]
    assert len(held[0]) == len(held[1]) > 4
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert all(torch.equal(one, before[name]) for name, one in student.state_dict().items())


@pytest.mark.parametrize(
    ("normed", "batch", "size", "part"),
    [(False, 64, SIDE, 64), (False, 64, 128, 32), (False, 16, 128, 16), (True, 64, 128, 64)],
)
def test_parts_are_as_large_as_is_fast(
    monkeypatch: pytest.MonkeyPatch, normed: bool, batch: int, size: int, part: int
) -> None:
    """Larger where passes hold little, smaller where there is no room for one; whole batches where normalisation looks
    at them. The last pass is always kept, what others are to forget is shared."""
    student = convolutional(normed=normed)
    left = gradcache.held_by(student, made_by, torch.zeros(part, 3, size, size))
    monkeypatch.setattr(gradcache, "PASS", 64 * SIDE * SIDE * 4 * 80)
    others = 3 * batch // part - 1
    for room in (2.01 + others, 1.9 + others, 2.0 + others / 2, 2.01):  # one more comes and goes
        monkeypatch.setattr(memory, "in_use", lambda field, room=room: 5e9 - room * left[0])
        found = gradcache.planned(student, made_by, (size, size), batch, 3, 5e9)
        kept = [left[count] for count in found.forgets]
        assert (found.part, len(kept), bool(found.norms)) == (part, others + 1, normed)
        assert kept[-1] == left[0] and sum(kept[:-1]) <= (room - 2) * left[0]
        assert (sum(kept[:-1]) == others * left[0]) == (room == 2.01 + others)
        spare, last = (room - 2) * left[0] - sum(kept[:-1]), found.forgets[-2]
        assert last == 0 or left[last - 1] - left[last] > spare  # no other tensor of this one could be kept
    for room, smaller in ((1.9, 2), (0.9, 4), (-1.0, 100)):
        monkeypatch.setattr(memory, "in_use", lambda field, room=room: 5e9 - room * left[0])
        found = gradcache.planned(student, made_by, (size, size), batch, 3, 5e9)
        assert found.part == (part if normed else max(8, part // smaller))
        assert len(found.forgets) == 3 * batch // found.part and found.forgets[-1] == 0


def test_smaller_parts_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that every pass holds as bfloat16 do not halve with its images."""
    student = convolutional()

    def halved(student: Student, pixels_NCHW: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return student.features(pixels_NCHW)

    whole, half, quarter = (
        gradcache.held_by(student, halved, torch.zeros(count, 3, SIDE, SIDE))[0] for count in (32, 16, 8)
    )
    assert 2 * half > whole
    monkeypatch.setattr(gradcache, "PASS", 0)
    for most, part in ((2 * whole, 32), (2 * half, 16), (2 * half - 1, 8), (2 * quarter, 8)):
        monkeypatch.setattr(memory, "in_use", lambda field: 0)
        assert gradcache.planned(student, halved, (SIDE, SIDE), 32, 3, most).part == part


def test_a_compiled_network_forgets_and_makes_again(tmp_path: Path) -> None:
    """TorchScript raises an error of its own where one passes through it."""
    _, thirds = in_thirds()
    found = list[list[Tensor]]()
    for forgets in ((0, 0, 0), (2, 3, 1)):
        one = trainer(tmp_path / str(forgets), 8, 3, network=lambda: torch.jit.script(Folded()))
        one.cache = GradientCache(part=8, forgets=forgets)
        found.append(gradients(one, thirds))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_an_error_in_a_pass_that_is_made_again_is_told() -> None:
    student, passes = convolutional(), list[int]()

    def failing(pixels_NCHW: Tensor, part: int) -> Tensor:
        passes.append(part)
        if len(passes) > 2:
            raise RuntimeError("out of memory")
        return student.features(pixels_NCHW)

    with pytest.raises(RuntimeError, match="out of memory"):
        GradientCache(part=8, forgets=(2, 2)).backward(failing, [torch.rand(16, 3, SIDE, SIDE)], torch.sum)
    assert passes == [0, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_was_freed_is_given_back() -> None:
    """Small pieces, which the C library keeps, with one behind them that is still used."""
    code = (
        "from distilltool import memory\n"
        "pieces = [bytes(50_000) for _ in range(2000)]\n"
        "last = bytes(50_000)\n"
        "del pieces\n"
        "before = memory.in_use('VmRSS')\n"
        "memory.give_back()\n"
        "print(before - memory.in_use('VmRSS'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50e6


FREED = """
import resource
import sys
from contextlib import nullcontext
import numpy as np
from distilltool import memory

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with memory.freed_kept() if sys.argv[1] == "kept" else nullcontext():
    np.ones(10_000_000)
    before = faults()
    for _ in range(4):
        np.ones(10_000_000)
    print(faults() - before, memory.in_use("VmRSS"))
print(memory.in_use("VmRSS"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_freed_arrays_stay_for_the_next_ones() -> None:
    """Pages that are used again are not fetched from the system a second time; in the end they are given back."""
    kept, not_kept = (
        [*map(int, subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, check=True).stdout.split())]
        for how in ("kept", "as usual")
    )
    assert kept[0] < 2000 and kept[0] < 0.2 * not_kept[0]
    assert kept[1] - kept[2] > 60e6 and abs(kept[2] - not_kept[2]) < 30e6


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
    features = one._features(whole.pixels, 0).detach()
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


def test_images_trained_on_are_compared_in_galleries_as_large_as_that_of_the_held_out(tmp_path: Path) -> None:
    """Of vectors that know nothing of each other 10 of 23 others are shared by chance, and 10 of 95."""
    one = trainer(tmp_path, COUNT, 1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (96, SIDE, SIDE, 3), np.uint8)
    one.targets = unit(rng.normal(size=(96, DIM)).astype(np.float32))
    one.data = replace(one.data, pixels=pixels, targets=one.targets, held_targets=one.targets)
    among_all = one._seen(one.student)
    one.data = replace(one.data, held_targets=one.targets[:24])
    assert among_all < 0.2 and 0.35 < one._seen(one.student) < 0.55

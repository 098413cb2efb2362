"""Several runs from one pretrained start: how long each is, what is averaged, and that a stop changes nothing."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_accumulate import trainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from distilltool.augment import Batch
from distilltool.errors import DistillError, Interrupted
from distilltool.scores import Scores
from distilltool.soup import Soup
from distilltool.train import _proven, _ramped, _schedule, _Trainer
from distilltool.weights import read_weights, save_weights, weights_of

STEPS = 4
PATIENT = "schedule.patience=1000"


def souped(
    folder: Path, *, total: int = 60, steps: int = STEPS, finetune: bool = True, looks: int = 20, parts: int = 1
) -> _Trainer:
    """A trainer whose shortest run has so many steps, in a folder of its own."""
    changes = (f"soup.steps={steps}", "soup.passes=0", f"schedule.evaluations={looks}", PATIENT)
    one = trainer(folder, 8, parts, finetune=finetune, changes=changes)
    one.state.total = total
    return one


def begun(one: _Trainer) -> _Trainer:
    """Where `run` has come to before its first step."""
    one.log.begin(-1)
    save_weights(one.rundir.start, one.student)
    one.scales.copy_(torch.ones(len(one.scales)))
    one.state.judged_by = one._evaluate(one.student).divergence.tolist()
    one.student.train()
    return one


def scores(divergence: float, seed: int = 0) -> Scores:
    each = divergence + np.random.default_rng(seed).uniform(-0.01, 0.01, 20)
    return Scores(overlap=np.full(20, 0.5), spearman=np.full(20, 0.5), divergence=each)


def test_weights_count_by_their_steps() -> None:
    """Against the weighted mean; counters are those of the last."""
    rng = np.random.default_rng(0)
    each = [{"w": torch.tensor(rng.normal(size=5)), "seen": torch.tensor(number)} for number in range(3)]
    counts = (10, 30, 5)
    soup, before = Soup(each[0]), 0
    for weights, steps in zip(each[:2], counts[:2], strict=True):
        soup.pour(weights, steps, before)
        before += steps
    found = soup.including(each[2], counts[2], before)
    wanted = sum(steps * one["w"] for one, steps in zip(each, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(found["w"], wanted)
    assert found["seen"] == 2 and set(soup.mean) == {"w"}


def test_nothing_poured_yet_is_what_is_there() -> None:
    weights = {"w": torch.arange(3.0)}
    assert torch.equal(Soup(weights).including(weights, 7, 0)["w"], weights["w"])


@pytest.mark.parametrize(
    ("gains", "lap", "decide_at"),
    [
        ([0.0], STEPS, STEPS),
        ([0.3, 0.0], STEPS, 2 * STEPS),
        ([0.3, 0.3, 0.0], 2 * STEPS, 4 * STEPS),
        ([0.3, -0.1], STEPS, 2 * STEPS),
        ([0.3, 0.3, 0.3], 0, 8 * STEPS),
    ],
)
def test_the_first_run_goes_on_as_long_as_held_out_images_gain_beyond_doubt(
    tmp_path: Path, gains: list[float], lap: int, decide_at: int
) -> None:
    """Then all others are as long as it last gained, and no shorter than the shortest."""
    one, now = souped(tmp_path), 2.0
    one.state.judged_by = scores(now).divergence.tolist()
    for gain in gains:
        assert not one.state.lap
        now -= gain
        one._judge(scores(now))
    assert (one.state.lap, one.state.decide_at) == (lap, decide_at)


@pytest.mark.parametrize(("left", "ends"), [(40, 4), (41, 4), (5, 5), (6, 3), (7, 3), (1, 1)])
def test_what_is_left_is_shared_out_evenly(tmp_path: Path, left: int, ends: int) -> None:
    one = begun(souped(tmp_path, total=100 + left))
    one._step(one._batches())
    one.state.lap, one.state.step = STEPS, 100
    one._begin_again()
    assert one._until() == 100 + ends


@pytest.mark.parametrize("total", [124, 131, 133, 138, 150])
def test_a_new_forecast_does_not_change_how_many_runs_are_left(tmp_path: Path, total: int) -> None:
    """Five runs of eight when one began: each a little longer or shorter, none cut off or doubled."""
    one = begun(souped(tmp_path, total=140, steps=8))
    one._step(one._batches())
    one.state.lap, one.state.step = 8, 100
    one._begin_again()
    one.state.total = total
    assert one._until() == 100 + (total - 100) // 5


@pytest.mark.parametrize(("total", "through"), [(4, False), (5, False), (6, True), (8, True)])
def test_a_run_goes_on_to_the_end_where_little_is_left(tmp_path: Path, total: int, through: bool) -> None:
    one = souped(tmp_path, total=total)
    one.state.step = 4
    assert one._through() is through and one._until() == 4


def test_each_run_begins_at_the_start_and_ends_slowly(tmp_path: Path) -> None:
    """A run whose end is not known learns as one that goes on for long, or to the end of all steps."""
    one = begun(souped(tmp_path, total=60))
    one.state.judged_by = scores(0).divergence.tolist()  # no step gains anything
    rates, batches = list[float](), one._batches()
    while one.state.step < 12:
        rates.append(one._rate() / one.lr)
        one._step(batches)
        if one.state.step >= one._until():
            if not one.state.lap:
                one._judge(scores(0))
            one._begin_again()
            start = read_weights(one.rundir.start)
            assert all(torch.equal(start[name], tensor) for name, tensor in weights_of(one.student).items())
    assert one.state.runs == 3 and one.state.begun == 12
    assert rates[:4] == pytest.approx([_schedule(step, 16, 0.05) for step in range(4)])
    assert rates[4:] == pytest.approx([_schedule(step, 4, 0.05) for step in range(4)] * 2)
    short = souped(tmp_path / "short", total=6)
    assert short._rate() / short.lr == pytest.approx(_schedule(0, 6, 0.05))


def test_what_is_judged_and_kept_is_the_average_of_all_runs(tmp_path: Path) -> None:
    """Of three runs of four steps and one of two that is under way, by their steps."""
    one = begun(souped(tmp_path))
    one.state.lap = STEPS
    batches, each = one._batches(), list[dict[str, Tensor]]()
    for number in range(14):
        one._step(batches)
        if number in (3, 7, 11):
            each.append(weights_of(one.average.module))  # type: ignore[arg-type]
            one._begin_again()
    each.append(weights_of(one.average.module))  # type: ignore[arg-type]
    found = weights_of(one._reached())
    for name in found:
        wanted = sum(steps * weights[name] for steps, weights in zip((4, 4, 4, 2), each, strict=True)) / 14
        torch.testing.assert_close(found[name], wanted)
        assert not torch.equal(each[0][name], each[1][name])


def test_a_start_from_nothing_and_a_recipe_without_it_make_one_run(tmp_path: Path) -> None:
    for number, one in enumerate((souped(tmp_path / "a", finetune=False), souped(tmp_path / "b", steps=0))):
        assert one.soup is None and one._until() == 60, number
        assert one._reached() is one.average.module


def test_the_shortest_run_lasts_for_some_passes(tmp_path: Path) -> None:
    long = trainer(tmp_path, 8, 1, changes=("soup.steps=2", "soup.passes=2.5"))
    assert long.shortest == 8  # 24 images in batches of 8


def test_images_nobody_was_asked_about_teach_in_one_run(tmp_path: Path) -> None:
    """They come after many passes over the others, which no short run makes."""
    assert trainer(tmp_path, 8, 1, unasked=8, share=0.5, changes=("soup.steps=2",)).soup is None


def test_statistics_of_batches_begin_again_and_are_averaged_too(tmp_path: Path) -> None:
    """What batch normalisation has seen goes back to the start's, and its mean is that of all runs."""
    one = souped(tmp_path)
    one.student.backbone.append_norm = torch.nn.BatchNorm1d(3)
    one.average = AveragedModel(one.student, multi_avg_fn=_ramped(0.99), use_buffers=True)
    one.soup = Soup(weights_of(one.student))
    begun(one)
    one.state.lap, one.state.step = STEPS, STEPS
    name = next(name for name in one.student.state_dict() if name.endswith("append_norm.running_mean"))
    for value in (1.0, 3.0):
        one.student.state_dict()[name].fill_(value)
        one.average.update_parameters(one.student)
        if value == 1.0:
            one._begin_again()
            assert (one.student.state_dict()[name] == 0).all()
            one.state.step += STEPS
    assert weights_of(one._reached())[name].tolist() == pytest.approx([2.0] * 3)


def test_a_time_budget_is_kept_to_in_several_runs(tmp_path: Path) -> None:
    """The steps that fit are not known when the first run begins, and are forecast again at each look."""
    one = souped(tmp_path, total=1 << 30, steps=5)
    one.seconds, one.clock = 3.0, time.perf_counter()
    found = one.run()
    assert one.state.fitted and found.runs > 2 and one.state.step < 1 << 20
    assert one.state.seconds < 4.5  # the last step and look may be slow
    lines = [json.loads(line) for line in one.rundir.log.read_text().splitlines()]
    rates = np.array([line["lr"] for line in lines if "lr" in line]) / one.lr
    assert len(rates) == one.state.step and (rates >= 0).all() and rates.max() == pytest.approx(1)
    assert 0 < rates[0] and rates[0] > 0.2  # the first steps, which are timed, teach


@pytest.mark.parametrize(
    ("stop", "looks"), [(3, 20), (4, 20), (5, 20), (9, 20), (12, 20), (3, 2), (7, 2), (8, 2), (13, 2)]
)
def test_a_stop_changes_nothing(tmp_path: Path, stop: int, looks: int) -> None:
    """Before, at and after the end of a run, at a look and between two: the same weights bit for bit."""

    def ended(one: _Trainer) -> dict[str, Tensor]:
        assert one.run().runs == one.state.runs + 1 > 2
        return weights_of(one.student)

    whole = ended(souped(tmp_path / "whole", total=20, looks=looks))
    stopped = souped(tmp_path / "stopped", total=20, looks=looks)
    step = stopped._step

    def until_asked_to_stop(batches: Iterator[Batch]) -> None:
        step(batches)
        if stopped.state.step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    stopped._step = until_asked_to_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.run()
    found = ended(souped(tmp_path / "stopped", total=20, looks=looks))
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_what_an_earlier_version_began_is_not_gone_on_with(tmp_path: Path) -> None:
    one = begun(souped(tmp_path))
    one._save_checkpoint()
    with safe_open(one.rundir.checkpoint, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    del state["shares"]
    tensors = read_weights(one.rundir.checkpoint)
    save_file(tensors, one.rundir.checkpoint, metadata={"state": json.dumps(state)})
    with pytest.raises(DistillError, match="made by another version"):
        souped(tmp_path).run()


@pytest.mark.parametrize(("gain", "errors", "is_nearer"), [(0.02, 2, True), (0.02, 6, False), (-0.02, 2, False)])
def test_nearer_is_less_divergence_beyond_so_many_standard_errors(gain: float, errors: float, is_nearer: bool) -> None:
    """A gain of 0.02 with a standard error of 0.02 / 5."""
    apart = np.tile((-1.0, 1.0), 50) * 0.04
    first = Scores(overlap=np.zeros(100), spearman=np.zeros(100), divergence=np.ones(100))
    last = Scores(overlap=np.zeros(100), spearman=np.zeros(100), divergence=1 - gain + apart)
    assert last.nearer(first, errors) is is_nearer


@pytest.mark.parametrize(
    ("none", "quarter", "more", "chosen"),
    [
        (0.90, 0.95, 1.05, 0.0),  # each step gains 0.05, some thirty standard errors
        (0.949, 0.95, 1.05, 0.25),  # the second gains nothing that can be told from chance
        (0.90, 0.999, 1.05, 0.5),  # nor does the first, whatever lies beyond it
        (1.10, 1.05, 0.95, 0.75),
        (1.10, 1.05, 1.0, 0.5),
    ],
)
def test_each_step_away_from_half_of_the_start_is_proved(
    none: float, quarter: float, more: float, chosen: float
) -> None:
    """Divergences of held-out images with none, a quarter, half (1) and three quarters of the start's weights."""
    values = {0.0: none, 0.25: quarter, 0.5: 1.0, 0.75: more}
    found = {share: scores(value, seed) for seed, (share, value) in enumerate(values.items())}
    assert _proven(found) == chosen


@pytest.mark.parametrize(("gain", "chosen"), [(0.02, 0.25), (0.04, 0.0)])
def test_nothing_of_the_start_is_left_only_where_the_typical_image_gains(gain: float, chosen: float) -> None:
    """Of 1,000 images whose gains differ by 0.1, both means are beyond six standard errors: 0.2 and 0.4 deviations."""
    apart = np.random.default_rng(0).permuted(np.linspace(-1, 1, 1000)) * 0.1 * np.sqrt(3)
    values = {0.0: 0.9 - gain - apart, 0.25: np.full(1000, 0.9), 0.5: np.ones(1000), 0.75: np.full(1000, 1.1)}
    same = np.full(1000, 0.5)
    found = {share: Scores(overlap=same, spearman=same, divergence=each) for share, each in values.items()}
    assert found[0.0].nearer(found[0.25], 6) and _proven(found) == chosen


@pytest.mark.parametrize(("finetune", "kept"), [(True, 9), (False, 0)])
def test_before_giving_up_other_shares_of_the_start_are_tried(
    tmp_path: Path, finetune: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no look was nearer than a pretrained start and half of it ranks worse; from nothing the start is kept."""
    one = souped(tmp_path, finetune=finetune)
    first = scores(1.0)
    save_weights(one.rundir.start, one.student)
    save_weights(one.rundir.best, one.student)
    one.state.step, one.state.best_step = 9, 0
    less = Scores(overlap=first.overlap - 0.1, spearman=first.spearman, divergence=first.divergence)
    monkeypatch.setattr(one, "_shipped", lambda weights: less)
    assert one._settle(one.student, first) == kept

"""The training loop: mixing, losses, schedule, checkpoints, and held-out fidelity that decides."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from distilltool import gradcache, images, memory, metrics
from distilltool.aim import Aim
from distilltool.augment import Batch, Shown, embed_plain, make_batch, single_threaded, taken, together
from distilltool.checkpoint import Parts, State, load_checkpoint, save_checkpoint
from distilltool.embedder import unit
from distilltool.errors import DistillError, Interrupted
from distilltool.gradcache import GradientCache
from distilltool.interrupt import StopWish, stop_gently
from distilltool.mixing import Bank, mix
from distilltool.objective import sum_of_losses
from distilltool.progress import Progress
from distilltool.recipe import Recipe
from distilltool.report import Fidelity, Gain
from distilltool.rundir import RunDir, read_json, write_json
from distilltool.scores import Scores, as_fidelity, averaged, fidelity_scores, gain, worse
from distilltool.soup import Soup
from distilltool.student import Student, cut, embed
from distilltool.tracking import RunLog
from distilltool.weights import mixed, put, read_weights, save_weights, weights_of

AHEAD = 3  # batches that are made while a step goes on
TIMED = 8  # batches whose time decides how many steps fit into a time budget, after as many as SETTLE
SETTLE = 3
PACE = 24  # batches from whose time the rest is forecast again
SEEN = 200  # images trained on that are looked at to tell what limits a student, or as many as are held out
LEAST = 1e-3  # size of a tensor's weights below which steps get no smaller, as Adafactor has it
USUAL = 0.5  # the share of the start's weights that is taken where held-out images do not tell
SHARES = ((0.25, 0.0), (0.75,))  # others, tried at the end: from the usual one step by step to either side
CERTAIN = 2  # standard errors by which something else than the usual must be better
TYPICAL = 0.3  # standard deviations of single images' gains, for which nothing of the start is kept
EARLIER = 3  # by which earlier weights must be: the best of twenty looks is better by two by chance alone
FORESEEN = 4  # times the steps after which it is judged, for which the first run's learning rate is set


@dataclass(frozen=True, kw_only=True, slots=True)
class Unanswered:
    """Images that nobody was asked about. pixels: (M, S, S, 3) uint8 at caching size; vectors: (M, F) what the
    untrained student makes of them at a larger size, at length 1; hashes: SHA-256 of each file; share: of the steps
    that are about them."""

    pixels: NDArray[np.uint8]
    vectors: NDArray[np.float32]
    names: tuple[str, ...]
    hashes: tuple[bytes, ...]
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """pixels: (N, S, S, 3) uint8 of the training images at caching size; targets: (N, E) the teacher's vectors at
    length 1. held_pixels: (V, H, W, 3) at working size; held_targets: (V, E). keep: share of each side of the training
    images, the middle one, that the student looks at when it is used. reference: (N, V, F) what the untrained student
    makes of larger views of each, at length 1; centred: the student's features have their mean taken off. aim: where it
    puts an image, for a student in the teacher's space. unasked: images that teach without an answer."""

    pixels: NDArray[np.uint8]
    targets: NDArray[np.float32]
    held_pixels: NDArray[np.uint8]
    held_targets: NDArray[np.float32]
    names: tuple[str, ...]
    keep: float = 1.0
    reference: NDArray[np.float16] | None = None
    centred: bool = True
    aim: Aim | None = None
    unasked: Unanswered | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the student's images."""
        return self.held_pixels.shape[1], self.held_pixels.shape[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How training ended. kept_step: of the weights kept; start_share: of the start's weights in it; fidelity: of
    what is in the student now; nested: of their vectors cut to each length that was asked for; seen: overlap of the
    nearest with the teacher's among images trained on, before training and where it ended; unasked: steps about images
    that nobody was asked about; runs: from the start, whose weights are averaged; stopped: why there. gain: of what is
    in the student now over the undistilled; to_teacher: in the teacher's space, the undistilled and the distilled put
    to the teacher's own vectors."""

    state: State
    kept_step: int
    start_share: float
    fidelity: Fidelity
    undistilled: Fidelity
    k: int
    stopped: str
    nested: dict[int, Fidelity]
    seen: tuple[float, float]
    unasked: int
    runs: int
    gain: Gain
    to_teacher: tuple[Fidelity, Fidelity] | None = None


def train(
    student: Student,
    data: Data,
    recipe: Recipe,
    run: RunDir,
    *,
    finetune: bool,
    seconds: float | None,
    spent: float,
    log: RunLog,
    progress: Progress,
) -> Outcome:
    """Train; the weights at the end are kept, unless earlier or the undistilled ones ranked held-out images better
    beyond chance.

    finetune: the student's weights are pretrained, so the smaller learning rate is used. seconds: wall time for all
    of it, including what an interrupted attempt took; None follows `schedule.epochs`. spent: seconds of it that
    were gone before this call. log: told of each step and each look.
    Goes on from `run.checkpoint` where there is one. Raises Interrupted after Ctrl-C.
    """
    return _Trainer(student, data, recipe, run, finetune, seconds, spent, log, progress).run()


def batching(recipe: Recipe, images: int, finetune: bool) -> tuple[int, int]:
    """Images of a batch, and batches of a step: together no more than there are images."""
    batch = min(recipe.schedule.batch, images)
    return batch, max(1, min(recipe.schedule.batches_finetune, images // batch)) if finetune else 1


class _Trainer:
    def __init__(
        self,
        student: Student,
        data: Data,
        recipe: Recipe,
        run: RunDir,
        finetune: bool,
        seconds: float | None,
        spent: float,
        log: RunLog,
        progress: Progress,
    ) -> None:
        self.student, self.data, self.recipe, self.rundir = student, data, recipe, run
        self.seconds, self.log, self.progress = seconds, log, progress
        self.clock = time.perf_counter() - spent
        self.average = AveragedModel(student, multi_avg_fn=_ramped(recipe.optimiser.ema), use_buffers=True)
        self.finetune = finetune
        self.lr_name = "lr_finetune" if finetune else "lr"
        self.lr = recipe.optimiser.lr_finetune if finetune else recipe.optimiser.lr
        self.anchor = recipe.anchor_finetune if finetune else recipe.anchor
        self.optimiser = _relative(student) if finetune else _adamw(student, self.lr, recipe.optimiser.weight_decay)
        self.scales = torch.ones(len(self.optimiser.param_groups))
        self.device = next(student.parameters()).device
        self.half = recipe.optimiser.precision == "bfloat16"
        self.targets = torch.from_numpy(data.targets).to(self.device)
        if data.reference is not None:
            mean = torch.from_numpy(np.asarray(data.reference[:, 0], np.float32).mean(axis=0))
            self.reference_centre = mean if data.centred else torch.zeros_like(mean)
        self.loss = sum_of_losses(recipe, self.targets, data.aim.to(self.device) if data.aim is not None else None)
        if data.unasked is not None:
            self.unasked = torch.from_numpy(data.unasked.vectors).to(self.device)
        self.bank: Bank | None = None
        if recipe.mix.ratio and recipe.mix.partners == "bank":
            remembered = torch.zeros(len(data.targets), student.dim, device=self.device)
            self.bank = Bank(student=remembered, teacher=self.targets)
        self.batch, self.parts = batching(recipe, len(data.pixels), finetune)
        self.cache: GradientCache | None = None  # where a step takes several batches
        self.settle, self.timed, self.pace = (max(1, count // self.parts) for count in (SETTLE, TIMED, PACE))
        planned = max(1, recipe.schedule.epochs * math.ceil(len(data.pixels) / self.batch) // self.parts)
        self.shortest = self._shortest()
        self.soup = Soup(weights_of(student)) if self.shortest else None
        self.state = State(total=planned if seconds is None else 1 << 30, decide_at=self.shortest)
        self.k = metrics.reach(len(data.held_pixels))

    def _shortest(self) -> int:
        """Steps after which a pretrained student begins again from its start at the earliest; 0 for a single run.

        Images that nobody was asked about come after many passes over the others, which short runs do not make.
        """
        how = self.recipe.soup
        if not (self.finetune and how.steps) or self.data.unasked is not None:
            return 0
        return max(how.steps, math.ceil(how.passes * len(self.data.pixels) / (self.batch * self.parts)))

    def run(self) -> Outcome:
        if self.rundir.checkpoint.exists():
            self.state = load_checkpoint(self.rundir.checkpoint, self._parts())
            self.clock -= self.state.seconds
            self.log.begin(self.state.step)
            self.progress.note(f"going on from step {self.state.step} of {self._planned()}")
        else:
            self.log.begin(-1)
            self.state.judged_by = self._evaluate(self.student).divergence.tolist()
            save_weights(self.rundir.start, self.student)
            if self.finetune:
                self.scales.copy_(sizes(self.student))
            if self.bank is not None:
                seen = embed_plain(self.student, self.data.pixels, self.data.size, self.data.keep)
                self.bank.student.copy_(torch.from_numpy(seen))
        self.student.train()
        self.progress.begin("training", self._planned(), "steps", self.state.step)
        memory.give_back()
        with stop_gently() as wish:
            stopped = self._steps(wish)
        self.progress.end()
        return self._outcome(stopped)

    def _planned(self) -> int:
        """Steps in all, or the few that are timed first."""
        return self.state.total if self.seconds is None or self.state.fitted else self.settle + self.timed

    def _steps(self, wish: StopWish) -> str:
        batches = self._batches()
        timed: list[float] = []
        while self.state.step < self.state.total:
            if self.state.stale >= self.recipe.schedule.patience and self.state.step > self.state.total // 2:
                return f"no better for {self.state.stale} evaluations"
            began = time.perf_counter()
            self._step(batches)
            timed.append(time.perf_counter() - began)
            if self.seconds is not None and not self.state.fitted and len(timed) == self.settle + self.timed:
                self.state.total = self._steps_that_fit(float(np.median(timed[self.settle :])))
                self.state.fitted, self.state.look = True, 0
                self.progress.expect(self.state.total)
            self.state.seconds = time.perf_counter() - self.clock
            out_of_time = self.seconds is not None and self.state.seconds > self.seconds
            last = self.state.step == self.state.total or out_of_time
            through = not last and self._through()
            looked = last or (through and not self.state.lap) or self.state.step >= self._next_look()
            if looked:
                found = self._evaluate(self._reached())
                self.student.train()
                self.state.look = 0
                if self.state.fitted and not last:  # a machine that others use too changes its pace
                    self.state.total = self._steps_that_fit(float(np.median(timed[-self.pace :])))
                    self.progress.expect(self.state.total)
                if through and not self.state.lap:
                    self._judge(found)
                    through = bool(self.state.lap)
            if through:
                self._begin_again()
            if wish.wanted or looked:
                self.log.tell()
                self._save_checkpoint()
            if wish.wanted:
                raise Interrupted(
                    f"step {self.state.step} is kept in {self.rundir.root}; the same command goes on from there"
                )
            if out_of_time:
                return "the time budget is spent"
        return "all steps are done"

    def _until(self) -> int:
        """The step with which the run from the start that is under way ends; of the first, at which it is judged."""
        if self.soup is None:
            return self.state.total
        if not self.state.lap:
            return self.state.decide_at
        return self.state.begun + max(1, (self.state.total - self.state.begun) // self.state.shares)

    def _through(self) -> bool:
        """Whether the run that is under way is to end here; where little is left it goes on to the end of all steps."""
        if self.soup is None or self.state.step < self._until():
            return False
        return 2 * (self.state.total - self.state.step) >= (self.state.lap or self.shortest)

    def _rate(self) -> float:
        """The learning rate of the step that comes: of a run whose end is not known, as if it went on for long."""
        begun, end = self.state.begun, self._until()
        if self.soup is not None and not self.state.lap:
            end = min(self.state.total, FORESEEN * end)
        return self.lr * _schedule(self.state.step - begun, end - begun, self.recipe.schedule.warmup)

    def _judge(self, found: Scores) -> None:
        """Let the first run go on, to twice its steps, as long as held-out images gain beyond doubt; or settle the
        length of the others.

        Where they do not, further steps lead away from what the start knew of unlike images for nothing that is seen.
        """
        if metrics.ahead(np.array(self.state.judged_by), found.divergence, CERTAIN):
            self.state.judged_by = found.divergence.tolist()
            self.state.decide_at *= 2
        else:
            self.state.lap = max(self.shortest, self.state.decide_at // 2)

    def _begin_again(self) -> None:
        """Keep what the run that is through has learned, and start another."""
        assert self.soup is not None
        trained = weights_of(cast(Student, self.average.module))
        self.soup.pour(trained, self.state.step - self.state.begun, self.state.begun)
        put(self.student, read_weights(self.rundir.start))
        self.optimiser.state.clear()
        self.average.n_averaged.zero_()
        self.state.begun, self.state.runs = self.state.step, self.state.runs + 1
        self.state.shares = max(1, round((self.state.total - self.state.begun) / self.state.lap))

    def _reached(self) -> Student:
        """The student as it stands: its averaged weights, and with them those of the runs before."""
        now = cast(Student, self.average.module)
        if self.soup is None or not self.state.runs:
            return now
        souped = copy.deepcopy(now)
        put(souped, self.soup.including(weights_of(now), self.state.step - self.state.begun, self.state.begun))
        return souped

    def _next_look(self) -> int:
        """The step after which fidelity is looked at; settled when the one before has been."""
        if not self.state.look:
            every = max(1, self.state.total // self.recipe.schedule.evaluations)
            self.state.look = (max(self.state.step - 1, 0) // every + 1) * every
        return self.state.look

    def _step(self, batches: Iterator[Batch]) -> None:
        began, step = time.perf_counter(), self.state.step
        now = self._rate()
        for group, scale in zip(self.optimiser.param_groups, self.scales.tolist(), strict=True):
            group["lr"] = now * scale
        self.optimiser.zero_grad(set_to_none=True)
        several = [next(batches) for _ in range(self.parts)]
        shown = together(several)
        loss = self._backward(several, shown, (self.recipe.seed, 3, step))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", shown)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.optimiser.clip)
        if not torch.isfinite(norm):
            raise self._diverged("the gradient is not finite", shown)
        self.optimiser.step()
        self.average.update_parameters(self.student)
        self.state.step += 1
        self.progress.advance(1, f"loss {loss:.3f}, least divergence {self.state.best_score:.3f}")
        seconds = round(time.perf_counter() - began, 5)
        self.log.write({"step": self.state.step, "loss": round(loss, 6), "lr": now, "seconds": seconds})

    def _diverged(self, what: str, shown: Shown) -> DistillError:
        known = self.data.names if shown.asked or self.data.unasked is None else self.data.unasked.names
        names = [known[row] for row in shown.rows]
        self.log.write({"step": self.state.step, "diverged": what, "images": names})
        more = f" and {len(names) - 3} more, all in {self.rundir.log}" if len(names) > 3 else ""
        return DistillError(
            f"{what} at step {self.state.step} (images {', '.join(names[:3])}{more})",
            f"lower the learning rate: --restart --set optimiser.{self.lr_name}={self.lr / 10:.0e}",
        )

    def _backward(self, several: Sequence[Batch], shown: Shown, seed: tuple[int, int, int]) -> float:
        """Gradients of the loss over the images of several batches, the list that is shown; returns the loss."""
        if len(several) == 1:
            loss = self._loss(self._features(several[0].pixels, 0), shown, seed)
            if torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()
        if self.cache is None:
            most = 1e9 * self.recipe.schedule.memory - self._to_come() - AHEAD * several[0].pixels.nbytes
            self.cache = gradcache.planned(self.student, self._made_by, self.data.size, self.batch, len(several), most)
        pixels = [one.pixels for one in several]
        return self.cache.backward(self._features, pixels, lambda known_BF: self._loss(known_BF, shown, seed))

    def _to_come(self) -> int:
        """Bytes of gradients and the optimiser's two moments that the first step is to make."""
        every = list(self.student.parameters())
        gradients = sum(one.nbytes for one in every if one.grad is None)
        return gradients + 2 * sum(one.nbytes for one in every if one not in self.optimiser.state)

    def _features(self, pixels_NCHW: Tensor, part: int) -> Tensor:
        """Of a part of the step, whose number seeds what a network leaves to chance, as stochastic depth is."""
        known = (self.recipe.seed, 13, self.state.step, part)
        torch.manual_seed(int(np.random.SeedSequence(known).generate_state(1)[0]))
        return self._made_by(self.student, pixels_NCHW)

    def _made_by(self, student: Student, pixels_NCHW: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return student.features(pixels_NCHW.to(self.device))

    def _loss(self, features_BF: Tensor, shown: Shown, seed: tuple[int, int, int]) -> Tensor:
        """The recipe's losses over the joint batch, and on the images alone the anchor and the reference; on images
        that nobody was asked about the losses alone, against what the untrained student makes of them."""
        centred_BF = features_BF - self.student.centre
        student_BD = F.normalize(self.student.head(centred_BF), dim=1)
        rows_B = torch.from_numpy(shown.rows).to(self.device)
        if not shown.asked:
            return self._joint(student_BD, self.unasked[rows_B], shown, seed)
        teacher_BE = self.targets[rows_B]
        loss = self._joint(student_BD, teacher_BE, shown, seed)
        if self.student.anchor is not None:
            anchored_BE = F.normalize(self.student.anchor(centred_BF), dim=1)
            loss = loss + self.anchor * (1 - (anchored_BE * teacher_BE).sum(dim=1).mean())
        if self.data.reference is not None:
            known_BF = torch.from_numpy(self.data.reference[shown.rows, shown.views].astype(np.float32))
            known_BF = F.normalize(known_BF - self.reference_centre, dim=1).to(self.device)
            loss = loss + self.recipe.reference.weight * (1 - F.cosine_similarity(centred_BF, known_BF).mean())
        return loss

    def _joint(self, student_BD: Tensor, teacher_BE: Tensor, shown: Shown, seed: tuple[int, int, int]) -> Tensor:
        """The losses over the images and what is mixed from them; their mean over the lengths that vectors are cut to.

        Of nested vectors every front part is trained as vectors of its own (Kusupati et al., Matryoshka representation
        learning, NeurIPS 2022).
        """
        losses, known = list[Tensor](), self.bank if shown.asked else None
        for dim in self.recipe.student.dims or (student_BD.shape[1],):
            bank = None if known is None else Bank(student=cut(known.student, dim), teacher=known.teacher)
            student, teacher = mix(cut(student_BD, dim), teacher_BE, self.recipe.mix, seed, bank, shown.rows)
            rows = torch.full((len(student),), -1, device=self.device)
            if shown.asked:
                rows[: len(student_BD)] = torch.from_numpy(shown.rows)
            losses.append(self.loss(student, teacher, rows))
        if known is not None:
            known.remember(shown.rows, student_BD)
        return torch.stack(losses).mean()

    def _batches(self) -> Iterator[Batch]:
        """Batches made by one thread a few ahead; by one processor, where the network needs the others."""
        numbers = iter(range(self.state.step * self.parts, 1 << 40))
        begin = {"begin": single_threaded} if self.device.type == "cpu" else {}
        return images.ahead(numbers, self._batch, threads=1, depth=AHEAD, **begin)

    def _batch(self, number: int) -> Batch:
        """A batch of a step, of images that were asked about or of the others; each kind in an order of its own."""
        recipe, data = self.recipe, self.data
        step, part = divmod(number, self.parts)
        before, after = (self._unasked_before(at) for at in (step, step + 1))
        how = (data.size, self.batch, recipe.augment, recipe.seed, data.keep)
        if after > before:
            assert data.unasked is not None
            return make_batch(before * self.parts + part, data.unasked.pixels, *how, asked=False)
        views = 0 if data.reference is None else data.reference.shape[1]
        return make_batch((step - before) * self.parts + part, data.pixels, *how, views=views)

    def _unasked_before(self, step: int) -> int:
        """Steps about images that nobody was asked about, of those before this one."""
        if self.data.unasked is None:
            return 0
        first = math.ceil(self.recipe.unasked.after * len(self.data.pixels) / (self.batch * self.parts))
        return int(max(0, step - first) * self.data.unasked.share + 1e-9)

    def _steps_that_fit(self, step_seconds: float) -> int:
        """Steps for the time that is left, evaluations included."""
        assert self.seconds is not None
        left = self.seconds - (time.perf_counter() - self.clock)
        looks = self.recipe.schedule.evaluations
        left -= (looks * max(0.0, 1 - self._elapsed()) + 1) * self.state.evaluation_seconds
        return self.state.step + max(1, int(0.98 * left / step_seconds))

    def _elapsed(self) -> float:
        """Share of the time budget that is gone."""
        assert self.seconds is not None
        return (time.perf_counter() - self.clock) / self.seconds

    def _scores(self, student: Student) -> Scores:
        """Of held-out images, by which is decided: where vectors are cut, the mean over their lengths; where they are
        in the teacher's space, the mean of both galleries, the student's and the teacher's."""
        return self._scored(embed(student, self.data.held_pixels))

    def _scored(self, vectors: NDArray[np.float32]) -> Scores:
        """The same of vectors of held-out images, (V, D)."""
        every = list(self._nested(vectors).values())
        if self.recipe.space == "teacher":
            every.append(self._to_teacher(vectors))
        return averaged(every)

    def _to_teacher(self, vectors: NDArray[np.float32]) -> Scores:
        """Of vectors of held-out images in the teacher's space, (V, E), put to the teacher's own."""
        return fidelity_scores(self.data.held_targets, vectors, self.k, self.data.held_targets)

    def _nested(self, vectors: NDArray[np.float32]) -> dict[int, Scores]:
        """Of vectors of held-out images, by the lengths they are cut to."""
        dims = self.recipe.student.dims or (vectors.shape[1],)
        return {dim: fidelity_scores(self.data.held_targets, unit(vectors[:, :dim]), self.k) for dim in dims}

    def _evaluate(self, student: Student) -> Scores:
        began = time.perf_counter()
        scores = self._scores(student)
        self.state.evaluation_seconds = time.perf_counter() - began
        divergence = float(scores.divergence.mean())
        self.log.write({"step": self.state.step, **scores.means()})
        if divergence < self.state.best_score:
            self.state.best_score, self.state.best_step, self.state.stale = divergence, self.state.step, 0
            save_weights(self.rundir.best, student)
        else:
            self.state.stale += 1
        if self.state.step == 0:
            vectors = embed(student, self.data.held_pixels)
            first = {"whole": fidelity_scores(self.data.held_targets, vectors, self.k), "scores": scores}
            if self.recipe.space == "teacher":
                first["to_teacher"] = self._to_teacher(vectors)
            lists = {kind: {name: one.tolist() for name, one in each.lists().items()} for kind, each in first.items()}
            write_json(self.rundir.undistilled, {**lists, "seen": self._seen(student)})
        return scores

    def _seen(self, student: Student) -> float:
        """Overlap of the nearest with the teacher's among images that are trained on.

        In galleries of as many as are held out: among fewer images more of the ten nearest are shared by chance.
        """
        size = min(len(self.data.held_targets), len(self.targets))
        drawn = np.random.default_rng((self.recipe.seed, 12)).permutation(len(self.targets))
        count = max(1, min(SEEN, len(drawn)) // size)
        task = metrics.Task.among(np.arange(size, dtype=np.int64))
        shares = []
        for rows in np.sort(drawn[: count * size].reshape(count, size), axis=1):
            vectors = embed_plain(student, taken(self.data.pixels, rows), self.data.size, self.data.keep)
            shares.append(metrics.overlap(task, self.data.targets[rows], vectors, metrics.reach(size)))
        return float(np.mean(shares))

    def _outcome(self, stopped: str) -> Outcome:
        self.student.anchor = None
        reached = self._reached()
        learned = self._seen(reached)
        first = read_json(self.rundir.undistilled)
        seen = first.pop("seen")
        before = {kind: Scores(**{name: np.array(one) for name, one in each.items()}) for kind, each in first.items()}
        start = before["scores"]
        step = self._settle(reached, start)
        share = self._blend(step, start)
        step = step if share < 1 else 0
        vectors = embed(self.student, self.data.held_pixels)
        every = {dim: as_fidelity(one) for dim, one in self._nested(vectors).items()}
        to_teacher = None
        if "to_teacher" in before:
            to_teacher = (as_fidelity(before["to_teacher"]), as_fidelity(self._to_teacher(vectors)))
        return Outcome(
            start_share=share,
            state=replace(self.state),
            kept_step=step,
            fidelity=every[max(every)],
            nested=every if self.recipe.student.dims else {},
            seen=(seen, learned),
            unasked=self._unasked_before(self.state.step),
            runs=self.state.runs + (self.state.step > self.state.begun),
            undistilled=as_fidelity(before["whole"]),
            k=self.k,
            stopped=stopped,
            gain=gain(self._scored(vectors), start),
            to_teacher=to_teacher,
        )

    def _settle(self, last: Student, first: Scores) -> int:
        """Put into `run.best` the weights where training ended, unless those there are better beyond chance.

        Of many looks at few images the best is the best by chance: early, noisy weights would be kept. Both are judged
        as they would be shipped, with the usual share of the start's. first: scores of the undistilled; weights that
        are worse are not kept. Returns the step of the weights that are kept.
        """
        if self.state.best_step == self.state.step:
            return self.state.step
        best, reached = self._shipped(read_weights(self.rundir.best)), self._shipped(weights_of(last))
        other_shares = self.finetune and not self.state.best_step  # of the start, which `_blend` tries before giving up
        if (worse(reached, first) and not other_shares) or best.nearer(reached, EARLIER):
            return self.state.best_step
        save_weights(self.rundir.best, last)
        return self.state.step

    def _shipped(self, weights: dict[str, Tensor]) -> Scores:
        """Of weights with the usual share of the start's where that was pretrained."""
        shipped = mixed(weights, read_weights(self.rundir.start), USUAL) if self.finetune else weights
        self.student.load_state_dict(shipped)
        return self._scores(self.student)

    def _blend(self, step: int, first: Scores) -> float:
        """Load the weights that are kept, of this step, mixed with the start's where those were pretrained. Returns the
        start's share.

        Averaging fine-tuned weights with those they came from keeps what the start knew of unlike images (WiSE-FT,
        Wortsman et al., CVPR 2022); a start from nothing has nothing to keep. Half is taken unless held-out images
        speak for another share (`_proven`).
        """
        best = read_weights(self.rundir.best)
        if not (self.finetune and step):
            self.student.load_state_dict(best)
            return float(self.finetune)  # the best is the start itself
        start = read_weights(self.rundir.start)
        found = dict[float, Scores]()
        for share in sorted((USUAL, *SHARES[0], *SHARES[1])):
            self.student.load_state_dict(mixed(best, start, share))
            found[share] = self._scores(self.student)
            self.log.write({"start_share": share, **found[share].means()})
        chosen = _proven(found)
        if worse(found[chosen], first):  # what ranks held-out images worse than the undistilled is not shipped
            best_first = sorted(found, key=lambda one: float(found[one].divergence.mean()))
            chosen = next((share for share in best_first if not worse(found[share], first)), 1.0)
        self.student.load_state_dict(mixed(best, start, chosen))
        return chosen

    def _save_checkpoint(self) -> None:
        save_checkpoint(self.rundir.checkpoint, self._parts(), self.state)

    def _parts(self) -> Parts:
        kept = {"scales": self.scales} | ({} if self.bank is None else {"bank": self.bank.student})
        if self.soup is not None:
            kept |= {f"soup.{name}": tensor for name, tensor in self.soup.mean.items()}
        return Parts(student=self.student, average=self.average, optimiser=self.optimiser, kept=kept)


def _proven(found: Mapping[float, Scores]) -> float:
    """The share of the start's weights that held-out images speak for: away from the usual one as long as each step is
    nearer to the teacher than the one before by more than two standard errors.

    They are like those trained on, which less of the start suits; what it knew of unlike ones they cannot tell, so each
    further step has to be proved against the last. And many images prove the smallest gain: that nothing of the start
    is left has to be of use to the typical image, as it is where the start knew little of such images at all.
    """
    chosen = USUAL
    for side in SHARES:
        for share in side:
            nothing_left = not share and not found[share].nearer_as_a_rule(found[chosen], TYPICAL)
            if nothing_left or not found[share].nearer(found[chosen], CERTAIN):
                break
            chosen = share
    return chosen


def _adamw(student: Student, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that spares biases and normalisation scales from decay."""
    decayed = [p for p in student.parameters() if p.ndim > 1]
    spared = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _relative(student: Student) -> torch.optim.Optimizer:
    """AdamW with a group for each tensor, whose steps are scaled to the size of its weights.

    Where batch-norm is folded into convolutions the weights of one layer are fifty times those of another; steps of one
    length destroy the small ones before they move the large. Relative steps as in Adafactor (Shazeer & Stern 2018).
    """
    groups = [{"params": [one]} for one in student.parameters()]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)


def sizes(student: Student) -> Tensor:
    """Root mean square of each parameter's numbers, (P,), no less than LEAST."""
    return torch.stack([one.detach().square().mean().sqrt() for one in student.parameters()]).clamp(min=LEAST).cpu()


def _schedule(step: int, total: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to zero."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


def _ramped(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average whose decay rises to `decay`, so that early weights are forgotten (as TensorFlow's EMA)."""

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], seen: Tensor) -> None:
        now = min(decay, (1 + int(seen)) / (10 + int(seen)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - now)
            else:
                old.copy_(new)

    return average

"""How much of a training step is training: steps of the real loop beside the same model's forward and backward pass.

    python benchmarks/speed.py onnx:mobilenetv2_fp32.onnx --preprocess imagenet --steps 1 --blocks 12 --json SPEED.json

The bare step is the network's forward pass on a tensor in memory, a sum, and the backward pass: no images, no loss, no
optimiser. Where a step takes several batches, all is done in smaller parts, and what first passes make for the gradient
and the loop does not keep, for the sake of memory, is made again; `plain` is the same images without that. `script` are
the plain passes in a process of their own with memory as torch takes it by itself, `list` there all images of a step
in one tensor. The loop crops, colours, mixes, compares, steps and averages, with its thread for batches. Blocks of all
take turns, so that a drifting machine meets them alike; no fidelity is looked at in between. The images are random:
what is in them costs nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilltool import images, latency, memory, recipe, versus
from distilltool.progress import Silent
from distilltool.rundir import RunDir
from distilltool.sources import open_source
from distilltool.stages.distill import environment
from distilltool.student import Student
from distilltool.students import Start, build
from distilltool.teacher import TeacherOptions, open_teacher
from distilltool.tracking import RunLog
from distilltool.train import Data, _Trainer

COUNT, HELD, DIM = 1024, 64, 1280


def student_of(args: argparse.Namespace) -> Student:
    """The network that is trained."""
    kind, _, name = args.student.partition(":")
    source = None
    if kind == "onnx":
        teacher = open_teacher(Path(name.partition(",")[0]), TeacherOptions(preprocess=tuple(args.preprocess)))
        source = open_source("teacher", teacher, False, [], Silent())
    start = Start(input=args.input, seed=0, source=source, prepared=source.preprocess if source else None)
    return Student(build(args.student, start), 0, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trainer_of(student: Student, args: argparse.Namespace, run: Path) -> _Trainer:
    """The real loop on random images."""
    rng = np.random.default_rng(0)
    cached = round(args.input / (0.9 * 0.8))  # as `distill` keeps them for the middle 90 % of each side
    targets = rng.normal(size=(COUNT + HELD, DIM)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    data = Data(
        pixels=rng.integers(0, 256, (COUNT, cached, cached, 3), np.uint8),
        targets=targets[:COUNT],
        held_pixels=rng.integers(0, 256, (HELD, args.input, args.input, 3), np.uint8),
        held_targets=targets[COUNT:],
        names=tuple(str(number) for number in range(COUNT)),
        keep=0.9,
    )
    changes = [f"schedule.batch={args.batch}", "schedule.epochs=100000"]
    if args.memory:
        changes.append(f"schedule.memory={args.memory}")
    if args.batches:
        changes.append(f"schedule.batches_finetune={args.batches}")
    how = recipe.load(args.recipe, changes)
    log = RunLog(RunDir(run), (), Silent())
    return _Trainer(student, data, how, RunDir(run), True, None, 0.0, log, Silent())


def bare(student: Student, args: argparse.Namespace, trainer: _Trainer, *, plain: bool) -> Callable[[], None]:
    """Forward and backward on a tensor in memory, with the passes that the loop makes, or each image once."""
    pixels = torch.rand(args.batch, 3, args.input, args.input).mul(255).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        student.zero_grad(set_to_none=True)
        if plain or trainer.cache is None:
            for _ in range(trainer.parts):
                student(pixels).sum().backward()
        else:
            trainer.cache.backward(lambda part, number: student(part), [pixels] * trainer.parts, torch.sum)

    return step


class Script:
    """Bare passes in a process of their own. requests: images of a pass, as lines; answers: an empty line when all
    images of a step are through."""

    def __init__(self, args: argparse.Namespace, images_of_step: int) -> None:
        command = [sys.executable, __file__, args.student, "--input", str(args.input), "--serve", str(images_of_step)]
        for one in args.preprocess:
            command += ["--preprocess", one]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self, batch: int) -> None:
        """All images of a step, so many at a time."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            raise SystemExit("the process of bare passes is gone")

    @staticmethod
    def serve(args: argparse.Namespace) -> None:
        """What that process does."""
        student = student_of(args)
        student.train()
        pixels = torch.rand(args.serve, 3, args.input, args.input).mul(255)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        for line in sys.stdin:
            student.zero_grad(set_to_none=True)
            for part in torch.split(pixels, int(line)):
                student(part).sum().backward()
            print("done", flush=True)


@memory.freed_kept()  # as training does
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of step, and ratios."""
    student = student_of(args)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(student, args, Path(folder))
        student.train()
        batches = trainer._batches()
        script = Script(args, args.batch * trainer.parts)
        steps = {
            "loop": lambda: trainer._step(batches),  # first, as it finds out how much is kept
            "bare": bare(student, args, trainer, plain=False),
            "plain": bare(student, args, trainer, plain=True),
            "script": lambda: script.step(args.batch),
            "list": lambda: script.step(args.batch * trainer.parts),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for step in (*steps.values(), *steps.values()):
            step()
        for turn in range(args.blocks):
            for which in list(steps)[:: 1 if turn % 2 == 0 else -1]:
                began = time.perf_counter()
                for _ in range(args.steps):
                    steps[which]()
                seconds[which].append((time.perf_counter() - began) / args.steps)
        script.process.kill()
    timed = {name: latency.Timed(blocks=tuple(np.array([one]) for one in times)) for name, times in seconds.items()}
    ratios = {name: versus.speedup(timed["loop"], timed[name]) for name in steps if name != "loop"}
    return {
        "student": Path(args.student).name,
        "input": args.input,
        "batch": args.batch,
        "recipe": args.recipe,
        "memory": trainer.recipe.schedule.memory,
        "batches": trainer.parts,
        "part": trainer.cache.part if trainer.cache else args.batch,
        "kept": round(trainer.cache.kept, 3) if trainer.cache else 1,
        **{f"{name} seconds": round(float(np.median(times)), 4) for name, times in seconds.items()},
        **{
            f"loop steps per {which} step": {name: round(getattr(one, name), 3) for name in ("value", "low", "high")}
            for which, one in ratios.items()
        },
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--preprocess", action="append", default=[])
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--batches", type=int, default=0, help="of a step; 0 as the recipe says")
    parser.add_argument("--memory", type=float, default=0, help="GB that training may take; 0 as the recipe says")
    parser.add_argument("--steps", type=int, default=6, help="of a block")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(images.workers())
    if args.serve:
        Script.serve(args)
        return
    found = measure(args)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

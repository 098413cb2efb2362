"""What each loss costs forward and backward in a large batch, its memory, and how large its gradient is beside kl's.

    python benchmarks/losses.py [--batch 256] [--ratio 4] [--dim 1280] [--bank 1000 10000] [--rounds 5]
        [--threads 1] [--step FILE.onnx --side 128] [--json OUT]

Rows: `batch` images and `ratio` mixes each, student and teacher vectors of `dim` with a common part (the student is the
teacher turned, plus noise; for losses in the teacher's space not turned). `ms` is the median and the least of the
rounds, `memory_mb` the peak of tensors made on the way (torch's profiler), `gradient` the norm of the gradient at the
student's vectors over that of kl. Losses that ask for the bank are timed at each size of it. One thread, because two on
cores that others use wait for each other; `matmul_ms` is that of one M x M x D product, of which a loss on relations
needs three. Rough: compare within one run. `step`: forward and backward of a student made of that file, for as many
images as `batch` (64 at a time), of which each loss is then a share.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilltool import extensions, memory
from distilltool.latency import machine
from distilltool.mixing import mix
from distilltool.progress import Silent
from distilltool.recipe import Mix
from distilltool.sources import open_source
from distilltool.student import Student
from distilltool.students import Start, build
from distilltool.teacher import TeacherOptions, open_teacher

IMAGENET = TeacherOptions(preprocess=("imagenet", "size=224"))
PART = 64  # images at once


def rows(rng: np.random.Generator, count: int, dim: int) -> Tensor:
    """Clustered vectors of length 1, about as alike as those of photographs: cosines of about 0.2 to 0.9."""
    base, centres = rng.normal(size=dim), rng.normal(size=(max(2, count // 8), dim))
    found = base + 1.2 * centres[rng.integers(0, len(centres), count)] + 0.8 * rng.normal(size=(count, dim))
    return F.normalize(torch.from_numpy(found.astype(np.float32)), dim=1)


def student_of(teacher: Tensor, rng: np.random.Generator, turned: bool) -> Tensor:
    """Vectors that know about half of the teacher's, in its space or in another."""
    noisy = teacher + torch.from_numpy(rng.normal(0, 0.7 / teacher.shape[1] ** 0.5, teacher.shape).astype(np.float32))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(teacher.shape[1],) * 2))[0].astype(np.float32))
    return F.normalize(noisy @ turn if turned else noisy, dim=1)


class Case:
    """A loss with its inputs at one size."""

    def __init__(self, name: str, batch: int, ratio: float, dim: int, bank: int) -> None:
        rng = np.random.default_rng(0)
        self.function = extensions.find("distilltool.losses", "loss", name)
        code = self.function.__code__
        turned = code.co_varnames[0] != "student_ME"
        teacher_KE = rows(rng, bank, dim)
        at = rng.permutation(bank)[:batch]
        student, self.teacher = mix(
            student_of(teacher_KE[at], rng, turned), teacher_KE[at], Mix(ratio=ratio), (0, 3, 0)
        )
        self.student = student.requires_grad_()
        bank_rows = torch.full((len(student),), -1)
        bank_rows[:batch] = torch.from_numpy(at)
        given = {"bank_KE": teacher_KE, "rows_M": bank_rows}
        self.asked = {
            name: value for name, value in given.items() if name in code.co_varnames[: 2 + code.co_kwonlyargcount]
        }

    def __call__(self) -> Tensor:
        self.student.grad = None
        loss: Tensor = self.function(self.student, self.teacher, **self.asked)
        loss.backward()
        assert self.student.grad is not None
        return self.student.grad


def milliseconds(call: Callable[[], object], rounds: int) -> list[float]:
    call()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def peak_mb(call: Callable[[], object]) -> float:
    """The most that tensors made during a call took at once."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    now = most = 0
    changes = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    for one in sorted(changes, key=lambda event: event.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return most / 1e6


def step_ms(file: Path, batch: int, side: int, rounds: int) -> float:
    """Forward and backward of a student made of an ONNX file, for `batch` images of that side."""
    source = open_source(f"onnx:{file},preprocess=imagenet", open_teacher(file, IMAGENET), False, [], Silent())
    start = Start(input=side, seed=0, source=source)
    student = Student(build(f"onnx:{file}", start), 0, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.randint(0, 256, (PART, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    taken = milliseconds(lambda: student.train()(pixels).sum().backward(), rounds)
    return float(np.median(taken)) * batch / PART


@memory.freed_kept()  # as training does
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--bank", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", type=Path, help="ONNX file of the student whose step is measured")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    step = step_ms(args.step, args.batch, args.side, args.rounds) if args.step else None
    if step:
        print(f"step        {step:.1f} ms")
    size = (args.batch, args.ratio, args.dim)
    unit = Case("kl", *size, args.bank[0])().norm().item()
    found = []
    for name in extensions.names("distilltool.losses"):
        for bank in args.bank:
            case = Case(name, *size, bank)
            if not case.asked and bank != args.bank[0]:
                continue
            taken = milliseconds(case, args.rounds)
            entry = {
                "loss": name,
                "bank": bank if case.asked else None,
                "ms": {"median": round(float(np.median(taken)), 1), "least": round(min(taken), 1)},
                "memory_mb": round(peak_mb(case), 1),
                "gradient": case().norm().item() / unit,
                **({"share of a step": round(float(np.median(taken)) / step, 4)} if step else {}),
            }
            found.append(entry)
            print(
                f"{name:11} bank {bank if case.asked else '–':>6}  {entry['ms']['median']:7.1f} ms "
                f"(least {entry['ms']['least']:.1f})  {entry['memory_mb']:6.1f} MB  "
                f"gradient {entry['gradient']:.3g} × kl"
            )
    rng = np.random.default_rng(0)
    student, teacher = (rows(rng, args.batch, args.dim) for _ in range(2))
    student.requires_grad_()
    taken = milliseconds(
        lambda: mix(student, teacher, Mix(ratio=args.ratio), (0, 3, 0))[0].sum().backward(), args.rounds
    )
    print(f"mix         {np.median(taken):.1f} ms")
    wide = torch.cat([teacher] * (1 + round(args.ratio)))
    product = float(np.median(milliseconds(lambda: wide @ wide.T, args.rounds)))
    print(f"matmul      {product:.1f} ms")
    result = {
        "arguments": {**vars(args), "json": None, "step": args.step and args.step.name},
        "step_ms": step,
        "mix_ms": float(np.median(taken)),
        "matmul_ms": product,
        "losses": found,
    }
    if args.json:
        args.json.write_text(json.dumps({**result, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

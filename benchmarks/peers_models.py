"""Teacher and student of `peers.py` as plain torch modules, built alike in every environment, and what a child tells.

Both are the networks of ONNX files, read up to their last feature map: 7 x 7 of the teacher at 224 px, 4 x 4 of the
student at 128 px. A peer makes one view for both, 224 px and normalised as for ImageNet; each network brings it to its
own side and its own normalisation itself, so that the teacher sees images as it was made for.
"""

import json
import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilltool import trainable
from distilltool.imported import fed
from distilltool.progress import Silent
from distilltool.sources import open_source
from distilltool.students import Backbone, Start, build
from distilltool.teacher import TeacherOptions, open_teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of a peer's views
VIEW = 224
TASK, TOLD, STARTED, LEARNT, ANSWERS, IMAGES = (
    "task.json",
    "told.json",
    "start.pt",
    "student.pt",
    "answers.pt",
    "images",
)


@dataclass(frozen=True, kw_only=True)
class File:
    """An ONNX file, how its images are prepared, and the side of the images it sees here."""

    path: str
    preprocess: str
    side: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a child is to do. recipe: where the peer has several; norms: whether the student has its batch normalisation
    back; stored: whether the teacher's answers are those of ANSWERS; batch: images a step."""

    teacher: File
    student: File
    recipe: str
    norms: bool
    stored: bool
    steps: int
    batch: int
    threads: int
    seed: int


def name_operators() -> None:
    """Make torchvision importable beside a CPU-only torch, where the package index's build misses its operators."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")


def backbone_of(file: File) -> Backbone:
    """The network of a file up to its last feature map, of which the mean over the places is its embedding."""
    options = TeacherOptions(preprocess=(file.preprocess,))
    opened = open_teacher(Path(file.path), options)
    cuts = trainable.cuts(trainable.read_whole(Path(file.path)), opened.output, opened.preprocess.size)
    last = [one.name for one in cuts if one.kind == "map"][-1]
    spec = f"onnx:{file.path},preprocess={file.preprocess},cut={last}"
    source = open_source(spec, opened, False, [], Silent())
    return build(spec, Start(input=file.side, seed=0, source=source, prepared=opened.preprocess))


class Network(nn.Module):
    """A peer's views, (N, 3, H, W), to feature maps or, as output, to pooled features (N, width)."""

    factor: Tensor
    shift: Tensor

    def __init__(self, backbone: Backbone, side: int) -> None:
        super().__init__()
        self.backbone: Any = backbone.module
        self.made = backbone
        self.width = backbone.width
        self.side = side
        mean, std, theirs, spread = (torch.tensor(one) for one in (MEAN, STD, backbone.mean, backbone.std))
        self.register_buffer("factor", (std / spread).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - theirs) / spread).view(1, 3, 1, 1), persistent=False)

    def features(self, view_NCHW: Tensor) -> Tensor:
        """Feature maps, (N, width, h, w)."""
        if view_NCHW.shape[-1] != self.side:
            view_NCHW = F.interpolate(view_NCHW, (self.side, self.side), mode="bilinear", antialias=True)
        made: Tensor = self.backbone.graph(fed(view_NCHW * self.factor + self.shift, self.backbone.wiring))
        return made if self.backbone.wiring.axis == 1 else made.permute(0, 3, 1, 2)

    def forward(self, view_NCHW: Tensor) -> Tensor:
        return self.features(view_NCHW).mean(dim=(2, 3))

    def with_norms(self, batches: Iterable[Tensor]) -> "Network":
        """Batch normalisation put back behind the convolutions, by the statistics of these views."""
        self.eval()
        sized = (F.interpolate(one, (self.side, self.side), mode="bilinear", antialias=True) for one in batches)
        fitting = (fed(one * self.factor + self.shift, self.backbone.wiring) for one in sized)
        trainable.reinsert_norms(self.backbone.graph, fitting)
        return self


class Teacher(Network):
    """The teacher, which counts the images it is asked about and the times at which that happens."""

    def __init__(self, backbone: Backbone, side: int) -> None:
        super().__init__(backbone, side)
        self.counts: list[int] = []
        self.times: list[float] = []

    def features(self, view_NCHW: Tensor) -> Tensor:
        self.counts.append(len(view_NCHW))
        self.times.append(time.perf_counter())
        return super().features(view_NCHW)


class Remembered(nn.Module):
    """A teacher that was asked before: its stored answers, by the numbers of the images."""

    answers: Tensor

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.register_buffer("answers", answers)
        self.counts: list[int] = []
        self.times: list[float] = []

    def forward(self, _view_NCHW: Tensor, numbers_N: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        return self.answers[numbers_N]


def teacher_of(task: Task, folder: Path) -> Teacher | Remembered:
    if task.stored:
        return Remembered(torch.load(folder / ANSWERS, weights_only=True))
    made = Teacher(backbone_of(task.teacher), task.teacher.side)
    return made.eval().requires_grad_(False)


def student_of(task: Task, folder: Path) -> Network:
    """The student as it starts, from the weights in the folder."""
    made = Network(backbone_of(task.student), task.student.side)
    if task.norms:
        made.with_norms([torch.zeros(1, 3, VIEW, VIEW)])
    made.load_state_dict(torch.load(folder / STARTED, weights_only=True))
    return made.train()  # a trainer that keeps modes would leave it in evaluation, as it was built


def read(folder: Path) -> Task:
    said = json.loads((folder / TASK).read_text())
    return Task(**{**said, "teacher": File(**said["teacher"]), "student": File(**said["student"])})


def write(task: Task, folder: Path) -> None:
    (folder / TASK).write_text(json.dumps(asdict(task), indent=1))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclass(kw_only=True)
class Clock:
    """Seconds of the training alone, of the processes that loaded its images too."""

    began: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=_cpu)

    def stop(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.began, "cpu seconds": _cpu() - self.cpu}


def tell(folder: Path, student: Network, teacher: Teacher | Remembered, spent: dict[str, float], package: str) -> None:
    """Keep the student and what its training took. The first step, which warms up, tells no seconds a step."""
    torch.save(student.state_dict(), folder / LEARNT)
    told = {
        "queries": sum(teacher.counts),
        "steps": len(teacher.times),
        "seconds a step": [later - one for one, later in zip(teacher.times[1:], teacher.times[2:], strict=False)],
        **spent,
        "versions": {name: metadata.version(name) for name in (package, "torch", "torchvision", "distilltool")},
    }
    (folder / TOLD).write_text(json.dumps(told, indent=1))

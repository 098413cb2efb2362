"""Students of different cost beside each other: time measured in turns, and which of them no other beats."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distilltool import candidates, latency
from distilltool.defaults import LATENCY_THREADS
from distilltool.errors import DistillError
from distilltool.images import prepare
from distilltool.progress import Progress
from distilltool.report import DistillReport, ParetoPoint
from distilltool.rundir import RunDir, read_json
from distilltool.student import TorchEmbedder
from distilltool.teacher import OnnxEmbedder

SECONDS = 4.0  # that each is timed


def check(root: Path) -> None:
    """Fail where the folder of several runs is a run itself."""
    if RunDir(root).plan.exists():
        raise DistillError(f"{root} is a single run", "choose another folder with --out")


def folder(target: str) -> str:
    """The name of a target's run: `flops<0.1x` → `flops-0.1x`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", target.strip())


def compare(
    made: Mapping[str, tuple[DistillReport, TorchEmbedder]], teacher: OnnxEmbedder | None, progress: Progress
) -> tuple[tuple[ParetoPoint, ...], float | None]:
    """The students by target, the fastest first, and the teacher's own time in milliseconds where it runs here.

    teacher: opened with one thread. All are timed at batch 1 in turns.
    """
    progress.begin("timing students", 1, "steps")
    runs = [candidates.runner(one.student, one.card.input, LATENCY_THREADS) for _, one in made.values()]
    if teacher is not None and teacher.model.ready is not None:
        paths = [
            Path(one) for report, _ in made.values() for one in read_json(RunDir(Path(report.run)).manifest)["held_out"]
        ]
        image = next((found for path in paths if not isinstance(found := prepare(path, teacher.preprocess), str)), None)
        if image is not None:
            batch = np.repeat(image[None], teacher.batch or 1, axis=0)
            runs.append(teacher.model.ready(teacher.preprocess.feed(batch)))
    p50 = [float(np.median(one.samples) * 1000) for one in latency.together(runs, SECONDS)]
    progress.advance(1, "done")
    progress.end()
    points = [
        ParetoPoint(
            target=target,
            flops=candidates.flops_of(one.student.backbone, one.card.input),
            p50_ms=ms,
            front=not any(
                other <= ms and kept(report) < kept(rival)
                for other, (rival, _) in zip(p50, made.values(), strict=False)
            ),
            student=report,
        )
        for ms, (target, (report, one)) in zip(p50, made.items(), strict=False)
    ]
    return tuple(sorted(points, key=lambda point: point.p50_ms)), (p50[len(made)] if len(p50) > len(made) else None)


def kept(report: DistillReport) -> float:
    """What students are compared by: the teacher's nearest among their own, on held-out images."""
    return report.fidelity.overlap_at_10.value

"""Images with labels and a teacher's answers about them, and the figures by which every benchmark judges a student."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import distilltool
from distilltool import images, metrics
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.ledger import Ledger
from distilltool.metrics import Task
from distilltool.stages.distill import environment
from distilltool.teacher import TeacherOptions, open_teacher

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # two-sided
KEPT = ("map", "recall@1")
UNTRAINED = ("optimiser.lr_finetune=1e-8", "schedule.epochs=1")  # all that is chosen before training, and no more


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images of class folders. targets: (N, E) the teacher's vectors at length 1; labels: (N,)."""

    photos: list[Photo]
    targets: NDArray[np.float32]
    labels: NDArray[np.int64]

    @cached_property
    def task(self) -> Task:
        """Every image against all others."""
        every = np.arange(len(self.targets), dtype=np.int64)
        return Task(query=every, gallery=every, labels=self.labels)

    @cached_property
    def teacher(self) -> dict[str, NDArray[np.float64]]:
        """The teacher's own scores, each (N,)."""
        return metrics.labelled(self.task, self.targets, self.targets)

    def figures(self, vectors: NDArray[np.float32], *, in_space: bool) -> dict[str, float]:
        """mAP, what is kept of the teacher's mAP and R@1, and overlap of the ten nearest.

        in_space: also the student's queries in the teacher's gallery.
        """
        ours = metrics.labelled(self.task, vectors, vectors)
        kept = {name: metrics.ratio(ours[name], self.teacher[name]) for name in KEPT}
        found = {"map": float(np.nanmean(ours["map"]))}
        found |= {f"{name} kept": one.value for name, one in kept.items()}
        found |= {"map kept low": kept["map"].low, "map kept high": kept["map"].high}
        found["overlap@10"] = float(metrics.overlap(self.task, self.targets, vectors, 10).mean())
        if in_space:
            theirs = metrics.labelled(self.task, vectors, self.targets)
            found["recall@1 kept, to teacher"] = metrics.ratio(theirs["recall@1"], self.teacher["recall@1"]).value
            found["overlap@10 to teacher"] = float(
                metrics.overlap(self.task, self.targets, vectors, 10, self.targets).mean()
            )
        return found


def ask(teacher: Path, folder: Path, store: Path, preprocess: Sequence[str]) -> Labelled:
    """Ask about a folder of class folders, or read what an earlier call kept in the ledger."""
    stock = images.take_stock(images.find(folder))
    distilltool.query(teacher, folder, store=store, preprocess=preprocess)
    opened = open_teacher(teacher, TeacherOptions(preprocess=tuple(preprocess)))
    with Ledger.open(store) as ledger:
        answers = ledger.vectors(ledger.teacher(opened.key), [photo.sha256 for photo in stock.photos])
    labels = np.unique([str(photo.path.parent) for photo in stock.photos], return_inverse=True)[1]
    targets = unit(np.stack([answers[photo.sha256] for photo in stock.photos]))
    return Labelled(photos=list(stock.photos), targets=targets, labels=labels)


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, none where it is not there yet."""
    return json.loads(path.read_text())["rows"] if path.exists() else []  # type: ignore[no-any-return]


@cache
def code() -> str:
    """Of distilltool's sources and recipes, so that rows made by the same program can be told: 12 digits of sha256."""
    root, digest = Path(distilltool.__file__).parent, hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.parent.glob("recipes/*.toml")]):
        digest.update(path.relative_to(root.parent).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a results file, whatever others have added meanwhile."""
    kept = json.loads(path.read_text()) if path.exists() else {"rows": []}
    kept["rows"].append({**row, "code": code()})
    kept |= {"environment": environment()}
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(kept, indent=1) + "\n")
    fresh.replace(path)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean, the median, half of the mean's 95 % t-interval (None for a single seed), and how many seeds."""
    found: dict[str, Any] = {
        "mean": round(float(np.mean(values)), 5),
        "median": round(float(np.median(values)), 5),
        "half": None,
        "seeds": len(values),
    }
    if len(values) < 2:
        return found
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {**found, "half": round(T_95.get(len(values) - 1, 1.96) * spread, 5)}


def percent(one: dict[str, Any], sign: str = "") -> str:
    """A mean in percent with its interval and the number of seeds."""
    half = "" if one["half"] is None else f" ± {100 * one['half']:.2f}"
    return f"{100 * one['mean']:{sign}.2f}{half} ({one['seeds']})"

"""Vectors as binary codes: a bit for each number, compared by how many bits differ (Hamming).

A bit says whether a number lies above the gallery's mean of it. Without the mean taken off, what all images have in
common decides the bits of networks that end in a ReLU: all ones (docs/LOG.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from distilltool import metrics
from distilltool.evaluation import Evaluation
from distilltool.progress import Progress
from distilltool.report import ModelReport

BLOCK = 8192  # vectors at once
IN_MEMORY = 1 << 28  # bytes of codes, beyond which they are kept in a file
CONVENTIONS = {
    "binary": "a bit for each number of a vector: whether it is above the gallery's mean of that number; ranked by the "
    "number of differing bits, beside the teacher's own float vectors",
}


def centre(vectors_ND: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """What the bits of a gallery and of its queries are counted from, (D,). rows: which of the vectors the gallery is,
    None for all."""
    chosen = np.arange(len(vectors_ND)) if rows is None else rows
    total = np.zeros(vectors_ND.shape[1])
    for at in range(0, len(chosen), BLOCK):
        total += vectors_ND[chosen[at : at + BLOCK]].sum(axis=0, dtype=np.float64)
    return (total / len(chosen)).astype(np.float32)


def signs(vectors_ND: NDArray[np.float32], centre_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """The bits as ±1, (N, D) float32: their inner product is D less twice the Hamming distance, without rounding."""
    return np.where(vectors_ND > centre_D, np.float32(1), np.float32(-1))


@contextmanager
def signed(vectors_ND: NDArray[np.float32], centre_D: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The signs of all vectors, in memory or, of large sets, in a file that is gone afterwards."""
    if vectors_ND.nbytes <= IN_MEMORY:
        yield signs(vectors_ND, centre_D)
        return
    with TemporaryFile() as file:
        found = np.memmap(file, np.float32, "w+", shape=vectors_ND.shape)
        for at in range(0, len(found), BLOCK):
            found[at : at + BLOCK] = signs(vectors_ND[at : at + BLOCK], centre_D)
        yield found


def packed(vectors_ND: NDArray[np.float32], centre_D: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bits eight a byte, (N, ⌈D / 8⌉) uint8; those that fill the last byte are equal in all."""
    return np.packbits(vectors_ND > centre_D, axis=1)


def added(made: Evaluation, progress: Progress) -> Evaluation:
    """The evaluation with figures of every model's binary codes, the teacher's among them."""
    progress.begin("binary codes", len(made.models), "models")
    reports = []
    for at, model in enumerate(made.report.models):
        reports.append(replace(model, binary=_measured(made, at)))
        progress.advance()
    progress.end()
    report = replace(made.report, models=tuple(reports), conventions={**made.report.conventions, **CONVENTIONS})
    return replace(made, report=report)


def _measured(made: Evaluation, at: int) -> ModelReport:
    """One model's codes beside the teacher's vectors as they are."""
    task, teacher, model = made.task, made.models[0], made.models[at]
    with signed(model.vectors, centre(model.vectors, task.gallery)) as codes_ND:
        figures = metrics.labelled(task, codes_ND, codes_ND) if task.is_judged else {}
        shared = metrics.overlap(task, teacher.vectors, codes_ND, metrics.reach(len(task.gallery)))
        order = metrics.spearman(task, teacher.vectors, codes_ND)
    return ModelReport(
        name=model.name,
        dim=model.vectors.shape[1],
        space=made.report.models[at].space,
        metrics={name: metrics.interval(values) for name, values in figures.items()},
        fidelity={
            "overlap@10": metrics.interval(shared),
            "spearman": metrics.interval(order),
        },
        retention={name: metrics.ratio(values, teacher.values[name]) for name, values in figures.items()},
        asymmetric=None,
    )

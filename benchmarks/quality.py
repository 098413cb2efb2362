"""What every recipe keeps of a teacher, per query: the table behind the default and behind the README's figures.

    python benchmarks/quality.py caltech $DATA --work WORK --json benchmarks/results/quality.json
    python benchmarks/quality.py caltech $DATA --queries 250 1000 --arms best drd kl --seeds 0 1 2 --steps 400 ...
    python benchmarks/quality.py --show --json benchmarks/results/quality.json

Every cell is one student: N images drawn by the seed, asked about once (answers are kept in a ledger in WORK, which all
cells share), a recipe, and as many steps of 64 images as all others. It is judged on classes that nobody saw in
training. `untrained` is the network with the crop and the centring that the tool chooses; `plain` its pooled features
as anybody has them; `pca-D` are the teacher's own vectors, cut to D numbers by principal components of the N answers.
`best-others` has all photographs in its folder, of which N are asked about and up to half of the steps are
about the others; all other arms have these N alone.
Cells are added to the JSON file one by one; what is in it is not computed again.
"""

import argparse
import math
import os
import shutil
import tarfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import UNTRAINED, Labelled, add_row, ask, mean, percent, rows_in

import distilltool
from distilltool import images, ridge, students
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.progress import Silent
from distilltool.report import to_json
from distilltool.selection.random import random
from distilltool.sources import open_source
from distilltool.student import Student, embed
from distilltool.students import Start
from distilltool.teacher import TeacherOptions, open_teacher

BATCH = 64
HELD = 0.11  # share of the images held out, about
TEACHER = "--space teacher"
OTHERS = "--others"
ANCHOR = "anchor_finetune=5"
ARMS: dict[str, tuple[str, ...]] = {
    "best": ("best",),
    "best-one-run": ("best", "soup.steps=0"),
    "best-wide": ("best", "mix.ratio=1", "mix.width=8"),
    "best-others": ("best", OTHERS, "unasked.share=0.5"),
    "best-kl": ("best", "loss.sne.name=kl"),
    "best-without-taps": ("best", "student.taps=false"),
    "best-short-lists": ("best", "schedule.batches_finetune=1"),
    "kl": ("kl",),
    "drd": ("drd",),
    "regression": ("regression",),
    "rkd": ("rkd",),
    "darkrank": ("darkrank",),
    "sp": ("sp",),
    "pkt": ("pkt",),
    "csd": ("csd",),
    "listmle": ("listmle",),
    "ranknet": ("ranknet",),
    "rop": ("rop",),
    "best-teacher": ("best", TEACHER),
    "untrained": ("best", *UNTRAINED),
    "untrained-teacher": ("best", TEACHER, *UNTRAINED),
    "best-nested": ("best", "student.dims=[512, 128, 32]"),
    # controls of drd; kl is drd without mixes
    "kl-more-pairs": ("kl", f"schedule.batch={2 * BATCH}"),
    "drd-unnormalised": ("drd", "mix.normalise=false"),
    "drd-bank": ("drd", "mix.partners='bank'"),
    "drd-wide": ("drd", "mix.width=8"),
    **{f"{name}-tau-{tau:g}": (name, f"loss.kl.tau={tau}") for name in ("kl", "drd") for tau in (0.05, 0.2)},
    "drd-anchored": ("drd", ANCHOR),
    "drd-anchored-no-mixing": ("drd", ANCHOR, "mix.ratio=0"),
    "drd-anchored-no-mixing-more-pairs": ("drd", ANCHOR, "mix.ratio=0", f"schedule.batch={2 * BATCH}"),
    "drd-anchored-unnormalised": ("drd", ANCHOR, "mix.normalise=false"),
    "drd-anchored-bank": ("drd", ANCHOR, "mix.partners='bank'"),
}
FIGURES = ("map kept", "overlap@10", "recall@1 kept", "recall@1 kept, to teacher", "steps", "cpu seconds")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A teacher, its student, and the images: for asking and training, and for judging."""

    teacher: str
    student: str
    input: int | None
    preprocess: tuple[str, ...] = ()


SETTINGS = {
    "caltech": Setting(
        teacher="mobilenet_edgetpu_fp32", student="onnx:mobilenetv2_fp32", input=128, preprocess=("tf",)
    ),
    "caltech-200": Setting(
        teacher="mobilenet_edgetpu_fp32", student="onnx:mobilenetv2_fp32", input=200, preprocess=("tf",)
    ),
    "caltech-mobilenetv2": Setting(
        teacher="mobilenetv2_fp32", student="auto", input=None, preprocess=("imagenet", "size=224")
    ),
    "caltech-squeezenet": Setting(
        teacher="squeezenet1.1_three_outputs", student="auto", input=None, preprocess=("imagenet", "size=224")
    ),
    "caltech-resnet50": Setting(
        teacher="resnet50v2_stage3", student="auto", input=None, preprocess=("imagenet", "size=224")
    ),
    "caltech-mobilenetv1": Setting(teacher="mobilenet_v1_embedder_uint8_qdq", student="auto", input=None),
    "corridor": Setting(
        teacher="resnet50v2_stage3", student="onnx:mobilenetv2_fp32", input=160, preprocess=("imagenet", "size=224")
    ),
    "omniglot": Setting(teacher="mobilenetv2_fp32", student="auto", input=None, preprocess=("imagenet", "size=224")),
    "fashion": Setting(teacher="mobilenetv2_fp32", student="auto", input=None, preprocess=("imagenet", "size=224")),
}


def folders(name: str, data: Path, work: Path) -> tuple[Path, Path]:
    """Where the images of a setting are: for training, and class folders for judging; unpacked once."""
    if name.startswith("caltech"):
        return data / "caltech" / "train", data / "caltech" / "val"
    train, val = work / name / "train", work / name / "val"
    if not val.exists():
        shutil.rmtree(work / name, ignore_errors=True)
        {"corridor": corridor, "omniglot": omniglot, "fashion": fashion}[name](data, train, val)
    return train, val


def corridor(data: Path, train: Path, val: Path) -> None:
    """The first half of the walk for training; of the second, every five frames of both walks are a place."""
    for walk in ("query", "ref"):
        found = images.find(data / "corridor" / walk)
        found = sorted(found, key=lambda path: int("".join(filter(str.isdigit, path.stem))))
        for place, path in enumerate(found):
            into = train if place < len(found) // 2 else val / f"{place // 5:03d}"
            into.mkdir(parents=True, exist_ok=True)
            (into / f"{walk}-{path.name}").symlink_to(path.resolve())


def omniglot(data: Path, train: Path, val: Path, characters: int = 80) -> None:
    """Alphabets in two halves; of the second, some characters are the classes."""
    with tarfile.open(data / "omniglot" / "omniglot_png.tar.gz") as archive:
        archive.extractall(train.parent / "all", filter="data")
    drawn = defaultdict(list)
    for path in images.find(train.parent / "all"):
        drawn[path.parent.parent.name, path.parent.name].append(path)
    alphabets = sorted({alphabet for alphabet, _ in drawn})
    seen = set(alphabets[: len(alphabets) // 2])
    train.mkdir(parents=True)
    unseen = [one for one in sorted(drawn) if one[0] not in seen]
    for alphabet, character in (one for one in sorted(drawn) if one[0] in seen):
        for path in drawn[alphabet, character]:
            path.rename(train / f"{alphabet}-{character}-{path.name}")
    for alphabet, character in unseen[:: max(1, len(unseen) // characters)][:characters]:
        into = val / f"{alphabet}-{character}"
        into.mkdir(parents=True)
        for path in drawn[alphabet, character]:
            path.rename(into / path.name)
    shutil.rmtree(train.parent / "all")


def fashion(data: Path, train: Path, val: Path, each: int = 300) -> None:
    """Five kinds of clothes for training, of the other five `each` for judging."""
    with zipfile.ZipFile(data / "fashion_mnist" / "fashion_mnist_png_test.zip") as archive:
        archive.extractall(train.parent / "all")
    found = defaultdict(list)
    for path in images.find(train.parent / "all"):
        found[path.parent.name].append(path)
    train.mkdir(parents=True)
    for place, kind in enumerate(sorted(found)):
        into = train if place % 2 == 0 else val / kind
        into.mkdir(parents=True, exist_ok=True)
        for path in sorted(found[kind])[: None if place % 2 == 0 else each]:
            path.rename(into / f"{kind}-{path.name}")
    shutil.rmtree(train.parent / "all")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A setting that is opened."""

    name: str
    setting: Setting
    data: Path
    work: Path
    train: Labelled
    val: Labelled

    @property
    def teacher(self) -> Path:
        return self.data / "models" / f"{self.setting.teacher}.onnx"

    @property
    def student(self) -> str:
        kind, _, name = self.setting.student.partition(":")
        return (
            f"{kind}:{self.data / 'models' / name}.onnx,preprocess=imagenet" if kind == "onnx" else self.setting.student
        )


def opened(name: str, data: Path, work: Path) -> Bench:
    """Ask about all images of a setting, or read what was answered before."""
    setting, (train, val) = SETTINGS[name], folders(name, data, work)
    teacher = data / "models" / f"{setting.teacher}.onnx"
    return Bench(
        name=name,
        setting=setting,
        data=data,
        work=work,
        train=ask(teacher, train, work / "ledger.sqlite", setting.preprocess),
        val=ask(teacher, val, work / "evaluation.sqlite", setting.preprocess),
    )


def linked(photos: Sequence[Photo], folder: Path) -> None:
    """A folder of these photographs, in their order."""
    folder.mkdir(parents=True)
    for number, photo in enumerate(photos):
        (folder / f"{number}-{photo.path.name}").symlink_to(photo.path.resolve())


def trained(bench: Bench, photos: Sequence[Photo], arm: str, seed: int, steps: int) -> dict[str, Any]:
    """`distill` by a recipe on these photographs, whose answers are in the ledger."""
    recipe, *changes = ARMS[arm]
    run = bench.work / f"{bench.name}-{os.getpid()}"
    shutil.rmtree(run, ignore_errors=True)
    linked(photos, run / "images")
    store, budget = bench.work / "ledger.sqlite", None
    if OTHERS in changes:  # a ledger that knows of these alone, and a folder with all
        store, budget = run / "ledger.sqlite", len(photos)
        distilltool.query(bench.teacher, run / "images", store=store, preprocess=bench.setting.preprocess)
        shutil.rmtree(run / "images")
        linked(bench.train.photos, run / "images")
    batch = next((int(one.partition("=")[2]) for one in changes if one.startswith("schedule.batch=")), BATCH)
    epochs = max(1, round(steps * BATCH / batch / math.ceil((1 - HELD) * len(photos) / batch)))
    began, wall = time.process_time(), time.perf_counter()
    report = distilltool.distill(
        bench.teacher,
        run / "images",
        recipe=recipe,
        out=run / "run",
        student=bench.student,
        input_size=bench.setting.input,
        store=store,
        budget=budget,
        preprocess=bench.setting.preprocess,
        seed=seed,
        space="teacher" if TEACHER in changes else None,
        changes=[
            f"schedule.epochs={epochs}",
            "schedule.patience=1000",
            *(change for change in changes if change not in (TEACHER, OTHERS)),
        ],
    )
    spent = {"cpu seconds": time.process_time() - began, "seconds": time.perf_counter() - wall}
    student = distilltool.load_student(run / "run")
    rows, _ = images.load([photo.path for photo in bench.val.photos], student.preprocess)
    found: dict[str, Any] = bench.val.figures(student.embed(rows), in_space=report.student.space == "teacher")
    found |= {
        "steps": report.steps,
        "best step": report.best_step,
        "start share": report.start_share,
        "runs": report.soup,
        "held-out overlap": report.fidelity.overlap_at_10.value,
        "held-out gain": to_json(report.gain),
        "verdict": report.verdict,
        "held-out overlap, untrained": report.undistilled.overlap_at_10.value,
    }
    if report.nested:  # vectors cut to each of the lengths
        made = student.embed(rows)
        cut = {dim: bench.val.figures(unit(made[:, : int(dim)]), in_space=False) for dim in report.nested}
        found["cut"] = {dim: {name: one[name] for name in FIGURES[:3]} for dim, one in cut.items()}
    shutil.rmtree(run)
    return {**found, **spent, "student": f"{report.student.spec} at {max(report.student.input)} px"}


def plain(bench: Bench) -> dict[str, Any]:
    """The pooled features of the untrained network, whole images."""
    teacher = open_teacher(bench.teacher, TeacherOptions(preprocess=bench.setting.preprocess))
    paths = [photo.path for photo in bench.train.photos]
    source = open_source(bench.student, teacher, False, paths, Silent())
    start = Start(
        input=bench.setting.input or max(teacher.preprocess.size),
        seed=0,
        source=source,
        prepared=teacher.preprocess,
        photos=tuple(paths),
    )
    student = Student(students.build(bench.student, start), 0, bias=False)
    how = Preprocess(size=(start.input, start.input), layout="NHWC", dtype="uint8")
    rows, _ = images.load([photo.path for photo in bench.val.photos], how)
    return bench.val.figures(embed(student, rows), in_space=False)


def compressed(bench: Bench, photos: Sequence[Photo], dim: int) -> dict[str, Any]:
    """The teacher's own vectors with fewer numbers: what costs nothing but does not make the network cheaper."""
    place = {photo.sha256: row for row, photo in enumerate(bench.train.photos)}
    known = bench.train.targets[[place[photo.sha256] for photo in photos]]
    centre = known.mean(axis=0)
    axes = ridge.principal(torch.from_numpy(known - centre), dim).numpy()
    return bench.val.figures(unit((bench.val.targets - centre) @ axes.T), in_space=False)


def cell(bench: Bench, arm: str, count: int, seed: int, steps: int) -> dict[str, Any]:
    photos = random(bench.train.photos, seed)[:count]
    if arm == "plain":
        return plain(bench)
    if arm.startswith("pca-"):
        return compressed(bench, photos, int(arm.removeprefix("pca-")))
    return trained(bench, photos, arm, seed, steps)


def show(rows: list[dict[str, Any]]) -> None:
    """One line a cell of the table, its seeds together."""
    cells = defaultdict(list)
    for row in rows:
        cells[row["setting"], row["queries"], row["steps"], row["arm"]].append(row["figures"])
    print(f"{'setting':20s} {'N':>5s} {'steps':>5s} {'arm':25s} " + "  ".join(f"{name:>22s}" for name in FIGURES))
    for (setting, count, steps, arm), found in sorted(cells.items()):
        said = []
        for name in FIGURES:
            values = [one[name] for one in found if name in one]
            if not values:
                said.append("")
            elif name in ("steps", "cpu seconds"):
                said.append(f"{np.median(values):.0f}")
            else:
                said.append(percent(mean(values)))
        print(f"{setting:20s} {count:5d} {steps:5d} {arm:25s} " + "  ".join(f"{one:>22s}" for one in said))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?", choices=SETTINGS)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000], help="0 is all there are")
    parser.add_argument("--arms", nargs="+", default=["plain", "untrained", "best"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--show", action="store_true", help="print what is in the JSON file")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    rows = rows_in(args.json)
    if args.show:
        show(rows)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    bench = opened(args.setting, args.data, args.work)
    torch.set_num_threads(images.workers())
    done = {(row["setting"], row["queries"], row["arm"], row["seed"], row["steps"]) for row in rows}
    for seed in args.seeds:
        for arm in args.arms:
            for count in (count or len(bench.train.photos) for count in args.queries):
                steps = 0 if arm.startswith(("plain", "pca", "untrained")) else args.steps
                if (args.setting, count, arm, seed, steps) in done:
                    continue
                found = cell(bench, arm, count, seed, steps)
                row = {"setting": args.setting, "queries": count, "arm": arm, "seed": seed, "steps": steps}
                figures = {name: round(one, 5) if isinstance(one, float) else one for name, one in found.items()}
                add_row(args.json, {**row, "figures": figures})
                print({**row, **figures}, flush=True)


if __name__ == "__main__":
    main()

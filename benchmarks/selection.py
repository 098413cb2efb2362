"""What choosing the images is worth: retention at small budgets, on photographs among planted copies of themselves.

    python benchmarks/selection.py TEACHER TRAIN VAL --preprocess tf --student timm:mobilenetv2_100 \\
        --weights mobilenetv2.safetensors --work WORK --json benchmarks/results/selection.json
    python benchmarks/selection.py ... --steps 150 --budgets 0.1 --selects random cluster    # trains a student instead

Copies, re-encoded, resized, cropped or brightened, are planted until they are 40 % of the folder; every image is asked
about once into a ledger in WORK that all arms share, and the choosing is told that nothing is answered yet. Retention
is the student's mAP over the teacher's on VAL (class folders; no choice sees it). Without --steps the student is its
frozen pretrained features and a linear map onto the teacher's vectors in closed form; with --steps a student is trained
by the real recipe on the chosen images. "unfiltered" is `random` with near-duplicates left in. Results are added to
the JSON file; what is in it is not computed again.
"""

import argparse
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from planted import plant
from setting import Labelled, ask, mean, percent

import distilltool
from distilltool import choice, images
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.progress import Silent
from distilltool.ridge import ridge
from distilltool.selection.random import random
from distilltool.stages.distill import environment
from distilltool.student import Student, embed
from distilltool.students import Start, build

COPIES = 0.4  # of all files
STRENGTH = 0.3  # ridge over the mean diagonal, fixed: chosen by leave-one-out it would depend on the copies


@dataclass(frozen=True, kw_only=True)
class Known(Labelled):
    """Images with what is computed once. features: (N, F) of the frozen student at length 1."""

    features: NDArray[np.float32]

    def rows(self, photos: Sequence[Photo]) -> list[int]:
        place = {photo.sha256: row for row, photo in enumerate(self.photos)}
        return [place[photo.sha256] for photo in photos]


def know(args: argparse.Namespace, folder: Path, store: Path) -> Known:
    """Ask about a folder and describe it, or read what an earlier call kept."""
    asked = ask(args.teacher, folder, store, args.preprocess)
    kept = args.work / f"{folder.name}.npy"
    if not kept.exists():
        rows, _ = images.load([photo.path for photo in asked.photos], student_input(args))
        np.save(kept, embed(undistilled(args), rows))
    return Known(photos=asked.photos, targets=asked.targets, labels=asked.labels, features=np.load(kept))


def student_input(args: argparse.Namespace) -> Preprocess:
    return Preprocess(size=(args.input, args.input), layout="NHWC", dtype="uint8")


def undistilled(args: argparse.Namespace) -> Student:
    return Student(build(args.student, Start(input=args.input, seed=0, weights=args.weights)), dim=0, bias=False)


def chosen(known: Known, select: str, count: int, seed: int) -> list[Photo]:
    """The first `count` photos by a selection that knows no answer."""
    if select == "unfiltered":
        return random(known.photos, seed)[:count]
    found = choice.choose(
        select, known.photos, set(), count, seed, Silent(), lambda photos: known.features[known.rows(photos)]
    )
    return list(found.order[:count])


def closed_form(train: Known, val: Known, photos: list[Photo]) -> dict[str, float]:
    """Frozen features and a linear map onto the teacher's vectors."""
    rows = train.rows(photos)
    head = ridge(torch.from_numpy(train.features[rows]), torch.from_numpy(train.targets[rows]), (STRENGTH,))
    mapped = val.features @ head.weight.numpy().T + head.bias.numpy()
    return val.figures(unit(mapped.astype(np.float32)), in_space=True)


def trained(args: argparse.Namespace, val: Known, photos: list[Photo], seed: int) -> dict[str, float]:
    """`distill` with the real recipe on the chosen images, whose answers are in the ledger."""
    run = args.work / f"{args.json.stem}-run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "images").mkdir(parents=True)
    for photo in photos:
        (run / "images" / photo.path.name).symlink_to(photo.path.resolve())
    report = distilltool.distill(
        args.teacher,
        run / "images",
        recipe=args.recipe,
        out=run / "run",
        student=args.student,
        weights=args.weights,
        store=args.work / "ledger.sqlite",
        preprocess=args.preprocess,
        seed=seed,
        changes=[
            f"student.input={args.input}",
            f"schedule.batch={args.batch}",
            f"schedule.epochs={max(1, round(args.steps / math.ceil(0.9 * len(photos) / args.batch)))}",
            *args.set,
        ],
    )
    student = distilltool.load_student(run / "run")
    rows, _ = images.load([photo.path for photo in val.photos], student.preprocess)
    found = val.figures(student.embed(rows), in_space=report.student.space == "teacher")
    return {**found, "steps": report.steps, "best step": report.best_step, "seconds": round(report.seconds, 1)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds with 95 % t-intervals, and paired differences to random."""
    cells: dict[tuple[str, float, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        cells[row["student"], row["share"], row["select"]][row["seed"]] = row["figures"]
    found = []
    for (student, share, select), seeds in sorted(cells.items()):
        base = cells.get((student, share, "random"), {})
        both = sorted(set(seeds) & set(base)) if select != "random" else []
        for name in ("map kept", "recall@1 kept", "overlap@10", "overlap@10 to teacher"):
            values = [figure[name] for figure in seeds.values() if name in figure]
            if not values:
                continue
            found.append(
                {"student": student, "share": share, "select": select, "figure": name, **mean(values)}
                | ({"minus random": mean([seeds[s][name] - base[s][name] for s in both])} if both else {})
            )
    return found


def show(found: list[dict[str, Any]]) -> None:
    for one in found:
        less = one.get("minus random")
        said = f"   minus random {percent(less, '+')}" if less else ""
        head = f"{one['student']:12s} {one['share']:.2f} {one['select']:10s} {one['figure']:22s}"
        print(f"{head} {percent(one)}{said}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--preprocess", action="append", default=[])
    parser.add_argument("--student", default="timm:mobilenetv2_100")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--selects", nargs="+", default=["random", "unfiltered", "coverage", "cluster"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="drd")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], help="of the recipe, as in `distill`")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    torch.set_num_threads(images.workers())
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work / "planted"
    if not folder.exists():
        plant(images.find(args.train), folder, COPIES)
    train = know(args, folder, args.work / "ledger.sqlite")
    val = know(args, args.val, args.work / "evaluation.sqlite")
    kept = json.loads(args.json.read_text()) if args.json.exists() else {"rows": []}
    student = " ".join([args.recipe, str(args.steps), *args.set]) if args.steps else "closed form"
    done = {(row["student"], row["share"], row["select"], row["seed"]) for row in kept["rows"]}
    for seed in args.seeds:
        for share in args.budgets:
            for select in args.selects:
                if (student, share, select, seed) in done:
                    continue
                photos = chosen(train, select, round(share * len(train.photos)), seed)
                found = trained(args, val, photos, seed) if args.steps else closed_form(train, val, photos)
                row = {"student": student, "share": share, "budget": len(photos), "select": select, "seed": seed}
                kept["rows"].append({**row, "figures": {name: round(value, 5) for name, value in found.items()}})
                kept["summary"] = summary(kept["rows"])
                kept |= {"images": len(train.photos), "teacher": args.teacher.name, "environment": environment()}
                args.json.write_text(json.dumps(kept, indent=1) + "\n")
                print(kept["rows"][-1], flush=True)
    show(summary(kept["rows"]))


if __name__ == "__main__":
    main()

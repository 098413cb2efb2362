"""Whether `eval --drift` tells what is unlike the images a student was trained on, and what asking about such brings.

    python benchmarks/drift.py $DATA --work WORK --json benchmarks/results/drift.json
    python benchmarks/drift.py --show --json benchmarks/results/drift.json

Three runs from MobileNetEdgeTPU's answers, MobileNetV2 at 128 px, as many steps each: `photographs`, drawn from
caltech/train; `frames`, these and the first half of the corridor's; `classes`, these and more of caltech/val. All are
judged on images that none of them was asked about, but a kind of which one was: photographs of the same classes, of
unseen ones, frames of the corridor's second half, drawings, clothes. Rows are added to the JSON file seed by seed;
overlap is compared between runs of one set of images, by a paired bootstrap over its queries.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality import BATCH, HELD, folders
from setting import add_row, rows_in

import distilltool
from distilltool import images

ASKED, MORE, JUDGED = 800, 644, 400
VIEWS = 9000  # of images, in training; the same number of steps for each run
TEACHER, STUDENT, SIDE = "mobilenet_edgetpu_fp32", "mobilenetv2_fp32", 128


def filled(folder: Path, paths: Sequence[Path]) -> Path:
    """A folder of links to these files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        (folder / f"{number:04d}-{path.name}").symlink_to(path.resolve())
    return folder


def drawn(folder: Path, rng: np.random.Generator) -> list[Path]:
    """The images of a folder in random order."""
    found = images.find(folder)
    return [found[at] for at in rng.permutation(len(found))]


def sets(data: Path, work: Path, seed: int) -> tuple[dict[str, Path], dict[str, Path]]:
    """Folders that runs are made of, and folders that they are judged on."""
    rng = np.random.default_rng(seed)
    train, val = (drawn(folder, rng) for folder in folders("caltech", data, work))
    first, second = (drawn(folder, rng) for folder in folders("corridor", data, work))
    drawings, clothes = (drawn(folders(name, data, work)[1], rng) for name in ("omniglot", "fashion"))
    asked = train[:ASKED]
    made_of = {"photographs": asked, "frames": asked + first, "classes": asked + val[JUDGED : JUDGED + MORE]}
    judged = {
        "same classes": train[ASKED : ASKED + JUDGED],
        "unseen classes": val[:JUDGED],
        "frames": second,
        "drawings": drawings[:JUDGED],
        "clothes": clothes[:JUDGED],
    }
    root = work / f"drift-{seed}"
    return (
        {name: filled(root / "made" / name, paths) for name, paths in made_of.items()},
        {name: filled(root / "judged" / name.replace(" ", "-"), paths) for name, paths in judged.items()},
    )


def trained(folder: Path, data: Path, work: Path, seed: int) -> Path:
    """A run made of a folder."""
    run = folder.parent / f"run-{folder.name}"
    step = 3 * BATCH  # images, by the recipe
    epochs = max(1, round(VIEWS / step / np.ceil((1 - HELD) * len(images.find(folder)) / step)))
    distilltool.distill(
        data / "models" / f"{TEACHER}.onnx",
        folder,
        out=run,
        student=f"onnx:{data / 'models' / STUDENT}.onnx,preprocess=imagenet",
        input_size=SIDE,
        store=work / "ledger.sqlite",
        preprocess=("tf",),
        seed=seed,
        changes=[f"schedule.epochs={epochs}", "schedule.patience=1000"],
        restart=run.exists(),
    )
    return run


def judge(runs: Sequence[Path], folder: Path, work: Path) -> dict[str, Any]:
    """What `eval --drift` says of each run, and how their overlap differs."""
    report = distilltool.evaluate(list(runs), folder, store=work / "evaluation.sqlite", drift=True)
    told = {}
    for run, model in zip(runs, report.models[1:], strict=True):
        one = model.drift
        told[run.name.removeprefix("run-")] = {
            "beyond": values(one.span.beyond),
            "beyond, by the nearest": values(one.nearest.beyond),
            "held out": one.held_out,
            "unlike": one.unlike,
            "fails": one.fails,
            "ask": one.ask,
            "overlap@10": values(model.fidelity["overlap@10"]),
        }
    less = {
        f"{one.model.removeprefix('run-')} less {one.other.removeprefix('run-')}": values(one.difference)
        for one in report.differences
        if one.figure == "overlap@10"
    }
    return {"runs": told, "differences": less}


def values(one: Any) -> list[float]:
    """A value and its interval."""
    return [round(float(number), 4) for number in (one.value, one.low, one.high)]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each run and set of images, one for each difference."""
    for row in rows:
        for name, one in row["runs"].items():
            value, low, high = one["beyond"]
            verdict = {True: "unlike", False: "alike", None: "cannot be told"}[one["unlike"]]
            said = f"{100 * value:5.1f} % ({100 * low:.1f} to {100 * high:.1f}) beyond: {verdict}"
            print(f"seed {row['seed']} {row['set']:14s} {name:11s} {said:44s} overlap@10 {one['overlap@10'][0]:.3f}")
        for name, (value, low, high) in row["differences"].items():
            points = f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            print(f"seed {row['seed']} {row['set']:14s} {name}: {points}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--show", action="store_true", help="print what is in the JSON file")
    args = parser.parse_args()
    if not args.show:
        for seed in args.seeds:
            made_of, judged = sets(args.data, args.work, seed)
            runs = [trained(folder, args.data, args.work, seed) for folder in made_of.values()]
            for name, folder in judged.items():
                add_row(args.json, {"seed": seed, "set": name, **judge(runs, folder, args.work)})
    show(rows_in(args.json))


if __name__ == "__main__":
    main()

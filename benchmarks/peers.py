"""The same teacher distilled with LightlyTrain and with torchdistill, and their students judged as ours are.

    python benchmarks/peers.py $DATA --work WORK --json benchmarks/results/peers.json
    python benchmarks/peers.py $DATA --peers torchdistill-pkt --settings capped stored --minutes 5 ...
    python benchmarks/peers.py --show --json benchmarks/results/peers.json

The task is the setting `caltech` of quality.py: teacher mobilenet_edgetpu_fp32.onnx, unlabelled photographs, student
MobileNetV2 at 128 px from the weights of mobilenetv2_fp32.onnx. The student is judged by its pooled features of whole
images (`figures`), which is what a peer hands over, and also by the same less their mean over the photographs it was
trained on (`centred`), a step that our tool takes and theirs do not. A tool's own crop and taps have no counterpart.

What is done for the peers, since neither reads an ONNX file: both are given teacher and student as torch modules that
our library makes of the files (peers_models.py), with the same weights as our student starts from. One view is made
for both networks, at 224 px; the student takes it to 128 px itself, with antialiasing. Batch normalisation is folded in
the file; `--start norms` puts it back, computing the same, for recipes that are made for it (`folded` is the default,
and what our own student starts from). Nothing is tuned: batch, learning rate, schedule, augmentation and loss are the
peer's own, its schedule brought to the number of steps. These are what `--minutes` holds by a trial of six steps
before, so that nothing else may run on the machine; `--steps` says them instead.

`lightly-train`, 0.18: `pretrain(method="distillation")`, which is version 3. Since 0.15 its teacher may be any wrapped
torch module (older versions, and its `distillationv1` and `v2`, take DINO alone). The view is mixed with others in
every step (distillationv3.py, `_mixup_data`), so that no answer of the teacher serves twice: capped means as many
steps of 128 as the budget has. Its export throws the projection into the teacher's space away, and so is done here. It
reports its use to its makers unless told not to, as here.

`torchdistill-pkt` and `torchdistill-rkd`, 1.1: its ImageNet sample configurations of PKT (vectors of any length, no
label, one term: the nearest to this task) and of RKD, whose term on class scores is left away since the teacher has
none here, on the embedding where it takes the map of the last stage. The last weights count: its example keeps those
of the best labelled accuracy, and here are no labels. Its learning rate falls at a quarter and three quarters, counted
in steps. Its cache of the teacher's outputs was removed (pull request 539; 1.1.5 has none), so that a step asks again;
`stored` is what a user may write instead, with its documented `forward_proc`: a teacher that looks up one answer per
image, and views that are whole images, because that is what the answer is about.

Settings: `unlimited`, all photographs, the teacher asked about every view of every step; `capped`, the photographs
drawn by the seed and no more views than `--queries`; `stored` (torchdistill), those photographs, one answer each, for
as long as `--minutes`. `none` is the student as it starts. Rows are added to the JSON file one by one; what is in it is
not computed again. Every peer has an environment below WORK, made once with pip: the peer, this project for its
dependencies, and torch and torchvision of the version that runs this; `--index` names another package index for those.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers_models import (
    ANSWERS,
    IMAGES,
    LEARNT,
    MEAN,
    STARTED,
    STD,
    TOLD,
    VIEW,
    File,
    Network,
    Task,
    backbone_of,
    student_of,
    write,
)
from quality import Bench, opened
from setting import add_row, rows_in
from torch import Tensor

from distilltool import images
from distilltool.embedder import unit
from distilltool.images import Photo
from distilltool.preprocess import Preprocess
from distilltool.selection.random import random
from distilltool.student import Student, embed

HERE = Path(__file__).parent
STATISTICS = 256  # photographs whose statistics batch normalisation is put back with
TRIAL = 6  # steps
SETTINGS = ("unlimited", "capped", "stored")
SILENT = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool: its package and version, the child that calls it, its own batch, its recipe where it has several, and
    whether it can do with stored answers."""

    package: str
    wanted: str
    child: str
    batch: int
    recipe: str = ""
    stores: bool = False


PEERS = {
    "lightly-train": Peer(package="lightly-train", wanted="0.18", child="peers_lightly.py", batch=128),
    "torchdistill-pkt": Peer(
        package="torchdistill", wanted="1.1", child="peers_torchdistill.py", batch=32, recipe="pkt", stores=True
    ),
    "torchdistill-rkd": Peer(
        package="torchdistill", wanted="1.1", child="peers_torchdistill.py", batch=32, recipe="rkd", stores=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row to come. budget: images that the teacher may be asked about, where the setting has one."""

    peer: str
    setting: str
    start: str
    seed: int
    budget: int
    minutes: float
    steps: int
    batch: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells this row from others: the minutes only where they decide how long it is."""
        timed = self.peer != "none" and self.setting != "capped" and not self.steps
        return {
            "setting": "caltech",
            "peer": self.peer,
            "arm": self.setting,
            "start": self.start,
            "seed": self.seed,
            "budget": 0 if self.setting == "unlimited" else self.budget,
            "minutes": self.minutes if timed else 0,
            "asked steps": self.steps,
            "batch": self.batch,
        }


def python_of(peer: Peer, folder: Path, index: str) -> Path:
    """The python of a peer's environment, which is made if it is not there."""
    home = folder / peer.package
    python = home / "bin" / "python"
    asked = f"from importlib.metadata import version as v; print(v({peer.package!r}), v('distilltool'))"
    if python.exists():
        found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.startswith(f"{peer.wanted}."):
            return python
    venv.create(home, with_pip=True)
    same = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")]
    more = ["--extra-index-url", index] if index else []
    wanted = [f"{peer.package}=={peer.wanted}.*", *same, str(HERE.parent)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *more, *wanted], check=True)
    return python


def task_of(bench: Bench, cell: Cell, threads: int) -> Task:
    peer = PEERS.get(cell.peer)
    student = bench.data / "models" / f"{bench.setting.student.partition(':')[2]}.onnx"
    assert bench.setting.input is not None
    return Task(
        teacher=File(path=str(bench.teacher.resolve()), preprocess="tf", side=VIEW),
        student=File(path=str(student.resolve()), preprocess="imagenet", side=bench.setting.input),
        recipe=peer.recipe if peer else "",
        norms=cell.start == "norms",
        stored=cell.setting == "stored",
        steps=cell.steps,
        batch=cell.batch or (peer.batch if peer else 0),
        threads=threads,
        seed=cell.seed,
    )


def views(photos: Sequence[Photo]) -> Tensor:
    """Whole photographs as a peer's views."""
    rows, _ = images.load([one.path for one in photos], Preprocess(size=(VIEW, VIEW), layout="NHWC", dtype="uint8"))
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))
    return (torch.from_numpy(rows).permute(0, 3, 1, 2) / 255 - mean) / std


def prepare(bench: Bench, task: Task, photos: Sequence[Photo], folder: Path) -> None:
    """What a child finds: its task, photographs numbered in order, the student's start, and answers where stored."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / IMAGES / "all").mkdir(parents=True)
    for number, photo in enumerate(photos):
        (folder / IMAGES / "all" / f"{number:06d}{photo.path.suffix}").symlink_to(photo.path.resolve())
    network = Network(backbone_of(task.student), task.student.side)
    if task.norms:
        network.with_norms(torch.split(views(photos[:STATISTICS]), 32))
    torch.save(network.state_dict(), folder / STARTED)
    if task.stored:
        place = {photo.sha256: row for row, photo in enumerate(bench.train.photos)}
        known = bench.train.targets[[place[photo.sha256] for photo in photos]]
        torch.save(torch.from_numpy(known.astype(np.float32)), folder / ANSWERS)
    write(task, folder)


def called(peer: Peer, python: Path, folder: Path) -> dict[str, Any]:
    """Run a child in its environment; what it tells. The project's code is this checkout's, not the installed copy."""
    said = os.environ | SILENT | {"PYTHONPATH": str(HERE.parent.resolve())}
    with (folder / "log.txt").open("w") as log:
        command = [python, HERE / peer.child, folder]
        done = subprocess.run(command, env=said, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = (folder / "log.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{peer.child} failed in {folder}:\n{tail}")
    told: dict[str, Any] = json.loads((folder / TOLD).read_text())
    return told


def steps_of(bench: Bench, cell: Cell, task: Task, photos: Sequence[Photo], python: Path, folder: Path) -> int:
    """Steps that the setting has: asked for, or what the budget pays for, or what the minutes hold by a trial."""
    if cell.setting == "capped":
        paid = len(photos) // task.batch
        return min(paid, cell.steps or paid)
    if cell.steps:
        return cell.steps
    prepare(bench, replace(task, steps=TRIAL), photos, folder)
    seconds = float(np.median(called(PEERS[cell.peer], python, folder)["seconds a step"]))
    return max(1, int(60 * cell.minutes / seconds))


def judged(bench: Bench, network: Network, photos: Sequence[Photo]) -> dict[str, dict[str, float]]:
    """The figures of quality.py for a student's pooled features, as they are and less their mean over `photos`."""
    student = Student(network.made, 0, bias=False)
    how = Preprocess(size=(network.side, network.side), layout="NHWC", dtype="uint8")
    rows, _ = images.load([photo.path for photo in bench.val.photos], how)
    found: NDArray[np.float32] = embed(student, rows)
    seen, _ = images.load([photo.path for photo in photos], how)
    centre = embed(student, seen).mean(axis=0)
    return {
        "figures": bench.val.figures(found, in_space=False),
        "centred": bench.val.figures(unit(found - centre), in_space=False),
    }


def row_of(bench: Bench, cell: Cell, environments: Path, index: str) -> dict[str, Any]:
    """Prepare, train in the peer's environment, judge in this one."""
    threads = images.workers()
    photos = random(bench.train.photos, cell.seed)
    photos = photos if cell.setting == "unlimited" else photos[: cell.budget]
    folder = (bench.work / f"peers-{os.getpid()}").resolve()
    task = task_of(bench, cell, threads)
    told: dict[str, Any] = {}
    if cell.peer != "none":
        peer = PEERS[cell.peer]
        python = python_of(peer, environments, index)
        task = replace(task, steps=steps_of(bench, cell, task, photos, python, folder))
        prepare(bench, task, photos, folder)
        told = called(peer, python, folder)
        told["queries"] += len(photos) if task.stored else 0
        told["seconds a step"] = float(np.median(told["seconds a step"] or [0]))
        (folder / LEARNT).replace(folder / STARTED)
    else:
        prepare(bench, task, photos, folder)
    network = student_of(task, folder)
    shutil.rmtree(folder)
    return {**cell.key, "photographs": len(photos), "threads": threads, **told, **judged(bench, network, photos)}


def rounded(one: Any) -> Any:
    if isinstance(one, dict):
        return {name: rounded(value) for name, value in one.items()}
    return round(one, 5) if isinstance(one, float) else one


def show(rows: Sequence[dict[str, Any]]) -> None:
    names = ("map kept", "overlap@10", "recall@1 kept")
    print(f"{'peer':18s} {'arm':10s} {'start':7s} seed queries steps    cpu s  " + "  ".join(names) + "   centred: mAP")
    for row in sorted(rows, key=lambda one: (one["peer"], one["arm"], one["start"], one["seed"])):
        figures = "  ".join(f"{row['figures'][name]:{len(name)}.3f}" for name in names)
        print(
            f"{row['peer']:18s} {row['arm']:10s} {row['start']:7s} {row['seed']:4d} {row.get('queries', 0):7d} "
            f"{row.get('steps', 0):5d} {row.get('cpu seconds', 0):8.0f}  {figures}   {row['centred']['map kept']:.3f}"
        )


def cells(args: argparse.Namespace) -> list[Cell]:
    found = []
    for seed in args.seeds:
        for start in args.start:
            for name in args.peers:
                for setting in ("unlimited",) if name == "none" else args.settings:
                    if setting == "stored" and not PEERS[name].stores:
                        continue
                    same = {"start": start, "seed": seed, "budget": args.queries, "batch": args.batch}
                    timed = {"minutes": args.minutes, "steps": 0 if name == "none" else args.steps}
                    found.append(Cell(peer=name, setting=setting, **same, **timed))
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--peers", nargs="+", choices=["none", *PEERS], default=["none", *PEERS])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--start", nargs="+", choices=("folded", "norms"), default=["folded"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=1000, help="the budget of `capped` and `stored`")
    parser.add_argument("--minutes", type=float, default=10, help="of training, for `unlimited` and `stored`")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=0, help="instead of the peer's own")
    parser.add_argument("--environments", type=Path, help="where the peers' environments are (WORK/environments)")
    parser.add_argument("--index", default="", help="another package index, for torch")
    parser.add_argument("--show", action="store_true", help="print what is in the JSON file")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    if args.show:
        show(rows_in(args.json))
        return
    if args.data is None or args.work is None:
        sys.exit("give the folder of the data, and --work")
    args.work.mkdir(parents=True, exist_ok=True)
    bench = opened("caltech", args.data, args.work)
    torch.set_num_threads(images.workers())
    for cell in cells(args):
        if any(cell.key.items() <= row.items() for row in rows_in(args.json)):
            continue
        found = rounded(row_of(bench, cell, args.environments or args.work / "environments", args.index))
        add_row(args.json, found)
        print(found, flush=True)


if __name__ == "__main__":
    main()

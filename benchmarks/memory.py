"""How much memory `distill` holds at most, by the number of images.

    python benchmarks/memory.py $MODELS/teacher.onnx $DATA/caltech/train --student onnx:$MODELS/small.onnx --input 128 \
        --work WORK --json benchmarks/results/memory.json

Photographs are cropped into as many different files as are asked for, the command runs as anybody would start it, for
one epoch, and the kernel is asked about it five times a second. `peak` is all that is resident, pages of mapped files
among it, which the kernel takes back when others need them; `own` is without those.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from distilltool import deploy, images
from distilltool.stages.distill import environment

OWN, ALL = "RssAnon", "VmRSS"


def crops(photos: list[Path], folder: Path, count: int) -> None:
    """Fill a folder with crops of photographs, each of 70 to 100 % of both sides; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if path.exists():
            continue
        image = deploy.open_rgb(photos[number % len(photos)])
        share, left, top = np.random.default_rng((number, 21)).uniform((0.7, 0, 0), 1)
        width, height = round(share * image.width), round(share * image.height)
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        image.crop((x, y, x + width, y + height)).save(path, quality=90)


def resident(pid: int) -> dict[str, float]:
    """What a process holds, in GB; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = (line.partition(":") for line in lines)
    return {name: int(said.split()[0]) / 1e6 for name, _, said in found if name in (OWN, ALL)}


def peak(command: list[str]) -> dict[str, float]:
    """The most that a command holds while it runs, in GB, and its seconds."""
    most, began = {OWN: 0.0, ALL: 0.0}, time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        now = resident(process.pid)
        most = {name: max(before, now.get(name, 0.0)) for name, before in most.items()}
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}: {' '.join(command)}")
    return {"own": most[OWN], "peak": most[ALL], "seconds": time.perf_counter() - began}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--student", required=True)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--preprocess", nargs="+", default=["tf"])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--budget", type=int, help="of queries; the others teach unasked. The default asks about all")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    photos, rows = images.find(args.photographs), []
    for count in args.images:
        folder = args.work / f"crops-{count}"
        crops(photos, folder, count)
        command = [sys.executable, "-m", "distilltool", "distill", str(args.teacher), str(folder)]
        command += ["--student", args.student, "--input", str(args.input), "--set", "schedule.epochs=1", "--restart"]
        store = "memory.sqlite" if args.budget is None else f"memory-{args.budget}.sqlite"
        command += ["--store", str(args.work / store), "--out", str(args.work / f"run-{count}")]
        if args.budget is not None:
            command += ["--budget", str(args.budget), "--set", "unasked.share=0.5", "--set", "unasked.after=0"]
        command += [word for one in args.preprocess for word in ("--preprocess", one)]
        found = {name: round(value, 3) for name, value in peak(command).items()}
        print(f"{count} images: {found['peak']:.2f} GB, {found['own']:.2f} GB without mapped files", flush=True)
        rows.append({"images": count, "budget": args.budget, **found, "environment": environment()})
    if args.json:
        before = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
        again = {(row["images"], row["budget"]) for row in rows}
        rows = [*(row for row in before if (row["images"], row["budget"]) not in again), *rows]
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What anybody gets in ten minutes, or in an hour: the command of the README as it stands, by one seed after another.

    python benchmarks/ten_minutes.py $DATA --work WORK --json benchmarks/results/ten_minutes.json
    python benchmarks/ten_minutes.py $DATA --inputs 200 --work WORK --json ...
    python benchmarks/ten_minutes.py $DATA --time-budget 60m --work WORK --json ...

The seed draws the 1,000 of 2,077 photographs that are asked about, into a ledger of its own, and all that is random in
training. `wall` are the seconds of the whole command, asking included. `untrained` is the same command with a learning
rate of nothing, so with all that is chosen before training. Both are judged by `eval` on classes that neither saw. Run
it on an idle machine: time is what it is about. Rows are added to the JSON file one by one; what is in it is not run
again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from setting import UNTRAINED, add_row, mean, percent, rows_in


def called(command: list[str]) -> dict[str, Any]:
    """What distilltool says in JSON."""
    done = subprocess.run([sys.executable, "-m", "distilltool", *command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the command ended with {done.returncode}: {' '.join(command)}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def row_of(args: argparse.Namespace, pixels: int, seed: int) -> dict[str, Any]:
    """One seed: the run within the time, and its untrained start."""
    models, photographs = args.data / "models", args.data / "caltech"
    store, folder = args.work / f"{seed}.sqlite", args.work / f"run-{pixels}-{seed}"
    store.unlink(missing_ok=True)
    command = ["distill", str(models / "mobilenet_edgetpu_fp32.onnx"), str(photographs / "train"), "--budget", "1000"]
    command += ["--preprocess", "tf", "--student", f"onnx:{models / 'mobilenetv2_fp32.onnx'}", "--input", str(pixels)]
    command += ["--seed", str(seed), "--store", str(store)]
    found: dict[str, Any] = {"input": pixels, "seed": seed, "budget": args.time_budget}
    changes = [word for one in UNTRAINED for word in ("--set", one)]
    for name, more in {"distilled": ["--time-budget", args.time_budget], "untrained": changes}.items():
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        made = called([*command, *more, "--out", str(out)])
        wall = time.perf_counter() - began
        judged = called(["eval", str(out), "--data", str(photographs / "val")])["models"]
        teacher, student = judged
        found[name] = {
            "wall": round(wall, 1),
            **{key: made[key] for key in ("queries", "steps", "seconds", "soup", "fidelity", "undistilled", "verdict")},
            "teacher": teacher["metrics"],
            "metrics": student["metrics"],
            "retention": student["retention"],
            "judged": student["fidelity"],
        }
        shutil.rmtree(out)
    return found


def shown(rows: list[dict[str, Any]]) -> str:
    """The means over seeds, by the student's input and the time."""
    lines = []
    for pixels, budget in sorted({(row["input"], row["budget"]) for row in rows}):
        some = [row for row in rows if (row["input"], row["budget"]) == (pixels, budget)]
        lines.append(f"{pixels} px within {budget}, steps {[row['distilled']['steps'] for row in some]}")
        for name in ("untrained", "distilled"):
            for key in ("map", "recall@1"):
                kept = [row[name]["retention"][key]["value"] for row in some]
                each = ", ".join(f"{100 * one:.1f}" for one in kept)
                lines.append(f"  {name} {key} kept {percent(mean(kept))}: {each}")
            lines.append(
                f"  {name} overlap {percent(mean([row[name]['judged']['overlap@10']['value'] for row in some]))}"
            )
        gains = [
            row["distilled"]["retention"]["map"]["value"] - row["untrained"]["retention"]["map"]["value"]
            for row in some
        ]
        lines.append(f"  gain in mAP kept {percent(mean(gains), '+')}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--inputs", type=int, nargs="+", default=[128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--time-budget", default="10m")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for pixels in args.inputs:
        for seed in args.seeds:
            asked = {"input": pixels, "seed": seed, "budget": args.time_budget}
            if not any(all(row[key] == value for key, value in asked.items()) for row in rows_in(args.json)):
                add_row(args.json, row_of(args, pixels, seed))
                print(shown(rows_in(args.json)), flush=True)
    print(shown(rows_in(args.json)))


if __name__ == "__main__":
    main()

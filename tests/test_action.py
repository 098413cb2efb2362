"""The GitHub action and the example workflow: what their steps run, run here by the same shell."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import loaded, onnx_teacher

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[1]


def script(folder: Path, text: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a step as GitHub does, in a folder, with our `distilltool` and `python` found first."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, words in (("distilltool", "-m distilltool"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    (folder / "step.sh").write_text(text)
    around = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **environment}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"]
    return subprocess.run(words, cwd=folder, env=around, capture_output=True, text=True, check=False)


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return found


def timed(folder: Path, **inputs: str) -> "subprocess.CompletedProcess[str]":
    """The action's last step with these inputs, the others at their defaults, after an installation."""
    step = action()["runs"]["steps"][-1]
    given = {name: inputs.get(name, one.get("default", "")) for name, one in action()["inputs"].items()}
    values = {f"${{{{ inputs.{name} }}}}": value for name, value in given.items()}
    installed = given["command"] or str(folder / "bin" / "distilltool")
    values["${{ inputs.command || steps.install.outputs.command }}"] = installed
    environment = {variable: values[text] for variable, text in step["env"].items()}
    return script(folder, step["run"], GITHUB_STEP_SUMMARY=str(folder / "summary.md"), **environment)


def test_every_input_reaches_a_step() -> None:
    """None is declared in vain, none is pasted into a script, where it would be run."""
    steps = action()["runs"]["steps"]
    passed = "".join(str(text) for step in steps for part in ("env", "with") for text in step.get(part, {}).values())
    assert [name for name in action()["inputs"] if f"inputs.{name} " not in passed] == []
    assert all("${{" not in step.get("run", "") for step in steps)


@pytest.mark.parametrize("given", [True, False], ids=["of setup-python", "of the runner"])
def test_it_is_installed_into_an_environment_of_its_own(given: bool, tmp_path: Path) -> None:
    """The Python that is there only makes the environment: one that belongs to the system takes no packages."""
    inner = '#!/bin/sh\\necho inside "$@" >> "$LOG"\\n'
    made = f'mkdir "$3/bin"; printf \'{inner}\' > "$3/bin/python"; chmod +x "$3/bin/python"'
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho outside "$1" "$2" >> "$LOG"\n{made}\n')
    python.chmod(0o755)
    step = next(step for step in action()["runs"]["steps"] if step.get("name") == "Install")
    told = {"PYTHON": str(python) if given else "", "PIP": "--index-url https://there", "LOG": str(tmp_path / "log")}
    told |= {
        "GITHUB_ACTION_PATH": "/the/action",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "RUNNER_TEMP": str(tmp_path),
    }
    done = script(tmp_path, step["run"], **told)
    assert done.returncode == 0, done.stderr
    outside, inside = (tmp_path / "log").read_text().splitlines()
    assert outside == "outside -m venv"
    assert inside.startswith("inside -m pip install") and "--index-url https://there --constraint" in inside
    command = (tmp_path / "output").read_text().strip().removeprefix("command=")
    assert Path(command).parent == next(tmp_path.glob("distilltool.*")) / "bin"


def test_the_action_gates(tmp_path: Path) -> None:
    """Several gates, further arguments, a report that is the next one's baseline, a table in the summary."""
    onnx_teacher(tmp_path / "a model.onnx")
    common = {"model": "a model.onnx", "seconds": "1"}
    done = timed(tmp_path, **common, gate="p50<1s\np90<2s\n", arguments="--batch\n2\n", out="main.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "main.json").read_text())
    assert [one["outcome"] for one in report["gates"]] == ["holds", "holds"] and report["runs"][0]["batch"] == 2
    assert "**holds**" in (tmp_path / "summary.md").read_text()
    files = {"format": "github-action-benchmark", "out": "list.json", "json": "whole"}
    done = timed(tmp_path, **common, **files, baseline="main.json", gate="p50<0.01x", arguments="--batch\n2")
    assert done.returncode == 3, done.stderr
    listed, whole = (json.loads((tmp_path / name).read_text()) for name in ("list.json", "whole"))
    assert listed[0]["value"] == whole["runs"][0]["p50_ms"]


def test_a_noisy_runner_may_pass(tmp_path: Path) -> None:
    """What cannot be told fails unless it is allowed to pass, then it is said."""
    onnx_teacher(tmp_path / "m.onnx", size=(256, 256))
    common = {"model": "m.onnx", "seconds": "1", "gate": "p99<10s", "arguments": "--batch\n16"}
    assert timed(tmp_path, **common).returncode == 4
    done = timed(tmp_path, **common, inconclusive="pass")
    assert done.returncode == 0 and "::warning::" in done.stdout


def draw_some(folder: Path) -> None:
    """Some of the demo's images, in the places where all of them would be."""
    generate = loaded(ROOT / "examples" / "generate.py")
    every = generate.jobs()
    unlabelled = [job for job in every if job[2].startswith("imgs/")][::12]
    of_things = [job for job in every if any(f"thing0{number}/" in job[2] for number in range(6))]
    for instance, view, name in (*unlabelled, *of_things):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(generate.render_jpeg(instance, view))


@pytest.mark.slow
def test_the_example_workflow(tmp_path: Path) -> None:
    """Every step but the installation and the drawing of all images, with little time for training: so it may keep
    less."""
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "benchmark.yml").read_text())
    steps = workflow["jobs"]["student"]["steps"]
    (tmp_path / "examples").mkdir()
    shutil.copyfile(ROOT / "examples" / "teacher.onnx", tmp_path / "examples" / "teacher.onnx")
    drawing = next(step["run"].strip() for step in steps if step.get("name") == "Make the demo images")
    assert drawing.removeprefix("python ") in (ROOT / "Makefile").read_text()
    draw_some(tmp_path / "examples")
    ran = [step for step in steps if "run" in step and step["name"] not in ("Install", "Make the demo images")]
    [timing] = [step for step in steps if step.get("uses") == "./"]
    for step in ran:
        done = script(
            tmp_path,
            step["run"],
            TIME_BUDGET="20s",
            LEAST_KEPT="0.2",
            GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
            HF_HUB_OFFLINE="1",
        )
        assert done.returncode == 0, (step["name"], done.stderr[-2000:])
    done = timed(tmp_path, **timing["with"])
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["gates"][0]["outcome"] == "holds" and report["verdict"] == "faster"
    assert "student.onnx" in (tmp_path / "summary.md").read_text()
    assert [one["outcome"] for one in json.loads((tmp_path / "eval.json").read_text())["gates"]] == ["holds"]

"""The commands of docs/REPRODUCE.md: they can be read, and they run as they stand on a miniature of the same layout."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core

from distilltool import recipe
from distilltool.cli import app
from distilltool.ledger import Ledger

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "REPRODUCE.md").read_text("utf-8"), re.M | re.S)
FOLDER = "export DATA=data"


def commands() -> list[list[str]]:
    """Each command as words, lines joined."""
    lines = "".join(BLOCKS).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def test_every_flag_is_one() -> None:
    """Commands and scripts are there, and every flag of ours is known."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    ours = [words for words in commands() if words[0] == "distilltool"]
    assert len(ours) == 11
    for _, name, *words in ours:
        known = {flag for one in group.commands[name].params for flag in one.opts}
        assert {word for word in words if word.startswith("--")} <= known
    for words in commands():
        assert words[0] in ("distilltool", "export") or (ROOT / words[1]).is_file()


def test_the_recipe_is_the_papers_as_far_as_it_is_known() -> None:
    """Mixing of final representations, one list of images and mixes, no anchor of ours."""
    found = recipe.load("roxford")
    assert (found.mix.ratio, found.mix.normalise, found.anchor, found.anchor_finetune) == (1.0, True, 0.0, 0.0)
    assert found.student.spec == "timm:mobilenetv2_100" and found.space == "own"


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    """All of them in one shell, nothing changed but the folder; answers are bought once."""
    data = tmp_path / "data"
    subprocess.run([sys.executable, ROOT / "examples" / "roxford_miniature.py", data], check=True)
    script = "set -eu\n" + "".join(BLOCKS)
    assert script.count(FOLDER) == 1
    script = script.replace(FOLDER, f"export DATA={shlex.quote(str(data))}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-c", script], check=True, cwd=ROOT, env={**os.environ, "PATH": path})
    for name in ("roxford5k", "rparis6k"):
        for ending in ("", "-ms", "-ms-whitened"):
            with (data / "results" / f"{name}{ending}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            found = {(one["model"], one["figure"]) for one in rows if one["family"] == "metrics"}
            models = ("teacher", "mobilenetv2", "resnet34")
            assert {(one, f"map-{level}") for one in models for level in ("medium", "hard")} <= found
    said = (data / "results" / "results.md").read_text("utf-8")
    assert said.count("scales 1, 0.7071, 1.4142, combined by generalised mean, power 2.92") == 4
    assert said.count("whitened on 280 images of sfm-whiten, teacher to 256 numbers") == 2
    with Ledger.read(data / "answers.sqlite") as ledger:
        assert [row[0] for row in ledger.select("SELECT SUM(asked) FROM answers")] == [40]
    with Ledger.read(data / "evaluation.sqlite") as ledger:
        # each of 30 places of two benchmarks and 280 images apart, at three scales, once
        assert [row[0] for row in ledger.select("SELECT SUM(asked) FROM answers")] == [3 * (30 + 30 + 280)]

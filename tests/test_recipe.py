"""Recipes: strict to load, and every fault told at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from distilltool import recipe
from distilltool.errors import DistillError

SMALL = 'description = "x"\n[student]\nspec = "timm:a"\n[[loss]]\nname = "kl"\ntau = 0.5\n'


def written(folder: Path, text: str) -> str:
    """A recipe file with this text."""
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return str(path)


def fault(name: str, *changes: str) -> str:
    """The message of the error that loading gives."""
    with pytest.raises(DistillError) as caught:
        recipe.load(name, changes)
    assert "\n" not in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_load(name: str) -> None:
    """Each is named as its file, describes itself in one line, and survives JSON."""
    found = recipe.load(name)
    assert found.name == name
    assert found.description and "\n" not in found.description
    assert found.loss
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_three_recipes_ship() -> None:
    """The default of the command line is among them."""
    assert {"drd", "regression", "rkd"} <= set(recipe.shipped())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """What is not said is the default; the file's name is the recipe's."""
    found = recipe.load(written(tmp_path, SMALL))
    assert (found.name, found.space, found.seed) == ("mine", "own", 0)
    assert found.loss == (recipe.LossTerm(name="kl", weight=1.0, options={"tau": 0.5}),)
    assert found.optimiser == recipe.Optimiser()


def test_whole_numbers_are_floats_where_floats_are_wanted(tmp_path: Path) -> None:
    """`lr = 1` is a learning rate of 1.0."""
    found = recipe.load(written(tmp_path, SMALL + "[optimiser]\nlr = 1\n"))
    assert found.optimiser.lr == 1.0 and isinstance(found.optimiser.lr, float)


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    """One message names every wrong key, type, value, and what is missing."""
    text = """
        space = "moon"
        colour = "red"
        validation = 0.9
        [student]
        input = "big"
        depth = 3
        [[loss]]
        weight = "heavy"
        [mix]
        normalise = 1
        [optimiser]
        lr = true
        [schedule]
        batch = 2
        epochs = 1.5
    """
    message = fault(written(tmp_path, text))
    wanted = (
        *("space", "colour", "validation", "description is missing", "student.input", "student.depth"),
        *("student.spec is missing", "loss[0].name is missing", "loss[0].weight", "mix.normalise", "optimiser.lr"),
        *("schedule.batch", "schedule.epochs"),
    )
    assert [one for one in wanted if one not in message] == []


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("optimiser.lr=3e-4", lambda r: r.optimiser.lr == 3e-4),
        ("schedule.batch=32", lambda r: r.schedule.batch == 32),
        ("loss.kl.tau=0.2", lambda r: r.loss[0].options == {"tau": 0.2}),
        ("loss.kl.weight=2", lambda r: r.loss[0].weight == 2.0),
        ("space=teacher", lambda r: r.space == "teacher"),
        ('space="teacher"', lambda r: r.space == "teacher"),
        ("mix.normalise=false", lambda r: r.mix.normalise is False),
        ("student.spec=timm:resnet18", lambda r: r.student.spec == "timm:resnet18"),
        ("seed=7", lambda r: r.seed == 7),
        ("description=a=b", lambda r: r.description == "a=b"),
        (" optimiser.ema =0", lambda r: r.optimiser.ema == 0.0),
    ],
)
def test_set(tmp_path: Path, change: str, read: Any) -> None:
    """--set reaches every key, in tables and in a loss by its name."""
    assert read(recipe.load(written(tmp_path, SMALL), [change]))


def test_later_changes_win(tmp_path: Path) -> None:
    """The last of several changes of one key counts."""
    found = recipe.load(written(tmp_path, SMALL), ["seed=1", "seed=2"])
    assert found.seed == 2


def test_set_picks_the_loss_by_name(tmp_path: Path) -> None:
    """Of two losses only the one named changes."""
    found = recipe.load(written(tmp_path, SMALL + '[[loss]]\nname = "rkd"\n'), ["loss.rkd.angle=5"])
    assert [term.options for term in found.loss] == [{"tau": 0.5}, {"angle": 5}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optimiser.lr=fast", "optimiser.lr"),
        ("optimiser.lr=-1", "optimiser.lr"),
        ("optimiser.lr=nan", "optimiser.lr"),
        ("optimizer.lr=1", "optimizer is unknown"),
        ("optimiser.rate=1", "optimiser.rate is unknown"),
        ("schedule.batch=1.5", "schedule.batch"),
        ("schedule.batch=true", "schedule.batch"),
        ("augment.flip=1", "augment.flip"),
        ("mix.ratio=65", "mix.ratio"),
        ("space=moon", "own, teacher"),
        ("space=[1]", "own, teacher"),
        ("loss.rkd.angle=1", "no table rkd"),
        ("loss.kl=1", "name the loss"),
        ("loss.kl.tau=warm", "tau"),
        ("optimiser.lr.deep=1", "optimiser"),
        ("student.spec=3", "student.spec"),
        ("student=3", "student must be a table"),
        ("optimiser.lr", "not key=value"),
        ("loss=3", "loss[0] must be a table"),
        ("loss=[]", "loss"),
        ("loss.kl.weight=-1", "weight"),
        ("loss.kl.weight=nan", "weight"),
        ("loss.kl.weight=inf", "weight"),
        ("seed=-1", "seed"),
        ("seed=1.0", "seed"),
    ],
)
def test_set_with_faults(tmp_path: Path, change: str, says: str) -> None:
    """Wrong names, types and ranges are told, whatever is wrong."""
    assert says in fault(written(tmp_path, SMALL), change)


def test_faults_of_file_and_flags_come_together(tmp_path: Path) -> None:
    """Flags are checked with the file."""
    message = fault(written(tmp_path, SMALL + "[mix]\nratio = -1\n"), "seed=x", "colour=1")
    assert [one for one in ("mix.ratio", "seed", "colour") if one not in message] == []


@pytest.mark.parametrize("key", recipe.RANGES)
def test_ranges_name_real_keys_and_hold(tmp_path: Path, key: str) -> None:
    """Each range belongs to a key; below and above it are faults, its ends are not."""
    low, high = recipe.RANGES[key]
    path = written(tmp_path, SMALL)
    whole = isinstance(default(key), int)
    for value in (low, high):
        recipe.load(path, [f"{key}={int(value) if whole else float(value)}"])
    for value in (low - 1, high + 1):
        assert key in fault(path, f"{key}={int(value) if whole else float(value)}")


def default(key: str) -> Any:
    """The default value of a key of the small recipe."""
    found: Any = recipe.Recipe(name="", description="", loss=(), student=recipe.StudentChoice(spec=""))
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("change", "pretrained", "named"),
    [
        ("anchor=0", True, ["anchor"]),
        ("anchor=0", False, []),
        ("optimiser.weight_decay=5", True, ["optimiser.weight_decay"]),
        ("optimiser.lr_finetune=1e-4", True, []),
        ("optimiser.lr_finetune=1e-4", False, ["optimiser.lr_finetune"]),
        ("soup.steps=0", False, ["soup.steps"]),
        ("schedule.memory=3", False, ["schedule.memory"]),
        ("mix.ratio=1", True, []),
    ],
)
def test_keys_that_a_start_does_not_read(change: str, pretrained: bool, named: list[str]) -> None:
    assert recipe.unread([change, "seed=1"], pretrained) == named


def test_what_a_start_does_not_read_are_keys() -> None:
    values = recipe.load("best").to_dict()
    for key in (*recipe.FROM_NOTHING, *recipe.FROM_PRETRAINED):
        table, _, last = key.rpartition(".")
        assert last in (values[table] if table else values)


def test_unknown_name_lists_what_ships() -> None:
    """A typo is answered with the names."""
    message = fault("dird")
    assert all(name in message for name in recipe.shipped())


@pytest.mark.parametrize("text", ["a = ", "loss = [", "\x00"])
def test_no_toml(tmp_path: Path, text: str) -> None:
    """A file that is no TOML is named."""
    assert "mine.toml" in fault(written(tmp_path, text))


@pytest.mark.parametrize("text", [SMALL.replace("[[loss]]", "[loss]"), 'loss = ["kl"]\n' + SMALL.split("[[")[0]])
def test_losses_written_in_another_way(tmp_path: Path, text: str) -> None:
    """A single table is one loss; names alone are a fault; with --set neither is a traceback."""
    path = written(tmp_path, text)
    if "[loss]" in text:
        assert recipe.load(path).loss[0].name == "kl"
    else:
        assert "loss[0]" in fault(path)
    try:
        recipe.load(path, ["loss.kl.tau=0.5"])
    except DistillError as error:
        assert "loss" in str(error)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    """A path that is no file is an unknown recipe."""
    assert "there is no recipe" in fault(str(tmp_path))

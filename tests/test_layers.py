"""Who may import whom, what a command loads, and that every option is explained."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
import typer
from builders import class_folders, onnx_teacher

import distilltool
from distilltool import extensions
from distilltool.cli import app

ROOT = Path(distilltool.__file__).parent
HEAVY = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "faiss", "numpy", "PIL", "safetensors", "pyarrow") + (
    "matplotlib",
)
TORCH_OWNERS = (
    "student.py",
    "train.py",
    "objective.py",
    "mixing.py",
    "relations.py",
    "divergence.py",
    "soup.py",
    "gradcache.py",
    "weights.py",
    "checkpoint.py",
    "scores.py",
    "ridge.py",
    "aim.py",
    "mapped.py",
    "imported.py",
    "contest.py",
    "reference.py",
    "candidates.py",
    "onnx_export.py",
    "channels.py",
    "pruning.py",
    "augment.py",
    "stages/distill.py",
    "stages/export.py",
)
TORCH_FOLDERS = ("students/", "losses/", "trainable/")
PRINTERS = ("show.py", "deploy.py")
EXTENSIONS = ("students", "losses", "selection", "datasets", "precisions", "trackers", "indexes")
# from the ground up; a file may import from its own layer and from those below it. What is in no list is a tool.
LAYERS: dict[str, set[str]] = {
    "errors": {"errors"},
    "nouns": {"recipe", "rundir", "ledger", "preprocess", "embedder", "report", "progress", "deploy", "names"},
    "tools": set(),
    "stages": {"stages"},
    "api": {"api", "asking", "assessing", "__init__"},
    "front": {"cli", "show", "__main__"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One import statement. at_load: it runs when the file is loaded."""

    file: str
    line: int
    module: str
    at_load: bool


def sources() -> list[Path]:
    """Every file of the package."""
    return sorted(ROOT.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text("utf-8"))


def is_type_checking(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(body: list[ast.stmt], at_load: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """All statements below, with whether they run at loading; what is for type checkers is left out."""
    for node in body:
        if is_type_checking(node):
            continue
        yield node, at_load
        inside = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, name, []), inside)
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body, inside)


@cache
def imports() -> tuple[Import, ...]:
    """Every import in the package; `from package import name` counts as the module it names, where it is one."""
    found = []
    for path in sources():
        file = path.relative_to(ROOT).as_posix()
        for node, at_load in statements(tree(path).body, True):
            if isinstance(node, ast.Import):
                found += [Import(file=file, line=node.lineno, module=a.name, at_load=at_load) for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} imports relatively"
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    module = deeper if is_module(deeper) else str(node.module)
                    found.append(Import(file=file, line=node.lineno, module=module, at_load=at_load))
    return tuple(found)


def is_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of this package."""
    first, *rest = name.split(".")
    path = ROOT.joinpath(*rest)
    return first == "distilltool" and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def inner() -> list[Import]:
    """Imports of this package's own files."""
    return [one for one in imports() if one.module.split(".")[0] == "distilltool"]


def layer(part: str) -> int:
    """The layer of a top-level file or folder, by its name without ending; tools and extensions are one layer."""
    for level, names in enumerate(LAYERS.values()):
        if part in names:
            return level
    return list(LAYERS).index("tools")


def part_of(file: str) -> str:
    """The top-level file or folder that a file belongs to."""
    return file.split("/")[0].removesuffix(".py")


def target_of(module: str) -> str:
    """The same for a module's name."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def where(found: list[Import]) -> list[str]:
    """Imports as lines to look at."""
    return [f"{one.file}:{one.line} imports {one.module}" for one in found]


def test_every_layer_names_files_that_exist() -> None:
    """A file that is renamed does not fall out of the rules unseen."""
    parts = {part_of(path.relative_to(ROOT).as_posix()) for path in sources()}
    named = set().union(*LAYERS.values()) - {"__main__"}
    assert named <= parts
    assert all((ROOT / file).is_file() for file in (*TORCH_OWNERS, *PRINTERS))
    assert len(imports()) > 100


def test_imports_point_downwards() -> None:
    """cli, show → api → stages → tools and extension folders → nouns → errors. The version alone is everybody's."""
    upwards = [
        one
        for one in inner()
        if one.module != "distilltool" and layer(target_of(one.module)) > layer(part_of(one.file))
        # the package itself hands out the Python API, lazily
        if one.file != "__init__.py"
    ]
    assert where(upwards) == []


def test_the_package_itself_loads_nothing() -> None:
    """A heavy `__init__` would undo a lazy command line."""
    assert [
        one for one in imports() if one.file == "__init__.py" and one.at_load and one.module not in ("typing", "os")
    ] == []


def test_stages_never_import_each_other() -> None:
    """They meet on disk."""
    assert where([one for one in inner() if one.file.startswith("stages/") and target_of(one.module) == "stages"]) == []


def test_extensions_do_not_import_each_other() -> None:
    """A file in an extension folder is one function that knows no sibling; the folder itself may be asked."""
    wrong = [
        one for one in inner() if (names := one.module.split("."))[1:2] and names[1] in EXTENSIONS and len(names) > 2
    ]
    assert where(wrong) == []


def test_no_circles() -> None:
    """What runs at loading has an order, within the layers too."""
    edges: dict[str, set[str]] = {}
    for one in inner():
        if one.at_load and one.module != "distilltool":
            source = "distilltool." + one.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            edges.setdefault(source, set()).add(one.module)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join((*above, module))
        if module not in done:
            for below in edges.get(module, ()):
                visit(below, (*above, module))
            done.add(module)

    for module in list(edges):
        visit(module, ())


def test_torch_is_imported_by_its_owners_alone() -> None:
    """query, eval of ONNX files, and everything that only measures run without it."""
    wrong = [
        one
        for one in imports()
        if one.at_load
        and one.module.split(".")[0] in ("torch", "timm", "torchvision", "safetensors")
        and one.file not in TORCH_OWNERS
        and not one.file.startswith(TORCH_FOLDERS)
    ]
    assert where(wrong) == []


def test_only_show_and_deploy_print() -> None:
    """Neither print nor a standard stream is touched elsewhere."""
    wrong = []
    for path in sources():
        file = path.relative_to(ROOT).as_posix()
        if file in PRINTERS:
            continue
        for node in ast.walk(tree(path)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
            if called or (stream and isinstance(node.value, ast.Name) and node.value.id == "sys"):
                wrong.append(f"{file}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize("folder", [name for name in EXTENSIONS if (ROOT / name).is_dir()])
def test_every_extension_is_found_by_its_name(folder: str) -> None:
    """A file holds the function of its own name, with a docstring."""
    package = f"distilltool.{folder}"
    assert extensions.names(package)
    for name in extensions.names(package):
        function = extensions.find(package, folder, name)
        assert callable(function) and function.__name__ == name and function.__doc__
        assert [file.stem for file in (ROOT / folder).glob(f"{name}.py")] == [name]


def commands() -> dict[str, click.Command]:
    """Every command by name, as click sees it."""
    group = typer.main.get_command(app)
    return dict(inside(group))


def inside(group: click.Command, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """The commands of a group, those of its groups among them, by the words that call them."""
    for name, command in getattr(group, "commands", {}).items():
        yield above + name, command
        yield from inside(command, f"{above}{name} ")


def test_the_commands_of_the_contract_are_there() -> None:
    """Nobody's script breaks because a command was renamed."""
    assert {"query", "distill", "eval", "export", "bench", "recipes"} <= set(commands())


@pytest.mark.parametrize("name", ["", *commands()])
def test_every_command_and_option_is_explained(name: str) -> None:
    """A command has its sentence, each option and argument has its own."""
    command = commands()[name] if name else typer.main.get_command(app)
    assert command.help and command.help.strip().endswith(".")
    silent = [one.name for one in command.params if one.name != "help" and not (getattr(one, "help", "") or "").strip()]
    assert silent == []


def python(code: str, *words: str, folder: Path | None = None) -> str:
    """Run code in a fresh interpreter; what it writes to stdout."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


LOADED = "\nimport json, sys\njson.dump(sorted({name.partition('.')[0] for name in sys.modules}), sys.__stdout__)\n"


def loaded(code: str, *words: str, folder: Path | None = None) -> set[str]:
    """The top-level packages that are loaded once the code has run; it must write nothing to stdout itself."""
    return set(json.loads(python(code + LOADED, *words, folder=folder)))


@pytest.mark.parametrize("module", ["distilltool", "distilltool.cli", "distilltool.show"])
def test_importing_the_front_loads_nothing_heavy(module: str) -> None:
    """The command line answers at once."""
    assert loaded(f"import {module}") & set(HEAVY) == set()


def test_help_loads_nothing_heavy() -> None:
    """`--help` of the tool and of every command, and what needs no model, within one process."""
    code = (
        "import contextlib, io, sys\n"
        "from distilltool.cli import app\n"
        "light = [['--help'], ['--version'], ['recipes'], ['recipes', 'drd']]\n"
        "for words in [*light, *[[*name.split(), '--help'] for name in sys.argv[1:]]]:\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        try:\n"
        "            app(words)\n"
        "        except SystemExit as end:\n"
        "            assert not end.code, (words, end.code)\n"
        "    assert said.getvalue(), words\n"
    )
    assert loaded(code, *commands()) & set(HEAVY) == set()


def test_query_eval_and_bench_of_onnx_files_run_without_torch(tmp_path: Path) -> None:
    """Who only asks and measures needs no framework."""
    onnx_teacher(tmp_path / "teacher.onnx")
    onnx_teacher(tmp_path / "student.onnx", dim=12, seed=1)
    class_folders(tmp_path / "photos", classes=3, each=4)
    code = (
        "import distilltool\n"
        "pre = ['scale=1/255']\n"
        "asked = distilltool.query('teacher.onnx', 'photos', preprocess=pre)\n"
        "assert (asked.queried, asked.spent) == (12, 12), asked\n"
        "found = distilltool.evaluate(['student.onnx'], 'photos', teacher='teacher.onnx', preprocess=pre)\n"
        "assert found.protocol == 'folders' and len(found.models) == 2, found\n"
        "assert 0 <= found.models[1].metrics['map'].value <= 1\n"
        "distilltool.bench('student.onnx', 'teacher.onnx', seconds=1)\n"
    )
    assert loaded(code, folder=tmp_path) & {"torch", "timm", "torchvision", "safetensors"} == set()


@pytest.mark.parametrize(
    ("said", "rounds"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_told_otherwise(said: dict[str, str], rounds: str | None) -> None:
    """It is set before torch's threads read it, which they do as it is loaded."""
    script = "import os, sys, distilltool; print([os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules])"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", script], env=kept | said, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([rounds, False])

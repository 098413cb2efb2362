"""The command line: parse, call a stage, show. Nothing heavy is imported until a command needs it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilltool import __version__
from distilltool.defaults import (
    BATCH,
    EVALUATION_STORE,
    LATENCY_SECONDS,
    LATENCY_THREADS,
    OPSET,
    RECIPE,
    SELECTION,
    STORE,
)
from distilltool.errors import DistillError, Exit

if TYPE_CHECKING:
    from distilltool.show import Show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil any ONNX image-embedding model into a compact one that ranks images the same way.",
    epilog="Exit codes: 0 done, 1 something you can mend, 2 wrong usage, 3 a gate failed, "
    "4 too noisy to tell, 130 interrupted (state kept).",
)

Teacher = Annotated[Path, typer.Argument(metavar="TEACHER", help="The teacher, an ONNX file.", show_default=False)]
Images = Annotated[
    Path, typer.Argument(metavar="IMAGES", help="Folder of images, searched recursively.", show_default=False)
]
Store = Annotated[Path, typer.Option(metavar="FILE", help="The ledger that keeps every answer.")]
Budget = Annotated[
    int | None, typer.Option(min=1, help="The most the teacher may ever be asked in this ledger.", show_default=False)
]
Pre = Annotated[
    list[str],
    typer.Option(
        "--preprocess",
        metavar="HOW",
        default_factory=list,
        show_default=False,
        help=(
            "How the teacher wants its images: imagenet, clip, tf, caffe, a JSON FILE, or field=value (size, resize, "
            "resize_to, interpolation, scale, mean, std, channels, layout, dtype). May be repeated; later ones win."
        ),
    ),
]
Output = Annotated[str | None, typer.Option(metavar="NAME", help="Which output is the embedding.", show_default=False)]
Pool = Annotated[
    str | None, typer.Option(metavar="avg|max|gem|cls", help="Pool a map or tokens to a vector.", show_default=False)
]
Batch = Annotated[int, typer.Option(min=1, help="Images the teacher is asked about at once.")]
Select = Annotated[str, typer.Option(metavar="NAME", help="Which images to ask about first when the budget is short.")]
Isolate = Annotated[
    bool,
    typer.Option(
        "--isolate", help="Open and run ONNX files in a child process with limits, for files you do not trust."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables; errors only.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distilltool {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def query(
    teacher: Teacher,
    images: Images,
    pre: Pre,
    store: Store = STORE,
    budget: Budget = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Forecast queries, time, memory and disk from at most 32 images.")
    ] = False,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = BATCH,
    select: Select = SELECTION,
    isolate: Isolate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the teacher about images, within a budget, and keep each answer in the ledger."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.query(
            teacher,
            images,
            store=store,
            budget=budget,
            plan=plan,
            preprocess=pre,
            output=output,
            pool=pool,
            batch=batch,
            select=select,
            isolate=isolate,
            progress=show,
        )

    _run(work, json, quiet)


@app.command()
def distill(
    teacher: Teacher,
    images: Images,
    pre: Pre,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run. (default: runs/TEACHER-RECIPE)", show_default=False),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="How to distil; `distilltool recipes` lists them.")
    ] = RECIPE,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:NAME", help="The student, e.g. timm:resnet18. (default: the recipe's)", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights the student starts from, safetensors.", show_default=False),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            "--input",
            metavar="PIXELS",
            min=16,
            help="Longer side of the student's images. (default: the recipe's)",
            show_default=False,
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the student's vectors. (default: its own width)", show_default=False),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Time for training, e.g. 90s, 10m, 1.5h. (default: the recipe's epochs)",
            show_default=False,
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe, e.g. optimiser.lr=3e-4, loss.kl.tau=0.1.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of everything random. (default: the recipe's)", show_default=False)
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace the run in RUN instead of going on with it.")
    ] = False,
    budget: Budget = None,
    store: Store = STORE,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = BATCH,
    select: Select = SELECTION,
    isolate: Isolate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a student that ranks images as the teacher does, asking first what is still unanswered."""

    def work(show: "Show") -> Any:
        seconds = _seconds(time_budget)
        from distilltool import api

        return api.distill(
            teacher,
            images,
            recipe=recipe,
            out=out,
            student=student,
            input_size=input_size,
            dim=dim,
            weights=weights,
            time_budget=seconds,
            changes=change or (),
            seed=seed,
            restart=restart,
            store=store,
            budget=budget,
            preprocess=pre,
            output=output,
            pool=pool,
            batch=batch,
            select=select,
            isolate=isolate,
            progress=show,
        )

    _run(work, json, quiet)


@app.command("eval")
def evaluate(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Runs or ONNX files.", show_default=False)],
    pre: Pre,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR|CSV", help="Class folders, a CSV (path,label[,role]), or plain images.", show_default=False
        ),
    ],
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The teacher. (default: the run's)", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="folders, csv or unlabelled. (default: what the data looks like)", show_default=False
        ),
    ] = None,
    store: Annotated[
        Path, typer.Option(metavar="FILE", help="Ledger of answers about these images, apart from the budgeted one.")
    ] = EVALUATION_STORE,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = BATCH,
    isolate: Isolate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the retrieval quality of students beside their teacher's, with confidence intervals."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.evaluate(
            models,
            data,
            teacher=teacher,
            protocol=protocol,
            store=store,
            preprocess=pre,
            output=output,
            pool=pool,
            batch=batch,
            isolate=isolate,
            progress=show,
        )

    _run(work, json, quiet)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fill. (default: RUN/bundle)", show_default=False)
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The teacher to time beside it. (default: the run's)", show_default=False),
    ] = None,
    opset: Annotated[int, typer.Option(min=18, help="ONNX opset to write.")] = OPSET,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime when timing.")] = LATENCY_THREADS,
    seconds: Annotated[float, typer.Option(min=1, help="Time for the latency measurement.")] = LATENCY_SECONDS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the student as one checked ONNX file with its card and its latency beside the teacher's."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.export(
            run, bundle=bundle, teacher=teacher, opset=opset, threads=threads, seconds=seconds, progress=show
        )

    _run(work, json, quiet)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the recipes that ship, or print one."""

    def work(show: "Show") -> Any:
        from distilltool import recipe as reader

        if name is not None and not json:
            show.text(reader.find(name).read_text("utf-8"))
            return None
        return {"recipes": [reader.load(one) for one in ([name] if name else reader.shipped())]}

    _run(work, json, quiet)


def _seconds(text: str | None) -> float | None:
    """90, 90s, 10m or 1.5h in seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise DistillError(f"--time-budget {text} is no time", "write 90s, 10m or 1.5h", Exit.USAGE)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _run(work: Callable[["Show"], Any], json: bool, quiet: bool) -> None:
    """Do the work of a command, show its result, and turn every foreseen end into its exit code."""
    from distilltool.show import Show

    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image is said in our own words
    show = Show(json=json, quiet=quiet)
    try:
        result = work(show)
        show.end()
        show.result(result)
        code = show.exit_code(result)
    except DistillError as error:
        show.error(error)
        code = error.code
    except KeyboardInterrupt as stop:
        show.interrupted(getattr(stop, "kept", ""))
        code = Exit.INTERRUPTED
    raise typer.Exit(int(code))


def main() -> None:
    """Entry point of the `distilltool` command."""
    app()

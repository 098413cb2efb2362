"""The command line: parse, call a stage, show. Nothing heavy is imported until a command needs it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from distilltool import __version__
from distilltool.defaults import (
    BENCH_FORMAT,
    DEVICE,
    EVALUATION_STORE,
    LATENCY_SECONDS,
    LATENCY_THREADS,
    MAX_DROP,
    MIN_OVERLAP,
    MOST_QUERIES,
    OPSET,
    RECIPE,
    SELECTION,
    STORE,
    TIMEOUT,
    TOLERANCE,
)
from distilltool.errors import DistillError, Exit
from distilltool.target import PARETO

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

ledger_app = typer.Typer(no_args_is_help=True, help="List, check or export the answers that a ledger holds.")
app.add_typer(ledger_app, name="ledger")

# Headings that --help groups options under; what belongs to none of them stands under Options.
ASKED = "The model"
LEDGER = "Ledger and budget"
STUDENT = "Student"
TRAINING = "Training"
MEASURED = "What is measured"
VIEWS = "Views and whitening"
REPORTS = "Reports"
REPORT = "--report"  # of `bench`, where --json is given a file
VARIANTS = "Variants"
TIMING = "Timing"

Teacher = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="The teacher: an ONNX file, a model's address on a server, or a file of answers bought elsewhere. "
        "Left out where --import or --teacher-url names it.",
        show_default=False,
    ),
]
Images = Annotated[
    str | None, typer.Argument(metavar="IMAGES", help="Folder of images, searched recursively.", show_default=False)
]
Import = Annotated[
    Path | None,
    typer.Option(
        "--import",
        metavar="FILE",
        help="Take over answers bought elsewhere: .parquet, .npz or .csv, path or sha256 of each image and its vector; "
        "or a bundle's .npy.",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
TeacherUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask a model on a server by the Open Inference Protocol v2: http://host:port/v2/models/NAME. "
        "A token is taken from the variable DISTILLTOOL_TOKEN.",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        metavar="AMOUNT",
        help="The most that asking may ever cost in this ledger: a --budget of AMOUNT / PRICE.",
        show_default=False,
        rich_help_panel=LEDGER,
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-query",
        metavar="PRICE",
        help="What asking about one image costs.",
        show_default=False,
        rich_help_panel=LEDGER,
    ),
]
Ambiguous = Annotated[
    str | None,
    typer.Option(
        metavar="skip|retry|fail",
        help="Images sent before whose answer never came. (default: fail for a server, retry for a file)",
        show_default=False,
        rich_help_panel=LEDGER,
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, max=86_400, help="Seconds a server may take for one batch.", rich_help_panel=ASKED)
]
Store = Annotated[
    Path, typer.Option(metavar="FILE", help="The ledger that keeps every answer.", rich_help_panel=LEDGER)
]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_QUERIES,
        help="The most the teacher may ever be asked in this ledger.",
        show_default=False,
        rich_help_panel=LEDGER,
    ),
]
Pre = Annotated[
    list[str],
    typer.Option(
        "--preprocess",
        metavar="HOW",
        default_factory=list,
        show_default=False,
        help=(
            "How the teacher wants its images: imagenet, clip, tf, unit, raw, raw-bgr, caffe, a JSON FILE, or "
            "field=value (size, resize, resize_to, crop_pct, interpolation, scale, mean, std, channels, layout, "
            "dtype). May be repeated; later ones win."
        ),
        rich_help_panel=ASKED,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which output or inner tensor is the embedding.",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="avg|max|gem|cls", help="Pool a map or tokens to a vector.", show_default=False, rich_help_panel=ASKED
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images the teacher is asked about at once. (default: as many as fit and pay)",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
Setting = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        default_factory=list,
        show_default=False,
        help="Value of an input beside the image, e.g. training=false. May be repeated.",
        rich_help_panel=ASKED,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="cpu|cuda|...",
        help="Where it runs: cpu, cuda, tensorrt, openvino, coreml or dml.",
        rich_help_panel=ASKED,
    ),
]
Isolate = Annotated[
    bool,
    typer.Option(
        "--isolate",
        help="For files you do not trust: run the model in a child process with limits. On Linux from 5.13, on a CPU, "
        "it cannot change files, reach the network or other processes; it can read what you can.",
        rich_help_panel=ASKED,
    ),
]
Select = Annotated[
    str,
    typer.Option(
        metavar="random|coverage|cluster",
        help="Which images to ask about first when the budget is short.",
        rich_help_panel=LEDGER,
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
    pre: Pre,
    settings: Setting,
    images: Images = None,
    import_file: Import = None,
    teacher_url: TeacherUrl = None,
    store: Store = STORE,
    budget: Budget = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Forecast queries, time, memory and disk from at most 32 images.")
    ] = False,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = None,
    device: Device = DEVICE,
    isolate: Isolate = False,
    select: Select = SELECTION,
    max_cost: MaxCost = None,
    price: Price = None,
    ambiguous: Ambiguous = None,
    timeout: Timeout = TIMEOUT,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the teacher about images, within a budget, and keep each answer in the ledger."""

    def work(show: "Show") -> Any:
        named, folder = _asked(teacher, images, import_file, teacher_url)
        from distilltool import api

        return api.query(
            named,
            folder,
            store=store,
            budget=budget,
            plan=plan,
            preprocess=pre,
            output=output,
            pool=pool,
            batch=batch,
            device=device,
            isolate=isolate,
            inputs=settings,
            select=select,
            max_cost=max_cost,
            price_per_query=price,
            ambiguous=ambiguous,
            timeout=timeout,
            progress=show,
        )

    _run(work, json, quiet)


@app.command()
def distill(
    teacher: Teacher,
    pre: Pre,
    given: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="PIXELS|NAME=VALUE",
            default_factory=list,
            show_default=False,
            help="A number: longer side of the student's images (default: the recipe's; with auto, what fits). A "
            "NAME=VALUE: the teacher's input beside the image, e.g. training=false; may be repeated.",
            rich_help_panel=STUDENT,
        ),
    ],
    images: Images = None,
    import_file: Import = None,
    teacher_url: TeacherUrl = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run. (default: runs/TEACHER-RECIPE)", show_default=False),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE", help="How to distil; `distilltool recipes` lists them.", rich_help_panel=TRAINING
        ),
    ] = RECIPE,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The student: auto, the best of what is at hand untrained; timm:resnet18; teacher, its own network; "
            "teacher:cut=0.6, its early part; teacher:width=0.5, half its channels; onnx:FILE, any other's, with the "
            "same settings. (default: the recipe's, auto)",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights the student starts from, safetensors.",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Let auto fetch the weights of small timm networks from their hub.", rich_help_panel=STUDENT
        ),
    ] = False,
    dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the student's vectors. (default: its own width)",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT<MOST",
            help="What the student may cost, in quotes: flops<0.1x of the teacher's, flops<100M, p50<5ms or "
            "p50<5ms@cpu:1 (its threads). Sizes and networks at hand are tried untrained, the best is trained; given "
            "more than once, one student for each. (default with auto: flops<0.1x)",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto",
            help="Students of a half, a quarter, a tenth and a twentieth of the teacher's work, compared.",
            rich_help_panel=STUDENT,
        ),
    ] = False,
    dims: Annotated[
        str | None,
        typer.Option(
            metavar="512,128,32",
            help="Vectors that are of use when cut to each of these lengths too; the longest is their own.",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="10m",
            help="Time for training, e.g. 90s, 10m, 1.5h. (default: the recipe's epochs)",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe, e.g. optimiser.lr=3e-4, loss.kl.tau=0.1.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="own|teacher",
            help="teacher: its vectors can be compared with the teacher's. (default: the recipe's)",
            show_default=False,
            rich_help_panel=STUDENT,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Seed of everything random. (default: the recipe's)",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace the run in RUN instead of going on with it.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tensorboard|mlflow|wandb",
            help="Show the training there too, in RUN/trackers unless your environment says otherwise "
            "(pip install 'distilltool\\[tensorboard]'). May be repeated.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    budget: Budget = None,
    store: Store = STORE,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = None,
    device: Device = DEVICE,
    isolate: Isolate = False,
    select: Select = SELECTION,
    max_cost: MaxCost = None,
    price: Price = None,
    ambiguous: Ambiguous = None,
    timeout: Timeout = TIMEOUT,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a student that ranks images as the teacher does, asking first what is still unanswered."""

    def work(show: "Show") -> Any:
        seconds = _seconds(time_budget)
        input_size, settings = _inputs(given)
        named, folder = _asked(teacher, images, import_file, teacher_url)
        from distilltool import api

        how = dict[str, Any](
            recipe=recipe,
            out=out,
            student=student,
            input_size=input_size,
            dim=dim,
            dims=_whole_numbers("--dims", dims),
            weights=weights,
            fetch=fetch,
            time_budget=seconds,
            changes=change or (),
            space=space,
            seed=seed,
            restart=restart,
            log=log or (),
            store=store,
            budget=budget,
            preprocess=pre,
            output=output,
            pool=pool,
            batch=batch,
            device=device,
            isolate=isolate,
            inputs=settings,
            select=select,
            max_cost=max_cost,
            price_per_query=price,
            ambiguous=ambiguous,
            timeout=timeout,
            progress=show,
        )
        if pareto or len(target or ()) > 1:
            return api.pareto(named, folder, targets=target or PARETO, **how)
        return api.distill(named, folder, target=target[0] if target else None, **how)

    _run(work, json, quiet)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="Runs, ONNX files, files of vectors (.parquet, .npz, .csv, a bundle's vectors.npy), in any mixture.",
            show_default=False,
        ),
    ],
    pre: Pre,
    settings: Setting,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR|CSV",
            help="Class folders, a CSV (path,label[,role]), plain images, or a benchmark as it unpacks.",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="The teacher: an ONNX file, a model's address, or a file of answers. (default: the run's)",
            show_default=False,
            rich_help_panel=ASKED,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:key=value]",
            help="folders, csv, unlabelled, roxford5k, rparis6k, gldv2, sop, cub200, inshop, ukbench, or "
            "paired[:frames=2] for places; roxford5k:distractors=DIR for a larger gallery. "
            "(default: what the data looks like)",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    store: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Ledger of answers about these images, apart from the budgeted one.",
            rich_help_panel=LEDGER,
        ),
    ] = EVALUATION_STORE,
    output: Output = None,
    pool: Pool = None,
    batch: Batch = None,
    device: Device = DEVICE,
    isolate: Isolate = False,
    max_cost: MaxCost = None,
    price: Price = None,
    ambiguous: Ambiguous = None,
    timeout: Timeout = TIMEOUT,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="retention.map>=0.9",
            help="What each student must reach, in quotes, or the command ends with exit 3: retention.map>=0.9, "
            "fidelity.overlap@10>=0.6, metrics.recall@1>=0.8; .low for the lower end. May be repeated.",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    binary: Annotated[
        bool,
        typer.Option(
            "--binary",
            help="Binary codes too: a bit for each number, ranked by how many differ.",
            rich_help_panel=MEASURED,
        ),
    ] = False,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Index types to search the gallery by: flat, ivf-pq, hnsw, binary; hnsw:m=32,ef=64 sets what else "
            "follows from the gallery. Recall against exact search, time, memory, queries a second.",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift",
            help="Whether a run fails on images unlike those it was trained on, and what to ask.",
            rich_help_panel=MEASURED,
        ),
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tensorboard|mlflow|wandb",
            help="Tell a tracker each run's figures, as distill does. May be repeated.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a page with tables, charts and pictures, one file that needs no network "
            "(pip install 'distilltool\\[report]').",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the figures, and beside them those of each query.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append the tables to a file.", show_default=False, rich_help_panel=REPORTS),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="1,0.7,1.4",
            help="Embed each image at these scales of the size that a model takes it at, and make one vector of them. "
            "Each view is a question of its own to the teacher.",
            show_default=False,
            rich_help_panel=VIEWS,
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Each view mirrored left to right too.", rich_help_panel=VIEWS)
    ] = False,
    combine: Annotated[
        str,
        typer.Option(
            metavar="mean|gem[:POWER]",
            help="How the vectors of an image's views become one: their mean, or their generalised mean with the power "
            "that the teacher's file names, else 3.",
            rich_help_panel=VIEWS,
        ),
    ] = "mean",
    whiten: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|CSV",
            help="Images apart from the test on which each model's PCA whitening is learned; the teacher is asked "
            "about them too.",
            show_default=False,
            rich_help_panel=VIEWS,
        ),
    ] = None,
    whiten_dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Directions that whitening keeps. (default: all of a vector's)",
            show_default=False,
            rich_help_panel=VIEWS,
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep each model's vectors here as NAME.npy, and take them from here where they are of the same "
            "images. (default: kept until all is done)",
            show_default=False,
        ),
    ] = None,
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
            device=device,
            isolate=isolate,
            inputs=settings,
            max_cost=max_cost,
            price_per_query=price,
            ambiguous=ambiguous,
            timeout=timeout,
            gates=gate or (),
            binary=binary,
            index=index,
            drift=drift,
            log=log or (),
            html=html,
            csv=csv,
            markdown=markdown,
            scales=scales,
            flip=flip,
            combine=combine,
            whiten=whiten,
            whiten_dim=whiten_dim,
            vectors=vectors,
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
        str | None,
        typer.Option(
            metavar="FILE",
            help="The teacher to time beside it. (default: the run's)",
            show_default=False,
            rich_help_panel=TIMING,
        ),
    ] = None,
    opset: Annotated[int, typer.Option(min=18, help="ONNX opset to write.")] = OPSET,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of onnxruntime when timing.", rich_help_panel=TIMING)
    ] = LATENCY_THREADS,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time for the latency measurement.", rich_help_panel=TIMING)
    ] = LATENCY_SECONDS,
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME,NAME",
            help="Beside fp32: fp16, int8-static, int8-dynamic; auto tries what can pay on this machine.",
            rich_help_panel=VARIANTS,
        ),
    ] = "auto",
    min_overlap: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Least overlap of a variant's ten nearest with those of fp32.", rich_help_panel=VARIANTS
        ),
    ] = MIN_OVERLAP,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Most that a variant may lose of the teacher's ten nearest.", rich_help_panel=VARIANTS
        ),
    ] = MAX_DROP,
    smaller: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Ship a variant that is not faster where its file is at most this share of fp32's.",
            show_default=False,
            rich_help_panel=VARIANTS,
        ),
    ] = None,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed",
            help="Leave the layers in fp32 that lose most by 8 bits, where that is needed.",
            rich_help_panel=VARIANTS,
        ),
    ] = False,
    image: Annotated[
        str,
        typer.Option(
            metavar="prepared|any", help="any: also a file that takes decoded images of any size and resizes them."
        ),
    ] = "prepared",
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images whose vectors go into the bundle.", show_default=False),
    ] = None,
    device: Device = DEVICE,
    isolate: Isolate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the student as one checked ONNX file with its card and its latency beside the teacher's."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.export(
            run,
            bundle=bundle,
            teacher=teacher,
            opset=opset,
            threads=threads,
            seconds=seconds,
            precision=_precisions(precision),
            min_overlap=min_overlap,
            max_drop=max_drop,
            smaller=smaller,
            mixed=mixed,
            device=device,
            vectors=vectors,
            image=image,
            isolate=isolate,
            progress=show,
        )

    _run(work, json, quiet)


class _JsonFile(TyperCommand):
    """A command whose `--json` may be followed by a file: `--json FILE.json` is `--out FILE.json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _json_file(args))


def _json_file(words: list[str]) -> list[str]:
    """Only what ends in .json is the file, so that `--json MODEL` keeps its meaning."""
    found = list[str]()
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--json" and equals:
            found += [REPORT, value]
        elif found[-1:] == ["--json"] and word.endswith(".json"):
            found[-1:] = [REPORT, word]
        else:
            found.append(word)
    return found


@app.command(cls=_JsonFile)
def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX file.", show_default=False)],
    pre: Pre,
    settings: Setting,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BASELINE]",
            help="An ONNX file to time beside it in turns, or an earlier report (.json).",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same as BASELINE.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="1,8",
            help="Batch sizes. (default: the file's own, 1 where free)",
            show_default=False,
            rich_help_panel=TIMING,
        ),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="1,2", help="Threads of onnxruntime.", rich_help_panel=TIMING)] = str(
        LATENCY_THREADS
    ),
    device: Annotated[
        str,
        typer.Option(
            metavar="cpu,cuda", help="Devices: cpu, cuda, tensorrt, openvino, coreml, dml.", rich_help_panel=TIMING
        ),
    ] = DEVICE,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time for each device, number of threads and batch.", rich_help_panel=TIMING)
    ] = LATENCY_SECONDS,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.001, max=1, help="Share by which two times may differ and be the same.", rich_help_panel=TIMING
        ),
    ] = TOLERANCE,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="p50<1.10x",
            help="What must hold, in quotes: p50<1.10x of the baseline's (mean times), p50<5ms, p99<20ms. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Feed real images. (default: random numbers)", show_default=False),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=Nx3x224x224",
            help="Shape of an input whose axes are free, N being the batch. May be repeated.",
            show_default=False,
        ),
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Joules of a run, where the machine counts them.", rich_help_panel=TIMING)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write the report to a file in the --format.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    whole: Annotated[
        Path | None,
        typer.Option(
            REPORT,
            metavar="FILE.json",
            help="Write the whole report to a file, whatever the --format; --json FILE.json is the same.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Of the file of --out: distilltool or github-action-benchmark.",
            rich_help_panel=REPORTS,
        ),
    ] = BENCH_FORMAT,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append the table to a file.", show_default=False, rich_help_panel=REPORTS),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time an ONNX file; beside a baseline, say faster (exit 0), same (0), slower (3) or inconclusive (4)."""

    def work(show: "Show") -> Any:
        if other is not None and baseline is not None:
            raise DistillError("the baseline is named twice", "give BASELINE or --baseline", Exit.USAGE)
        batches, counts = _whole_numbers("--batch", batch), _whole_numbers("--threads", threads)
        from distilltool import api

        return api.bench(
            model,
            other or baseline,
            batches=batches,
            threads=counts,
            devices=[one.strip() for one in device.split(",")],
            seconds=seconds,
            tolerance=tolerance,
            gates=gate or (),
            images_dir=photos,
            preprocess=pre,
            inputs=settings,
            shapes=shape or (),
            energy=energy,
            out=out,
            form=form,
            whole=whole,
            markdown=markdown,
            progress=show,
        )

    _run(work, json, quiet)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that export wrote.", show_default=False)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look whether a bundle is what was exported: its hashes, and its vectors of the pictures it carries."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.verify(bundle)

    _run(work, json, quiet)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX file.", show_default=False)],
    pre: Pre,
    settings: Setting,
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGES]", help="Folder of images to check its vectors on.", show_default=False),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List the inner tensors that can serve as the embedding.")
    ] = False,
    guess: Annotated[
        bool,
        typer.Option("--guess-preprocess", help="Rank the ways of preparing images by the model's own answers."),
    ] = False,
    output: Output = None,
    pool: Pool = None,
    device: Device = DEVICE,
    isolate: Isolate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is understood of an ONNX file: inputs, embedding, preprocessing, cost; with images, whether it works."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.inspect(
            model,
            images,
            tensors=tensors,
            guess_preprocess=guess,
            preprocess=pre,
            output=output,
            pool=pool,
            inputs=settings,
            device=device,
            isolate=isolate,
            progress=show,
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


def _inputs(given: list[str]) -> tuple[int | None, list[str]]:
    """`--input` of distill: the student's side in pixels where it is a number, else a setting of the teacher's."""
    sides = [text for text in given if "=" not in text]
    try:
        numbers = [int(text) for text in sides]
    except ValueError:
        numbers = [0]
    if len(numbers) > 1 or any(side < 16 for side in numbers):
        raise DistillError(
            f"--input {' '.join(sides)} is neither one size nor a setting",
            "write --input 128 (pixels, 16 or more) or --input training=false",
            Exit.USAGE,
        )
    return (numbers[0] if numbers else None), [text for text in given if "=" in text]


Beside = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="The folder the answers are about, for paths.", show_default=False),
]


@ledger_app.command("show")
def ledger_show(store: Store = STORE, json: Json = False, quiet: Quiet = False) -> None:
    """List what was bought: for which teacher, how much of its budget, and when."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.ledger_show(store)

    _run(work, json, quiet)


@ledger_app.command("verify")
def ledger_verify(images: Beside = None, store: Store = STORE, json: Json = False, quiet: Quiet = False) -> None:
    """Check the file and every answer in it, without changing anything."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.ledger_verify(store, images_dir=images)

    _run(work, json, quiet)


@ledger_app.command("export")
def ledger_export(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .parquet, .npz or .csv.", show_default=False)
    ],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="SHA", help="Only teachers whose sha256 begins so. (default: all)", show_default=False),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the teacher of this number in `ledger show`.", show_default=False),
    ] = None,
    images: Beside = None,
    store: Store = STORE,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the answers to a file that `query --import` and others read."""

    def work(show: "Show") -> Any:
        from distilltool import api

        return api.ledger_export(out, store=store, teacher=teacher, number=number, images_dir=images, progress=show)

    _run(work, json, quiet)


class _Asked(NamedTuple):
    """Who is asked about which folder."""

    teacher: str
    images: str


def _asked(first: str, second: str | None, import_file: Path | None, url: str | None) -> _Asked:
    """Sort out TEACHER and IMAGES: where an option names the teacher, the only argument is the images."""
    options = [str(one) for one in (import_file, url) if one is not None]
    if len(options) + (second is not None) > 1:
        raise DistillError(
            "the teacher is named more than once", "give one of TEACHER, --import and --teacher-url", Exit.USAGE
        )
    if options:
        _check_spelling(import_file, url)
        return _Asked(options[0], first)
    if second is None:
        raise DistillError("IMAGES is missing", "name the teacher, then the folder of images", Exit.USAGE)
    return _Asked(first, second)


def _check_spelling(import_file: Path | None, url: str | None) -> None:
    """Each of the two options takes its own kind of teacher."""
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise DistillError("--teacher-url holds no address", "it begins with http:// or https://", Exit.USAGE)
    if import_file is not None and import_file.suffix.lower() not in (".parquet", ".npz", ".csv", ".npy"):
        raise DistillError(
            f"--import {import_file} is no file of vectors",
            "its ending must be .parquet, .npz, .csv or .npy",
            Exit.USAGE,
        )


def _seconds(text: str | None) -> float | None:
    """90, 90s, 10m or 1.5h in seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise DistillError(f"--time-budget {text} is no time", "write 90s, 10m or 1.5h", Exit.USAGE)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _whole_numbers(flag: str, text: str | None) -> list[int]:
    """512,128,32 as numbers."""
    if text is None:
        return []
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,5}", piece) for piece in pieces):
        raise DistillError(f"{flag} {text} is no list of whole numbers", f"write {flag} 512,128,32", Exit.USAGE)
    return [int(piece) for piece in pieces]


def _precisions(text: str) -> list[str] | None:
    """fp32,int8-static as names; None for auto."""
    return None if text.strip() == "auto" else [name.strip() for name in text.split(",") if name.strip()]


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

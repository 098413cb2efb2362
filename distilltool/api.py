"""The four stages as typed functions that take paths; each does everything before it that is still to be done."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilltool import extensions, images
from distilltool import recipe as recipes
from distilltool.defaults import (
    BATCH,
    EVALUATION_STORE,
    LATENCY_SECONDS,
    LATENCY_THREADS,
    OPSET,
    RECIPE,
    RUNS,
    SELECTION,
    STORE,
)
from distilltool.embedder import Embedder, Teacher, unit
from distilltool.errors import DistillError
from distilltool.images import Inventory
from distilltool.ledger import Ledger
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress, Silent
from distilltool.report import DistillReport, EvalReport, ExportReport, QueryReport, to_json
from distilltool.rundir import RunDir, open_run, read_json, write_json
from distilltool.stages import query as query_stage
from distilltool.teacher import SPACE_KEY, OnnxEmbedder, TeacherOptions, file_of, open_teacher

NAME = 48  # letters taken over into a file's name, which may have 255 bytes

if TYPE_CHECKING:
    from distilltool.stages.distill import Answered
    from distilltool.student import TorchEmbedder
    from distilltool.students import Start


def query(
    teacher: str | Path,
    images_dir: str | Path,
    *,
    store: str | Path = STORE,
    budget: int | None = None,
    plan: bool = False,
    preprocess: Sequence[str] = (),
    output: str | None = None,
    pool: str | None = None,
    batch: int = BATCH,
    select: str = SELECTION,
    seed: int = 0,
    isolate: bool = False,
    progress: Progress | None = None,
) -> QueryReport:
    """Ask a teacher about a folder of images, within a budget, and keep its answers in the ledger `store`.

    budget: the most the teacher may ever be asked in that ledger, from now on; None keeps the one given last. plan: ask
    about 32 images at most and forecast.
    preprocess: values as of `--preprocess`. Raises DistillError for what the user can mend, Interrupted after Ctrl-C.
    """
    watch = progress or Silent()
    embedder = _open(
        teacher, TeacherOptions(preprocess=tuple(preprocess), output=output, pool=pool, isolate=isolate), watch
    )
    stock = _take_stock(images_dir)
    with Ledger.open(Path(store)) as ledger:
        return _query(embedder, stock, ledger, budget, plan, batch, select, seed, watch)


def distill(
    teacher: str | Path,
    images_dir: str | Path,
    *,
    recipe: str = RECIPE,
    out: str | Path | None = None,
    student: str | None = None,
    input_size: int | None = None,
    dim: int | None = None,
    weights: str | Path | None = None,
    time_budget: float | None = None,
    changes: Sequence[str] = (),
    seed: int | None = None,
    restart: bool = False,
    store: str | Path = STORE,
    budget: int | None = None,
    preprocess: Sequence[str] = (),
    output: str | None = None,
    pool: str | None = None,
    batch: int = BATCH,
    select: str = SELECTION,
    isolate: bool = False,
    progress: Progress | None = None,
) -> DistillReport:
    """Ask what is still unanswered, then train a student from the answers into the folder `out`.

    time_budget: seconds of training. changes: `key=value` of the recipe. dim: length of the student's vectors.
    The same call on a finished run returns its report; on an interrupted one it goes on.
    """
    from distilltool import students
    from distilltool.stages import distill as stage
    from distilltool.students import Start

    watch = progress or Silent()
    chosen = _choose(recipe, changes, student, input_size, dim, seed)
    stage.check(chosen)
    if weights is not None and not Path(weights).is_file():
        raise DistillError(f"there is no file {weights}", "check the path given with --weights")
    extensions.find("distilltool.selection", "selection", select)
    embedder = _open(
        teacher, TeacherOptions(preprocess=tuple(preprocess), output=output, pool=pool, isolate=isolate), watch
    )
    if input_size is None and not any(change.startswith("student.input") for change in changes):
        chosen = _no_larger(chosen, max(embedder.preprocess.size))
    run = RunDir(Path(out) if out is not None else RUNS / f"{embedder.name[:NAME]}-{chosen.name}")
    stock = _take_stock(images_dir)
    start = Start(
        input=chosen.student.input,
        seed=chosen.seed,
        weights=Path(weights) if weights else None,
        fetch="cached" if student is None else "online",
    )
    plan = _made_from(embedder, chosen, start, time_budget)
    if not restart:
        run.check(plan)
    backbone = students.build(chosen.student.spec, start)
    plan["start"] = backbone.start
    if not restart:
        run.check(plan)
    stage.check_student(chosen, backbone)
    with Ledger.open(Path(store)) as ledger:
        bought = _query(embedder, stock, ledger, budget, False, batch, select, chosen.seed, watch)
        _refuse_shared(embedder, stock, ledger, watch, bought)
        answered = _answers(embedder, stock, ledger, bought)
    stage.check_answers(answered)
    plan["set of answered images"] = images.digest_of(photo.sha256 for photo in answered.photos)
    if run.begin(plan, restart):
        watch.note(f"the run {run.root} is finished already; this is its report (--restart makes it anew)")
        return stage.finished(run)
    return stage.distill(embedder, answered, chosen, run, backbone, start.fetch, seconds=time_budget, progress=watch)


def evaluate(
    models: str | Path | Sequence[str | Path],
    data: str | Path,
    *,
    teacher: str | Path | None = None,
    protocol: str | None = None,
    store: str | Path = EVALUATION_STORE,
    preprocess: Sequence[str] = (),
    output: str | None = None,
    pool: str | None = None,
    batch: int = BATCH,
    isolate: bool = False,
    progress: Progress | None = None,
) -> EvalReport:
    """Measure finished runs and ONNX files beside the teacher on a folder of class folders, a CSV, or plain images.

    teacher: may be left out where one of the models is a run whose teacher is still where it was. store: the ledger
    for the teacher's answers about these images, apart from the one that distillation is budgeted in.
    """
    from distilltool import datasets
    from distilltool.stages import evaluate as stage

    watch = progress or Silent()
    models = [models] if isinstance(models, str | Path) else models
    runs = {str(path): open_run(Path(path)) for path in models if Path(path).is_dir()}
    options = TeacherOptions(preprocess=tuple(preprocess), output=output, pool=pool, isolate=isolate)
    asked = _teacher_of(list(runs.values()), teacher, options, watch)
    embedders = [_open_model(path, runs.get(str(path)), options) for path in models]
    dataset = datasets.open_dataset(Path(data), protocol)
    with Ledger.open(Path(store)) as ledger:
        stock = images.take_stock(dataset.paths)
        bought = _query(asked, stock, ledger, None, False, batch, SELECTION, 0, watch)
        _refuse_shared(asked, stock, ledger, watch, bought)
        vectors = ledger.vectors(ledger.teacher(asked.key), [photo.sha256 for photo in stock.photos])
    dataset, of_row = datasets.merged(dataset, stock.of_path)
    if len(of_row) < len(stock.of_path) - len(stock.skipped):
        watch.note(
            f"{len(stock.of_path) - len(stock.skipped) - len(of_row)} files repeat another's bytes: counted once"
        )
    rows = [row for row, sha256 in enumerate(of_row) if sha256 in vectors]
    if not rows:
        raise DistillError(
            f"no image of {data} could be read", "check the paths; eval --json lists why each was skipped"
        )
    known = stage.Known(
        name=asked.name,
        space_id=asked.space_id,
        rows=tuple(rows),
        vectors=unit(np.stack([vectors[of_row[row]] for row in rows])),
        skipped=bought.skipped,
        queries={"new": bought.queried, "cached": bought.cached},
    )
    report = stage.evaluate(embedders, dataset, known, str(data), watch)
    for model, run in zip(report.models[1:], [runs.get(str(path)) for path in models], strict=True):
        if run is not None:
            alone = replace(report, models=(report.models[0], model))
            place = hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:8]
            write_json(run.evaluations / f"{Path(data).stem[:NAME]}-{place}.json", to_json(alone))
    return report


def export(
    run: str | Path,
    *,
    bundle: str | Path | None = None,
    teacher: str | Path | None = None,
    opset: int = OPSET,
    seconds: float = LATENCY_SECONDS,
    threads: int = LATENCY_THREADS,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a finished run's student as one ONNX file with its card, its checks and its latency beside the teacher's.

    bundle: the folder to fill, by default inside the run. seconds: for the latency measurement. threads: of
    onnxruntime in it.
    """
    from distilltool.stages import export as stage

    watch = progress or Silent()
    opened = open_run(Path(run))
    student = load_student(run)
    asked = None
    if teacher is not None or Path(read_json(opened.manifest)["teacher"]["path"]).is_file():
        asked = _teacher_of([opened], teacher, TeacherOptions(), watch)
    else:
        watch.warn("the teacher's file is not where it was, so the student is timed alone (name it with --teacher)")
    return stage.export(
        opened,
        student,
        asked if isinstance(asked, OnnxEmbedder) else None,  # what is no file here cannot be timed here
        Path(bundle) if bundle else opened.bundle,
        opset=opset,
        seconds=seconds,
        threads=threads,
        progress=watch,
    )


def _teacher_of(
    runs: Sequence[RunDir], path: str | Path | None, options: TeacherOptions, progress: Progress
) -> Teacher:
    """The teacher to compare with, opened as the first run opened it; runs of another teacher are refused."""
    if not runs:
        if path is None:
            raise DistillError("there is no teacher to compare with", "name it with --teacher FILE.onnx")
        return _open(path, options, progress)
    facts = [read_json(run.manifest)["teacher"] for run in runs]
    file = Path(path if path is not None else facts[0]["path"])
    if path is None and not file.is_file():
        raise DistillError(f"the teacher of {runs[0].root}, {file}, is not there", "name it with --teacher FILE.onnx")
    made_with = TeacherOptions(
        output=facts[0]["output"],
        pool=facts[0]["pool"] if facts[0]["pool"] != "none" else None,
        isolate=options.isolate,
    )
    embedder = open_teacher(file, made_with, known=Preprocess.from_dict(facts[0]["preprocess"]))
    for run, fact in zip(runs, facts, strict=True):
        if fact["sha256"] != embedder.key.sha256:
            raise DistillError(
                f"the run {run.root} was distilled from another teacher than {file}",
                f"its teacher was {fact['path']}, sha256 {fact['sha256'][:12]}...",
            )
    return embedder


def _open_model(path: str | Path, run: RunDir | None, options: TeacherOptions) -> Embedder:
    """A run's student or an ONNX file; flags are not for files that say themselves how they are fed."""
    if run is not None:
        return load_student(path)
    if SPACE_KEY in file_of(Path(path), options.isolate).metadata:
        return open_teacher(Path(path), TeacherOptions(isolate=options.isolate))
    return open_teacher(Path(path), options)


def load_student(run: str | Path) -> "TorchEmbedder":
    """The trained student of a finished run: `.preprocess.prepare` images, then `.embed` them."""
    from distilltool.stages import distill as stage

    return stage.load_student(open_run(Path(run)))


def _open(teacher: str | Path, options: TeacherOptions, progress: Progress) -> Teacher:
    """The teacher as the user names it, with one line on what was understood of it."""
    embedder = open_teacher(Path(teacher), options)
    progress.note(
        f"{Path(embedder.where).name}: embedding from output {embedder.key.output} ({embedder.why}); "
        f"images {embedder.preprocess.describe()} ({embedder.preprocess.source})"
    )
    return embedder


def _take_stock(folder: str | Path) -> Inventory:
    return images.take_stock(images.find(Path(folder)))


def _query(
    embedder: Teacher,
    stock: Inventory,
    ledger: Ledger,
    budget: int | None,
    plan: bool,
    batch: int,
    select: str,
    seed: int,
    progress: Progress,
) -> QueryReport:
    order = extensions.find("distilltool.selection", "selection", select)(stock.photos, seed)
    return query_stage.query(
        embedder, stock, ledger, order=order, budget=budget, plan=plan, batch=batch, progress=progress
    )


def _refuse_shared(
    embedder: Teacher, stock: Inventory, ledger: Ledger, progress: Progress, bought: QueryReport
) -> None:
    """Fail where another process is asking about some of these images; say so where the budget left some out."""
    busy = ledger.elsewhere(ledger.teacher(embedder.key), [photo.sha256 for photo in stock.photos])
    if busy:
        raise DistillError(
            f"another process is asking this teacher about {busy} of these images", "wait for it, then run this again"
        )
    if bought.pending:
        progress.note(f"{bought.pending:,} images stay without an answer: the budget of {bought.budget:,} is spent")


def _answers(embedder: Teacher, stock: Inventory, ledger: Ledger, bought: QueryReport) -> "Answered":
    from distilltool.stages.distill import Answered

    vectors = ledger.vectors(ledger.teacher(embedder.key), [photo.sha256 for photo in stock.photos])
    # by content, not by path: a renamed file changes nothing
    kept = tuple(sorted((one for one in stock.photos if one.sha256 in vectors), key=lambda one: one.sha256))
    rows = np.stack([vectors[photo.sha256] for photo in kept]) if kept else np.zeros((0, 1), np.float32)
    return Answered(
        photos=kept,
        vectors=unit(rows),
        skipped=len(bought.skipped),
        queries={"new": bought.queried, "cached": bought.cached, "spent": bought.spent},
    )


def _made_from(embedder: Teacher, chosen: recipes.Recipe, start: "Start", time_budget: float | None) -> dict[str, Any]:
    """What a run is made from, as far as it is known before the teacher is asked; the names are for messages."""
    return {
        "teacher": embedder.key.sha256,
        "output": embedder.key.output,
        "pool": embedder.key.pool,
        "preprocessing": embedder.preprocess.identity(),
        "recipe": chosen.to_dict(),
        "time budget": time_budget,
        "weights": images.digest(start.weights) if start.weights else None,
    }


def _no_larger(chosen: recipes.Recipe, side: int) -> recipes.Recipe:
    """A recipe's default input, brought down to what the teacher itself looks at, in pixels."""
    return replace(chosen, student=replace(chosen.student, input=min(chosen.student.input, side)))


def _choose(
    name: str, changes: Sequence[str], student: str | None, input_size: int | None, dim: int | None, seed: int | None
) -> recipes.Recipe:
    """The recipe with the command's own flags laid over it."""
    flags: dict[str, Any] = {"student.spec": student, "student.input": input_size, "student.dim": dim, "seed": seed}
    said = [f"{key}={value!r}" for key, value in flags.items() if value is not None]
    return recipes.load(name, [*changes, *said])

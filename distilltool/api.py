"""The four stages as typed functions that take paths; each does everything before it that is still to be done."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilltool import extensions, images, provenance
from distilltool import recipe as recipes
from distilltool.asking import (
    ask,
    distrusted,
    guesser,
    open_any,
    open_embedder,
    options_of,
    refuse_shared,
    take_stock,
    teacher_of,
    terms_of,
)
from distilltool.bought import is_vectors
from distilltool.defaults import (
    BENCH_FORMAT,
    BENCH_FORMATS,
    DEVICE,
    EVALUATION_STORE,
    LATENCY_SECONDS,
    LATENCY_THREADS,
    MAX_DROP,
    MIN_OVERLAP,
    NAME,
    OPSET,
    RECIPE,
    RUNS,
    SELECTION,
    STORE,
    TIMEOUT,
    TOLERANCE,
    TRUTHS,
)
from distilltool.embedder import Teacher, unit
from distilltool.errors import DistillError, Exit, NoStudent
from distilltool.images import Inventory
from distilltool.ledger import Ledger
from distilltool.progress import Progress, Silent
from distilltool.remote import is_address
from distilltool.report import (
    BenchReport,
    DistillReport,
    EvalReport,
    ExportReport,
    InspectReport,
    LedgerExportReport,
    LedgerShowReport,
    LedgerVerifyReport,
    ParetoReport,
    QueryReport,
    VerifyReport,
    to_json,
)
from distilltool.rundir import RunDir, check_writable, open_run, read_json, write_json
from distilltool.sources import AUTO, asked, open_source
from distilltool.target import PARETO
from distilltool.target import parse as parse_target
from distilltool.teacher import OnnxEmbedder, TeacherOptions

if TYPE_CHECKING:
    from distilltool.candidates import Candidate
    from distilltool.stages.distill import Answered
    from distilltool.student import TorchEmbedder
    from distilltool.students import Start


def inspect(
    model: str | Path,
    images_dir: str | Path | None = None,
    *,
    tensors: bool = False,
    guess_preprocess: bool = False,
    preprocess: Sequence[str] = (),
    output: str | None = None,
    pool: str | None = None,
    inputs: Sequence[str] = (),
    device: str = DEVICE,
    isolate: bool = False,
    progress: Progress | None = None,
) -> InspectReport:
    """Say what is understood of an ONNX file: without running it, then from running it on two images.

    images_dir: with images the vectors are checked for sense too. tensors: list inner tensors that can be embeddings.
    guess_preprocess: rank the known ways of preparing images by the model's own answers, also where it is known.
    """
    from distilltool.stages import inspect as stage

    photos = images.find(Path(images_dir)) if images_dir is not None else []
    if guess_preprocess and not photos:
        raise DistillError("--guess-preprocess has no images to guess from", "give a folder of them", Exit.USAGE)
    options = options_of(preprocess, output, pool, inputs, device, isolate)
    return stage.inspect(
        Path(model), options, photos, tensors=tensors, rank=guess_preprocess, progress=progress or Silent()
    )


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
    inputs: Sequence[str] = (),
    device: str = DEVICE,
    isolate: bool = False,
    batch: int | None = None,
    select: str = SELECTION,
    seed: int = 0,
    max_cost: float | None = None,
    price_per_query: float | None = None,
    ambiguous: str | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> QueryReport:
    """Ask a teacher about a folder of images, within a budget, and keep its answers in the ledger `store`.

    teacher: an ONNX file; the address of a model on a server, http://host:port/v2/models/NAME; or a file of answers
    bought elsewhere (.parquet, .npz, .csv), which are taken over without asking anybody.
    budget: the most the teacher may ever be asked in that ledger, from now on; None keeps the one given last. plan: ask
    about 32 images at most and forecast.
    preprocess: values as of `--preprocess`. max_cost: a budget as money, by price_per_query. ambiguous: "skip",
    "retry" or "fail" where images were sent before and no answer came back; None fails for a server and retries for a
    file. timeout: seconds a server may take for one batch.
    Raises DistillError for what the user can mend, Interrupted after Ctrl-C.
    """
    watch = progress or Silent()
    extensions.find("distilltool.selection", "selection", select)
    terms = terms_of(budget, max_cost, price_per_query, ambiguous)
    options = options_of(preprocess, output, pool, inputs, device, isolate)
    taken = cache(lambda: take_stock(images_dir))
    embedder = open_any(teacher, options, timeout, watch, guesser(taken, store, terms.budget, watch))
    stock = taken()
    with Ledger.open(Path(store)) as ledger:
        return ask(embedder, stock, Path(images_dir), ledger, terms, plan, batch, select, seed, watch)


def distill(
    teacher: str | Path,
    images_dir: str | Path,
    *,
    recipe: str = RECIPE,
    out: str | Path | None = None,
    student: str | None = None,
    input_size: int | None = None,
    dim: int | None = None,
    dims: Sequence[int] = (),
    target: str | None = None,
    weights: str | Path | None = None,
    fetch: bool = False,
    time_budget: float | None = None,
    changes: Sequence[str] = (),
    space: str | None = None,
    seed: int | None = None,
    restart: bool = False,
    log: Sequence[str] = (),
    store: str | Path = STORE,
    budget: int | None = None,
    preprocess: Sequence[str] = (),
    output: str | None = None,
    pool: str | None = None,
    inputs: Sequence[str] = (),
    device: str = DEVICE,
    isolate: bool = False,
    batch: int | None = None,
    select: str = SELECTION,
    max_cost: float | None = None,
    price_per_query: float | None = None,
    ambiguous: str | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> DistillReport:
    """Ask what is still unanswered, then train a student from the answers into the folder `out`.

    teacher, max_cost, price_per_query, ambiguous, timeout: as in `query`. time_budget: seconds of training. changes:
    `key=value` of the recipe. fetch: whether `auto` may fetch pretrained weights from their hub. dim: length of the
    student's vectors; dims: lengths at which they are of use when cut, the longest of them instead of `dim`. target:
    what the student may cost, as `flops<0.1x`, `flops<100M` or `p50<5ms@cpu:1`; of those at hand, or of the sizes of
    the one that is named, what ranks best untrained. space:
    "teacher" for vectors that can be compared with the teacher's, "own" for a space of the student's own; None is the
    recipe's. log: trackers of `distilltool.trackers` that are told of the training, in `out`/trackers.
    The same call on a finished run returns its report; on an interrupted one it goes on.
    """
    from distilltool import candidates, imported, students, trackers, tracking
    from distilltool.candidates import Sought
    from distilltool.stages import distill as stage
    from distilltool.students import Start

    watch = progress or Silent()
    trackers.check(log)
    chosen = _choose(recipe, changes, student, input_size, dim, dims, seed)
    if space is not None:
        chosen = stage.in_space(chosen, space)
    stage.check(chosen)
    if weights is not None and not Path(weights).is_file():
        raise DistillError(f"there is no file {weights}", "check the path given with --weights")
    extensions.find("distilltool.selection", "selection", select)
    terms = terms_of(budget, max_cost, price_per_query, ambiguous)
    goal = parse_target(target) if target is not None else None
    options = options_of(preprocess, output, pool, inputs, device, isolate)
    taken = cache(lambda: take_stock(images_dir))
    embedder = open_any(teacher, options, timeout, watch, guesser(taken, store, terms.budget, watch))
    unsaid = input_size is None and not any(change.startswith("student.input") for change in changes)
    if unsaid:
        chosen = _no_larger(chosen, max(embedder.preprocess.size))
    run = RunDir(Path(out) if out is not None else RUNS / f"{embedder.name[:NAME]}-{chosen.name}")
    with run.held():
        stock = taken()
        auto = chosen.student.spec == AUTO
        if auto and weights is not None:
            raise DistillError("--weights belong to one student", "name it with --student timm:NAME")
        source = open_source(chosen.student.spec, embedder, isolate, [one.path for one in stock.photos], watch)
        side = None if unsaid else chosen.student.input
        if source is not None and unsaid:
            side = imported.only_side(source, imported.part_of(asked(chosen.student.spec)))
            chosen = replace(chosen, student=replace(chosen.student, input=side or chosen.student.input))
        start = Start(
            input=chosen.student.input,
            seed=chosen.seed,
            weights=Path(weights) if weights else None,
            source=source,
            prepared=embedder.preprocess,
            photos=tuple(one.path for one in sorted(stock.photos, key=lambda one: one.sha256)),
            fetch="online"
            if fetch or (student is not None and not auto)
            else "cached",  # a hub is asked by those who say so
            teacher=embedder.key.sha256,
        )
        plan = {**_made_from(embedder, chosen, start, time_budget), "target": target}
        if not restart:
            run.check(plan)
        fit: Sequence[Candidate] = ()
        backbone = None if auto or goal else students.build(chosen.student.spec, start)
        if backbone is None and (restart or not (run.manifest.exists() or run.choice.exists())):
            whole = source if auto else open_source(AUTO, embedder, isolate, [], watch)
            sought = Sought(
                spec=chosen.student.spec, goal=goal, side=None if auto and unsaid else side, dim=chosen.student.dim
            )
            fit = candidates.at_hand(sought, whole, start, watch)
        if backbone is not None:
            plan["start"] = backbone.start
            stage.check_student(chosen, backbone)
        if not restart:
            run.check(plan)
        with Ledger.open(Path(store)) as ledger:
            described = None
            if backbone is not None:
                described = stage.describer(backbone, embedder.preprocess, chosen.student.input, watch)
            bought = ask(
                embedder, stock, Path(images_dir), ledger, terms, False, batch, select, chosen.seed, watch, described
            )
            refuse_shared(embedder, stock, ledger, watch, bought)
            answered = _answers(embedder, stock, ledger, bought)
        stage.check_answers(answered)
        plan["set of answered images"] = images.digest_of(photo.sha256 for photo in answered.photos)
        if run.begin(plan, restart):
            watch.note(f"the run {run.root} is finished already; this is its report (--restart makes it anew)")
            tracking.finished(run, log, watch)
            return stage.finished(run)
        return stage.distill(
            embedder,
            answered,
            chosen,
            run,
            backbone,
            start,
            fit=fit,
            changes=changes,
            isolate=isolate and isinstance(embedder, OnnxEmbedder),
            seconds=time_budget,
            trackers=log,
            progress=watch,
        )


def pareto(
    teacher: str | Path,
    images_dir: str | Path,
    *,
    targets: Sequence[str] = PARETO,
    out: str | Path | None = None,
    recipe: str = RECIPE,
    time_budget: float | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> ParetoReport:
    """Train a student for each of several targets from the same answers, into folders inside `out`, and compare them.

    targets: as of `distill`. time_budget: seconds of training for all of them together. how: what else `distill`
    takes. The same call goes on where an earlier one was interrupted. The comparison is kept in `pareto.json`,
    and drawn in `pareto.svg` where `distilltool[report]` is installed.
    """
    began, watch = time.perf_counter(), progress or Silent()
    from distilltool import page
    from distilltool.stages import pareto as stage

    for one in targets:
        parse_target(one)
    root = Path(out) if out is not None else RUNS / f"{Path(teacher).stem[:NAME]}-{Path(recipe).stem}-pareto"
    stage.check(root)
    share = None if time_budget is None else time_budget / len(targets)
    made, refused = dict[str, DistillReport](), dict[str, str]()
    for number, one in enumerate(dict.fromkeys(targets), 1):
        watch.note(f"student {number} of {len(targets)}: {one}")
        try:
            made[one] = distill(
                teacher,
                images_dir,
                out=root / stage.folder(one),
                recipe=recipe,
                target=one,
                time_budget=share,
                progress=watch,
                **how,
            )
        except NoStudent as error:
            watch.warn(error.message)
            refused[one] = error.message
    if not made:
        raise DistillError("no student is at hand for any of these targets", "allow more with --target")
    students = {one: (report, load_student(report.run)) for one, report in made.items()}
    first = [open_run(Path(report.run)) for report in made.values()][:1]
    timed = None
    if not (is_address(str(teacher)) or is_vectors(Path(teacher)) or distrusted(first)):
        timed = teacher_of(first, teacher, TeacherOptions(), TIMEOUT, watch, threads=LATENCY_THREADS)
    points, teacher_ms = stage.compare(students, timed if isinstance(timed, OnnxEmbedder) else None, watch)
    report = ParetoReport(
        runs=str(root),
        points=points,
        refused=refused,
        teacher_p50_ms=teacher_ms,
        threads=LATENCY_THREADS,
        seconds=time.perf_counter() - began,
    )
    if page.draw_pareto(drawing := root / "pareto.svg", report):
        report = replace(report, drawing=str(drawing))
    write_json(root / "pareto.json", to_json(report))
    return report


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
    inputs: Sequence[str] = (),
    device: str = DEVICE,
    isolate: bool = False,
    batch: int | None = None,
    max_cost: float | None = None,
    price_per_query: float | None = None,
    ambiguous: str | None = None,
    timeout: float = TIMEOUT,
    gates: Sequence[str] = (),
    binary: bool = False,
    index: str | None = None,
    drift: bool = False,
    log: Sequence[str] = (),
    html: str | Path | None = None,
    csv: str | Path | None = None,
    markdown: str | Path | None = None,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    combine: str = "mean",
    whiten: str | Path | None = None,
    whiten_dim: int | None = None,
    vectors: str | Path | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Measure finished runs, ONNX files and files of vectors beside the teacher on class folders, a CSV, plain images,
    or a benchmark.

    models: of a file of vectors (as `query` imports, or the vectors.npy of a bundle) every image needs a row.
    teacher: as in `query`; may be left out where one of the models is a run whose teacher is still where it was.
    protocol: a file of `distilltool.datasets` with its settings, `paired:frames=2`; None for what the data looks like.
    isolate: for every ONNX file; on by itself where a run was distilled so. store: the ledger for the teacher's
    answers about these images, apart from the one that distillation is budgeted in.
    max_cost, price_per_query, ambiguous, timeout: as in `query`. gates: what each student must reach, e.g.
    `retention.map>=0.9`, see `distilltool.quality_gate`; the report says which hold.
    binary: measure binary codes of the vectors too. index: types of `distilltool.indexes` whose recall, time and memory
    are measured on every model's gallery, `flat,ivf-pq,hnsw:ef=64,binary`. drift: say of each run whether it fails on
    images unlike those it was trained on.
    log: trackers of `distilltool.trackers` that are told each run's figures, in its own folder.
    html: file for a page with tables, charts and pictures; needs `pip install distilltool[report]`. csv: file for the
    figures; those of every query go into another beside it, NAME.queries.csv. markdown: file that tables are appended
    to. What each query got is also kept in the `evaluations` folder of every run.
    scales, flip: an image's vector is made of its vectors at these scales (of the size that each model takes it at),
    mirrored too; each is a question to the teacher of its own. combine: "mean", "gem" or "gem:POWER". whiten: a folder
    of images apart from these, or a CSV that lists them, on which the PCA whitening of each model is learned; the
    teacher is asked about them too. whiten_dim: directions that are kept, None for all.
    vectors: folder in which each model's vectors stay, NAME.npy, and from which the next call takes them; without it
    they are kept beside the ledger until all is done. Either way a call that was stopped goes on where it was.
    """
    from distilltool import assessing, datasets
    from distilltool import views as looks
    from distilltool.shelf import shelf
    from distilltool.stages import evaluate as stage

    more = assessing.wish(gates, binary, index, drift, log, html, csv, markdown)
    views = looks.parse(scales, flip, combine)
    if whiten_dim is not None and whiten is None:
        raise DistillError("--whiten-dim means nothing without --whiten", "name images to learn from", Exit.USAGE)
    watch = progress or Silent()
    paths = [Path(one) for one in ([models] if isinstance(models, str | Path) else models)]
    runs = [open_run(path) if path.is_dir() else None for path in paths]
    more.check(runs, views == looks.ONE and whiten is None)
    opened = [run for run in runs if run is not None]
    options = options_of(preprocess, output, pool, inputs, device, isolate or distrusted(opened))
    terms = terms_of(None, max_cost, price_per_query, ambiguous)
    if (preprocess or output or pool or inputs) and all(
        run is not None or is_vectors(path) for path, run in zip(paths, runs, strict=True)
    ):
        watch.warn(
            "--preprocess, --output, --pool and --input are for ONNX files: "
            "a run says itself how it is asked, and a file of vectors is not asked"
        )
    dataset = datasets.open_dataset(Path(data), protocol, Path(store).parent / TRUTHS)
    taken = cache(lambda: images.take_stock(dataset.paths, dataset.boxes))
    guess = guesser(taken, store, None, watch)
    asked = teacher_of(opened, teacher, options, timeout, watch, guess)
    embedders = [open_embedder(path, run, options, guess) for path, run in zip(paths, runs, strict=True)]
    contest = assessing.Contest(
        data=Path(data),
        dataset=dataset,
        stock=taken(),
        teacher=asked,
        paths=tuple(paths),
        runs=tuple(runs),
        models=tuple(embedders),
        views=assessing.possible(views, asked, embedders, dataset.distractors),
        apart=None if whiten is None else assessing.learning(Path(whiten), taken(), whiten_dim, [asked, *embedders]),
    )
    place = contest.place(protocol, teacher)
    with shelf(Path(store), place, None if vectors is None else Path(vectors), watch) as shelved:
        files = contest.files(shelved)
        with Ledger.open(Path(store)) as ledger:
            known = assessing.bought(contest, ledger, terms, batch, shelved, files[0], watch)
        made = stage.evaluate(
            assessing.entries(contest, known, files[1:]),
            known.dataset,
            known.teacher,
            str(data),
            watch,
            shelved,
            contest.views,
            known.apart,
        )
        made = assessing.completed(made, more, contest, known, watch)
        assessing.deliver(made, more, contest, protocol or dataset.protocol, watch)
    return made.report


def export(
    run: str | Path,
    *,
    bundle: str | Path | None = None,
    teacher: str | Path | None = None,
    opset: int = OPSET,
    seconds: float = LATENCY_SECONDS,
    threads: int = LATENCY_THREADS,
    precision: Sequence[str] | None = None,
    min_overlap: float = MIN_OVERLAP,
    max_drop: float = MAX_DROP,
    smaller: float | None = None,
    mixed: bool = False,
    image: str = "prepared",
    device: str = DEVICE,
    vectors: str | Path | None = None,
    isolate: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a finished run's student as ONNX files with its card, its checks and its latency beside the teacher's.

    precision: names of `distilltool.precisions`, None for what can pay here; float32 is always among them. What ranks
    worse than min_overlap (of its ten nearest with float32's) or max_drop (of the overlap with the teacher's) allow, or
    is neither faster than float32 nor at most `smaller` of its size, is reported and left out. mixed: layers that lose
    most by 8 bits stay in float32. image: "any" adds a file that takes decoded images of any size. device: where they
    are timed. vectors: a folder of images whose vectors go along.
    bundle: the folder to fill, empty or with an earlier bundle, by default inside the run. seconds: for the latency
    measurement. threads: of onnxruntime in it. isolate: the teacher's file, as it is in any case where the run was
    distilled so; what runs in a process of its own is checked, but not timed.
    """
    from distilltool import bundle as contents
    from distilltool import precisions
    from distilltool.stages import export as stage
    from distilltool.variants import Wanted

    watch = progress or Silent()
    for name in precision or ():
        if name not in precisions.names():
            raise DistillError(
                f"there is no precision {name!r}", f"use auto, or some of {', '.join(precisions.names())}", Exit.USAGE
            )
    if image not in ("prepared", "any"):
        raise DistillError(f"--image {image} is neither of what a file can take", "use prepared or any", Exit.USAGE)
    wanted = Wanted(
        precisions=None if precision is None else tuple(precision),
        min_overlap=min_overlap,
        max_drop=max_drop,
        smaller=smaller,
        mixed=mixed,
        any_size=image == "any",
        device=device,
    )
    opened = open_run(Path(run))
    into = Path(bundle) if bundle else opened.bundle
    contents.check(into)
    student = load_student(run)
    asked = None
    before = str(teacher or read_json(opened.manifest)["teacher"]["path"])
    if is_address(before) or is_vectors(Path(before)):
        watch.note("the teacher is no file that could run here, so the student is timed alone")
    elif teacher is not None or Path(before).is_file():
        options = TeacherOptions(isolate=isolate, device=device)
        asked = teacher_of([opened], teacher, options, TIMEOUT, watch, threads=threads)
        if isinstance(asked, OnnxEmbedder) and asked.model.ready is None:
            watch.note("the teacher runs isolated, in a process of its own, so the student is timed alone")
    else:
        watch.warn("the teacher's file is not where it was, so the student is timed alone (name it with --teacher)")
    return stage.export(
        opened,
        student,
        asked if isinstance(asked, OnnxEmbedder) else None,  # what is no file here cannot be timed here
        into,
        wanted,
        opset=opset,
        seconds=seconds,
        threads=threads,
        gallery=images.find(Path(vectors)) if vectors is not None else (),
        progress=watch,
    )


def bench(
    model: str | Path,
    baseline: str | Path | None = None,
    *,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (LATENCY_THREADS,),
    devices: Sequence[str] = (DEVICE,),
    seconds: float = LATENCY_SECONDS,
    tolerance: float = TOLERANCE,
    gates: Sequence[str] = (),
    images_dir: str | Path | None = None,
    preprocess: Sequence[str] = (),
    inputs: Sequence[str] = (),
    shapes: Sequence[str] = (),
    energy: bool = False,
    out: str | Path | None = None,
    form: str = BENCH_FORMAT,
    whole: str | Path | None = None,
    markdown: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time any ONNX file, each way of running it in fresh processes; beside a baseline, say which is faster.

    baseline: another ONNX file, which is timed in turns with this one, or a report that was written earlier. batches:
    none for the one that the file takes, 1 where it is free. seconds: of timing for each device, number of threads and
    batch, all processes together; slow models take longer, for 16 turns of three runs are the fewest. tolerance: the
    share by which times may differ and be the same. gates: `p50<1.10x` of the baseline's, `p90<5ms`. images_dir: real
    images to feed, prepared as the file says or `preprocess`; else random numbers by the file's signature. inputs,
    shapes: `name=value` and `name=Nx3x224x224` of single inputs. out: file for the report, or, in the form
    "github-action-benchmark", for what that action reads. whole: file for the report in any case, which can be another
    run's baseline. markdown: file that a table is appended to. Raises DistillError for what the user can mend.
    """
    from distilltool import bench_text
    from distilltool.feeds import Wish
    from distilltool.gate import parse as parse_gate
    from distilltool.stages import bench as stage
    from distilltool.stored import read_stored

    if form not in BENCH_FORMATS:
        raise DistillError(f"there is no format {form!r}", f"use --format {'|'.join(BENCH_FORMATS)}", Exit.USAGE)
    if form != BENCH_FORMAT and out is None:
        raise DistillError(f"nothing is to be written as {form}", "name its file with --out FILE.json", Exit.USAGE)
    if out is not None and whole is not None and Path(out).absolute() == Path(whole).absolute():
        raise DistillError(f"{out} is to be written twice", "give --out and --json files of their own", Exit.USAGE)
    limits = tuple(parse_gate(one) for one in gates)
    if baseline is None and any(one.share for one in limits):
        raise DistillError("a gate in x wants a baseline", "give BASELINE, or a gate in ms", Exit.USAGE)
    before = Path(baseline) if baseline is not None else None
    for file in (out, whole, markdown):
        if file is not None:
            check_writable(Path(file))
    photos = tuple(images.find(Path(images_dir))) if images_dir is not None else ()
    if images_dir is not None and not photos:
        raise DistillError(f"there are no images in {images_dir}", "give a folder of images")
    plan = stage.Plan(
        batches=tuple(batches),
        threads=tuple(threads),
        devices=tuple(devices),
        seconds=seconds,
        tolerance=tolerance,
        gates=limits,
        wish=Wish(preprocess=tuple(preprocess), settings=tuple(inputs), shapes=tuple(shapes), photos=photos),
        energy=energy,
    )
    stored = read_stored(before) if before is not None and before.suffix.lower() == ".json" else None
    report = stage.bench(Path(model), stored or before, plan, progress or Silent())
    if out is not None:
        write_json(Path(out), bench_text.action(report) if form != BENCH_FORMAT else to_json(report))
    if whole is not None:
        write_json(Path(whole), to_json(report))
    if markdown is not None:
        with Path(markdown).open("a", encoding="utf-8") as summary:
            summary.write(bench_text.markdown(report))
    return report


def verify(bundle: str | Path) -> VerifyReport:
    """Recompute the hashes of a bundle and the vectors of the pictures it carries; its `faults` are empty where all is
    well. Needs no torch."""
    from distilltool.stages import verify as stage

    return stage.verify(Path(bundle))


def ledger_show(store: str | Path = STORE) -> LedgerShowReport:
    """List what a ledger holds: teachers, answers, what was asked and when."""
    from distilltool.stages import audit

    with Ledger.read(Path(store)) as ledger:
        return audit.show(ledger)


def ledger_verify(store: str | Path = STORE, *, images_dir: str | Path | None = None) -> LedgerVerifyReport:
    """Check a ledger down to each vector, without changing it; its `faults` are empty where all is well.

    images_dir: also say which of these images have no answer, and which answers are about none of them.
    """
    from distilltool.stages import audit

    stock = None if images_dir is None else take_stock(images_dir)
    with Ledger.read(Path(store)) as ledger:
        return audit.verify(ledger, stock)


def ledger_export(
    out: str | Path,
    *,
    store: str | Path = STORE,
    teacher: str | None = None,
    number: int | None = None,
    images_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> LedgerExportReport:
    """Write a ledger's answers to `out`, .parquet, .npz or .csv, which `query --import` reads.

    teacher: how the sha256 of its file begins; number: as `ledger_show` gives it; None is all. images_dir: where the
    images are, for their paths.
    """
    from distilltool.stages import audit

    stock = None if images_dir is None else take_stock(images_dir)
    base = Path(images_dir or "")
    base = base if base.is_dir() else base.parent
    paths = {} if stock is None else {photo.sha256: photo.path.relative_to(base) for photo in stock.photos}
    with Ledger.read(Path(store)) as ledger:
        return audit.export(ledger, Path(out), teacher or "", number, paths, progress or Silent())


def load_student(run: str | Path) -> "TorchEmbedder":
    """The trained student of a finished run: `.preprocess.prepare` images, then `.embed` them."""
    from distilltool.stages import distill as stage

    return stage.load_student(open_run(Path(run)))


def _answers(embedder: Teacher, stock: Inventory, ledger: Ledger, bought: QueryReport) -> "Answered":
    from distilltool.stages.distill import Answered

    vectors = ledger.vectors(ledger.teacher(embedder.key), [photo.key for photo in stock.photos])
    # by content, not by path: a renamed file changes nothing
    kept = tuple(sorted((one for one in stock.photos if one.sha256 in vectors), key=lambda one: one.sha256))
    rows = np.stack([vectors[photo.sha256] for photo in kept]) if kept else np.zeros((0, 1), np.float32)
    left_out = {Path(one.path) for one in bought.skipped}
    others = {one.sha256: one for one in stock.photos if one.sha256 not in vectors and one.path not in left_out}
    return Answered(
        photos=kept,
        vectors=unit(rows),
        skipped=len(bought.skipped),
        queries={"new": bought.queried, "cached": bought.cached, "spent": bought.spent},
        unasked=tuple(others[one] for one in sorted(others)),
        sha256=provenance.of_answers([one.sha256 for one in kept], rows),
    )


def _made_from(embedder: Teacher, chosen: recipes.Recipe, start: "Start", time_budget: float | None) -> dict[str, Any]:
    """What a run is made from, as far as it is known before the teacher is asked; the names are for messages."""
    return {
        "teacher": embedder.key.sha256,
        "output": embedder.key.output,
        "pool": embedder.key.pool,
        "preprocessing": embedder.preprocess.identity(),
        "recipe": _deciding(chosen),
        "time budget": time_budget,
        "weights": images.digest(start.weights) if start.weights else None,
        "student's file": start.source.sha256 if start.source else None,
    }


def _deciding(chosen: recipes.Recipe) -> dict[str, Any]:
    """Of a recipe what weights depend on: a run may go on with more memory, or less."""
    found = chosen.to_dict()
    del found["schedule"]["memory"]
    return found


def _no_larger(chosen: recipes.Recipe, side: int) -> recipes.Recipe:
    """A recipe's default input, brought down to what the teacher itself looks at, in pixels."""
    return replace(chosen, student=replace(chosen.student, input=min(chosen.student.input, side)))


def _choose(
    name: str,
    changes: Sequence[str],
    student: str | None,
    input_size: int | None,
    dim: int | None,
    dims: Sequence[int],
    seed: int | None,
) -> recipes.Recipe:
    """The recipe with the command's own flags laid over it."""
    flags: dict[str, Any] = {"student.spec": student, "student.input": input_size, "student.dim": dim, "seed": seed}
    flags["student.dims"] = list(dims) or None
    said = [f"{key}={value!r}" for key, value in flags.items() if value is not None]
    return recipes.load(name, [*changes, *said])

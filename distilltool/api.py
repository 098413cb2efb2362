"""The four stages as typed functions that take paths; each does everything before it that is still to be done."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilltool import __version__, extensions, images
from distilltool import recipe as recipes
from distilltool.bought import BoughtTeacher, is_vectors, open_bought
from distilltool.choice import Describe, choose
from distilltool.defaults import (
    BENCH_FORMAT,
    BENCH_FORMATS,
    DEVICE,
    EVALUATION_STORE,
    LATENCY_SECONDS,
    LATENCY_THREADS,
    MAX_DROP,
    MIN_OVERLAP,
    MOST_QUERIES,
    OPSET,
    RECIPE,
    RUNS,
    SELECTION,
    SERVED_BATCH,
    STORE,
    TIMEOUT,
    TOLERANCE,
    TRUTHS,
)
from distilltool.embedder import Embedder, Teacher, unit
from distilltool.errors import DistillError, Exit, NoStudent
from distilltool.images import Inventory, Photo
from distilltool.ledger import AMBIGUOUS, Ambiguous, Ledger, TeacherKey
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress, Silent
from distilltool.remote import ServedTeacher, is_address, open_server
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
from distilltool.rundir import RunDir, open_run, read_json, write_json, write_text
from distilltool.sources import AUTO, asked, open_source
from distilltool.stages import query as query_stage
from distilltool.target import PARETO
from distilltool.target import parse as parse_target
from distilltool.teacher import (
    DIMS_KEY,
    SPACE_KEY,
    Guess,
    OnnxEmbedder,
    OnnxModel,
    TeacherOptions,
    file_of,
    open_teacher,
)
from distilltool.views import Views, said_power

ANSWERS = 4096  # out of a ledger at once
DIGITS = 7  # of a length that a file may claim
NAME = 48  # letters taken over into a file's name, which may have 255 bytes

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
    options = _options(preprocess, output, pool, inputs, device, isolate)
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
    terms = _terms(budget, max_cost, price_per_query, ambiguous)
    options = _options(preprocess, output, pool, inputs, device, isolate)
    taken = cache(lambda: _take_stock(images_dir))
    embedder = _open(teacher, options, timeout, watch, _guesser(taken, store, terms.budget, watch))
    stock = taken()
    with Ledger.open(Path(store)) as ledger:
        return _query(embedder, stock, Path(images_dir), ledger, terms, plan, batch, select, seed, watch)


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
    terms = _terms(budget, max_cost, price_per_query, ambiguous)
    goal = parse_target(target) if target is not None else None
    options = _options(preprocess, output, pool, inputs, device, isolate)
    taken = cache(lambda: _take_stock(images_dir))
    embedder = _open(teacher, options, timeout, watch, _guesser(taken, store, terms.budget, watch))
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
            bought = _query(
                embedder, stock, Path(images_dir), ledger, terms, False, batch, select, chosen.seed, watch, described
            )
            _refuse_shared(embedder, stock, ledger, watch, bought)
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
    takes. The same call goes on where an earlier one was interrupted. The comparison is kept in `pareto.json`.
    """
    began, watch = time.perf_counter(), progress or Silent()
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
    if not (is_address(str(teacher)) or is_vectors(Path(teacher)) or _distrusted(first)):
        timed = _teacher_of(first, teacher, TeacherOptions(), TIMEOUT, watch, threads=LATENCY_THREADS)
    points, teacher_ms = stage.compare(students, timed if isinstance(timed, OnnxEmbedder) else None, watch)
    report = ParetoReport(
        runs=str(root),
        points=points,
        refused=refused,
        teacher_p50_ms=teacher_ms,
        threads=LATENCY_THREADS,
        seconds=time.perf_counter() - began,
    )
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
    from distilltool import codes, datasets, eval_text, indexes, indexing, quality_gate, trackers
    from distilltool import drift as drifting
    from distilltool import views as looks
    from distilltool.evaluation import alone, seen_from
    from distilltool.shelf import Rows, shelf
    from distilltool.stages import evaluate as stage

    trackers.check(log)
    limits = [quality_gate.parse(one) for one in gates]
    views = looks.parse(scales, flip, combine)
    if whiten_dim is not None and whiten is None:
        raise DistillError("--whiten-dim means nothing without --whiten", "name images to learn from", Exit.USAGE)
    wanted = indexes.parse(index) if index is not None else ()
    for file in (html, csv, markdown):
        if file is not None:
            _check_writable(Path(file))
    if html is not None:
        from distilltool import page

        page.check()
    watch = progress or Silent()
    models = [models] if isinstance(models, str | Path) else models
    runs = {str(path): open_run(Path(path)) for path in models if Path(path).is_dir()}
    if log and not runs:
        raise DistillError(
            "--log tells trackers the figures of runs, and none of these models is one", "name a run", Exit.USAGE
        )
    if drift:
        drifting.check([runs.get(str(path)) for path in models], views == looks.ONE and whiten is None)
    isolate = isolate or _distrusted(list(runs.values()))
    options = _options(preprocess, output, pool, inputs, device, isolate)
    terms = _terms(None, max_cost, price_per_query, ambiguous)
    if (preprocess or output or pool or inputs) and all(str(one) in runs or is_vectors(Path(one)) for one in models):
        watch.warn(
            "--preprocess, --output, --pool and --input are for ONNX files: "
            "a run says itself how it is asked, and a file of vectors is not asked"
        )
    dataset = datasets.open_dataset(Path(data), protocol, Path(store).parent / TRUTHS)
    taken = cache(lambda: images.take_stock(dataset.paths, dataset.boxes))
    guess = _guesser(taken, store, None, watch)
    asked = _teacher_of(list(runs.values()), teacher, options, timeout, watch, guess)
    embedders = [_open_model(path, runs.get(str(path)), options, guess) for path in models]
    views = _possible(views, asked, embedders, dataset.distractors)
    stock = taken()
    learning = None if whiten is None else _apart(Path(whiten), stock, whiten_dim, [asked, *embedders])
    question = (Path(data).resolve(), protocol, *map(_resolved, [*models, teacher]), views, whiten, whiten_dim)
    name = f"{Path(data).stem[:NAME]}-{hashlib.sha256(repr(question).encode()).hexdigest()[:8]}"
    with shelf(Path(store), name, None if vectors is None else Path(vectors), watch) as shelved:
        files = [shelved.claim(one.name) for one in (asked, *embedders)]
        known_dims = [one.dim or 0 for one in (asked, *embedders)]
        shelved.make_sure_of_room(4 * len(stock.photos) * sum(known_dims))
        with Ledger.open(Path(store)) as ledger:
            bought, answered = _of_views(asked, stock, Path(data), ledger, terms, batch, views, watch)
            apart, kept = None, list[Photo]()
            if learning is not None:
                more, theirs = _of_views(asked, learning, Path(str(whiten)), ledger, terms, batch, views, watch)
                bought = replace(
                    bought,
                    queried=bought.queried + more.queried,
                    cached=bought.cached + more.cached,
                    imported=bought.imported + more.imported,
                )
                kept = [photo for photo in learning.photos if photo.key in theirs]
                if not kept:
                    raise DistillError(f"{asked.name} has no answer about an image of {whiten}", "name other images")
                learned = _in_ledger(asked, views, ledger, [photo.key for photo in kept])
                apart = stage.Apart(
                    data=str(whiten),
                    paths=tuple(photo.path for photo in kept),
                    vectors=np.concatenate([*learned(0)]),
                    dim=whiten_dim,
                )
            dataset, of_row = datasets.settled(dataset, stock.of_path)
            if len(of_row) < len(stock.of_path) - len(stock.skipped):
                repeats = len(stock.of_path) - len(stock.skipped) - len(of_row)
                watch.note(f"{repeats} files repeat another's bytes: counted once")
            rows = [row for row, sha256 in enumerate(of_row) if sha256 in answered]
            if not rows:
                raise DistillError(
                    f"no image of {data} could be read", "check the paths; eval --json lists why each was skipped"
                )
            keys, paths = [of_row[row] for row in rows], [dataset.paths[row] for row in rows]
            theirs_rows = Rows(
                count=len(rows),
                made_from=stage.made_from(keys, views, **_identity(asked, None)),
                about={"space_id": asked.space_id, "files": [seen_from(_folder(Path(data)), path) for path in paths]},
                blocks=_in_ledger(asked, views, ledger, keys),
            )
            known = stage.Known(
                name=asked.name,
                space_id=asked.space_id,
                rows=tuple(rows),
                vectors=shelved.kept(files[0], theirs_rows),
                skipped=bought.skipped,
                queries={"new": bought.queried, "cached": bought.cached + bought.imported},
            )
        entries = [
            stage.Entry(
                model=one,
                file=file,
                made_from=stage.made_from(keys, views, **_identity(one, runs.get(str(path)))),
                dims=_dims(one, runs.get(str(path))),
                vectors=_rows_of(one, keys, paths, stock, Path(data)),
                apart=_rows_of(one, [photo.key for photo in kept], apart.paths, learning, Path(str(whiten)))
                if apart is not None and learning is not None
                else None,
            )
            for path, one, file in zip(models, embedders, files[1:], strict=True)
        ]
        made = stage.evaluate(entries, dataset, known, str(data), watch, shelved, views, apart)
        if binary:
            made = codes.added(made, watch)
        if wanted:
            made = indexing.added(made, wanted, watch)
        if drift:
            made = drifting.added(made, [runs.get(str(path)) for path in models], watch)
        place = _place(Path(data), protocol or dataset.protocol, made.report)
        for at, path in enumerate(models, 1):
            if (run := runs.get(str(path))) is not None:
                write_json(run.evaluations / f"{place}.json", to_json(alone(made.report, at)))
                write_text(run.evaluations / f"{place}.queries.csv", eval_text.queries(made, [0, at]))
                _tell(run, place, log, made.report, at, watch)
        judged = tuple(quality_gate.judge(one, model) for one in limits for model in made.report.models[1:])
        made = replace(made, report=replace(made.report, gates=judged))
        if csv is not None:
            write_text(Path(csv), eval_text.as_csv(made.report))
            write_text(Path(csv).with_suffix(".queries.csv"), eval_text.queries(made, range(len(made.models))))
        if markdown is not None:
            with Path(markdown).open("a", encoding="utf-8") as summary:
                summary.write(eval_text.markdown(made.report))
        if html is not None:
            page.write(Path(html), made, asked, [runs.get(str(path)) or Path(path) for path in models])
    return made.report


def _possible(views: Views, asked: Teacher, models: Sequence[Embedder], distractors: Path | None) -> Views:
    """Views with the power that the teacher's file says; fails before anything is asked where a model takes none."""
    if views.are_one:
        return views
    if distractors is not None:
        raise DistillError(
            f"the vectors in {distractors} are of one view, whatever --scales and --flip say",
            "name distractors as images, or leave --scales and --flip away",
        )
    for model in (asked, *models):
        for how in views.of(model.preprocess):
            model.viewed(how)
    metadata = asked.file.metadata if isinstance(asked, OnnxEmbedder) else {}
    return replace(views, power=said_power(metadata) if views.power is None else views.power)


def _apart(wanted: Path, tested: Inventory, dim: int | None, models: Sequence[Embedder]) -> Inventory:
    """The images that whitening is learned on; DistillError where one of them is evaluated on too, or, as far as models
    say how long their vectors are, where they are too few."""
    from distilltool import datasets, whitening

    if wanted.suffix.lower() == ".csv":
        stock = images.take_stock(datasets.open_dataset(wanted, "csv").paths)
    else:
        stock = _take_stock(wanted)
    test = {photo.sha256: photo.path for photo in tested.photos}
    shared = [photo for photo in stock.photos if photo.sha256 in test]
    if shared:
        raise DistillError(
            f"{len(shared):,} of the images in {wanted} are evaluated on too, as {shared[0].path}",
            "whiten on images apart from the test: leave those out",
        )
    if not stock.photos:
        raise DistillError(f"no image of {wanted} could be read", "give a folder of images, or a CSV of paths")
    for model in models:
        if model.dim is not None:
            whitening.check(len(stock.photos), model.dim, dim, model.name)
    return stock


def _rows_of(
    model: Embedder, keys: Sequence[bytes], paths: Sequence[Path], stock: Inventory, data: Path
) -> NDArray[np.float32] | None:
    """What a file of vectors holds of these images, None of a model that can be asked."""
    return model.of(keys, paths, stock, _folder(data)) if isinstance(model, BoughtTeacher) else None


def _folder(data: Path) -> Path:
    """Where the images are that a folder or a CSV names."""
    return data if data.is_dir() else data.parent


def _resolved(named: str | Path | None) -> str:
    """A file or folder by where it really is; an address as it stands."""
    return str(named) if named is None or is_address(str(named)) else str(Path(named).resolve())


def _identity(model: Embedder, run: RunDir | None) -> dict[str, Any]:
    """What tells a model's vectors from those of others: its weights, what is taken of it, how images are prepared, and
    what computes it."""
    facts: dict[str, Any] = {"version": __version__, "preprocess": model.preprocess.identity()}
    if run is not None:
        files = (run.weights, run.card, run.architecture)
        return {**facts, "run": {one.name: images.digest(one) for one in files if one.is_file()}}
    key = getattr(model, "key", None)
    assert isinstance(key, TeacherKey)  # all that is no run has one
    return {**facts, "model": [key.sha256, key.output, key.pool], "provider": getattr(model, "provider", "")}


def _of_views(
    asked: Teacher,
    stock: Inventory,
    data: Path,
    ledger: Ledger,
    terms: "_Terms",
    batch: int | None,
    views: Views,
    progress: Progress,
) -> tuple[QueryReport, set[bytes]]:
    """Ask the teacher about every view of these images that it was not asked about yet; what it was asked in all, and
    the images all of whose views were answered."""
    root = _folder(data)
    keys = [photo.key for photo in stock.photos]
    reports, answered = list[QueryReport](), set(keys)
    for how in views.of(asked.preprocess):
        one = asked if views.are_one else asked.viewed(how)
        bought = _query(one, stock, root, ledger, terms, False, batch, SELECTION, 0, progress)
        _refuse_shared(one, stock, ledger, progress, bought)
        reports.append(bought)
        answered &= {key for key, state in ledger.settled(ledger.teacher(one.key), keys).items() if state == "done"}
    whole = replace(
        reports[0],
        queried=sum(one.queried for one in reports),
        cached=sum(one.cached for one in reports),
        skipped=tuple({skipped.path: skipped for one in reports for skipped in one.skipped}.values()),
    )
    if not views.are_one:
        progress.note(
            f"{views.describe()}; {whole.queried:,} new queries to the teacher, {whole.cached:,} answers known before"
        )
    return whole, answered


def _in_ledger(
    asked: Teacher, views: Views, ledger: Ledger, keys: Sequence[bytes]
) -> Callable[[int], Iterator[NDArray[np.float32]]]:
    """The teacher's vectors of images all of whose views were answered, from one of them on, block by block."""
    seen = [asked if views.are_one else asked.viewed(how) for how in views.of(asked.preprocess)]
    numbers = [ledger.teacher(one.key) for one in seen]

    def answers(number: int, some: Sequence[bytes]) -> NDArray[np.float32]:
        found = ledger.vectors(number, some)
        return np.stack([found[key] for key in some])

    def blocks(start: int) -> Iterator[NDArray[np.float32]]:
        for at in range(start, len(keys), ANSWERS):
            yield views.combined(answers(number, keys[at : at + ANSWERS]) for number in numbers)

    return blocks


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
    bundle: the folder to fill, by default inside the run. seconds: for the latency measurement. threads: of
    onnxruntime in it. isolate: the teacher's file, as it is in any case where the run was distilled so; what runs in a
    process of its own is checked, but not timed.
    """
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
    student = load_student(run)
    asked = None
    before = str(teacher or read_json(opened.manifest)["teacher"]["path"])
    if is_address(before) or is_vectors(Path(before)):
        watch.note("the teacher is no file that could run here, so the student is timed alone")
    elif teacher is not None or Path(before).is_file():
        options = TeacherOptions(isolate=isolate, device=device)
        asked = _teacher_of([opened], teacher, options, TIMEOUT, watch, threads=threads)
        if isinstance(asked, OnnxEmbedder) and asked.model.ready is None:
            watch.note("the teacher runs isolated, in a process of its own, so the student is timed alone")
    else:
        watch.warn("the teacher's file is not where it was, so the student is timed alone (name it with --teacher)")
    return stage.export(
        opened,
        student,
        asked if isinstance(asked, OnnxEmbedder) else None,  # what is no file here cannot be timed here
        Path(bundle) if bundle else opened.bundle,
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
    markdown: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time any ONNX file, each way of running it in fresh processes; beside a baseline, say which is faster.

    baseline: another ONNX file, which is timed in turns with this one, or a report that `out` wrote earlier. batches:
    none for the one that the file takes, 1 where it is free. seconds: of timing for each device, number of threads and
    batch, all processes together; slow models take longer, for 16 turns of three runs are the fewest. tolerance: the
    share by which times may differ and be the same. gates: `p50<1.10x` of the baseline's, `p90<5ms`. images_dir: real
    images to feed, prepared as the file says or `preprocess`; else random numbers by the file's signature. inputs,
    shapes: `name=value` and `name=Nx3x224x224` of single inputs. out: file for the whole
    report, or, in the form "github-action-benchmark", what that action reads. markdown: file that a table is appended
    to. Raises DistillError for what the user can mend.
    """
    from distilltool import bench_text
    from distilltool.feeds import Wish
    from distilltool.gate import parse as parse_gate
    from distilltool.stages import bench as stage
    from distilltool.stored import read_stored

    if form not in BENCH_FORMATS:
        raise DistillError(f"there is no format {form!r}", f"use --format {'|'.join(BENCH_FORMATS)}", Exit.USAGE)
    limits = tuple(parse_gate(one) for one in gates)
    if baseline is None and any(one.share for one in limits):
        raise DistillError("a gate in x wants a baseline", "give BASELINE, or a gate in ms", Exit.USAGE)
    before = Path(baseline) if baseline is not None else None
    for file in (out, markdown):
        if file is not None:
            _check_writable(Path(file))
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
    if markdown is not None:
        with Path(markdown).open("a", encoding="utf-8") as summary:
            summary.write(bench_text.markdown(report))
    return report


def _check_writable(path: Path) -> None:
    """Fail before an hour of timing rather than after it; leaves no file behind that was not there."""
    fresh = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if fresh:
            path.unlink()
    except OSError as error:
        raise DistillError(f"{path} cannot be written ({error.strerror})", "choose a writable file") from None


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

    stock = None if images_dir is None else _take_stock(images_dir)
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

    stock = None if images_dir is None else _take_stock(images_dir)
    base = Path(images_dir or "")
    base = base if base.is_dir() else base.parent
    paths = {} if stock is None else {photo.sha256: photo.path.relative_to(base) for photo in stock.photos}
    with Ledger.read(Path(store)) as ledger:
        return audit.export(ledger, Path(out), teacher or "", number, paths, progress or Silent())


def _teacher_of(
    runs: Sequence[RunDir],
    wanted: str | Path | None,
    options: TeacherOptions,
    timeout: float,
    progress: Progress,
    guess: Guess | None = None,
    threads: int = 0,
) -> Teacher:
    """The teacher to compare with, opened as the first run opened it; runs of another teacher are refused.

    threads: of a file run here, 0 for every processor we may use.
    """
    if not runs:
        if wanted is None:
            raise DistillError("there is no teacher to compare with", "name it with --teacher FILE.onnx")
        if is_vectors(Path(wanted)):  # output and pool are for the models then
            return open_bought(Path(wanted), TeacherOptions())
        return _open(wanted, options, timeout, progress, guess)
    facts = [read_json(run.manifest)["teacher"] for run in runs]
    named = str(wanted if wanted is not None else facts[0]["path"])
    if not is_address(named) and wanted is None and not Path(named).is_file():
        raise DistillError(f"the teacher of {runs[0].root}, {named}, is not there", "name it with --teacher FILE.onnx")
    if is_vectors(Path(facts[0]["path"])) and (is_address(named) or not is_vectors(Path(named))):
        raise DistillError(
            f"the teacher of {runs[0].root} is a file of answers, {facts[0]['path']}; {named} is none",
            "leave --teacher away, or name a file of answers of the same model (.parquet, .npz, .csv)",
        )
    _refuse_differing(runs, facts)
    output, _, settings = facts[0]["output"].partition("?")
    made_with = replace(
        options,
        preprocess=(),
        output=output,
        pool=facts[0]["pool"] if facts[0]["pool"] != "none" else None,
        inputs=tuple(one for one in settings.split("&") if one),
        isolate=options.isolate or _distrusted(runs),
    )
    known = Preprocess.from_dict(facts[0]["preprocess"])
    embedder: Teacher
    if is_address(named):
        embedder = open_server(named, made_with, timeout=timeout, progress=progress, known=known)
    elif is_vectors(Path(named)):
        embedder = open_bought(Path(named), TeacherOptions())
    else:
        embedder = open_teacher(Path(named), made_with, known=known, threads=threads)
    for run, fact in zip(runs, facts, strict=True):
        if fact["sha256"] == embedder.key.sha256:
            continue
        if isinstance(embedder, BoughtTeacher) and embedder.space_id == fact["space_id"]:
            continue
        if isinstance(embedder, BoughtTeacher) and is_vectors(Path(fact["path"])):
            progress.warn(f"that {named} holds answers of the same model as {fact['path']} is taken on trust")
            continue
        raise DistillError(
            f"the run {run.root} was distilled from another teacher than {named}",
            f"its teacher was {fact['path']}, sha256 {fact['sha256'][:12]}...",
        )
    return embedder


def _tell(run: RunDir, place: str, log: Sequence[str], report: EvalReport, at: int, progress: Progress) -> None:
    """Tell trackers the figures of one run in an evaluation."""
    from distilltool import eval_text, tracking

    found = {f"{family}/{figure}": one.value for family, figure, one in eval_text.figures(report.models[at])}
    said: dict[str, str | int | float | bool] = {
        "data": Path(report.data).name,
        "protocol": report.protocol,
        "queries": report.queries,
    }
    figures = {name: value for name, value in found.items() if math.isfinite(value)}
    tracking.evaluated(run, place, log, said, figures, progress)


def _place(data: Path, protocol: str, report: EvalReport) -> str:
    """The name of an evaluation in a run: another one for each set, each way of judging it, and other vectors."""
    whole = f"{data.resolve()}|{protocol}"
    if report.whitening is not None or (report.views is not None and report.views.count > 1):
        whole += f"|{report.views}|{report.whitening}"
    return f"{data.stem[:NAME]}-{protocol.partition(':')[0]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _distrusted(runs: Sequence[RunDir]) -> bool:
    """Whether one of these runs was distilled from a file that was isolated; runs of older versions do not say."""
    return any(read_json(run.manifest)["teacher"].get("isolate", False) for run in runs)


def _refuse_differing(runs: Sequence[RunDir], facts: Sequence[Mapping[str, Any]]) -> None:
    """Fail where a run was distilled from other answers of the same file than the first one: they are two teachers."""
    first = facts[0]
    for run, fact in zip(runs, facts, strict=True):
        differing = [name for name in ("output", "pool") if fact[name] != first[name]]
        views = [Preprocess.from_dict(one["preprocess"]).identity() for one in (first, fact)]
        if views[0] != views[1] and not is_vectors(Path(first["path"])):  # of answers it is the student's view alone
            differing.append("preprocessing")
        if fact["sha256"] == first["sha256"] and differing:
            raise DistillError(
                f"the run {run.root} was distilled with another {' and '.join(differing)} of {fact['path']} "
                f"than {runs[0].root}",
                "evaluate them one by one",
            )


def _open_model(path: str | Path, run: RunDir | None, options: TeacherOptions, guess: Guess) -> Embedder:
    """A run's student, a file of vectors or an ONNX file; flags are not for what says itself how it is fed."""
    if run is not None:
        return load_student(path)
    if is_vectors(Path(path)):
        return open_bought(Path(path), TeacherOptions())
    if SPACE_KEY in file_of(Path(path), options.isolate).metadata:
        return open_teacher(Path(path), TeacherOptions(device=options.device, isolate=options.isolate))
    return open_teacher(Path(path), options, guess=guess)


def _dims(model: Embedder, run: RunDir | None) -> tuple[int, ...]:
    """Lengths at which a student's vectors are of use when cut, as its run or its file says."""
    if run is not None:
        return tuple(read_json(run.card).get("dims", ()))
    said = model.file.metadata.get(DIMS_KEY, "") if isinstance(model, OnnxEmbedder) else ""
    return tuple(int(one) for one in said.split(",") if one.isdecimal() and len(one) < DIGITS and int(one))


def load_student(run: str | Path) -> "TorchEmbedder":
    """The trained student of a finished run: `.preprocess.prepare` images, then `.embed` them."""
    from distilltool.stages import distill as stage

    return stage.load_student(open_run(Path(run)))


def _options(
    preprocess: Sequence[str], output: str | None, pool: str | None, inputs: Sequence[str], device: str, isolate: bool
) -> TeacherOptions:
    return TeacherOptions(
        preprocess=tuple(preprocess), output=output, pool=pool, inputs=tuple(inputs), device=device, isolate=isolate
    )


def _guesser(stock: Callable[[], Inventory], store: str | Path, budget: int | None, progress: Progress) -> Guess:
    """Asked for the preprocessing of a file that nobody wrote it down for: probes it on the images, once a ledger."""

    def guess(model: OnnxModel, said: Sequence[Mapping[str, Any]]) -> Preprocess:
        from distilltool import probe

        with Ledger.open(Path(store)) as ledger:
            return probe.settle(model, said, stock().photos, ledger, budget, progress)

    return guess


def _open(
    teacher: str | Path, options: TeacherOptions, timeout: float, progress: Progress, guess: Guess | None = None
) -> Teacher:
    """The teacher as the user names it, with one line on what was understood of it."""
    if is_address(str(teacher)):
        _refuse_for(options, "a model on a server")
        return _open_served(str(teacher), options, timeout, progress)
    if is_vectors(Path(teacher)):
        _refuse_for(options, "a file of answers")
        return _open_bought(Path(teacher), options, progress)
    embedder = open_teacher(Path(teacher), options, guess=guess)
    progress.note(
        f"{Path(embedder.where).name}: embedding from output {embedder.key.output} ({embedder.why}); "
        f"images {embedder.preprocess.describe()} ({embedder.preprocess.source})"
    )
    return embedder


def _refuse_for(options: TeacherOptions, kind: str) -> None:
    """Flags that are for a model that runs here, said of one that does not."""
    said = [
        name
        for name, given in (
            ("--input", options.inputs),
            ("--device", options.device != DEVICE),
            ("--isolate", options.isolate),
        )
        if given
    ]
    if said:
        raise DistillError(
            f"{' and '.join(said)} mean nothing for {kind}", "they are for models that run here", Exit.USAGE
        )


def _open_served(teacher: str, options: TeacherOptions, timeout: float, progress: Progress) -> Teacher:
    embedder = open_server(teacher, options, timeout=timeout, progress=progress)
    way = "as bytes" if embedder.model.binary else "as JSON"
    progress.note(
        f"{embedder.where} on {embedder.provider}: embedding from output {embedder.key.output} ({embedder.why}); "
        f"images {embedder.preprocess.describe()} ({embedder.preprocess.source}), sent {way}"
    )
    return embedder


def _open_bought(teacher: Path, options: TeacherOptions, progress: Progress) -> Teacher:
    embedder = open_bought(teacher, options)
    view = embedder.preprocess
    way = view.resize if view.resize_to is None else f"{view.resize} of short side {view.resize_to}"
    progress.note(
        f"{teacher.name}: {len(embedder.table.names):,} answers bought elsewhere; the student will look at images "
        f"{view.size[0]}×{view.size[1]} {way} ({view.source}; --preprocess changes it)"
    )
    return embedder


def _take_stock(folder: str | Path) -> Inventory:
    return images.take_stock(images.find(Path(folder)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Terms:
    """On which terms a teacher may be asked. budget: questions; price: of one; ambiguous: None is the teacher's own."""

    budget: int | None
    price: float | None
    ambiguous: Ambiguous | None


def _terms(budget: int | None, max_cost: float | None, price: float | None, ambiguous: str | None) -> _Terms:
    """The terms as the user gives them; a largest cost is a budget of as many questions as it buys."""
    if price is not None and not (math.isfinite(price) and price > 0):
        raise DistillError(f"--price-per-query {price:g} is no price", "give a number above 0", Exit.USAGE)
    if max_cost is not None:
        if price is None:
            raise DistillError(
                "--max-cost means nothing without a price",
                "say what one image costs with --price-per-query",
                Exit.USAGE,
            )
        if not (math.isfinite(max_cost) and max_cost >= 0):
            raise DistillError(f"--max-cost {max_cost:g} is no amount", "give a number, 0 or more", Exit.USAGE)
        afforded = max_cost / price * (1 + 1e-9)  # 0.3 buys 3 at 0.1, though 0.3 / 0.1 is a little less
        bought = math.floor(min(afforded, MOST_QUERIES))
        budget = bought if budget is None else min(budget, bought)
    for known in AMBIGUOUS:
        if ambiguous == known:
            return _Terms(budget=budget, price=price, ambiguous=known)
    if ambiguous is not None:
        raise DistillError(f"--ambiguous {ambiguous} is unknown", f"use one of {', '.join(AMBIGUOUS)}", Exit.USAGE)
    return _Terms(budget=budget, price=price, ambiguous=None)


def _query(
    embedder: Teacher,
    stock: Inventory,
    root: Path,
    ledger: Ledger,
    terms: _Terms,
    plan: bool,
    batch: int | None,
    select: str,
    seed: int,
    progress: Progress,
    features: Describe | None = None,
) -> QueryReport:
    """Ask a teacher that can be asked, take over the answers of one that cannot. root: where the images are."""
    if isinstance(embedder, BoughtTeacher):
        if plan:
            raise DistillError(
                "--plan forecasts what asking takes, and answers bought elsewhere are not asked for",
                "leave it away: importing costs nothing",
                Exit.USAGE,
            )
        if terms.budget is not None or terms.price is not None:
            raise DistillError(
                "a budget means nothing for answers bought elsewhere",
                "leave it away: importing costs nothing",
                Exit.USAGE,
            )
        return query_stage.bring_in(embedder, embedder.match(stock, root), stock, ledger)
    served = isinstance(embedder, ServedTeacher)
    room = 0 if plan else _room(embedder, ledger, terms.budget)  # a forecast is not worth looking at every image
    state = ledger.settled(ledger.teacher(embedder.key), [photo.key for photo in stock.photos])
    answered = {sha256 for sha256, how in state.items() if how == "done"}
    photos = [photo for photo in stock.photos if photo.key in answered or photo.key not in state]
    choice = choose(select, photos, answered, len(photos) if room is None else room, seed, progress, features)
    return query_stage.query(
        embedder,
        stock,
        ledger,
        choice=choice,
        budget=terms.budget,
        plan=plan,
        batch=embedder.largest(batch or SERVED_BATCH) if isinstance(embedder, ServedTeacher) else batch,
        ambiguous=terms.ambiguous or ("fail" if served else "retry"),
        price=terms.price,
        progress=progress,
    )


def _room(embedder: Teacher, ledger: Ledger, budget: int | None) -> int | None:
    """How often the teacher may still be asked, None for no limit."""
    ceiling = ledger.budget(embedder.key.sha256, budget)
    return None if ceiling is None else max(0, ceiling - ledger.spent(embedder.key.sha256))


def _refuse_shared(
    embedder: Teacher, stock: Inventory, ledger: Ledger, progress: Progress, bought: QueryReport
) -> None:
    """Fail where another process is asking about some of these images; say so where the budget left some out."""
    busy = ledger.elsewhere(ledger.teacher(embedder.key), [photo.key for photo in stock.photos])
    if busy:
        raise DistillError(
            f"another process is asking this teacher about {busy} of these images", "wait for it, then run this again"
        )
    ours = not isinstance(embedder, BoughtTeacher)
    if ours and bought.pending > bought.ambiguous and bought.budget is None:  # of a process that is gone
        raise DistillError(f"{bought.pending:,} of these images are still without an answer", "run this again")
    if bought.pending:
        why = "they were sent before and no answer came back" if bought.ambiguous else "nothing was bought about them"
        if bought.pending > bought.ambiguous and bought.budget is not None:
            why = f"the budget of {bought.budget:,} is spent"
        progress.note(f"{bought.pending:,} images stay without an answer: {why}")


def _answers(embedder: Teacher, stock: Inventory, ledger: Ledger, bought: QueryReport) -> "Answered":
    from distilltool.stages.distill import Answered

    vectors = ledger.vectors(ledger.teacher(embedder.key), [photo.key for photo in stock.photos])
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
        "student's file": start.source.sha256 if start.source else None,
    }


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

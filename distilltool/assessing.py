"""What an evaluation rests on: views, images apart, answers, each model's vectors; and where its findings go."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool import (
    __version__,
    codes,
    drift,
    eval_text,
    images,
    indexes,
    indexing,
    page,
    quality_gate,
    trackers,
    tracking,
    whitening,
)
from distilltool.asking import Terms, ask, dims_of, left_to_ask, refuse_shared, take_stock
from distilltool.bought import BoughtTeacher
from distilltool.datasets import Dataset, open_dataset, settled
from distilltool.defaults import NAME, SELECTION
from distilltool.embedder import Embedder, Teacher
from distilltool.errors import DistillError, Exit
from distilltool.evaluation import Evaluation, alone
from distilltool.images import Inventory, Photo
from distilltool.indexes import Wanted
from distilltool.ledger import Ledger, TeacherKey
from distilltool.progress import Progress
from distilltool.quality_gate import QualityGate
from distilltool.remote import is_address
from distilltool.report import EvalReport, QueryReport, to_json
from distilltool.rundir import RunDir, check_writable, write_json, write_text
from distilltool.shelf import Rows, Shelf
from distilltool.stages import evaluate as stage
from distilltool.teacher import OnnxEmbedder
from distilltool.views import Views, said_power

ANSWERS = 4096  # out of a ledger at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is wanted beyond the usual figures, and where all go. limits: gates; indexes: types to build; log:
    trackers."""

    limits: tuple[QualityGate, ...]
    binary: bool
    indexes: tuple[Wanted, ...]
    drift: bool
    log: tuple[str, ...]
    html: Path | None
    csv: Path | None
    markdown: Path | None

    def check(self, runs: Sequence[RunDir | None], plain: bool) -> None:
        """Fail on what cannot be had of these models before anything is asked. plain: each image is one vector, as the
        model makes it."""
        if self.log and not any(runs):
            raise DistillError(
                "--log tells trackers the figures of runs, and none of these models is one", "name a run", Exit.USAGE
            )
        if self.drift:
            drift.check(runs, plain)


def wish(
    gates: Sequence[str],
    binary: bool,
    index: str | None,
    drift: bool,
    log: Sequence[str],
    html: str | Path | None,
    csv: str | Path | None,
    markdown: str | Path | None,
) -> Wish:
    """What the user says, read; DistillError where it means nothing or a file cannot be written."""
    trackers.check(log)
    made = Wish(
        limits=tuple(quality_gate.parse(one) for one in gates),
        binary=binary,
        indexes=indexes.parse(index) if index is not None else (),
        drift=drift,
        log=tuple(log),
        html=None if html is None else Path(html),
        csv=None if csv is None else Path(csv),
        markdown=None if markdown is None else Path(markdown),
    )
    for file in (made.html, made.csv, made.markdown):
        if file is not None:
            check_writable(file)
    if made.html is not None:
        page.check()
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """Images apart from the test, on which whitening is learned. dim: directions that are kept, None for all."""

    data: Path
    stock: Inventory
    dim: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Who is measured on what. paths, runs, models: of each model where it is, its run if it is one, and itself."""

    data: Path
    dataset: Dataset
    stock: Inventory
    teacher: Teacher
    paths: tuple[Path, ...]
    runs: tuple[RunDir | None, ...]
    models: tuple[Embedder, ...]
    views: Views
    apart: Apart | None

    def place(self, protocol: str | None, teacher: str | Path | None) -> str:
        """A name for where the vectors of this very evaluation are kept while it lasts."""
        whiten = None if self.apart is None else self.apart.data
        dim = None if self.apart is None else self.apart.dim
        question = (self.data.resolve(), protocol, *map(_resolved, [*self.paths, teacher]), self.views, whiten, dim)
        return f"{self.data.stem[:NAME]}-{hashlib.sha256(repr(question).encode()).hexdigest()[:8]}"

    def files(self, shelved: Shelf) -> list[Path]:
        """A file for the vectors of the teacher and of each model; DistillError where the disk cannot hold them, or
        where one would be written over what is read."""
        everyone = (self.teacher, *self.models)
        found = [shelved.claim(one.name) for one in everyone]
        written = [
            (one, file)
            for one, file in zip(everyone, found, strict=True)
            if one is self.teacher or not isinstance(one, BoughtTeacher)
        ]
        read = {_resolved(self.teacher.where), *map(_resolved, self.paths)}
        given = self.dataset.distractors
        for _, file in written:
            if _resolved(file) in read or (given is not None and given.resolve() == file.parent.resolve()):
                raise DistillError(f"{file} is read, and would be written over", "name another folder with --vectors")
        images_here = len(self.stock.photos)
        there = (file.stat().st_size if file.exists() else 0 for _, file in written)
        shelved.make_sure_of_room(
            sum(max(0, 4 * images_here * (one.dim or 0) - size) for (one, _), size in zip(written, there, strict=True))
        )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Bought:
    """What the teacher has answered. dataset: with a row for each image that counts; keys, paths: of those answered;
    teacher: its vectors of them; apart: those that whitening is learned on, and `apart_keys` theirs."""

    dataset: Dataset
    keys: tuple[bytes, ...]
    paths: tuple[Path, ...]
    teacher: stage.Known
    apart: stage.Apart | None
    apart_keys: tuple[bytes, ...]


def bought(
    contest: Contest, ledger: Ledger, terms: Terms, batch: int | None, shelved: Shelf, file: Path, progress: Progress
) -> Bought:
    """Ask the teacher what it was not asked yet, and put its vectors into a file."""
    asked, stock = contest.teacher, contest.stock
    _afford(contest, ledger, terms)
    report, answered = _of_views(contest, stock, contest.data, ledger, terms, batch, progress)
    apart, apart_keys = None, tuple[bytes, ...]()
    if contest.apart is not None:
        more, theirs = _of_views(contest, contest.apart.stock, contest.apart.data, ledger, terms, batch, progress)
        report = replace(
            report,
            queried=report.queried + more.queried,
            cached=report.cached + more.cached,
            imported=report.imported + more.imported,
        )
        kept = [photo for photo in contest.apart.stock.photos if photo.key in theirs]
        apart_keys = tuple(photo.key for photo in kept)
        apart = _learned(contest, contest.apart, kept, ledger)
    dataset, of_row = settled(contest.dataset, stock.of_path)
    if repeats := len(stock.of_path) - len(stock.skipped) - len(of_row):
        progress.note(f"{repeats} files repeat another's bytes: counted once")
    rows = [row for row, sha256 in enumerate(of_row) if sha256 in answered]
    if not rows:
        raise DistillError(
            f"no image of {contest.data} could be read", "check the paths; eval --json lists why each was skipped"
        )
    keys, paths = [of_row[row] for row in rows], [dataset.paths[row] for row in rows]
    wanted = Rows(
        count=len(rows),
        made_from=stage.made_from(keys, contest.views, **_identity(asked, None)),
        about=stage.about(asked, contest.views, paths, _folder(contest.data)),
        blocks=_in_ledger(asked, contest.views, ledger, keys),
    )
    known = stage.Known(
        name=asked.name,
        space_id=asked.space_id,
        rows=tuple(rows),
        vectors=shelved.kept(file, wanted),
        skipped=report.skipped,
        queries={"new": report.queried, "cached": report.cached + report.imported},
    )
    return Bought(
        dataset=dataset, keys=tuple(keys), paths=tuple(paths), teacher=known, apart=apart, apart_keys=apart_keys
    )


def _afford(contest: Contest, ledger: Ledger, terms: Terms) -> None:
    """Raise DistillError where the money does not go as far as every view of every image, which all are needed."""
    stocks = [contest.stock, *([] if contest.apart is None else [contest.apart.stock])]
    if isinstance(contest.teacher, BoughtTeacher) or (contest.views.are_one and len(stocks) == 1):
        return  # of one view alone, whatever images are answered can be measured
    left = left_to_ask(contest.teacher, ledger, terms.budget)  # of the file, whatever the view
    if left is None:
        return
    wanted = 0
    for one in contest.views.models(contest.teacher):
        for stock in stocks:
            keys = {photo.key for photo in stock.photos}
            wanted += len(keys) - len(ledger.settled(ledger.teacher(one.key), list(keys)))
    if wanted > left:
        raise DistillError(
            f"every view of every image takes {wanted:,} questions, and {left:,} may be asked",
            "allow more with --max-cost, or give fewer images or views",
        )


def _learned(contest: Contest, apart: Apart, kept: Sequence[Photo], ledger: Ledger) -> stage.Apart:
    if not kept:
        raise DistillError(f"{contest.teacher.name} has no answer about an image of {apart.data}", "name other images")
    theirs = _in_ledger(contest.teacher, contest.views, ledger, [photo.key for photo in kept])
    return stage.Apart(
        data=str(apart.data),
        paths=tuple(photo.path for photo in kept),
        vectors=np.concatenate([*theirs(0)]),
        dim=apart.dim,
    )


def entries(contest: Contest, known: Bought, files: Sequence[Path]) -> list[stage.Entry]:
    """Each model with what is known of its vectors, and the file they go to."""
    found = []
    for run, model, file in zip(contest.runs, contest.models, files, strict=True):
        apart = None
        if contest.apart is not None and known.apart is not None:
            apart = _rows_of(model, known.apart_keys, known.apart.paths, contest.apart.stock, contest.apart.data)
        entry = stage.Entry(
            model=model,
            file=file,
            made_from=stage.made_from(known.keys, contest.views, **_identity(model, run)),
            dims=dims_of(model, run),
            vectors=_rows_of(model, known.keys, known.paths, contest.stock, contest.data),
            apart=apart,
        )
        found.append(entry)
    return found


def completed(made: Evaluation, more: Wish, contest: Contest, known: Bought, progress: Progress) -> Evaluation:
    """With codes, indexes and drift where they are wanted, and with gates judged."""
    if more.binary:
        made = codes.added(made, progress)
    if more.indexes:
        made = indexing.added(made, more.indexes, progress)
    if more.drift:
        contents = [key[: drift.DIGEST] for key in known.keys]  # what follows says which part of the image is meant
        made = drift.added(made, contest.runs, contents, progress)
    judged = tuple(quality_gate.judge(one, model) for one in more.limits for model in made.report.models[1:])
    return replace(made, report=replace(made.report, gates=judged))


def deliver(made: Evaluation, more: Wish, contest: Contest, protocol: str, progress: Progress) -> None:
    """Keep each run's figures with it, tell trackers, and write the files that are wanted."""
    name = place(contest.data, protocol, made.report)
    plain = replace(made.report, gates=())  # which are of this call, not of the run
    for at, run in enumerate(contest.runs, 1):
        if run is not None:
            write_json(run.evaluations / f"{name}.json", to_json(alone(plain, at)))
            write_text(run.evaluations / f"{name}.queries.csv", eval_text.queries(made, [0, at]))
            _tell(run, name, more.log, made.report, at, progress)
    if more.csv is not None:
        write_text(more.csv, eval_text.as_csv(made.report))
        write_text(more.csv.with_suffix(".queries.csv"), eval_text.queries(made, range(len(made.models))))
    if more.markdown is not None:
        with more.markdown.open("a", encoding="utf-8") as summary:
            summary.write(eval_text.markdown(made.report))
    if more.html is not None:
        found = [run or path for run, path in zip(contest.runs, contest.paths, strict=True)]
        progress.begin("drawing the page", 1, "page")  # compiles for most of a minute where UMAP is new
        page.write(more.html, made, contest.teacher, found)
        progress.advance()
        progress.end()


def possible(views: Views, asked: Teacher, models: Sequence[Embedder], distractors: Path | None) -> Views:
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


def learning(wanted: Path, tested: Inventory, dim: int | None, models: Sequence[Embedder]) -> Apart:
    """The images that whitening is learned on; DistillError where one of them is evaluated on too, or, as far as models
    say how long their vectors are, where they are too few."""
    if wanted.suffix.lower() == ".csv":
        stock = images.take_stock(open_dataset(wanted, "csv").paths)
    else:
        stock = take_stock(wanted)
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
    return Apart(data=wanted, stock=stock, dim=dim)


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
    contest: Contest,
    stock: Inventory,
    data: Path,
    ledger: Ledger,
    terms: Terms,
    batch: int | None,
    progress: Progress,
) -> tuple[QueryReport, set[bytes]]:
    """Ask the teacher about every view of these images that it was not asked about yet; what it was asked in all, and
    the images all of whose views were answered."""
    asked, views = contest.teacher, contest.views
    root = _folder(data)
    keys = [photo.key for photo in stock.photos]
    reports, answered = list[QueryReport](), set(keys)
    for one in views.models(asked):
        bought = ask(one, stock, root, ledger, terms, False, batch, SELECTION, 0, progress)
        refuse_shared(one, stock, ledger, progress, bought)
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
    numbers = [ledger.teacher(one.key) for one in views.models(asked)]

    def answers(number: int, some: Sequence[bytes]) -> NDArray[np.float32]:
        found = ledger.vectors(number, some)
        return np.stack([found[key] for key in some])

    def blocks(start: int) -> Iterator[NDArray[np.float32]]:
        for at in range(start, len(keys), ANSWERS):
            yield views.combined(answers(number, keys[at : at + ANSWERS]) for number in numbers)

    return blocks


def _tell(run: RunDir, place: str, log: Sequence[str], report: EvalReport, at: int, progress: Progress) -> None:
    """Tell trackers the figures of one run in an evaluation."""
    found = {f"{family}/{figure}": one.value for family, figure, one in eval_text.figures(report.models[at])}
    said: dict[str, str | int | float | bool] = {
        "data": Path(report.data).name,
        "protocol": report.protocol,
        "queries": report.queries,
    }
    figures = {name: value for name, value in found.items() if math.isfinite(value)}
    tracking.evaluated(run, place, log, said, figures, progress)


def place(data: Path, protocol: str, report: EvalReport) -> str:
    """The name of an evaluation in a run: another one for each set, each way of judging it, and other vectors."""
    whole = f"{data.resolve()}|{protocol}"
    if report.whitening is not None or (report.views is not None and report.views.count > 1):
        whole += f"|{report.views}|{report.whitening}"
    return f"{data.stem[:NAME]}-{protocol.partition(':')[0]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

"""Opening what is asked and what is measured, and asking within what the user allows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distilltool import images
from distilltool.bought import BoughtTeacher, is_vectors, open_bought
from distilltool.choice import Describe, choose
from distilltool.defaults import DEVICE, MOST_QUERIES, SERVED_BATCH
from distilltool.embedder import Embedder, Teacher
from distilltool.errors import DistillError, Exit
from distilltool.images import Inventory
from distilltool.ledger import AMBIGUOUS, Ambiguous, Ledger
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.remote import ServedTeacher, is_address, open_server
from distilltool.report import QueryReport
from distilltool.rundir import RunDir, read_json
from distilltool.stages import query as query_stage
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

DIGITS = 7  # of a length that a file may claim


def options_of(
    preprocess: Sequence[str], output: str | None, pool: str | None, inputs: Sequence[str], device: str, isolate: bool
) -> TeacherOptions:
    return TeacherOptions(
        preprocess=tuple(preprocess), output=output, pool=pool, inputs=tuple(inputs), device=device, isolate=isolate
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """On which terms a teacher may be asked. budget: questions; price: of one; ambiguous: None is the teacher's own."""

    budget: int | None
    price: float | None
    ambiguous: Ambiguous | None


def terms_of(budget: int | None, max_cost: float | None, price: float | None, ambiguous: str | None) -> Terms:
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
            return Terms(budget=budget, price=price, ambiguous=known)
    if ambiguous is not None:
        raise DistillError(f"--ambiguous {ambiguous} is unknown", f"use one of {', '.join(AMBIGUOUS)}", Exit.USAGE)
    return Terms(budget=budget, price=price, ambiguous=None)


def take_stock(folder: str | Path) -> Inventory:
    return images.take_stock(images.find(Path(folder)))


def guesser(stock: Callable[[], Inventory], store: str | Path, budget: int | None, progress: Progress) -> Guess:
    """Asked for the preprocessing of a file that nobody wrote it down for: probes it on the images, once a ledger."""

    def guess(model: OnnxModel, said: Sequence[Mapping[str, Any]]) -> Preprocess:
        from distilltool import probe

        with Ledger.open(Path(store)) as ledger:
            return probe.settle(model, said, stock().photos, ledger, budget, progress)

    return guess


def open_any(
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


def teacher_of(
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
        return open_any(wanted, options, timeout, progress, guess)
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
        isolate=options.isolate or distrusted(runs),
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


def distrusted(runs: Sequence[RunDir]) -> bool:
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


def open_embedder(path: str | Path, run: RunDir | None, options: TeacherOptions, guess: Guess) -> Embedder:
    """A run's student, a file of vectors or an ONNX file; flags are not for what says itself how it is fed."""
    if run is not None:
        from distilltool.stages import distill as stage

        return stage.load_student(run)
    if is_vectors(Path(path)):
        return open_bought(Path(path), TeacherOptions())
    if SPACE_KEY in file_of(Path(path), options.isolate).metadata:
        return open_teacher(Path(path), TeacherOptions(device=options.device, isolate=options.isolate))
    return open_teacher(Path(path), options, guess=guess)


def dims_of(model: Embedder, run: RunDir | None) -> tuple[int, ...]:
    """Lengths at which a student's vectors are of use when cut, as its run or its file says."""
    if run is not None:
        return tuple(read_json(run.card).get("dims", ()))
    said = model.file.metadata.get(DIMS_KEY, "") if isinstance(model, OnnxEmbedder) else ""
    return tuple(int(one) for one in said.split(",") if one.isdecimal() and len(one) < DIGITS and int(one))


def ask(
    embedder: Teacher,
    stock: Inventory,
    root: Path,
    ledger: Ledger,
    terms: Terms,
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
    room = 0 if plan else left_to_ask(embedder, ledger, terms.budget)  # a forecast is not worth looking at every image
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


def left_to_ask(embedder: Teacher, ledger: Ledger, budget: int | None) -> int | None:
    """How often the teacher may still be asked, None for no limit."""
    ceiling = ledger.budget(embedder.key.sha256, budget)
    return None if ceiling is None else max(0, ceiling - ledger.spent(embedder.key.sha256))


def refuse_shared(embedder: Teacher, stock: Inventory, ledger: Ledger, progress: Progress, bought: QueryReport) -> None:
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

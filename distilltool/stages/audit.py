"""What a ledger holds: listed, checked down to each vector, and written out for others."""

import csv
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.images import Inventory
from distilltool.ledger import PROBED_BY, Ledger
from distilltool.progress import Progress
from distilltool.report import (
    LedgerCoverage,
    LedgerExportReport,
    LedgerGuess,
    LedgerShowReport,
    LedgerTeacher,
    LedgerVerifyReport,
)
from distilltool.rundir import write_bytes
from distilltool.teacher import space_id

GROUP_BYTES = 16 << 20  # of vectors in memory at once, and in a row group of a Parquet file
FAULTS_KEPT = 100  # of a kind; a file that is torn has a million
LISTED = "distilltool ledger verify lists all damage"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of the members of an .npz, so that the same answers give the same file


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One teacher of a ledger, as its table names it. done: how many answers it has."""

    number: int
    sha256: str
    output: str
    pool: str
    preprocess: str
    dim: int
    done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer as it is exported. vector: (D,) float32; time: seconds since 1970."""

    teacher: Row
    image: bytes
    vector: NDArray[np.float32]
    provider: str
    time: float
    asked: int


Write = Callable[[Path, Sequence[Row], Iterator[Answer], Mapping[bytes, Path]], None]


def show(ledger: Ledger) -> LedgerShowReport:
    """List the teachers of a ledger, in the order in which they were first asked, and its guesses."""
    with ledger.snapshot():
        counts = {row[0]: row[1:] for row in ledger.select(COUNTS)}
        rows = list(ledger.select("SELECT id, sha256, name, output, pool, preprocess, source, dim FROM teachers"))
        budgets = dict(ledger.select("SELECT sha256, budget FROM budgets"))
        spent = {row[1]: ledger.spent(row[1]) for row in rows}
        guesses = list(ledger.select("SELECT sha256, output, asked, passes, time, outcome FROM guesses ORDER BY time"))
        version = int(list(ledger.select("PRAGMA user_version"))[0][0])
    return LedgerShowReport(
        store=str(ledger.path),
        version=version,
        bytes=ledger.size(),
        teachers=tuple(_teacher(row, counts.get(row[0], NOTHING), spent[row[1]], budgets.get(row[1])) for row in rows),
        guesses=tuple(
            LedgerGuess(sha256=r[0], output=r[1], asked=r[2], passes=r[3], time=_iso(r[4]), outcome=_outcome(r[5]))
            for r in guesses
        ),
    )


def _outcome(text: str) -> Any:
    """What a guess came to, empty while it is not finished."""
    found = _json(text)
    return {} if isinstance(found, dict) and PROBED_BY in found else found


COUNTS = (
    "SELECT teacher, SUM(state='done'), SUM(state='failed'), SUM(state='claimed'), SUM(asked), "
    "COALESCE(SUM(LENGTH(vector)), 0), MIN(time), MAX(time) FROM answers GROUP BY teacher"
)


NOTHING = (0, 0, 0, 0, 0, None, None)


def _teacher(row: Sequence[Any], counts: Sequence[Any], spent: int, budget: int | None) -> LedgerTeacher:
    number, sha256, name, output, pool, preprocess, source, dim = row
    done, failed, claimed, asked, size, first, last = counts
    return LedgerTeacher(
        number=number,
        sha256=sha256,
        name=name or "",
        output=output,
        pool=pool,
        preprocess=_json(preprocess),
        source=source,
        dim=dim,
        done=done,
        failed=failed,
        claimed=claimed,
        asked=asked,
        spent=spent,
        budget=budget,
        first=None if first is None else _iso(first),
        last=None if last is None else _iso(last),
        bytes=size,
    )


def verify(ledger: Ledger, stock: Inventory | None) -> LedgerVerifyReport:
    """Check the file's structure and each answer in it: its length, its checksum, and that it is finite.

    stock: images to hold the answers against, None for none.
    """
    began = time.perf_counter()
    faults: list[str] = []
    counts = {"teachers": 0, "done": 0, "failed": 0, "claimed": 0, "abandoned": 0}
    coverage: list[LedgerCoverage] = []
    try:
        with ledger.snapshot():
            faults += _faults_of_file(ledger)
            faults += _faults_of_answers(ledger)
            states = dict(ledger.select("SELECT state, COUNT(*) FROM answers GROUP BY state"))
            counts |= {state: states.get(state, 0) for state in ("done", "failed", "claimed")}
            counts["abandoned"] = ledger.abandoned()
            teachers = _rows(ledger, "")
            counts["teachers"] = len(teachers)
            coverage += [_coverage(ledger, one, stock) for one in teachers if stock is not None]
    except DistillError as error:  # torn so badly that it cannot be read to its end
        faults.append(error.message)
    return LedgerVerifyReport(
        store=str(ledger.path),
        faults=tuple(faults),
        coverage=tuple(coverage),
        seconds=time.perf_counter() - began,
        **counts,
    )


def _faults_of_file(ledger: Ledger) -> list[str]:
    """What SQLite itself finds wrong: its pages, its indexes, and references that lead nowhere."""
    found = [str(row[0]) for row in ledger.select(f"PRAGMA integrity_check({FAULTS_KEPT})")]
    lost = sum(1 for _ in ledger.select("PRAGMA foreign_key_check"))
    return [one for one in found if one != "ok"] + ([f"{lost} answers belong to no teacher"] if lost else [])


def _faults_of_answers(ledger: Ledger) -> Iterator[str]:
    """Answers that are not what they should be, row by row; at most FAULTS_KEPT of them are named."""
    kept = 0
    rows = ledger.select(
        "SELECT image, state, vector, crc, asked, dim, time, "
        "provider, reason, owner, source, name "  # text that is read is text that can be read
        "FROM answers LEFT JOIN teachers ON teachers.id = teacher"
    )
    for image, state, vector, crc, asked, dim, when, *_ in rows:
        fault = _fault(state, vector, crc, asked, dim) or _fault_of_time(when)
        if fault and kept < FAULTS_KEPT:
            kept += 1
            yield f"the answer about image {_hex(image)[:12]} {fault}"


def _fault(state: str, vector: bytes | None, crc: int | None, asked: int, dim: int | None) -> str:
    if not isinstance(asked, int) or asked < (0 if state == "done" else 1):  # 0: bought elsewhere
        return "was never asked for"
    if state != "done":
        return "" if vector is None else f"is {state} and has a vector"
    if vector is None or dim is None or len(vector) != 4 * dim:
        return f"has {0 if vector is None else len(vector)} bytes, not {4 * (dim or 0)}"
    if zlib.crc32(vector) != crc:
        return "is not what was written (checksum)"
    return "" if np.isfinite(np.frombuffer(vector, "<f4")).all() else "is not finite"


def _fault_of_time(when: float) -> str:
    try:
        _moment(when)
    except DistillError:
        return "was given at no time that there is"
    return ""


def _coverage(ledger: Ledger, teacher: Row, stock: Inventory) -> LedgerCoverage:
    whole = "SELECT image FROM answers WHERE teacher=? AND view='' AND state='done'"
    answered = {row[0] for row in ledger.select(whole, (teacher.number,))}
    images = {photo.sha256: str(photo.path) for photo in stock.photos}
    return LedgerCoverage(
        sha256=teacher.sha256,
        output=teacher.output,
        known=len(answered & images.keys()),
        unanswered=tuple(path for sha256, path in images.items() if sha256 not in answered),
        orphans=tuple(sorted(sha256.hex() for sha256 in answered - images.keys())),
    )


def export(
    ledger: Ledger, out: Path, prefix: str, number: int | None, paths: Mapping[bytes, Path], progress: Progress
) -> LedgerExportReport:
    """Write the answers of the teachers whose sha256 begins with `prefix`, in the format that `out` ends with.

    number: of the one teacher wanted, as `show` gives it; one file may stand for several, by output and preprocessing.
    paths: where images are, by the sha256 of their bytes. Memory holds a row group at a time.
    """
    began = time.perf_counter()
    kind = out.suffix.lower().removeprefix(".")
    if kind not in WRITERS:
        raise DistillError(f"{out} is of no format we write", f"end it with {', '.join('.' + one for one in WRITERS)}")
    with ledger.snapshot():
        teachers = [one for one in _rows(ledger, prefix) if one.done and number in (None, one.number)]
        if not teachers:
            said = f" by a teacher {prefix}..." if prefix else f" by teacher {number}" if number is not None else ""
            raise DistillError(f"{ledger.path} holds no answer{said}", "distilltool ledger show lists what there is")
        total = sum(one.done for one in teachers)
        progress.begin("writing", total, "answers")
        answers = chain.from_iterable(_answers(ledger, one, progress) for one in teachers)
        write_bytes(out, lambda fresh: WRITERS[kind](fresh, teachers, answers, paths))
        progress.end()
    return LedgerExportReport(
        store=str(ledger.path),
        file=str(out),
        format=kind,
        teachers=len(teachers),
        rows=total,
        bytes=out.stat().st_size,
        seconds=time.perf_counter() - began,
    )


def _rows(ledger: Ledger, prefix: str) -> list[Row]:
    found = ledger.select(
        "SELECT id, sha256, output, pool, preprocess, COALESCE(dim, 0), "
        "(SELECT COUNT(*) FROM answers WHERE teacher = teachers.id AND state='done') FROM teachers ORDER BY id"
    )
    return [
        Row(number=r[0], sha256=r[1], output=r[2], pool=r[3], preprocess=r[4], dim=r[5], done=r[6])
        for r in found
        if r[1].startswith(prefix.lower())
    ]


def _answers(ledger: Ledger, teacher: Row, progress: Progress) -> Iterator[Answer]:
    """One teacher's answers in order of image, so that the same answers give the same file."""
    rows = ledger.select(
        "SELECT image, vector, crc, provider, time, asked FROM answers WHERE teacher=? AND view='' AND state='done' "
        "ORDER BY image",
        (teacher.number,),
    )
    for image, vector, crc, provider, when, asked in rows:
        if fault := _fault("done", vector, crc, asked, teacher.dim):
            raise DistillError(f"the ledger is damaged (the answer about image {image.hex()[:12]} {fault})", LISTED)
        progress.advance()
        yield Answer(
            teacher=teacher,
            image=image,
            vector=np.frombuffer(vector, "<f4"),
            provider=provider or "",
            time=when,
            asked=asked,
        )


def _cell(name: str, one: Answer, paths: Mapping[bytes, Path]) -> Any:
    """One value of the exported table, by the name of its column."""
    if name == "teacher":
        return one.teacher.sha256
    if name in ("output", "pool", "preprocess"):
        return getattr(one.teacher, name)
    if name == "space_id":
        return space_id(one.teacher.sha256, one.teacher.output, one.teacher.pool)
    if name == "sha256":
        return one.image.hex()
    if name == "path":
        return paths[one.image].as_posix() if one.image in paths else None
    if name == "time":
        return _moment(one.time)
    return one.provider if name == "provider" else one.asked


def _write_parquet(path: Path, teachers: Sequence[Row], answers: Iterator[Answer], paths: Mapping[bytes, Path]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        **dict.fromkeys(PLAIN, pyarrow.string()),
        "time": pyarrow.timestamp("us", tz="UTC"),
        "asked": pyarrow.int32(),
    }
    vectors = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema([*kinds.items(), ("vector", vectors)])
    each = max(1, GROUP_BYTES // (4 * max(one.dim for one in teachers)))
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=list(REPEATED)) as writer:
        while some := list(islice(answers, each)):
            columns = [pyarrow.array([_cell(name, one, paths) for one in some], kind) for name, kind in kinds.items()]
            ends = np.cumsum([0, *(len(one.vector) for one in some)]).astype(np.int32)
            flat = pyarrow.array(np.concatenate([one.vector for one in some]))
            columns.append(pyarrow.ListArray.from_arrays(ends, flat).cast(vectors))
            writer.write_table(pyarrow.table(columns, schema=schema))


def _write_npz(path: Path, teachers: Sequence[Row], answers: Iterator[Answer], paths: Mapping[bytes, Path]) -> None:
    """Arrays `sha256`, (N,) text of 64 letters, `vector`, (N, D) float32, and `space_id`, a text; one teacher alone."""
    if len(teachers) > 1:
        raise DistillError(
            f"an .npz holds the vectors of one teacher, these are of {len(teachers)}",
            "choose one with --number, as ledger show lists them, or write .parquet",
        )
    total, dim = teachers[0].done, teachers[0].dim
    names = np.zeros(total, "<U64")
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(zipfile.ZipInfo("vector.npy", EPOCH), "w", force_zip64=True) as member:
            facts = {"descr": "<f4", "fortran_order": False, "shape": (total, dim)}
            np.lib.format.write_array_header_2_0(member, facts)
            for at, one in enumerate(answers):
                names[at] = one.image.hex()
                member.write(one.vector.tobytes())
        one_space = np.array(space_id(teachers[0].sha256, teachers[0].output, teachers[0].pool))
        for name, array in (("sha256", names), ("space_id", one_space)):
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_csv(path: Path, teachers: Sequence[Row], answers: Iterator[Answer], paths: Mapping[bytes, Path]) -> None:
    """A header and a line for each answer; its vector is a JSON list whose numbers are float32 to the last bit."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*PLAIN, "time", "asked", "vector"])
        for one in answers:
            cells = [_cell(name, one, paths) for name in PLAIN]
            vector = "[" + ",".join(str(number) for number in one.vector) + "]"
            writer.writerow([*cells, _iso(one.time), one.asked, vector])


REPEATED = ("teacher", "output", "pool", "preprocess", "provider", "space_id")
PLAIN = ("teacher", "output", "pool", "preprocess", "provider", "space_id", "sha256", "path")
WRITERS: dict[str, Write] = {"parquet": _write_parquet, "npz": _write_npz, "csv": _write_csv}


def _iso(seconds: float) -> str:
    return _moment(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise DistillError("the ledger is damaged (a time in it is none)", LISTED) from None


def _json(text: str) -> dict[str, Any]:
    """A JSON object as it was written; what is none stays as it is, under one name."""
    try:
        values = json.loads(text)
    except ValueError:
        values = text
    return values if isinstance(values, dict) else {"text": text}


def _hex(image: Any) -> str:
    """The name of an image, whatever stands there."""
    return image.hex() if isinstance(image, bytes) else str(image)

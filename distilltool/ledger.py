"""The ledger of paid answers: what each teacher was asked, and what it said. Nothing in it is asked for twice."""

import json
import os
import shutil
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError

APPLICATION_ID = 0x64697374  # "dist"
VERSION = 2
Ambiguous = Literal["skip", "retry", "fail"]  # what becomes of claims whose process is gone without an answer
AMBIGUOUS: tuple[Ambiguous, ...] = get_args(Ambiguous)
STALE = 900.0  # seconds after which a claim from a machine we cannot look into is taken for dead
PROBED_BY = "probed by"  # in place of an outcome while there is none: the process that is at it
PAUSE = 60.0  # seconds between two answers from which they belong to different commands
AGAIN = 0.02  # seconds before trying again what another process was in the way of
LOCK_WAIT = 30.0  # seconds to wait for another program that holds the file
ROOM_EACH = 8 * 4096  # bytes of disk an image may take while its answer is written: its pages, in the log and the file
ROOM = 1 << 20  # bytes of disk left free beside that
HASH = 32  # bytes of a sha256
CHUNK = 500  # rows named in one statement, below SQLite's limit on parameters
SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL, output TEXT NOT NULL, pool TEXT NOT NULL, preprocess TEXT NOT NULL,
    source TEXT NOT NULL, dim INTEGER, name TEXT,
    UNIQUE (sha256, output, pool, preprocess)
);
CREATE TABLE budgets (sha256 TEXT PRIMARY KEY, budget INTEGER NOT NULL);
CREATE TABLE answers (
    teacher INTEGER NOT NULL REFERENCES teachers (id),
    image BLOB NOT NULL,
    view TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL CHECK (state IN ('claimed', 'done', 'failed')),
    asked INTEGER NOT NULL,
    vector BLOB, reason TEXT, provider TEXT, owner TEXT, time REAL NOT NULL, crc INTEGER,
    PRIMARY KEY (teacher, image, view)
);
CREATE TABLE guesses (
    sha256 TEXT NOT NULL, output TEXT NOT NULL, asked INTEGER NOT NULL, passes INTEGER NOT NULL,
    outcome TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (sha256, output)
);
"""
# what makes a ledger of each earlier version one of the next
UPGRADES = {
    1: """
ALTER TABLE teachers ADD COLUMN name TEXT;
ALTER TABLE answers ADD COLUMN crc INTEGER;
UPDATE answers SET crc=crc32(vector) WHERE state='done';
CREATE TABLE guesses (
    sha256 TEXT NOT NULL, output TEXT NOT NULL, asked INTEGER NOT NULL, passes INTEGER NOT NULL,
    outcome TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (sha256, output)
);
"""
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherKey:
    """Which answers are interchangeable: the file (external data included), output, pooling, preprocessing.

    sha256: hex. preprocess: `Preprocess.identity()`. source: who said the preprocessing; name: what the user calls the
    teacher; both are kept for the record and are no part of what it is.
    """

    sha256: str
    output: str
    pool: str
    preprocess: str
    source: str = ""
    name: str = ""


class Ledger:
    """One SQLite file. An image is claimed in a committed transaction before the teacher is asked, and its answer
    is committed as it comes, so that a stop at any moment loses at most the batch in hand.

    Images are named by the sha256 of their bytes (32 bytes); after it may stand, as text, which view of the image is
    meant where it is not the whole. Vectors are float32 as the teacher gave them.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create; raises DistillError where the file is no ledger, another version's, damaged or not writable.

        A file that is refused is left as it is.
        """
        with _opening(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            deadline = time.monotonic() + LOCK_WAIT
            while (db := _connect(path, deadline)) is None:
                time.sleep(AGAIN)
        return cls(path, db)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open what is there to look at it, without changing it; an earlier version is upgraded first."""
        if not path.is_file():
            raise DistillError(f"there is no ledger {path}", "name one with --store")
        with _opening(path):
            version = _look(path)
            if version != VERSION:
                cls.open(path).close()
            return cls(path, _reader(path))

    def close(self) -> None:
        """Close the file; everything that was answered is already on disk."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def teacher(self, key: TeacherKey) -> int:
        """The number under which answers of this teacher are kept."""
        values = (key.sha256, key.output, key.pool, key.preprocess)
        with self._transaction():
            self._db.execute(
                "INSERT INTO teachers (sha256, output, pool, preprocess, source, name) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET name=COALESCE(excluded.name, name), source=excluded.source",
                (*values, key.source, key.name or None),
            )
            row = self._db.execute(
                "SELECT id FROM teachers WHERE sha256=? AND output=? AND pool=? AND preprocess=?", values
            ).fetchone()
        return int(row[0])

    def spent(self, sha256: str) -> int:
        """How often this teacher was ever asked: images answered under whatever output or preprocessing, and probes."""
        row = self._row(
            "SELECT (SELECT COALESCE(SUM(asked), 0) FROM answers JOIN teachers ON teachers.id = teacher WHERE sha256=?)"
            " + (SELECT COALESCE(SUM(asked), 0) FROM guesses WHERE sha256=?)",
            (sha256, sha256),
        )
        return int(row[0])

    def guess(self, sha256: str, output: str) -> dict[str, Any] | None:
        """What probing this teacher for its preprocessing came to; None where it was never finished."""
        row = self._row("SELECT outcome FROM guesses WHERE sha256=? AND output=?", (sha256, output))
        found: dict[str, Any] | None = json.loads(row[0]) if row else None
        return None if not found or PROBED_BY in found else found

    def guess_elsewhere(self, sha256: str, output: str) -> bool:
        """Whether another process is probing this teacher right now."""
        row = self._row("SELECT outcome, time FROM guesses WHERE sha256=? AND output=?", (sha256, output))
        return row is not None and self._is_alive(json.loads(row[0]).get(PROBED_BY), row[1])

    def drop_guess(self, sha256: str, output: str) -> None:
        """Let go of a reservation of ours that came to nothing. Its images stay paid: it may have been asked."""
        with self._transaction():
            self._db.execute(
                "UPDATE guesses SET outcome='{}' WHERE sha256=? AND output=? AND outcome=?",
                (sha256, output, json.dumps({PROBED_BY: self._owner})),
            )

    def reserve_guess(
        self, sha256: str, output: str, wanted: int, passes: int, budget: int | None, least: int = 1
    ) -> int:
        """Pay for probing so many images before the first is asked about; returns for how many the budget was enough.

        A stop while probing leaves them paid without an outcome, and the next attempt is paid again. passes: how often
        each image is put to the teacher. budget: as in `claim`. least: fewer are not
        granted. 0 where another process has reserved it and lives.
        """
        with self._transaction():
            if self.guess_elsewhere(sha256, output):
                return 0
            granted = wanted if budget is None else max(0, min(wanted, budget - self.spent(sha256)))
            granted = granted if granted >= least else 0
            if granted:
                self._db.execute(
                    "INSERT INTO guesses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "asked=asked+excluded.asked, passes=excluded.passes, outcome=excluded.outcome, time=excluded.time",
                    (sha256, output, granted, passes, json.dumps({PROBED_BY: self._owner}), time.time()),
                )
        return granted

    def keep_guess(self, sha256: str, output: str, asked: int, passes: int, outcome: dict[str, Any]) -> None:
        """Record what probing came to, JSON values; `asked` images count as spent unless reserved already."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO guesses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET asked=MAX(asked, "
                "excluded.asked), passes=excluded.passes, outcome=excluded.outcome, time=excluded.time",
                (sha256, output, asked, passes, json.dumps(outcome, sort_keys=True), time.time()),
            )

    def seconds_each(self, teacher: int) -> float | None:
        """How long an answer took when this teacher was last asked, by the times at which answers came; None where too
        few did."""
        rows = self._db.execute(
            "SELECT time FROM answers WHERE teacher=? AND state='done' AND provider!='imported' "
            "ORDER BY time DESC LIMIT 1000",
            (teacher,),
        )
        times = np.array([row[0] for row in rows])
        steps = -np.diff(times)
        steps = steps[(steps >= 0) & (steps < PAUSE)]
        return float(steps.sum() / len(steps)) if len(steps) >= 8 and steps.sum() > 0 else None

    def budget(self, sha256: str, wanted: int | None) -> int | None:
        """The ceiling for this teacher's file from now on: the one given, else the one given last; None for none."""
        if wanted is not None:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO budgets VALUES (?, ?) ON CONFLICT DO UPDATE SET budget=excluded.budget",
                    (sha256, wanted),
                )
            return wanted
        row = self._row("SELECT budget FROM budgets WHERE sha256=?", (sha256,))
        return None if row is None else int(row[0])

    def elsewhere(self, teacher: int, images: Sequence[bytes]) -> int:
        """How many of the images another process is asking about right now."""
        return sum(self._is_alive(*row) for _, *row in self._rows("owner, time", "state='claimed'", teacher, images))

    def unsure(self, teacher: int, images: Sequence[bytes]) -> set[bytes]:
        """Those of the images that were asked about by a process that is gone: whether they were answered, and charged
        for, nobody knows."""
        rows = self._rows("owner, time", "state='claimed'", teacher, images)
        return {image for image, owner, claimed in rows if not self._is_alive(owner, claimed)}

    def settled(self, teacher: int, images: Sequence[bytes]) -> dict[bytes, str]:
        """The state, "done" or "failed", of those of the images that need not be asked about again."""
        return dict(self._rows("state", "state!='claimed'", teacher, images))

    def claim(
        self, teacher: int, images: Sequence[bytes], budget: int | None, ambiguous: Ambiguous = "retry"
    ) -> list[bytes]:
        """Claim those images that nobody has answered or is asking now, as far as the budget goes.

        budget: the most that may ever be spent on this teacher's file, counted as in `spent`; None is no limit.
        ambiguous: a claim whose process is gone is taken over and counts again ("retry": the teacher may have been
        asked), left alone ("skip"), or the reason for a DistillError ("fail").
        """
        claimed: list[bytes] = []
        with self._transaction():
            sha256 = self._db.execute("SELECT sha256 FROM teachers WHERE id=?", (teacher,)).fetchone()[0]
            left = len(images) if budget is None else budget - self.spent(sha256)
            for image in images:
                if left <= len(claimed):
                    break
                row = self._db.execute(
                    "SELECT state, owner, time FROM answers WHERE teacher=? AND image=? AND view=?",
                    (teacher, *_parts(image)),
                ).fetchone()
                if row is not None and (row[0] != "claimed" or self._is_alive(row[1], row[2])):
                    continue
                if row is not None and ambiguous != "retry":
                    if ambiguous == "skip":
                        continue
                    raise unsure_claims(1)
                self._db.execute(
                    "INSERT INTO answers (teacher, image, view, state, asked, owner, time) "
                    "VALUES (?, ?, ?, 'claimed', 1, ?, ?) "
                    "ON CONFLICT DO UPDATE SET state='claimed', asked=asked+1, owner=excluded.owner, "
                    "time=excluded.time, reason=NULL",
                    (teacher, *_parts(image), self._owner, time.time()),
                )
                claimed.append(image)
        return claimed

    def make_sure_of_room(self, images: int) -> None:
        """Raise DistillError where the disk is too full for answers to so many images, before they are paid for."""
        try:
            free = shutil.disk_usage(self.path.resolve().parent).free
        except OSError:
            return  # the disk says nothing; writing will tell
        if free < ROOM + images * ROOM_EACH:
            raise DistillError(
                f"the disk of the ledger {self.path} is full ({free / 1e6:.1f} MB left)",
                "make room and run the same command again; nothing is lost",
            )

    def answer(
        self,
        teacher: int,
        images: Sequence[bytes],
        vectors_ND: NDArray[np.float32],
        provider: str,
        *,
        bought: bool = False,
    ) -> None:
        """Commit answers to claimed images, (N, D) float32; bought elsewhere, they need no claim and count as unasked.

        The first answer stands: where a claim was taken over meanwhile and answered by whoever took it, this one is
        dropped. Raises DistillError for vectors of another length than this teacher's others.
        """
        dim = vectors_ND.shape[1]
        with self._transaction():
            if bought:
                self._db.executemany(
                    "INSERT INTO answers (teacher, image, view, state, asked, time) VALUES (?, ?, ?, 'claimed', 0, ?) "
                    "ON CONFLICT DO NOTHING",
                    [(teacher, *_parts(image), time.time()) for image in images],
                )
            self._db.execute("UPDATE teachers SET dim=? WHERE id=? AND dim IS NULL", (dim, teacher))
            if (before := self.dim(teacher)) != dim:
                raise DistillError(
                    f"the teacher answers with {dim} numbers, it used to be {before}",
                    "its vectors must be of one length: choose another --output, a --pool, or --preprocess size=",
                )
            self._db.executemany(
                "UPDATE answers SET state='done', vector=?, crc=?, provider=?, owner=NULL, time=? "
                "WHERE teacher=? AND image=? AND view=? AND state='claimed'",
                [
                    (blob, zlib.crc32(blob), provider, time.time(), teacher, *_parts(image))
                    for image, vector in zip(images, vectors_ND, strict=True)
                    for blob in [np.ascontiguousarray(vector, dtype="<f4").tobytes()]
                ],
            )

    def fail(self, teacher: int, images: Sequence[bytes], reason: str) -> None:
        """Record that the teacher was asked and gave no usable answer, for claims that are still ours."""
        with self._transaction():
            self._db.executemany(
                "UPDATE answers SET state='failed', reason=?, owner=NULL, time=? "
                "WHERE teacher=? AND image=? AND view=? AND state='claimed' AND owner=?",
                [(reason, time.time(), teacher, *_parts(image), self._owner) for image in images],
            )

    def release(self, teacher: int, images: Sequence[bytes]) -> None:
        """Give back claims of ours for which the teacher was certainly never asked."""
        with self._transaction():
            self._db.executemany(
                "UPDATE answers SET asked=asked-1 "
                "WHERE teacher=? AND image=? AND view=? AND state='claimed' AND owner=?",
                [(teacher, *_parts(image), self._owner) for image in images],
            )
            self._db.execute("DELETE FROM answers WHERE state='claimed' AND asked=0 AND owner=?", (self._owner,))

    def vectors(self, teacher: int, images: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The answers to those of the images that have one, each (D,) float32; DistillError where one is damaged."""
        found = {}
        for image, blob, crc in self._rows("vector, crc", "state='done'", teacher, images):
            if blob is None or zlib.crc32(blob) != crc:
                raise _damaged(self.path, f"the answer about image {image.hex()[:12]} is not what was written")
            found[image] = np.frombuffer(blob, dtype="<f4")
        return found

    def _rows(self, columns: str, where: str, teacher: int, images: Sequence[bytes]) -> Iterator[Any]:
        """Each of the images whose row meets a condition, with columns of that row."""
        by_view: dict[str, list[bytes]] = {}
        for one in images:
            image, view = _parts(one)
            by_view.setdefault(view, []).append(image)
        for view, listed in by_view.items():
            for at in range(0, len(listed), CHUNK):
                some = listed[at : at + CHUNK]
                marks = ",".join("?" * len(some))
                rows = self.select(
                    f"SELECT image, {columns} FROM answers "
                    f"WHERE teacher=? AND view=? AND {where} AND image IN ({marks})",
                    (teacher, view, *some),
                )
                yield from ((image + view.encode(), *rest) for image, *rest in rows)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows of a query, as they are read, for whoever lists or checks what is here."""
        with _guarded(self.path):
            for row in self._db.execute(query, values):  # noqa: UP028 `yield from` would close it, maybe too late
                yield row

    def _row(self, query: str, values: Sequence[Any]) -> Any:
        with _guarded(self.path):
            return self._db.execute(query, values).fetchone()

    def _transaction(self) -> AbstractContextManager[None]:
        return _transaction(self.path, self._db)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is all of one moment, whatever others write meanwhile."""
        with _guarded(self.path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def size(self) -> int:
        """Bytes on disk, of the file and the log beside it."""
        return _size(self.path) + _size(_beside(self.path, "-wal"))

    def abandoned(self) -> int:
        """How many images somebody began to ask about who is gone."""
        rows = self.select("SELECT owner, time FROM answers WHERE state='claimed'")
        return sum(not self._is_alive(owner, claimed) for owner, claimed in rows)

    def dim(self, teacher: int) -> int | None:
        """Length of this teacher's vectors, None before its first answer."""
        row = self._row("SELECT dim FROM teachers WHERE id=?", (teacher,))
        return None if row is None or row[0] is None else int(row[0])

    def _is_alive(self, owner: str | None, claimed: float) -> bool:
        """Whether the claiming process may still answer: another one, on this machine or on one we cannot see."""
        if not owner or owner == self._owner:
            return False
        host, pid, started = owner.rsplit(":", 2)
        if host != socket.gethostname():
            return abs(time.time() - claimed) < STALE  # nor is a claim from the future one for ever
        return _started(int(pid)) == started


def _parts(image: bytes) -> tuple[bytes, str]:
    """The hash of an image and the view of it that is meant, "" for the whole."""
    return image[:HASH], image[HASH:].decode()


def _connect(path: Path, deadline: float) -> sqlite3.Connection | None:
    """Open, create or upgrade; None where another process was in the way for a moment.

    While one makes the file or turns on its log, SQLite tells others at once that it is locked, without waiting.
    """
    _look(path)
    db = sqlite3.connect(path, timeout=LOCK_WAIT, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        if _is_empty(db):
            _create(path, db)
        _check(path, db)
        _upgrade(path, db)
        db.execute("PRAGMA journal_mode=WAL")
        return db
    except sqlite3.OperationalError as error:
        db.close()
        if not _is_locked(error) or time.monotonic() > deadline:
            raise
        return None
    except BaseException:
        db.close()
        raise


def unsure_claims(count: int) -> DistillError:
    """The error for images that a process was asking about when it ended, where the user has not said what to do."""
    return DistillError(
        f"{count} images were sent to this teacher before and no answer came back; it may have counted them",
        "say --ambiguous retry to ask about them once more, or --ambiguous skip to leave them out",
    )


def bytes_each(dim: int) -> int:
    """Bytes that an answer of so many numbers adds to the file.

    Whole rows share a page of 4096 bytes, longer ones go on in pages of their own; its entry in the index comes on top
    (https://sqlite.org/fileformat.html, 1.6).
    """
    row = 4 * dim + 90  # with image, state, provider, time and checksum
    more = 0
    if row > 4061:
        kept = 489 + (row - 489) % 4092
        kept = kept if kept <= 4061 else 489
        more = -(-(row - kept) // 4092)
        row = kept + 4
    return round(4096 / (4088 // (row + 5))) + 4096 * more + 64


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot, so that a reused process number is not mistaken for it."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if facts[0] in "ZX" else facts[19]  # a zombie answers nothing any more
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends while it is looked at
        if Path("/proc/self/stat").exists():
            return "gone"
    try:
        os.kill(pid, 0)  # no /proc: only whether there is such a process
    except PermissionError:
        return "0"  # there is, and it is another user's
    except OSError:
        return "gone"
    return "0"


@contextmanager
def _transaction(path: Path, db: sqlite3.Connection) -> Iterator[None]:
    with _guarded(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """What the disk, another program or a damaged file does to us, as an error of one line."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours
    except sqlite3.DatabaseError as error:
        raise _failure(path, error) from None
    except UnicodeDecodeError as error:  # in what SQLite says about a damaged schema
        raise _damaged(path, str(error)) from None


def _failure(path: Path, error: sqlite3.DatabaseError) -> DistillError:
    code = getattr(error, "sqlite_errorcode", None)
    kind = code & 0xFF if code is not None else None  # the rest says where it happened
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error):
        return _damaged(path, str(error))
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DistillError(
            f"another program has held the ledger {path} for {LOCK_WAIT:.0f} s",
            "end that, then run the same command again; nothing is lost",
        )
    return DistillError(
        f"the ledger cannot be read or written ({error})", "mend that and run the same command again; nothing is lost"
    )


def _damaged(path: Path, what: str) -> DistillError:
    return DistillError(
        f"the ledger {path} is damaged ({what})",
        "restore it from a copy, or take out of it what can be read with: sqlite3 FILE .recover; it is left as it is",
    )


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
            raise DistillError(
                f"{path} is no ledger, or a damaged one ({error})",
                "choose another file with --store, or restore this one from a copy",
            ) from None
        if isinstance(error, sqlite3.OperationalError) and not _is_locked(error):
            raise _unopened(path, error) from None
        raise _failure(path, error) from None
    except OSError as error:
        raise _unopened(path, error) from None
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from None


def _is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _unopened(path: Path, error: Exception) -> DistillError:
    return DistillError(
        f"the ledger {path} cannot be opened ({error})", "choose another file or a writable folder with --store"
    )


def _look(path: Path) -> int | None:
    """The version of the ledger that is there, None where there is none yet; refuses what is none of ours or damaged.

    It looks through a connection that cannot write, for closing one that can would move what is in the log beside a
    damaged file into it.
    """
    log = _beside(path, "-wal")
    has_log = _size(log) > 0  # looked at first: a file that has a log never shrinks
    size = _size(path)
    if not size:
        if has_log:  # SQLite would take the log for a leftover and delete it
            raise _damaged(path, f"it is empty, but {log.name} beside it holds answers")
        return None
    try:
        with closing(_reader(path)) as db:
            version = None
            if not _is_empty(db):
                _check(path, db)
                version = _version(db)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
            return None  # whoever was making it was stopped; only a connection that can write can undo that
        raise
    if not has_log and not _beside(path, "-journal").exists() and size % _page_size(path):
        raise _damaged(path, "its end is missing")  # SQLite would put zeros there; with a log it can mend that
    return version


def _beside(path: Path, ending: str) -> Path:
    """A file that SQLite keeps beside the real file, wherever links lead."""
    real = path.resolve()
    return real.with_name(real.name + ending)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _page_size(path: Path) -> int:
    """What an SQLite file says its size is a multiple of (https://sqlite.org/fileformat.html, 1.3.2); 512 at least."""
    with path.open("rb") as file:
        said = int.from_bytes(file.read(18)[16:], "big")
    return 65536 if said == 1 else max(512, said)


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; where the folder is read-only too, the log must be empty."""
    place = f"file:{quote(str(path.resolve()))}?mode=ro"
    db = sqlite3.connect(place, uri=True, timeout=LOCK_WAIT, isolation_level=None)
    log = _beside(path, "-wal")
    try:
        _version(db)
    except sqlite3.OperationalError:
        db.close()
        if os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK) or _size(log):
            raise
        db = sqlite3.connect(f"{place}&immutable=1", uri=True, isolation_level=None)
    return db


def _is_empty(db: sqlite3.Connection) -> bool:
    made = db.execute("SELECT 1 FROM sqlite_master").fetchone()
    return made is None and db.execute("PRAGMA application_id").fetchone()[0] == 0


def _create(path: Path, db: sqlite3.Connection) -> None:
    """Make an empty database a ledger, unless another process has been quicker."""
    with _transaction(path, db):
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={VERSION}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(path: Path, db: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier version to this one in one transaction, unless another process has been quicker."""
    if _version(db) == VERSION:
        return
    db.create_function("crc32", 1, zlib.crc32, deterministic=True)
    with _transaction(path, db):
        for version in range(_version(db), VERSION):
            for statement in UPGRADES[version].split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version={VERSION}")


def _check(path: Path, db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DistillError(f"{path} is an SQLite file but no ledger", "choose another file with --store")
    version = _version(db)
    if version != VERSION and version not in UPGRADES:
        raise DistillError(
            f"the ledger {path} has version {version}, this distilltool reads {min(UPGRADES)} to {VERSION}",
            "use the distilltool that wrote it, or another file with --store",
        )

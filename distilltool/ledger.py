"""The ledger of paid answers: what each teacher was asked, and what it said. Nothing in it is asked for twice."""

import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError

APPLICATION_ID = 0x64697374  # "dist"
VERSION = 1
Ambiguous = Literal["skip", "retry", "fail"]  # what becomes of claims whose process is gone without an answer
AMBIGUOUS: tuple[Ambiguous, ...] = get_args(Ambiguous)
STALE = 900.0  # seconds after which a claim from a machine we cannot look into is taken for dead
CHUNK = 500  # rows named in one statement, below SQLite's limit on parameters
SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL, output TEXT NOT NULL, pool TEXT NOT NULL, preprocess TEXT NOT NULL,
    source TEXT NOT NULL, dim INTEGER,
    UNIQUE (sha256, output, pool, preprocess)
);
CREATE TABLE budgets (sha256 TEXT PRIMARY KEY, budget INTEGER NOT NULL);
CREATE TABLE answers (
    teacher INTEGER NOT NULL REFERENCES teachers (id),
    image BLOB NOT NULL,
    view TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL CHECK (state IN ('claimed', 'done', 'failed')),
    asked INTEGER NOT NULL,
    vector BLOB, reason TEXT, provider TEXT, owner TEXT, time REAL NOT NULL,
    PRIMARY KEY (teacher, image, view)
);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherKey:
    """Which answers are interchangeable: the file (external data included), output, pooling, preprocessing.

    sha256: hex. preprocess: `Preprocess.identity()`. source: who said the preprocessing, kept for the record.
    """

    sha256: str
    output: str
    pool: str
    preprocess: str
    source: str = ""


class Ledger:
    """One SQLite file. An image is claimed in a committed transaction before the teacher is asked, and its answer
    is committed as it comes, so that a stop at any moment loses at most the batch in hand.

    Images are named by the sha256 of their bytes (32 bytes). Vectors are float32 as the teacher gave them.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create; raises DistillError where the file is no ledger, another version's, or not writable."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not path.exists() or path.stat().st_size == 0
            db = sqlite3.connect(path, timeout=30, isolation_level=None)
            db.execute("PRAGMA synchronous=FULL")
            if fresh:
                with _transaction(db):
                    if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                        for statement in SCHEMA.split(";"):
                            db.execute(statement)
                        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                        db.execute(f"PRAGMA user_version={VERSION}")
            _check(path, db)
            db.execute("PRAGMA journal_mode=WAL")
        except (sqlite3.Error, OSError) as error:
            raise DistillError(
                f"the ledger {path} cannot be opened ({error})", "choose another file or a writable folder with --store"
            ) from None
        return cls(path, db)

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
        with _transaction(self._db):
            self._db.execute(
                "INSERT INTO teachers (sha256, output, pool, preprocess, source) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (*values, key.source),
            )
            row = self._db.execute(
                "SELECT id FROM teachers WHERE sha256=? AND output=? AND pool=? AND preprocess=?", values
            ).fetchone()
        return int(row[0])

    def spent(self, sha256: str) -> int:
        """How often this teacher was ever asked, under whatever output or preprocessing."""
        row = self._db.execute(
            "SELECT COALESCE(SUM(asked), 0) FROM answers JOIN teachers ON teachers.id = teacher WHERE sha256=?",
            (sha256,),
        ).fetchone()
        return int(row[0])

    def budget(self, sha256: str, wanted: int | None) -> int | None:
        """The ceiling for this teacher's file from now on: the one given, else the one given last; None for none."""
        if wanted is not None:
            with _transaction(self._db):
                self._db.execute(
                    "INSERT INTO budgets VALUES (?, ?) ON CONFLICT DO UPDATE SET budget=excluded.budget",
                    (sha256, wanted),
                )
            return wanted
        row = self._db.execute("SELECT budget FROM budgets WHERE sha256=?", (sha256,)).fetchone()
        return None if row is None else int(row[0])

    def elsewhere(self, teacher: int, images: Sequence[bytes]) -> int:
        """How many of the images another process is asking about right now."""
        return sum(self._is_alive(*row) for row in self._rows("owner, time", "state='claimed'", teacher, images))

    def unsure(self, teacher: int, images: Sequence[bytes]) -> set[bytes]:
        """Those of the images that were asked about by a process that is gone: whether they were answered, and charged
        for, nobody knows."""
        rows = self._rows("image, owner, time", "state='claimed'", teacher, images)
        return {image for image, owner, claimed in rows if not self._is_alive(owner, claimed)}

    def settled(self, teacher: int, images: Sequence[bytes]) -> dict[bytes, str]:
        """The state, "done" or "failed", of those of the images that need not be asked about again."""
        return dict(self._rows("image, state", "state!='claimed'", teacher, images))

    def claim(
        self, teacher: int, images: Sequence[bytes], budget: int | None, ambiguous: Ambiguous = "retry"
    ) -> list[bytes]:
        """Claim those images that nobody has answered or is asking now, as far as the budget goes.

        budget: the most that may ever be spent on this teacher's file, counted as in `spent`; None is no limit.
        ambiguous: a claim whose process is gone is taken over and counts again ("retry": the teacher may have been
        asked), left alone ("skip"), or the reason for a DistillError ("fail").
        """
        claimed: list[bytes] = []
        with _transaction(self._db):
            sha256 = self._db.execute("SELECT sha256 FROM teachers WHERE id=?", (teacher,)).fetchone()[0]
            left = len(images) if budget is None else budget - self.spent(sha256)
            for image in images:
                if left <= len(claimed):
                    break
                row = self._db.execute(
                    "SELECT state, owner, time FROM answers WHERE teacher=? AND image=? AND view=''", (teacher, image)
                ).fetchone()
                if row is not None and (row[0] != "claimed" or self._is_alive(row[1], row[2])):
                    continue
                if row is not None and ambiguous != "retry":
                    if ambiguous == "skip":
                        continue
                    raise unsure_claims(1)
                self._db.execute(
                    "INSERT INTO answers (teacher, image, state, asked, owner, time) VALUES (?, ?, 'claimed', 1, ?, ?) "
                    "ON CONFLICT DO UPDATE SET state='claimed', asked=asked+1, owner=excluded.owner, "
                    "time=excluded.time, reason=NULL",
                    (teacher, image, self._owner, time.time()),
                )
                claimed.append(image)
        return claimed

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

        Images that have an answer already must not be among the bought ones.
        """
        dim = vectors_ND.shape[1]
        with _transaction(self._db):
            if bought:
                self._db.executemany(
                    "INSERT INTO answers (teacher, image, state, asked, time) VALUES (?, ?, 'claimed', 0, ?) "
                    "ON CONFLICT DO NOTHING",
                    [(teacher, image, time.time()) for image in images],
                )
            self._db.execute("UPDATE teachers SET dim=? WHERE id=? AND dim IS NULL", (dim, teacher))
            self._db.executemany(
                "UPDATE answers SET state='done', vector=?, provider=?, owner=NULL, time=? "
                "WHERE teacher=? AND image=? AND view=''",
                [
                    (np.ascontiguousarray(vector, dtype="<f4").tobytes(), provider, time.time(), teacher, image)
                    for image, vector in zip(images, vectors_ND, strict=True)
                ],
            )

    def fail(self, teacher: int, images: Sequence[bytes], reason: str) -> None:
        """Record that the teacher was asked and gave no usable answer."""
        with _transaction(self._db):
            self._db.executemany(
                "UPDATE answers SET state='failed', reason=?, owner=NULL, time=? "
                "WHERE teacher=? AND image=? AND view=''",
                [(reason, time.time(), teacher, image) for image in images],
            )

    def release(self, teacher: int, images: Sequence[bytes]) -> None:
        """Give back claims of ours for which the teacher was certainly never asked."""
        with _transaction(self._db):
            self._db.executemany(
                "UPDATE answers SET asked=asked-1 WHERE teacher=? AND image=? AND state='claimed' AND owner=?",
                [(teacher, image, self._owner) for image in images],
            )
            self._db.execute("DELETE FROM answers WHERE state='claimed' AND asked=0 AND owner=?", (self._owner,))

    def vectors(self, teacher: int, images: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The answers to those of the images that have one, each (D,) float32."""
        rows = self._rows("image, vector", "state='done'", teacher, images)
        return {image: np.frombuffer(blob, dtype="<f4") for image, blob in rows}

    def _rows(self, columns: str, where: str, teacher: int, images: Sequence[bytes]) -> Iterator[Any]:
        """Columns of those of the images' rows that meet a condition."""
        for at in range(0, len(images), CHUNK):
            some = images[at : at + CHUNK]
            marks = ",".join("?" * len(some))
            yield from self._db.execute(
                f"SELECT {columns} FROM answers WHERE teacher=? AND {where} AND image IN ({marks})", (teacher, *some)
            )

    def dim(self, teacher: int) -> int | None:
        """Length of this teacher's vectors, None before its first answer."""
        row = self._db.execute("SELECT dim FROM teachers WHERE id=?", (teacher,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def _is_alive(self, owner: str | None, claimed: float) -> bool:
        """Whether the claiming process may still answer: another one, on this machine or on one we cannot see."""
        if not owner or owner == self._owner:
            return False
        host, pid, started = owner.rsplit(":", 2)
        if host != socket.gethostname():
            return time.time() - claimed < STALE
        return _started(int(pid)) == started


def unsure_claims(count: int) -> DistillError:
    """The error for images that a process was asking about when it ended, where the user has not said what to do."""
    return DistillError(
        f"{count} images were sent to this teacher before and no answer came back; it may have counted them",
        "say --ambiguous retry to ask about them once more, or --ambiguous skip to leave them out",
    )


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot, so that a reused process number is not mistaken for it."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if facts[0] in "ZX" else facts[19]  # a zombie answers nothing any more
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return "gone"
    try:
        os.kill(pid, 0)  # no /proc: only whether there is such a process
    except (ProcessLookupError, OSError):
        return "gone"
    return "0"


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:  # a full disk, a lock held too long, a folder gone read-only
        raise DistillError(
            f"the ledger cannot be written ({error})", "mend that and run the same command again; nothing is lost"
        ) from None


def _check(path: Path, db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DistillError(f"{path} is an SQLite file but no ledger", "choose another file with --store")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise DistillError(
            f"the ledger {path} has version {version}, this distilltool reads {VERSION}",
            "use the distilltool that wrote it, or another file with --store",
        )

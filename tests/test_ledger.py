"""The ledger: nothing is asked twice, and no more than was allowed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distilltool import ledger as ledgers
from distilltool.errors import DistillError
from distilltool.ledger import APPLICATION_ID, VERSION, Ambiguous, Ledger, TeacherKey

KEY = TeacherKey(sha256="aa", output="embedding", pool="none", preprocess="{}")
CLAIMER = """
import sys
from pathlib import Path
from distilltool.ledger import Ledger, TeacherKey
ledger = Ledger.open(Path(sys.argv[1]))
number = ledger.teacher(TeacherKey(sha256="aa", output="embedding", pool="none", preprocess="{}"))
claimed = ledger.claim(number, [bytes([i]) * 32 for i in range(int(sys.argv[2]))], None)
print(len(claimed), flush=True)
sys.stdin.read()
"""
RACER = """
import sys
from pathlib import Path
import numpy as np
from distilltool.ledger import Ledger, TeacherKey
ledger = Ledger.open(Path(sys.argv[1]))
number = ledger.teacher(TeacherKey(sha256="aa", output="embedding", pool="none", preprocess="{}"))
sys.stdin.readline()
got = 0
for i in range(60):
    claimed = ledger.claim(number, [bytes([i]) * 32, bytes([i + 100]) * 32], 90)
    if claimed:
        ledger.answer(number, claimed, np.ones((len(claimed), 4), np.float32), "here")
    got += len(claimed)
print(got)
"""
Claimer = Callable[[int], subprocess.Popen[str]]


def image(number: int) -> bytes:
    """A hash that names an image."""
    return bytes([number]) * 32


def several(count: int) -> list[bytes]:
    """The first few images."""
    return [image(number) for number in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may be."""
    return tmp_path / "deep" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Ledger.open(path) as opened:
        yield opened


@pytest.fixture
def claimer(path: Path) -> Iterator[Claimer]:
    """Start a process that claims so many images and lives until it is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(path), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None and int(process.stdout.readline()) == count
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_claim_then_answer(ledger: Ledger, rng: np.random.Generator) -> None:
    """What was claimed and answered is settled, counted and given back bit for bit."""
    number = ledger.teacher(KEY)
    vectors = rng.normal(size=(3, 5)).astype(np.float32)
    assert ledger.dim(number) is None
    assert ledger.claim(number, several(3), None) == several(3)
    assert ledger.settled(number, several(3)) == {}
    assert ledger.vectors(number, several(3)) == {}
    ledger.answer(number, several(3), vectors, "CPUExecutionProvider")
    assert ledger.settled(number, several(5)) == {one: "done" for one in several(3)}
    found = ledger.vectors(number, several(5))
    assert set(found) == set(several(3))
    np.testing.assert_array_equal(np.stack([found[one] for one in several(3)]), vectors)
    assert (ledger.dim(number), ledger.spent("aa")) == (5, 3)


def test_answered_images_are_not_claimed_again(ledger: Ledger, path: Path) -> None:
    """Not even by another ledger object on the same file, after this one is closed."""
    number = ledger.teacher(KEY)
    ledger.answer(number, ledger.claim(number, several(2), None), np.ones((2, 4), np.float32), "here")
    ledger.close()
    with Ledger.open(path) as again:
        assert again.teacher(KEY) == number
        assert again.claim(number, several(4), None) == several(4)[2:]
        assert again.spent("aa") == 4


def test_failed_images_are_settled_and_paid(ledger: Ledger) -> None:
    """A question without a usable answer was asked nevertheless."""
    number = ledger.teacher(KEY)
    ledger.fail(number, ledger.claim(number, several(1), None), "not finite")
    assert ledger.settled(number, several(1)) == {image(0): "failed"}
    assert ledger.claim(number, several(1), None) == []
    assert ledger.vectors(number, several(1)) == {}
    assert ledger.spent("aa") == 1


@pytest.mark.parametrize("what", ["skip", "retry", "fail"])
def test_claims_of_a_dead_process(what: Ambiguous, ledger: Ledger, claimer: Claimer) -> None:
    """Left alone, taken over and counted again, or an error that claims nothing; living ones are never touched."""
    dead = claimer(3)
    number = ledger.teacher(KEY)
    assert ledger.unsure(number, several(5)) == set(), "its process lives"
    assert ledger.claim(number, several(3), None, what) == []
    dead.kill()
    dead.communicate()
    assert ledger.unsure(number, several(5)) == set(several(3))
    if what == "fail":
        with pytest.raises(DistillError, match="--ambiguous"):
            ledger.claim(number, [image(4), image(1)], None, what)
        assert ledger.spent("aa") == 3 and ledger.claim(number, [image(4)], None, what) == [image(4)]
    else:
        taken = several(5) if what == "retry" else several(5)[3:]
        assert ledger.claim(number, several(5), None, what) == taken
        assert ledger.spent("aa") == 3 + len(taken)


def test_bought_answers_cost_nothing_and_leave_others_alone(ledger: Ledger) -> None:
    """They are kept as they are, count as unasked, and take nothing from a budget."""
    number = ledger.teacher(KEY)
    ledger.answer(number, several(4), np.ones((4, 5), np.float32), "imported", bought=True)
    assert ledger.settled(number, several(9)) == {one: "done" for one in several(4)}
    assert (ledger.spent("aa"), ledger.dim(number), len(ledger.vectors(number, several(9)))) == (0, 5, 4)
    assert ledger.claim(number, several(9), 2) == several(6)[4:]


def test_released_claims_are_not_paid(ledger: Ledger) -> None:
    """A claim given back leaves nothing behind; answers stay."""
    number = ledger.teacher(KEY)
    ledger.answer(number, ledger.claim(number, several(1), None), np.ones((1, 4), np.float32), "here")
    ledger.release(number, ledger.claim(number, several(3), None))
    ledger.release(number, several(3))
    assert ledger.spent("aa") == 1
    assert ledger.settled(number, several(3)) == {image(0): "done"}
    assert ledger.claim(number, several(3), None) == several(3)[1:]


@pytest.mark.parametrize(("budget", "granted"), [(0, 0), (1, 1), (5, 5), (7, 6), (None, 6)])
def test_budget(ledger: Ledger, budget: int | None, granted: int) -> None:
    """Claims are granted in order up to the budget."""
    number = ledger.teacher(KEY)
    assert ledger.claim(number, several(6), budget) == several(6)[:granted]
    assert ledger.spent("aa") == granted


def test_cached_images_take_nothing_from_the_budget(ledger: Ledger) -> None:
    """Images answered before are passed over without being counted again."""
    number = ledger.teacher(KEY)
    ledger.answer(number, ledger.claim(number, several(3), None), np.ones((3, 4), np.float32), "here")
    assert ledger.claim(number, several(6), 5) == several(6)[3:5]
    assert ledger.claim(number, several(6), 5)[2:] == []


def test_budget_spans_the_outputs_of_a_file(ledger: Ledger) -> None:
    """The file is what is paid for: other outputs, poolings and preprocessings count together, other files do not."""
    one = ledger.teacher(KEY)
    other = ledger.teacher(TeacherKey(sha256="aa", output="pooled", pool="none", preprocess="{}"))
    third = ledger.teacher(TeacherKey(sha256="aa", output="embedding", pool="avg", preprocess='{"size": 1}'))
    stranger = ledger.teacher(TeacherKey(sha256="bb", output="embedding", pool="none", preprocess="{}"))
    assert len({one, other, third, stranger}) == 4
    assert len(ledger.claim(one, several(3), 8)) == 3
    assert len(ledger.claim(other, several(3), 8)) == 3
    assert len(ledger.claim(third, several(3), 8)) == 2
    assert len(ledger.claim(stranger, several(3), 8)) == 3
    assert (ledger.spent("aa"), ledger.spent("bb"), ledger.spent("cc")) == (8, 3, 0)


def test_who_said_the_preprocessing_is_no_other_teacher(ledger: Ledger) -> None:
    """`source` is kept for the record only."""
    said = TeacherKey(sha256="aa", output="embedding", pool="none", preprocess="{}", source="flag")
    assert ledger.teacher(KEY) == ledger.teacher(said)


def test_more_images_than_one_statement_can_name(ledger: Ledger) -> None:
    """Thousands of images are looked up in pieces."""
    number = ledger.teacher(KEY)
    many = [at.to_bytes(32, "big") for at in range(1201)]
    ledger.answer(number, ledger.claim(number, many, None), np.arange(2402, dtype=np.float32).reshape(-1, 2), "here")
    assert len(ledger.settled(number, many)) == 1201
    assert ledger.vectors(number, many)[many[1200]].tolist() == [2400.0, 2401.0]


def test_claim_of_a_living_process_is_respected(ledger: Ledger, claimer: Claimer) -> None:
    """Another process is asking: its images are left to it, and they count as spent."""
    claimer(3)
    number = ledger.teacher(KEY)
    assert ledger.claim(number, several(5), None) == several(5)[3:]
    ledger.release(number, several(5))
    assert ledger.spent("aa") == 3


def test_claim_of_a_dead_process_is_taken_over(ledger: Ledger, claimer: Claimer) -> None:
    """Whether the teacher was asked nobody knows, so the second question counts too."""
    process = claimer(3)
    process.kill()
    process.wait()
    number = ledger.teacher(KEY)
    assert ledger.claim(number, several(3), 5) == several(3)[:2]
    assert ledger.spent("aa") == 5
    ledger.release(number, several(2))
    assert ledger.spent("aa") == 3


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_claim_of_a_zombie_is_taken_over(ledger: Ledger, claimer: Claimer) -> None:
    """A dead process whose parent does not look after it, as in many containers, is as dead as any other."""
    process = claimer(2)
    os.kill(process.pid, signal.SIGKILL)
    stat = Path(f"/proc/{process.pid}/stat")
    for _ in range(500):
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    assert ledger.claim(ledger.teacher(KEY), several(2), None) == several(2)


def owned_by(path: Path, owner: str) -> None:
    """Put all claims of a ledger into another's name."""
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET owner=?", (owner,))
    db.close()


def test_claim_of_another_machine_is_respected(ledger: Ledger, path: Path) -> None:
    """What cannot be looked at is taken for alive."""
    number = ledger.teacher(KEY)
    ledger.claim(number, several(2), None)
    owned_by(path, "elsewhere:a:b:1:5")
    assert ledger.claim(number, several(2), None) == []


def test_reused_process_number_is_another_process(ledger: Ledger, path: Path) -> None:
    """A process number alone proves nothing: the one that claimed began at another time."""
    number = ledger.teacher(KEY)
    ledger.claim(number, several(1), None)
    with sqlite3.connect(path) as db:
        host = str(db.execute("SELECT owner FROM answers").fetchone()[0]).rsplit(":", 2)[0]
    db.close()
    owned_by(path, f"{host}:{os.getppid()}:1")
    assert ledger.claim(number, several(1), None) == several(1)


def test_processes_share_work_and_budget(ledger: Ledger, path: Path) -> None:
    """Two processes at once: every image is asked about at most once and the budget is kept."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    got = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(got) == 90 == ledger.spent("aa")
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT MAX(asked), COUNT(*) FROM answers").fetchone() == (1, 90)
    db.close()


def test_answers_survive_a_process_that_is_killed(path: Path) -> None:
    """An answer that was given is on disk, whatever happens next."""
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nimport numpy as np\n"
        "from distilltool.ledger import Ledger, TeacherKey\n"
        "ledger = Ledger.open(Path(sys.argv[1]))\n"
        "number = ledger.teacher(TeacherKey(sha256='aa', output='embedding', pool='none', preprocess='{}'))\n"
        "one = [bytes([0]) * 32]\n"
        "ledger.claim(number, one, None)\nledger.answer(number, one, np.ones((1, 4), np.float32), 'here')\n"
        "ledger.claim(number, [bytes([1]) * 32], None)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    with Ledger.open(path) as ledger:
        number = ledger.teacher(KEY)
        assert ledger.vectors(number, several(2))[image(0)].tolist() == [1.0] * 4
        assert ledger.spent("aa") == 2


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    """An answer that cannot be stored leaves the claim as it was."""
    number = ledger.teacher(KEY)
    ledger.claim(number, several(2), None)
    with pytest.raises(ValueError, match="zip"):
        ledger.answer(number, several(2), np.ones((1, 4), np.float32), "here")
    assert ledger.dim(number) is None
    assert ledger.settled(number, several(2)) == {}
    ledger.answer(number, several(2), np.ones((2, 6), np.float32), "here")
    assert ledger.dim(number) == 6


@pytest.mark.parametrize("kind", ["text", "other SQLite", "folder", "empty folder above"])
def test_not_a_ledger(tmp_path: Path, kind: str) -> None:
    """Another file is refused in one line and stays as it was."""
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty folder above":
        path.write_text("a file")
        path = path / "ledger.sqlite"
    elif kind == "text":
        path.write_text("no database at all, but long enough to look like something" * 40)
    else:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE mine (a)")
        db.close()
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(DistillError, match="--store"):
        Ledger.open(path)
    assert not path.is_file() or path.read_bytes() == before


def test_other_version(path: Path) -> None:
    """A ledger of a version to come is refused, not misread."""
    Ledger.open(path).close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    with pytest.raises(DistillError, match=f"version {VERSION + 1}"):
        Ledger.open(path)


VERSION_1 = """
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
INSERT INTO teachers VALUES (1, 'aa', 'embedding', 'none', '{}', 'flag', 4);
INSERT INTO budgets VALUES ('aa', 9);
PRAGMA application_id=1684632436;
PRAGMA user_version=1;
PRAGMA journal_mode=WAL;
"""


def of_version_1(path: Path) -> None:
    """A ledger as version 1 wrote it, statement by statement: one answer, one failure, one claim of a dead process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.executemany(
        "INSERT INTO answers VALUES (1, ?, '', ?, ?, ?, ?, ?, ?, 1000.0)",
        [
            (image(0), "done", 1, np.arange(4, dtype="<f4").tobytes(), None, "CPUExecutionProvider", None),
            (image(1), "failed", 2, None, "not finite", None, None),
            (image(2), "claimed", 1, None, None, None, "elsewhere:1:1"),
        ],
    )
    db.commit()
    db.close()


def test_a_ledger_of_version_1_is_upgraded(path: Path) -> None:
    """Every answer, budget and count of it is still there, and it is a ledger like any other from then on."""
    of_version_1(path)
    for _ in range(2):
        with Ledger.open(path) as ledger:
            assert ledger.teacher(replace(KEY, name="t.onnx")) == 1
            assert ledger.spent("aa") == 4 and ledger.budget("aa", None) == 9 and ledger.dim(1) == 4
            assert ledger.settled(1, several(3)) == {image(0): "done", image(1): "failed"}
            assert ledger.vectors(1, several(3))[image(0)].tolist() == [0, 1, 2, 3]
            assert ledger.guess("aa", "embedding") is None
    with sqlite3.connect(path) as old, sqlite3.connect(path.with_name("new")) as new:
        Ledger.open(path.with_name("new")).close()
        for table in ("teachers", "budgets", "answers", "guesses"):
            columns = [
                {row[1:] for row in db.execute(f"PRAGMA table_info({table})")}  # the order of columns may differ
                for db in (old, new)
            ]
            assert columns[0] == columns[1], table
        assert old.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert old.execute("SELECT name FROM teachers").fetchone() == ("t.onnx",)
        crc = old.execute("SELECT crc FROM answers ORDER BY image").fetchall()
        assert crc == [(zlib.crc32(np.arange(4, dtype="<f4").tobytes()),), (None,), (None,)]


def test_an_upgrade_that_is_stopped_leaves_version_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an upgrade is none: the file is as it was, and the next attempt begins anew."""
    of_version_1(path)
    steps = ledgers.UPGRADES[1]
    monkeypatch.setitem(ledgers.UPGRADES, 1, steps + "SELECT 1 FROM nowhere;")
    with pytest.raises(DistillError, match="no such table"):
        Ledger.open(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert "crc" not in str(db.execute("SELECT sql FROM sqlite_master").fetchall())
    db.close()
    monkeypatch.setitem(ledgers.UPGRADES, 1, steps)
    with Ledger.open(path) as ledger:
        assert ledger.spent("aa") == 4


def test_guesses_are_paid_before_they_are_made(ledger: Ledger) -> None:
    """What probes ask counts against the budget of the file, also where the outcome never came."""
    assert ledger.guess("aa", "embedding") is None
    assert ledger.reserve_guess("aa", "embedding", 32, 9, budget=50) == 32
    assert ledger.guess("aa", "embedding") is None and ledger.spent("aa") == 32
    assert ledger.reserve_guess("aa", "embedding", 32, 9, budget=50) == 18  # the first was killed
    assert ledger.reserve_guess("aa", "embedding", 32, 9, budget=50) == 0
    ledger.keep_guess("aa", "embedding", 18, 9, {"family": "clip", "margin": 0.5})
    assert ledger.guess("aa", "embedding") == {"family": "clip", "margin": 0.5}
    assert ledger.spent("aa") == 50
    assert ledger.guess("aa", "other") is None and ledger.guess("bb", "embedding") is None
    assert ledger.claim(ledger.teacher(KEY), several(3), 52) == several(2)
    ledger.keep_guess("bb", "embedding", 7, 1, {"family": "tf"})
    assert ledger.spent("bb") == 7


def test_what_a_teacher_is_called_is_no_part_of_what_it_is(ledger: Ledger) -> None:
    """The name given last stands; a key without one leaves it."""
    number = ledger.teacher(replace(KEY, name="a.onnx"))
    assert ledger.teacher(replace(KEY, name="b.onnx")) == number == ledger.teacher(KEY)
    with sqlite3.connect(ledger.path) as db:
        assert db.execute("SELECT name FROM teachers").fetchall() == [("b.onnx",)]
    db.close()


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    """As `mktemp` makes it."""
    path = tmp_path / "ledger.sqlite"
    path.touch()
    with Ledger.open(path) as ledger:
        assert ledger.spent("aa") == 0

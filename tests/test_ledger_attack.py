"""The ledger under attack: killed, starved, torn, shared, locked and misdated, it loses nothing."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import victims
from builders import onnx_teacher, photo_folder
from typer.testing import CliRunner

import distilltool
from distilltool import api, images
from distilltool import ledger as ledgers
from distilltool.cli import app
from distilltool.errors import DistillError
from distilltool.ledger import Ledger, TeacherKey
from distilltool.teacher import TeacherOptions, open_teacher

PRE = ["scale=1/255"]
KEY = TeacherKey(sha256="aa", output="embedding", pool="none", preprocess="{}")
VICTIMS = [sys.executable, victims.__file__]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def words(folder: Path, *more: str) -> list[str]:
    """The query that every attack is on."""
    given = ["query", str(folder / "teacher.onnx"), str(folder / "imgs"), "--store", str(folder / "ledger.sqlite")]
    return [*given, "--preprocess", *PRE, "--json", *more]


def call(*given: str) -> tuple[int, str, str]:
    """The command line within this process: exit code, stdout, stderr; a traceback is raised."""
    result = CliRunner().invoke(app, list(given))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def start(mode: str, folder: Path, delay: float, company: int, *given: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, with calls counted."""
    return subprocess.Popen(
        [*VICTIMS, mode, str(folder), str(delay), str(company), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(code: int, said: str) -> str:
    """The one line of an error; anything else fails."""
    lines = [line for line in said.strip().splitlines() if "error:" in line]
    assert code == 1 and len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


def setting(folder: Path, count: int, *, dim: int = 16) -> Path:
    """A teacher and so many photographs."""
    onnx_teacher(folder / "teacher.onnx", dim=dim)
    photo_folder(folder / "imgs", count, size=(24, 24), endings=("png",))
    return folder


def sound_and_complete(folder: Path, count: int) -> list[int]:
    """Check that each image has its one right answer; how often each was counted, in order of path."""
    embedder = open_teacher(folder / "teacher.onnx", TeacherOptions(preprocess=tuple(PRE)))
    photos = images.take_stock(images.find(folder / "imgs")).photos
    pixels = np.stack([np.asarray(images.prepare(photo.path, embedder.preprocess)) for photo in photos])
    report = api.ledger_verify(folder / "ledger.sqlite", images_dir=folder / "imgs")
    assert report.faults == () and (report.done, report.claimed, report.failed) == (count, 0, 0)
    assert (report.coverage[0].unanswered, report.coverage[0].orphans) == ((), ())
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counted = dict(db.execute("SELECT image, asked FROM answers").fetchall())
    db.close()
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        number = ledger.teacher(embedder.key)
        found = ledger.vectors(number, [photo.sha256 for photo in photos])
        assert ledger.spent(embedder.key.sha256) == sum(counted.values())
    np.testing.assert_allclose(
        np.stack([found[p.sha256] for p in photos]), embedder.embed(pixels), rtol=1e-4, atol=1e-5
    )
    really = Counter(print_ for _, print_ in victims.asked(folder))
    asked = [really[victims.fingerprint(one)] for one in pixels]
    assert sum(asked) == sum(really.values())
    assert all(one <= counted[photo.sha256] for one, photo in zip(asked, photos, strict=True))  # never paid unseen
    return asked


@LINUX
@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_and_cost_a_batch_each_at_most(tmp_path: Path) -> None:
    count, kills, batch = 700, 100, 2
    setting(tmp_path, count)
    query = words(tmp_path, "--batch", str(batch))
    done = subprocess.run(
        [*VICTIMS, "kill", str(tmp_path), str(kills), "3", *query], capture_output=True, text=True, check=False
    )
    runs = json.loads(done.stdout)
    assert sum(one["killed"] for one in runs) == kills
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert sum(one["asked"] > 0 for one in runs if one["killed"]) >= kills // 2  # they were hit while asking
    with start("count", tmp_path, 0.0, 1, *query) as last:
        out, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    report = json.loads(out)
    assert report["queried"] > 0 and (report["pending"], report["skipped"]) == (0, [])
    asked = sound_and_complete(tmp_path, count)
    assert min(asked) == 1 and count <= sum(asked) <= count + kills * batch
    assert count <= report["spent"] <= count + kills * batch


@LINUX
@pytest.mark.slow
def test_real_processes_are_killed_too(tmp_path: Path) -> None:
    """`python -m distilltool` as it is started by hand, a few times, from its first import to its last answer."""
    setting(tmp_path, 200)
    rng = np.random.default_rng(5)
    query = [sys.executable, "-m", "distilltool", *words(tmp_path, "--batch", "2")]
    for _ in range(8):
        process = subprocess.Popen(query, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0, 2.5)))
        process.kill()
        process.wait()
    report = json.loads(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
    assert report["pending"] == 0 and 200 <= report["spent"] <= 200 + 8 * 2
    assert api.ledger_verify(tmp_path / "ledger.sqlite").faults == ()


@LINUX
def test_killed_while_the_ledger_is_made(tmp_path: Path) -> None:
    """However far it had come, the next to open it makes it whole; also where a hot journal is left."""
    rng = np.random.default_rng(1)
    for number in range(60):
        path = tmp_path / f"{number}.sqlite"
        child = os.fork()
        if child == 0:
            Ledger.open(path).teacher(KEY)
            os._exit(0)
        time.sleep(float(rng.uniform(0, 0.02)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Ledger.open(path) as ledger:
            assert ledger.claim(ledger.teacher(KEY), [bytes(32)], 1) == [bytes(32)]


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    """Both get some, no image is asked about twice, and both know at the end what is there."""
    setting(tmp_path, 400)
    pair = [start("count", tmp_path, 0.01, 2, *words(tmp_path, "--batch", "4")) for _ in range(2)]
    ends = [one.communicate(timeout=120) for one in pair]
    assert [one.returncode for one in pair] == [0, 0], ends
    reports = [json.loads(out) for out, _ in ends]
    per_process = Counter(pid for pid, _ in victims.asked(tmp_path))
    assert sorted(per_process.values()) == sorted(one["queried"] for one in reports)
    assert len(per_process) == 2 and min(per_process.values()) > 40
    assert set(sound_and_complete(tmp_path, 400)) == {1}
    assert all(one["pending"] <= 4 for one in reports)  # but for what the other had in hand at the end


def test_many_processes_make_one_ledger_at_once(tmp_path: Path) -> None:
    """None of them stumbles over another that is a step ahead."""
    code = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\nimport victims\n"
        "from distilltool.ledger import Ledger, TeacherKey\n"
        "folder = Path(sys.argv[1])\nvictims.meet(folder, 4)\n"
        "for n in range(40):\n"
        "    with Ledger.open(folder / f'{n}.sqlite') as ledger:\n"
        "        one = ledger.teacher(TeacherKey(sha256='aa', output='e', pool='none', preprocess='{}'))\n"
        "        ledger.claim(one, [bytes([n]) * 32], None)\n"
    )
    here = str(Path(victims.__file__).parent)
    crowd = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), here], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [one.communicate(timeout=120)[1] for one in crowd]
    assert [one.returncode for one in crowd] == [0] * 4, said
    for number in range(40):
        assert api.ledger_verify(tmp_path / f"{number}.sqlite").claimed == 1


# --- disks and folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_costs_nothing(tmp_path: Path, small_disk: Path) -> None:
    """It stops before it asks what it could not keep, and goes on where it was once there is room."""
    setting(tmp_path, 240, dim=2048)
    (tmp_path / "ledger.sqlite").symlink_to(small_disk / "ledger.sqlite")
    query = words(tmp_path, "--batch", "8")
    with start("count", tmp_path, 0.0, 1, *query) as starved:
        line = refused(1, starved.communicate(timeout=60)[1])
    assert starved.returncode == 1 and "is full" in line and "nothing is lost" in line
    kept = api.ledger_verify(small_disk / "ledger.sqlite")
    assert kept.faults == () and 0 < kept.done == len(victims.asked(tmp_path)) < 240
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with start("count", tmp_path, 0.0, 1, *query) as again:
        out, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert json.loads(out)["cached"] == kept.done
    assert set(sound_and_complete(tmp_path, 240)) == {1}


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on files")
def test_a_quota_hit_while_writing_costs_one_batch(tmp_path: Path) -> None:
    """Where the disk says nothing beforehand: the batch in hand is lost, no answer before it."""
    setting(tmp_path, 240, dim=2048)
    query = words(tmp_path, "--batch", "8")
    command = [*VICTIMS, "count", str(tmp_path), "0", "1", *query]
    size = 1 << 20
    starved = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert "nothing is lost" in refused(starved.returncode, starved.stderr)
    asked = len(victims.asked(tmp_path))
    kept = api.ledger_verify(tmp_path / "ledger.sqlite")
    assert kept.faults == () and 0 < kept.done and asked - 8 <= kept.done <= asked
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(sound_and_complete(tmp_path, 240)) <= 240 + 8


@LINUX
@pytest.mark.parametrize("state", ["new", "there", "in use"])
def test_a_read_only_folder(tmp_path: Path, state: str) -> None:
    """An error of one line for who would write, whoever runs it; who only looks may look."""
    setting(tmp_path, 8)
    folder = tmp_path / "locked"
    folder.mkdir()
    store = folder / "ledger.sqlite"
    if state != "new":
        assert call(*words(tmp_path, "--budget", "4", "--store", str(store)))[0] == 0
    user = sqlite3.connect(store) if state == "in use" else None
    if user is not None:
        user.execute("SELECT * FROM answers").fetchall()
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        with start("harmless", tmp_path, 0, 1, *words(tmp_path, "--store", str(store))) as query:
            line = refused(1, query.communicate(timeout=60)[1])
        assert query.returncode == 1 and "ledger" in line
        assert victims.asked(tmp_path) == []
        with start("harmless", tmp_path, 0, 1, "ledger", "verify", "--json", "--store", str(store)) as verify:
            out, said = verify.communicate(timeout=60)
        if state == "new":
            refused(verify.returncode, said)
        else:
            assert verify.returncode == 0 and json.loads(out)["done"] == 4, said
        assert {path: path.read_bytes() for path in folder.iterdir() if "shm" not in path.name} == {
            path: before[path] for path in before if "shm" not in path.name
        }
    finally:
        folder.chmod(0o755)
        if user is not None:
            user.close()


# --- files that are not what they were


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A ledger of 60 answers of 64 numbers, closed."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        fill(ledger, 60)
    return path


def hashes(count: int) -> list[bytes]:
    """Names of images, as random as real ones."""
    return [victims.hashlib.sha256(bytes([at])).digest() for at in range(count)]


def vectors_of(count: int) -> Any:
    """The true answers, (count, 64) float32."""
    return np.random.default_rng(9).normal(size=(count, 64)).astype(np.float32)


def fill(ledger: Ledger, count: int) -> None:
    """Put the true answers in, in batches of ten."""
    number = ledger.teacher(KEY)
    true = dict(zip(hashes(count), vectors_of(count), strict=True))
    for at in range(0, count, 10):
        if claimed := ledger.claim(number, hashes(count)[at : at + 10], None):
            ledger.answer(number, claimed, np.stack([true[one] for one in claimed]), "here")


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a ledger and what is beside it, but for the index of its log, which is no data."""
    return {one.name: one.read_bytes() for one in path.parent.glob(path.name + "*") if not one.name.endswith("-shm")}


@pytest.mark.parametrize("version", [0, 3, 99])
def test_a_ledger_of_another_version_is_left_alone(tmp_path: Path, answered: Path, version: int) -> None:
    setting(tmp_path, 2)
    with sqlite3.connect(answered) as db:
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    before = contents(answered)
    for given in (words(tmp_path), ["ledger", "show", "--store", str(answered)]):
        code, _, said = call(*given)
        assert f"has version {version}" in refused(code, said).replace("\n", " ")
    assert {name: raw for name, raw in contents(answered).items() if raw} == before


@pytest.mark.parametrize("length", [1, 50, 99, 100, 511, 512, 4095, 4096, 8192, 0.3, 0.5, 0.9, -4096, -100, -1])
def test_a_truncated_ledger_is_refused_and_left_alone(tmp_path: Path, answered: Path, length: float) -> None:
    """Whatever is left of it may still be rescued."""
    setting(tmp_path, 2)
    whole = answered.read_bytes()
    cut = int(length * len(whole)) if 0 < length < 1 else int(length) if length > 0 else len(whole) + int(length)
    answered.write_bytes(whole[:cut])
    for given in (words(tmp_path), *([["ledger", one, "--store", str(answered)] for one in ("show", "verify")])):
        code, _, said = call(*given)
        assert "ledger" in refused(code, said)
    assert {name: raw for name, raw in contents(answered).items() if raw} == {answered.name: whole[:cut]}


def killed_with_a_log(folder: Path) -> Path:
    """A ledger whose answers are still in the log beside it, as a killed process leaves it."""
    path = folder / "ledger.sqlite"
    Ledger.open(path).close()
    child = os.fork()
    if child == 0:
        fill(Ledger.open(path), 60)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.with_name("ledger.sqlite-wal").stat().st_size > 50_000
    return path


@LINUX
@pytest.mark.parametrize("length", [0, 1, 31, 32, 100, 0.1, 0.5, 0.9, -4000, -1])
def test_a_truncated_log_keeps_what_is_whole(tmp_path: Path, length: float) -> None:
    """Answers before the cut are there and right, those after it are asked for again."""
    path = killed_with_a_log(tmp_path)
    log = path.with_name(path.name + "-wal")
    whole = log.read_bytes()
    cut = int(length * len(whole)) if 0 < length < 1 else int(length) if length >= 0 else len(whole) + int(length)
    log.write_bytes(whole[:cut])
    with Ledger.open(path) as ledger:
        number = ledger.teacher(KEY)
        found = ledger.vectors(number, hashes(60))
        assert len(found) % 10 == 0 and (len(found) < 60 or cut > 0.9 * len(whole))
        assert len(found) > 0 or cut <= 0.2 * len(whole)
        fill(ledger, 60)
        kept = ledger.vectors(number, hashes(60))
    np.testing.assert_array_equal(np.stack([kept[one] for one in hashes(60)]), vectors_of(60))
    assert api.ledger_verify(path).faults == ()


@LINUX
@pytest.mark.parametrize("cut", [0, 100, 4096, 10_000])
def test_a_truncated_ledger_with_a_log_keeps_its_log(tmp_path: Path, cut: int) -> None:
    """SQLite itself would delete the log of an empty file, with every answer in it."""
    path = killed_with_a_log(tmp_path)
    with path.open("r+b") as file:
        file.truncate(cut)
    before = contents(path)
    report = None
    try:
        report = api.ledger_verify(path)
    except DistillError as error:
        assert "damaged" in str(error)
    assert contents(path) == before
    assert cut or report is None
    if report is not None:  # what was cut off is in the log, or it is missed
        with Ledger.open(path) as ledger:
            found = ledger.vectors(1, hashes(60))
        np.testing.assert_array_equal(np.stack([found[one] for one in hashes(60)]), vectors_of(60))
        assert report.faults or (report.done == 60 and api.ledger_verify(path).faults == ())


@pytest.mark.parametrize("seed", range(40))
def test_garbage_in_the_middle_is_never_taken_for_an_answer(answered: Path, seed: int) -> None:
    """A page of noise somewhere: what is read is right or refused, `verify` sees it, and changes nothing."""
    rng = np.random.default_rng(seed)
    raw = bytearray(answered.read_bytes())
    at, size = int(rng.integers(0, len(raw) - 64)), int(rng.integers(4, 600))
    raw[at : at + size] = rng.bytes(size)[: len(raw) - at]
    answered.write_bytes(bytes(raw))
    try:
        report = api.ledger_verify(answered)
        faults = list(report.faults)
    except DistillError as error:
        faults = [str(error)]
    assert {name: found for name, found in contents(answered).items() if found} == {answered.name: bytes(raw)}
    try:
        api.ledger_show(answered)
        with Ledger.open(answered) as ledger:
            number = ledger.teacher(KEY)
            ledger.spent("aa"), ledger.budget("aa", None), ledger.elsewhere(number, hashes(60))
            found = ledger.vectors(number, hashes(60))
            fill(ledger, 60)
        wrong = [one for at, one in enumerate(hashes(60)) if one in found and (found[one] != vectors_of(60)[at]).any()]
    except DistillError as error:
        wrong = []
        assert "\n" not in str(error)
    assert wrong == []
    if not faults:  # it fell where nothing is kept
        assert len(found) == 60


def test_garbage_is_seen_by_verify(answered: Path) -> None:
    """One bit of one vector, which SQLite itself does not see."""
    raw = bytearray(answered.read_bytes())
    at = raw.index(vectors_of(60)[7].tobytes()) + 100
    raw[at] ^= 1
    answered.write_bytes(bytes(raw))
    code, _, said = call("ledger", "verify", "--store", str(answered))
    assert "checksum" in refused(code, said) and hashes(60)[7].hex()[:12] in said
    with Ledger.open(answered) as ledger, pytest.raises(DistillError, match="is not what was written"):
        ledger.vectors(1, hashes(60))
    assert call("ledger", "export", str(answered.with_name("x.npz")), "--store", str(answered))[0] == 1
    assert not answered.with_name("x.npz").exists()


# --- clocks, locks, and processes that wake up late


def test_a_clock_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question a day before the last: all is answered once and listed in order."""
    setting(tmp_path, 24)
    now = [2e9]

    def backwards() -> float:
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(ledgers.time, "time", backwards)
    options = {"store": tmp_path / "ledger.sqlite", "preprocess": PRE, "batch": 4}
    assert distilltool.query(tmp_path / "teacher.onnx", tmp_path / "imgs", budget=10, **options).queried == 10
    assert distilltool.query(tmp_path / "teacher.onnx", tmp_path / "imgs", budget=30, **options).queried == 14
    shown = api.ledger_show(tmp_path / "ledger.sqlite").teachers[0]
    assert shown.first is not None and shown.last is not None and shown.first < shown.last
    assert (shown.done, shown.asked) == (24, 24)
    assert api.ledger_verify(tmp_path / "ledger.sqlite").faults == ()


@pytest.mark.parametrize(("ahead", "granted"), [(0, 0), (60, 0), (-60, 0), (1e6, 1), (-1e6, 1), (1e12, 1), (-2e9, 1)])
def test_claims_of_other_machines_die_whatever_their_clock_says(tmp_path: Path, ahead: float, granted: int) -> None:
    """Also those that were made in the future; a clock a minute off is none the worse."""
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        number = ledger.teacher(KEY)
        ledger.claim(number, [bytes(32)], None)
        give_away(ledger.path, ahead)
        assert len(ledger.claim(number, [bytes(32)], None)) == granted


def give_away(path: Path, ahead: float) -> None:
    """Put all claims into the name of another machine, made so many seconds from now."""
    with sqlite3.connect(path, timeout=10) as db:
        db.execute("UPDATE answers SET owner='elsewhere:1:5', time=? WHERE state='claimed'", (time.time() + ahead,))
    db.close()


@LINUX
def test_a_process_that_wakes_up_late_overwrites_nothing(tmp_path: Path) -> None:
    """Stopped with its claim, taken for dead, overtaken: its own answer comes too late and is dropped."""
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    child = os.fork()
    if child == 0:
        with Ledger.open(path) as sleeper:
            number = sleeper.teacher(KEY)
            claimed = sleeper.claim(number, hashes(2), None)
            os.kill(os.getpid(), signal.SIGSTOP)
            sleeper.answer(number, claimed, np.full((2, 4), 7, np.float32), "late")
            sleeper.fail(number, claimed, "late")
            sleeper.release(number, claimed)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    with Ledger.open(path) as ledger:
        number = ledger.teacher(KEY)
        assert ledger.claim(number, hashes(2), None) == []  # a stopped process on this machine is not dead
        give_away(path, -2000)
        assert ledger.claim(number, hashes(2), None) == hashes(2)
        ledger.answer(number, hashes(2)[:1], np.ones((1, 4), np.float32), "in time")
        os.kill(child, signal.SIGCONT)
        assert os.waitpid(child, 0)[1] == 0
        ledger.answer(number, hashes(2)[1:], np.ones((1, 4), np.float32), "second")
        found = ledger.vectors(number, hashes(2))
        assert [found[one][0] for one in hashes(2)] == [1, 7]  # the first answer stands
        assert ledger.spent("aa") == 4 and set(ledger.settled(number, hashes(2)).values()) == {"done"}
    assert api.ledger_verify(path).faults == ()


def test_an_answer_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        number = ledger.teacher(KEY)
        ledger.answer(number, ledger.claim(number, hashes(1), None), np.ones((1, 4), np.float32), "first")
        ledger.answer(number, hashes(1), np.zeros((1, 4), np.float32), "second")
        ledger.fail(number, hashes(1), "third")
        assert ledger.vectors(number, hashes(1))[hashes(1)[0]].tolist() == [1] * 4
        with pytest.raises(DistillError, match="answers with 5 numbers"):
            ledger.answer(number, ledger.claim(number, hashes(2), None), np.ones((1, 5), np.float32), "longer")


def hold(path: Path) -> sqlite3.Connection:
    """Lock a ledger for writing, as another program might."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN IMMEDIATE")
    return db


def test_a_locked_ledger_is_waited_for(tmp_path: Path, answered: Path) -> None:
    """A lock of a second is waited for."""
    setting(tmp_path, 4)
    db = hold(answered)
    timer = threading.Timer(1.0, lambda: db.execute("ROLLBACK"))
    timer.start()
    code, out, said = call(*words(tmp_path))
    timer.join()
    db.close()
    assert code == 0 and json.loads(out)["queried"] == 4, said


@pytest.mark.parametrize("wait", [0.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_lock_held_for_too_long_is_an_error(
    tmp_path: Path, answered: Path, wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, nothing asked; looking is possible meanwhile."""
    assert ledgers.LOCK_WAIT == 30.0
    monkeypatch.setattr(ledgers, "LOCK_WAIT", wait)
    setting(tmp_path, 4)
    db = hold(answered)
    began = time.monotonic()
    code, _, said = call(*words(tmp_path))
    assert "another program has held" in refused(code, said)
    assert wait <= time.monotonic() - began < wait + 10
    assert api.ledger_verify(answered).done == 60
    db.execute("ROLLBACK")
    db.close()
    assert json.loads(call(*words(tmp_path))[1])["spent"] == 4


def test_answers_that_could_not_be_kept_are_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher was asked: that its answers met a full disk gives no question back to the budget."""
    setting(tmp_path, 8)

    def full(*_: object, **__: object) -> None:
        raise DistillError("the ledger cannot be read or written (disk I/O error)", "mend that")

    options = {"store": tmp_path / "ledger.sqlite", "preprocess": PRE, "batch": 4}
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "answer", full)
        with pytest.raises(DistillError, match="disk"):
            distilltool.query(tmp_path / "teacher.onnx", tmp_path / "imgs", budget=10, **options)
    assert api.ledger_show(tmp_path / "ledger.sqlite").teachers[0].spent == 4
    assert distilltool.query(tmp_path / "teacher.onnx", tmp_path / "imgs", **options).spent == 10

"""Models in a child process with limits: the same answers, and nothing that a model does reaches further."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import pytest
from bombs import PRE
from builders import onnx_teacher, photo_folder
from typer.testing import CliRunner

import distilltool
from distilltool import plain, teacher, wire
from distilltool.anatomy import dissect
from distilltool.cli import app
from distilltool.errors import DistillError, OutOfMemory
from distilltool.isolate import Child, Limits, limits_of
from distilltool.ledger import Ledger
from distilltool.teacher import OnnxEmbedder, TeacherOptions, file_of, open_model, open_teacher

FLAGS = ["--preprocess", "scale=1/255"]


def isolated(path: Path, **said: Any) -> OnnxEmbedder:
    return open_teacher(path, TeacherOptions(preprocess=PRE, isolate=True, **said))


def child_of(teacher: OnnxEmbedder) -> Child:
    """The child process behind a teacher."""
    child: Any = getattr(teacher.model.run, "__self__")  # noqa: B009
    assert isinstance(child, Child)
    return child


def saved(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    until = time.monotonic() + seconds
    while running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not running(pid)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"layout": "NHWC", "dtype": "float16", "output": "column"},
        {"dtype": "uint8", "size": None},
        {"external": True, "batch": 4},
        {"output": "tokens", "pool": "avg"},
        {"metadata": {"distilltool.space_id": "s", "distilltool.preprocess": '{"size": [32, 32], "scale": 1}'}},
    ],
    ids=lambda one: "-".join(map(str, one)) or "plain",
)
def test_the_same_model_and_the_same_bits(kind: dict[str, Any], tmp_path: Path) -> None:
    kind = dict(kind)
    pool = kind.pop("pool", None)
    path = onnx_teacher(tmp_path / "t.onnx", **kind)
    here, there = (
        open_teacher(path, TeacherOptions(preprocess=PRE, pool=pool, isolate=isolate)) for isolate in (False, True)
    )
    for name in ("file", "choice", "image", "settings", "said", "dim", "provider", "batch", "layout", "size"):
        assert getattr(here.model, name) == getattr(there.model, name), name
    assert (here.key, here.space_id, here.output) == (there.key, there.space_id, there.output)
    rows = np.random.default_rng(0).integers(0, 256, (7, *here.preprocess.size, 3), dtype=np.uint8)
    assert np.array_equal(here.embed(rows), there.embed(rows))
    assert child_of(there).pid != os.getpid()
    assert file_of(path, True) == file_of(path, False)


def test_a_ledger_does_not_know_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked in a child is never asked for again without one; all three commands take the flag."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 6)
    distilltool.query("t.onnx", "imgs", preprocess=PRE, isolate=True)
    again = distilltool.query("t.onnx", "imgs", preprocess=PRE)
    assert (again.queried, again.cached) == (0, 6)
    with (
        Ledger.open(tmp_path / "distilltool.sqlite")
        if (tmp_path / "distilltool.sqlite").exists()
        else Ledger.open(Path(again.store)) as ledger
    ):
        assert ledger.spent(again.teacher.sha256) == 6
    found = distilltool.evaluate("t.onnx", "imgs", teacher="t.onnx", preprocess=PRE, isolate=True)
    assert found.models[1].fidelity is not None and found.models[1].fidelity["overlap@10"].value == 1


WIDE = {"COLUMNS": "200"}  # no line of a message is broken
SMALL: dict[str, Any] = {
    "preprocess": PRE,
    "student": "timm:test_efficientnet",
    "input_size": 32,
    "changes": ["schedule.epochs=1"],
}


def refuse_to_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let this process, not its children, fail as soon as it parses the file of this name."""
    for reader in ("read_model", "read_file"):
        read = getattr(teacher, reader)

        def checked(path: Path, read: Any = read) -> Any:
            assert path.name != name, f"{name} was parsed in this process"
            return read(path)

        monkeypatch.setattr(teacher, reader, checked)


@pytest.mark.slow
def test_a_run_distilled_isolated_stays_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever did not trust the file then need not say so again: its later commands never parse it here either."""
    monkeypatch.chdir(tmp_path)
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 48)
    with monkeypatch.context() as watched:
        refuse_to_read(watched, "t.onnx")
        distilltool.distill("t.onnx", "imgs", out="run", isolate=True, **SMALL)
        assert distilltool.evaluate(["run", "t.onnx"], "imgs", preprocess=PRE).models[1].fidelity is not None
        report = distilltool.export("run", seconds=1.0)
        told = CliRunner().invoke(app, ["export", "run", "--seconds", "1"], env=WIDE)
    assert report.variants[0].status == "accepted" and report.variants[0].latency[0].speedup is None
    assert report.teacher["latency"] == [] and report.teacher["dim"] == 16
    assert told.exit_code == 0 and "timed alone" in told.stderr
    trusted = distilltool.distill("t.onnx", "imgs", out="trusted", **SMALL)
    assert trusted.queries["new"] == 0
    assert len(distilltool.export("trusted", seconds=1.0).teacher["latency"]) == 1
    refuse_to_read(monkeypatch, "t.onnx")
    asked = CliRunner().invoke(app, ["export", "trusted", "--isolate", "--seconds", "1"], env=WIDE)
    assert asked.exit_code == 0 and "timed alone" in asked.stderr


def test_errors_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Message and advice, word for word, also where the file is named by a relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    onnx_teacher(tmp_path / "t.onnx")
    onnx_teacher(tmp_path / "map.onnx", output="map")
    saved(tmp_path / "loop.onnx", bombs.loop(2**40))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("text.onnx", {}),
        ("missing.onnx", {}),
        ("t.onnx", {"output": "nothing"}),
        ("map.onnx", {}),
        ("loop.onnx", {}),
        ("t.onnx", {"device": "nowhere"}),
    ]
    for name, said in cases:
        errors = []
        for isolate in (False, True):
            with pytest.raises(DistillError) as found:
                open_model(Path(name), TeacherOptions(isolate=isolate, **said))
            errors.append((type(found.value), found.value.message, found.value.fix, found.value.code))
        assert errors[0] == errors[1]


def test_what_the_child_gave_up(tmp_path: Path) -> None:
    """Read from the kernel: limits, privileges, network, environment, descriptors, place."""
    os.environ["SECRET_OF_THE_TEST"] = "x"
    teacher = isolated(onnx_teacher(tmp_path / "t.onnx"))
    proc = Path(f"/proc/{child_of(teacher).pid}")
    rows = [line.rsplit(maxsplit=3) for line in (proc / "limits").read_text().splitlines()[1:]]
    hard = {row[0].split("  ")[0].strip(): row for row in rows}
    limits = {name: (proc / "limits").read_text().split(name)[1].split()[1] for name in hard if name.startswith("Max")}
    assert limits["Max file size"] == limits["Max core file size"] == limits["Max processes"] == "0"
    assert int(limits["Max address space"]) < 12 << 30
    assert int(limits["Max open files"]) <= 256
    status = (proc / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert b"SECRET" not in (proc / "environ").read_bytes()
    assert (proc / "cwd").readlink() == Path("/")
    files = [str(one.readlink()) for one in (proc / "fd").iterdir()]
    assert [one for one in files if one.startswith(str(tmp_path))] == []
    assert (proc / "oom_score_adj").read_text().strip() == "1000"
    assert os.getpgid(child_of(teacher).pid) != os.getpgid(0)


ESCAPES = """
import ctypes, fcntl, json, os, resource, signal, socket, sys, threading
from distilltool import confine, isolated
root, port, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
there, libc = root + "/there", ctypes.CDLL(None, use_errno=True)
def owner(kind, sign):
    ends = os.pipe()
    fcntl.fcntl(ends[0], kind, sign)
def empty(flags):
    os.close(os.open(there, flags | os.O_TRUNC))
def call(number, *said):
    if libc.syscall(number, *said) < 0:
        raise OSError(ctypes.get_errno(), "")
def unix(place):
    socket.socket(socket.AF_UNIX).connect(place)
CALLS = {
    "truncate": lambda: os.truncate(there, 0),
    "empty": lambda: empty(os.O_RDONLY),
    "chmod": lambda: os.chmod(there, 0o777),
    "fchmod": lambda: os.fchmod(os.open(there, os.O_RDONLY), 0o777),
    "chown": lambda: os.chown(there, os.getuid(), os.getgid()),
    "utime": lambda: os.utime(there, (0, 0)),
    "xattr": lambda: os.setxattr(there, "user.x", b"x"),
    "unix": lambda: unix(root + "/socket"),
    "abstract": lambda: unix("\\0" + sys.argv[4]),
    "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", root + "/datagrams"),
    "kill 0": lambda: os.kill(other, 0),
    "kill": lambda: os.kill(other, signal.SIGTERM),
    "parent": lambda: os.kill(os.getppid(), 0),
    "group": lambda: os.killpg(os.getpgid(other), 0),
    "pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(other), 0),
    "owner": lambda: owner(fcntl.F_SETOWN, other),
    "limits": lambda: resource.prlimit(other, resource.RLIMIT_CORE, (0, 0)),
    "exec": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "io_uring": lambda: call(425, 1, ctypes.create_string_buffer(120)),
    "device": lambda: fcntl.ioctl(os.open(there, os.O_RDONLY), 0x80086601, bytes(8)),
}
FILES = {
    "write": lambda: open(root + "/new", "w"),
    "change": lambda: open(there, "r+"),
    "cut": lambda: open(there, "w"),
    "remove": lambda: os.unlink(there),
    "folder": lambda: os.mkdir(root + "/folder"),
    "link": lambda: os.symlink("a", root + "/link"),
    "move": lambda: os.rename(there, root + "/moved"),
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 2),
}
def tries(name, work):
    try:
        work()
    except OSError:
        return None
    return name
def those(of):
    return [name for name, work in of.items() if tries(name, work)]
"""


def escapes(folder: Path, what: str) -> list[str]:
    """Which ways out are open to a process that runs some code, with everything there that they lead to."""
    import socket

    folder.mkdir()
    (folder / "there").write_text("kept")
    name = f"distilltool-{os.getpid()}"
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as unix,
            socket.socket(socket.AF_UNIX) as abstract,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        ):
            unix.bind(str(folder / "socket"))
            abstract.bind("\0" + name)
            datagrams.bind(str(folder / "datagrams"))
            unix.listen()
            abstract.listen()
            words = [str(folder), str(server.getsockname()[1]), str(other.pid), name]
            code = f"{ESCAPES}\n{what}"
            run = subprocess.run([sys.executable, "-B", "-c", code, *words], capture_output=True, text=True, check=True)
        assert (other.poll() is None) == ("kill" not in run.stdout.split("|"))
    finally:
        other.kill()
        other.wait()
    return [one for one in run.stdout.strip().split("|") if one]


GIVE_UP = "isolated._leave_rights(os.getppid(), False, 'cpu')"


def test_the_child_cannot_write_connect_or_make_anything(tmp_path: Path) -> None:
    """The very functions that give up its rights, then every way out tried from inside, from another thread too."""
    open_ways = escapes(tmp_path / "a", "print(*those(FILES), sep='|')")
    assert set(open_ways) >= {"write", "change", "cut", "remove", "folder", "link", "connect"}
    assert escapes(tmp_path / "b", f"{GIVE_UP}; print(*those(FILES), sep='|')") == []
    assert sorted(one.name for one in (tmp_path / "b").iterdir()) == ["datagrams", "socket", "there"]
    assert (tmp_path / "b" / "there").read_text() == "kept"


def test_the_child_cannot_reach_other_processes_or_change_what_files_are(tmp_path: Path) -> None:
    """The same for what Landlock does not know: first that each way is open, then that none is, in any thread."""
    found = escapes(tmp_path / "a", "print(*those(CALLS), sep='|')")
    ways = "truncate empty chmod fchmod chown utime unix abstract datagram kill parent group pidfd owner limits exec"
    assert set(found) >= {"kill 0", *ways.split()}
    folder = tmp_path / "b"
    code = (
        "start, found = threading.Event(), []\n"
        "def work(): start.wait(); found.extend(those(CALLS))\n"
        f"{GIVE_UP}\n"
        "thread = threading.Thread(target=work); thread.start()\n"
        "assert confine.forbid_calls('cpu'); start.set(); thread.join()\n"
        "found += those(CALLS) + those(FILES); os.kill(os.getpid(), 0); print(*found, sep='|')"
    )
    assert escapes(folder, code) == []
    assert (folder / "there").read_text() == "kept" and (folder / "there").stat().st_mtime > 1


def test_a_filtered_child_runs_with_many_threads(tmp_path: Path) -> None:
    """The child that runs a model has the filter, in all of its threads, and answers the same bits."""
    path = onnx_teacher(tmp_path / "t.onnx")
    here, there = (open_model(path, TeacherOptions(isolate=isolate), threads=4) for isolate in (False, True))
    child: Any = getattr(there.run, "__self__")  # noqa: B009
    batch = np.random.default_rng(0).random((8, 3, 32, 32), np.float32)
    assert np.array_equal(here.run(batch), there.run(batch))
    tasks = [(one / "status").read_text() for one in Path(f"/proc/{child.pid}/task").iterdir()]
    assert len(tasks) >= 5 and all("Seccomp:\t2" in one for one in tasks)
    child.close()


def test_memory_beyond_the_limit_is_one_line(tmp_path: Path) -> None:
    """8 GB, made at run time; a batch that needs less is answered by the same child afterwards."""
    teacher = isolated(saved(tmp_path / "m.onnx", bombs.grow(2**30)))
    with pytest.raises(OutOfMemory, match="needs more memory for 2 images"):
        teacher.embed(np.zeros((2, 8, 8, 3), np.uint8))
    small = isolated(saved(tmp_path / "s.onnx", bombs.grow(2**20)))
    assert small.embed(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 4 << 20, "not here"


def test_a_loop_without_end_is_killed_in_time(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", bombs.loop(None))
    child = Child(path, limits=Limits(open_seconds=60, run_seconds=2, image_seconds=1))
    child.open(plain.marked({"preprocess": PRE}), None, 1)
    began = time.monotonic()
    with pytest.raises(DistillError, match="gave no answer for 2 s"):
        child.run(np.zeros((1, 3, 8, 8), np.float32))
    assert time.monotonic() - began < 10
    assert not running(child.pid)


def test_opening_without_end_is_killed_in_time(tmp_path: Path) -> None:
    child = Child(onnx_teacher(tmp_path / "m.onnx"), limits=Limits(open_seconds=0.05))
    with pytest.raises(DistillError, match="gave no answer"):
        child.read()
    assert not running(child.pid)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT])
def test_a_crash_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    teacher = isolated(onnx_teacher(tmp_path / "t.onnx"))
    os.kill(child_of(teacher).pid, number)
    with pytest.raises(DistillError, match=rf"crashed in its child process \(signal {int(number)}\)"):
        teacher.embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_being_killed_means_memory(tmp_path: Path) -> None:
    """The kernel kills who takes the last of it."""
    teacher = isolated(onnx_teacher(tmp_path / "t.onnx"))
    os.kill(child_of(teacher).pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match="for want of memory"):
        teacher.embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_child_ends_with_its_teacher(tmp_path: Path) -> None:
    teacher = isolated(onnx_teacher(tmp_path / "t.onnx"))
    pid = child_of(teacher).pid
    assert running(pid)
    del teacher
    assert gone(pid, 2)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A command whose child runs without end."""
    photo_folder(tmp_path / "imgs", 3)
    saved(tmp_path / "m.onnx", bombs.loop(None))
    command = [sys.executable, "-m", "distilltool", "query", "m.onnx", "imgs", *FLAGS, "--isolate"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def its_child(process: "subprocess.Popen[bytes]") -> int:
    """The child of a command, once its model runs."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/cwd").readlink() == Path("/"):
            time.sleep(1)
            return int(children[0])
        time.sleep(0.1)
    raise AssertionError("no child")


def test_no_orphan_is_left_behind(busy: "subprocess.Popen[bytes]") -> None:
    """The parent is killed outright while the child runs a loop without end."""
    child = its_child(busy)
    busy.kill()
    assert gone(child, 5)


def test_ctrl_c(busy: "subprocess.Popen[bytes]") -> None:
    """The first asks to stop after this batch, the second stops at once; the child goes too."""
    child = its_child(busy)
    for _ in range(2):
        busy.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said = busy.communicate(timeout=10)[1].decode()
    assert busy.returncode == 130 and "Traceback" not in said
    assert gone(child, 2)


def test_the_watch_alone_ends_an_orphan(tmp_path: Path) -> None:
    """Without the kernel's help, as for a child started from a thread: it looks whether its parent is there."""
    path = saved(tmp_path / "m.onnx", bombs.loop(None))
    code = (
        "import sys, threading; import numpy as np; from pathlib import Path\n"
        "from distilltool.teacher import open_teacher, TeacherOptions\n"
        "def work():\n"
        f"    t = open_teacher(Path(sys.argv[1]), TeacherOptions(preprocess={PRE}, isolate=True))\n"
        "    print(t.model.run.__self__.pid, flush=True)\n"
        "    t.embed(np.zeros((1, 8, 8, 3), np.uint8))\n"
        "threading.Thread(target=work).start()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    assert running(child)
    parent.kill()
    parent.communicate()
    assert gone(child, 5)


def test_a_child_that_lies_is_not_believed(tmp_path: Path) -> None:
    """Another hash, weights outside the folder, no facts: what a model that took over its child could send."""
    path = onnx_teacher(tmp_path / "t.onnx")
    said = plain.of_file(file_of(path, False))
    assert plain.file_of(path, said) == file_of(path, False)
    with pytest.raises(DistillError, match="changed while it was read"):
        plain.file_of(path, {**said, "sha256": "0" * 64})
    with pytest.raises(DistillError, match="outside its folder"):
        plain.file_of(path, {**said, "external": ["../../etc/passwd"]})


NONSENSE: list[dict[str, Any]] = [
    {},
    {"external": 1, "sha256": None, "metadata": []},
    {"external": [], "metadata": 7},
    {"anatomy": 3, "choice": [], "image": "x"},
    {"anatomy": {"dict": {"kind": 1}}, "choice": {"dict": {"tensor": 1}}},
    {"anatomy": {"tuple": 5}, "choice": {"dict": 5}},
    {"anatomy": {"a": 1, "b": 2}, "image": {"a": 1, "b": 2}},
]


@pytest.mark.parametrize("lie", NONSENSE, ids=str)
@pytest.mark.parametrize("asked", ["file", "dissect", "open"])
def test_a_child_that_answers_nonsense_is_one_line(
    asked: str, lie: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process on a real wire, taken over: it knows the file's true hash and lies about the rest."""
    path = onnx_teacher(tmp_path / "t.onnx")
    true = {} if asked == "file" else plain.of_file(file_of(path, False))
    said = {**true, **lie}
    _taken_over(monkeypatch, said)
    work = {
        "file": lambda: file_of(path, True),
        "dissect": lambda: dissect(path, TeacherOptions(isolate=True)),
        "open": lambda: isolated(path),
    }[asked]
    with pytest.raises(DistillError, match="sent no facts") as found:
        work()
    assert "\n" not in found.value.message


def _taken_over(monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]) -> None:
    """Children from here on answer the same to everything."""
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from distilltool.wire import open_wire\n"
        f"wire = open_wire(0, 1); wire.receive(); wire.send({said!r}); wire.receive()"
    )
    monkeypatch.setattr("distilltool.isolate.START", code)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", "x"), ("dim", True), ("said", 1), ("said", {"tuple": [1]}), ("settings", {"tuple": [1]}), ("provider", 1)],
    ids=str,
)
def test_facts_of_another_type_are_not_believed(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fact of another type among true ones, as only a child could send it."""
    path = onnx_teacher(tmp_path / "t.onnx")
    child = Child(path)
    said = child.open(plain.marked({"preprocess": PRE}), None, 1)
    child.close()
    _taken_over(monkeypatch, said)
    assert isolated(path).model.dim == said["dim"]
    _taken_over(monkeypatch, {**said, name: value})
    with pytest.raises(DistillError, match="sent no facts"):
        isolated(path)


def spoken(content: bytes) -> wire.Message:
    """What a wire makes of some bytes."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        return wire.open_wire(reading, os.dup(reading)).receive(time.monotonic() + 2)
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\x02[]",
        b"\0\0\0\x02{]",
        b"\0\0\0\x0b" + b'{"array":1}',
        b"\0\0\0\x2a" + b'{"array":{"dtype":"object","shape":[1,1]}}',
        b"\0\0\0\x2b" + b'{"array":{"dtype":"float32","shape":[-100]}}'[:43],
        b"\0\0\0\x2f" + b'{"array":{"dtype":"float32","shape":[9999999999]}}'[:47],
        b"\0\0\0\x02{}"[:5],
    ],
)
def test_nonsense_on_the_wire(content: bytes) -> None:
    with pytest.raises(wire.Broken):
        spoken(content)


@pytest.mark.parametrize("kind", wire.KINDS)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (1,), (300_000,)])
def test_arrays_arrive_as_they_were(kind: str, shape: tuple[int, ...]) -> None:
    import threading

    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    ends = os.pipe()
    there, back = wire.open_wire(*ends), wire.open_wire(*ends)
    sender = threading.Thread(target=there.send, args=({"a": "\udcff"}, array))
    sender.start()
    found = back.receive(time.monotonic() + 5)
    sender.join()
    for end in ends:
        os.close(end)
    assert found.header == {"a": "\udcff"} and found.array is not None
    assert found.array.dtype == array.dtype and np.array_equal(found.array, array) and found.array.shape == shape


def test_marks_read_back() -> None:
    values = {"a": (1, [2, (3,)], None), "tuple": {"dict": 1.5, "x": True}, "b": []}
    assert plain.unmarked(plain.marked(values)) == values


def test_files_beside_a_model_raise_its_limit_by_what_they_take(tmp_path: Path) -> None:
    """A model's weights may lie there under any name; a file full of holes is none."""
    path = onnx_teacher(tmp_path / "a**[b].onnx")
    before = limits_of(path, "cpu").memory
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    assert limits_of(path, "cpu").memory == before
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 4096)
    assert before is not None and limits_of(path, "cpu").memory == before + 3 * (1 << 20)
    assert isolated(path).embed(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 16)


def test_the_flag_on_the_command_line(tmp_path: Path) -> None:
    onnx_teacher(tmp_path / "t.onnx")
    photo_folder(tmp_path / "imgs", 3)
    words = ["query", str(tmp_path / "t.onnx"), str(tmp_path / "imgs"), *FLAGS, "--isolate"]
    found = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "l.sqlite")])
    assert found.exit_code == 0, found.stderr

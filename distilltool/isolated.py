"""The child of `distilltool.isolate`: gives up what a model does not need, opens one file, and answers requests.

Requests are JSON objects, see `distilltool.wire`; a further kind of question is one entry in `_answer`:
{"ask": "file", "path", "memory"}: what the file says of itself;
{"ask": "dissect", "path", "memory", "options"}: its anatomy;
{"ask": "open", "path", "memory", "options", "size", "threads"}: open it to run, the facts of the model;
{"ask": "run"} with a batch as fed: the raw output.

Given up before a byte of the file is read, for good, as far as the system allows it. The child can still read what the
user can read, and take processor time; it can tell what it reads to its parent alone.

On any Unix: making a file longer, core dumps, more than 256 open files, memory beyond the limit (on a CPU).
On Linux: new privileges; the network, by a namespace without one, where an ordinary user may make such.
On Linux with Landlock switched on: making, removing, renaming and linking files, from 5.13; emptying them, from 6.2;
TCP, from 6.7; signals to other processes and abstract Unix sockets of theirs, from 6.12. On a CPU also writing, from
5.13, and commands to devices, from 6.10; on another device a file that is there can be opened for writing, as its
driver does, and changed through memory.
On Linux on x86-64 and aarch64, by a filter of system calls: emptying a file; changing its mode, owner, times and
extended attributes; running a program; signals to other processes, their limits, memory and descriptors; io_uring. On a
CPU also every socket, System V's shared memory, semaphores and queues, POSIX's queues, and all commands to devices but
five harmless ones.
On another device sockets stay, for its driver: Unix sockets with a path can be reached there.
"""

import ctypes
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilltool.confine import forbid_calls, forbid_changes

if TYPE_CHECKING:
    from distilltool.teacher import OnnxModel
    from distilltool.wire import Message, Wire

# Linux, include/uapi/linux/prctl.h, sched.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
FILES = 256  # open descriptors: libraries, one file for each external weight


def main() -> None:
    """Serve requests from standard input on what was standard output until the parent is gone."""
    parent, tied, device = int(sys.argv[2]), sys.argv[3] == "tied", sys.argv[4]
    reading, writing = take_pipes()
    _leave_rights(parent, tied, device)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    from distilltool.wire import Broken, open_wire

    wire, server = open_wire(reading, writing), Server(device)
    while True:
        try:
            serve(wire, lambda request: _answer(server, request))
        except Broken:
            os._exit(0)  # the parent is gone; nothing of ours wants to be finished


def take_pipes() -> tuple[int, int]:
    """Ends to read from and write to the parent; libraries print, and what they say is no answer."""
    reading, writing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for end in (0, 1):
        os.dup2(nowhere, end)
    return reading, writing


def tie(libc: Any, parent: int) -> None:
    """Let Linux end this process with the thread that started it."""
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


class Server:
    """What the child has open, and the device it may use."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.confined = False
        self.model: OnnxModel | None = None

    def confine(self) -> None:
        """Give up system calls, once, now that everything is imported: libraries start programs when they are."""
        if not self.confined:
            forbid_calls(self.device)
            self.confined = True


def serve(wire: "Wire", answer: Callable[["Message"], tuple[dict[str, Any], Any]]) -> None:
    """Answer one request; a fault is an answer too."""
    from distilltool.errors import DistillError
    from distilltool.runtime import RUNTIME_ERRORS

    request = wire.receive()
    array = None
    try:
        header, array = answer(request)
    except DistillError as error:
        header = {"error": type(error).__name__, "message": error.message, "fix": error.fix, "code": int(error.code)}
    except MemoryError as error:
        header = {"error": "MemoryError", "message": str(error)}
    except RUNTIME_ERRORS as error:
        header = {"error": "Failed", "message": str(error)}
    except Exception:
        header = {"error": "bug", "message": traceback.format_exc()}
    wire.send(header, array)


def _answer(server: Server, request: "Message") -> tuple[dict[str, Any], Any]:
    from distilltool import plain
    from distilltool.anatomy import dissect
    from distilltool.onnx_file import read_file
    from distilltool.teacher import TeacherOptions, open_model

    asked, said = request.header.get("ask"), request.header
    if asked in ("file", "dissect", "open"):
        path = Path(said["path"])
        server.confine()
        _limit_memory(said.get("memory"))
        if asked == "file":
            return plain.of_file(read_file(path)), None
        options: Any = plain.unmarked(said["options"])
        if asked == "dissect":
            anatomy = dissect(path, TeacherOptions(**options))
            facts = {name: value for name, value in asdict(anatomy).items() if name != "file"}
            return {**plain.of_file(anatomy.file), "anatomy": plain.marked(facts)}, None
        size: Any = plain.unmarked(said["size"])
        server.model = open_model(path, TeacherOptions(**options), size=size, threads=said["threads"])
        os.chdir("/")
        _limit(resource.RLIMIT_NPROC, 0)  # its threads are running; root is not bound by this
        return _facts(server.model), None
    if asked == "run" and server.model is not None and request.array is not None:
        return {}, server.model.run(request.array)
    raise ValueError(f"no such request: {asked}")


def _facts(model: "OnnxModel") -> dict[str, Any]:
    """Everything of a model but its `run`, for the parent to build the same from."""
    from distilltool import plain

    return {
        **plain.of_file(model.file),
        "choice": plain.marked(asdict(model.choice)),
        "image": plain.marked(asdict(model.image)),
        "settings": plain.marked(model.settings),
        "said": plain.marked(model.said),
        "dim": model.dim,
        "provider": model.provider,
    }


def _leave_rights(parent: int, tied: bool, device: str) -> None:
    """Give up all that can be given up before anything is imported; namespaces want a process of one thread.

    device: what is no CPU is a file that must be opened for writing.
    """
    for kind, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, FILES)):
        _limit(kind, most)
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if tied:
        tie(libc, parent)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, we are who goes
    except OSError:
        pass
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(CLONE_NEWNET) != 0:
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    forbid_changes(device)


def _limit(kind: int, most: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (OSError, ValueError):
        pass  # a system without it


def _limit_memory(memory: int | None) -> None:
    """Address space: what is in use now and so many bytes."""
    if memory is None:
        return
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        used = 1 << 30
    _limit(resource.RLIMIT_AS, used + memory)


def _watch(parent: int) -> None:
    """End this process once the parent is gone, also while a model runs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)

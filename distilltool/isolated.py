"""The child of `distilltool.isolate`: gives up what a model does not need, opens one file, and answers requests.

Requests are JSON objects, see `distilltool.wire`; a further kind of question is one entry in `_answer`:
{"ask": "file", "path", "memory"}: what the file says of itself;
{"ask": "dissect", "path", "memory", "options"}: its anatomy;
{"ask": "open", "path", "memory", "options", "size", "threads"}: open it to run, the facts of the model;
{"ask": "run"} with a batch as fed: the raw output.

Given up before a byte of the file is read: other processes' memory and new privileges, the network, writing, making
and removing files, core dumps, memory beyond the limit. Each as far as the system allows it; Linux allows all.
"""

import ctypes
import os
import resource
import struct
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilltool.teacher import OnnxModel
    from distilltool.wire import Message, Wire

# Linux, include/uapi/linux/prctl.h, sched.h, landlock.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_CHANGES = 0x1FF2  # version 1 without execute (1), read file (4) and read folder (8)
LANDLOCK_WRITE_FILE = 0x2
FILES = 256  # open descriptors: libraries, one file for each external weight


def main() -> None:
    """Serve requests from standard input on what was standard output until the parent is gone."""
    parent, tied, device = int(sys.argv[2]), sys.argv[3] == "tied", sys.argv[4]
    reading, writing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for end in (0, 1):  # libraries print; what they say is no answer
        os.dup2(nowhere, end)
    _leave_rights(parent, tied, device)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    from distilltool.wire import Broken, open_wire

    wire, server = open_wire(reading, writing), Server()
    while True:
        try:
            _serve(wire, server)
        except Broken:
            os._exit(0)  # the parent is gone; nothing of ours wants to be finished


class Server:
    """What the child has open."""

    def __init__(self) -> None:
        self.model: OnnxModel | None = None


def _serve(wire: "Wire", server: Server) -> None:
    """Answer one request; a fault is an answer too."""
    from distilltool.errors import DistillError
    from distilltool.runtime import RUNTIME_ERRORS

    request = wire.receive()
    array = None
    try:
        header, array = _answer(server, request)
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
        libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, we are who goes
    except OSError:
        pass
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(CLONE_NEWNET) != 0:
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _forbid_changes(libc, LANDLOCK_CHANGES if device == "cpu" else LANDLOCK_CHANGES & ~LANDLOCK_WRITE_FILE)


def _forbid_changes(libc: ctypes.CDLL, rights: int) -> None:
    """Landlock: no file anywhere is written, made, removed or linked from here on; see landlock(7)."""
    rules = ctypes.create_string_buffer(struct.pack("=Q", rights))
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(8), 0)
    if ruleset >= 0:  # below Linux 5.13, or where it is switched off, RLIMIT_FSIZE still keeps files empty
        libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


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

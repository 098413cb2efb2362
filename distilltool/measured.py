"""The child of `distilltool.measure`: a fresh process that loads one model and times it when it is told to.

Requests are JSON objects, see `distilltool.wire`:
{"ask": "feed", "name"} with an array: the value of an input;
{"ask": "load", "path", "threads", "device", "folder"}: start a session on the file, or on the bytes that come with it;
{"ask": "first"}: the first run; {"ask": "warm", "copies"}: a warm-up; {"ask": "memory"}: the peak so far;
{"ask": "block", "seconds", "copies"}: runs for so long, the seconds of each as an array.
copies: "included" where arrays of the CPU go in and come out, "excluded" where they stay on the device.

Nothing runs in this process but what is asked for: no watching thread, no garbage collection.
"""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilltool import memory
from distilltool.isolated import serve, take_pipes, tie

if TYPE_CHECKING:
    import onnxruntime as ort

    from distilltool.wire import Message

ON_DEVICE = {"cuda": "cuda", "tensorrt": "cuda"}  # where onnxruntime can keep arrays on the device, by its name for it


def main() -> None:
    """Serve requests from standard input on what was standard output until the parent is gone."""
    parent, tied = int(sys.argv[2]), sys.argv[3] == "tied"
    reading, writing = take_pipes()
    if sys.platform == "linux" and tied:
        tie(ctypes.CDLL(None), parent)
    from distilltool import latency, runtime  # noqa: F401  # loaded before memory is looked at
    from distilltool.wire import Broken, open_wire

    gc.disable()
    wire, bench = open_wire(reading, writing), Bench()
    while True:
        try:
            serve(wire, bench.answer)
        except Broken:
            os._exit(0)


class Bench:
    """One model and what it is fed."""

    def __init__(self) -> None:
        self._feeds = dict[str, Any]()
        self._runs = dict[str, Callable[[], Any]]()

    def answer(self, request: "Message") -> tuple[dict[str, Any], Any]:
        """Answer one request: a header, and an array or None."""
        from distilltool import latency

        said = request.header
        if said["ask"] == "feed":
            self._feeds[str(said["name"])] = request.array
            return {}, None
        if said["ask"] == "load":
            return self._load(said, request.array), None
        if said["ask"] == "first":
            return {"seconds": _timed(self._runs["included"])}, None
        if said["ask"] == "warm":
            return {"runs": latency.warm(self._runs[said["copies"]]), "seconds": latency.WARM_SECONDS}, None
        if said["ask"] == "block":
            return {}, latency.block(self._runs[said["copies"]], float(said["seconds"]))
        if said["ask"] == "memory":
            return {"peak": memory.in_use("VmHWM")}, None
        raise ValueError(f"no such request: {said['ask']}")

    def _load(self, said: Mapping[str, Any], model: Any) -> dict[str, Any]:
        from distilltool.runtime import DEVICES, open_session, placed

        memory.forget_peak()
        before = memory.in_use("VmRSS")
        device, folder = str(said["device"]), Path(said["folder"]) if said["folder"] else None
        source = Path(said["path"]) if model is None else model.tobytes()
        session, seconds, wholly = _open(open_session, source, int(said["threads"]), device, folder)
        self._runs["included"] = lambda: session.run(None, self._feeds)
        if device in ON_DEVICE:
            self._runs["excluded"] = bound(session, self._feeds, ON_DEVICE[device])
        return {
            "seconds": seconds,
            "provider": str(session.get_providers()[0]),
            "nodes": placed(session) if device != "cpu" else {DEVICES["cpu"]: 0},
            "wholly": wholly,
            "before": before,
            "copies": list(self._runs),
        }


def _open(
    open_session: Callable[..., Any], source: Any, threads: int, device: str, folder: Path | None
) -> tuple[Any, float, bool]:
    """A session that leaves nothing to the CPU, or, where the device cannot do all of it, one that does."""
    from distilltool.errors import DistillError

    began = time.perf_counter()
    try:
        return open_session(source, threads, device, folder, wholly=True), time.perf_counter() - began, True
    except DistillError:
        if device == "cpu":
            raise
    began = time.perf_counter()
    return open_session(source, threads, device, folder), time.perf_counter() - began, False


def bound(
    session: "ort.InferenceSession", feeds: Mapping[str, Any], place: str, binding: Any = None
) -> Callable[[], None]:
    """One run on inputs that lie on a device already, its outputs left there; ends when the device has ended.

    binding: to fill, by default one of its own.
    """
    import onnxruntime as ort

    binding = session.io_binding() if binding is None else binding
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, place, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, place)
    binding.synchronize_inputs()

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e9

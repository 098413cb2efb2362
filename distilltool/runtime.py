"""onnxruntime: sessions on the device that was asked for, or an error; never on another one in silence."""

import io
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as ort_state
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.onnx_file import first_line, read_model

# what onnxruntime raises when it refuses or fails: a dozen classes of its own without a common base
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    UnicodeDecodeError,  # from a message that quotes the file
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
OF_THE_MODEL = (ort_state.InvalidGraph, ort_state.InvalidProtobuf, ort_state.NotImplemented)  # whatever it is to run on
RUN_SECONDS = 120.0  # for one batch, at least
IMAGE_SECONDS = 20.0  # for each image of a batch, where that is more
STOP_SECONDS = 5.0  # for a node to end once a run is to stop
DEVICES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
WHEELS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "coreml": "onnxruntime on macOS",
}
LIBRARIES = {
    "cuda": "the driver (nvidia-smi) and CUDA's libraries (pip install 'onnxruntime-gpu[cuda,cudnn]')",
    "tensorrt": "the driver (nvidia-smi), TensorRT's libraries and CUDA's (pip install 'onnxruntime-gpu[cuda,cudnn]')",
}
NO_MEMORY = (
    "failed to allocate",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "memory exhausted",
    "cudaerrormemory",
)


def open_session(
    model: Path | bytes, threads: int, device: str = "cpu", folder: Path | None = None, *, wholly: bool = False
) -> ort.InferenceSession:
    """Start onnxruntime on a device; a model it refuses and a device that is not there are a DistillError.

    model: a file, or a serialised model whose external data lies in `folder`. threads: of the CPU, also for what a
    device leaves to it. wholly: refuse to leave anything to the CPU.
    """
    provider = provider_of(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to the decoders
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    missing = _preload(device)
    if device != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(wholly)))
    name = str(model) if isinstance(model, Path) else "the model"
    try:
        with nullcontext() if device == "cpu" else _unlogged():
            session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=_with_helpers(provider, threads, model),
                enable_fallback=0,  # it would print to stdout and go on with the CPU
            )
    except RUNTIME_ERRORS as error:
        where = "" if device == "cpu" else f" on {device}"
        about_model = device == "cpu" or isinstance(error, OF_THE_MODEL) or "Load model" in str(error)
        raise DistillError(
            f"onnxruntime cannot run {name}{where} ({first_line(error)})",
            "check it with onnx.checker; custom operators are not supported" if about_model else _mend(device, missing),
        ) from None
    got = _really_runs(session, provider)
    if got != provider:
        raise DistillError(
            f"--device {device} was asked for, but onnxruntime would run {name} with {got}", _mend(device, missing)
        )
    return session


class Runner:
    """Runs a session in a thread of its own, so that Ctrl-C reaches whoever waits, and no longer than a limit.

    onnxruntime looks between two nodes whether it is to stop; one thread for all runs, as devices keep state in it.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._waiting: SimpleQueue[_Run | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, output: str, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """One output for these inputs; what onnxruntime raises is raised here. DistillError beyond the limit."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._session, self._waiting), daemon=True)
            self._thread.start()
            weakref.finalize(self, self._waiting.put, None)
        images = max(len(one) if one.ndim else 1 for one in feeds.values())
        run = _Run(output, feeds)
        self._waiting.put(run)
        limit = max(RUN_SECONDS, IMAGE_SECONDS * images)
        try:
            if not run.done.wait(limit):
                run.stop()
                raise DistillError(
                    f"the model was stopped: it gave no answer for a batch of {images} images in {limit:.0f} s",
                    "use a smaller --batch, or do not trust this file",
                )
        except KeyboardInterrupt:
            run.stop()
            raise
        if run.error is not None:
            raise run.error
        return np.asarray(run.found)


class _Run:
    """One run on its way to the thread and back."""

    def __init__(self, output: str, feeds: Mapping[str, NDArray[Any]]) -> None:
        self.output, self.feeds = output, feeds
        self.options = ort.RunOptions()
        self.options.log_severity_level = 4
        self.done = threading.Event()
        self.found: Any = None
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Ask onnxruntime to stop, and give it a moment to."""
        self.options.terminate = True
        self.done.wait(STOP_SECONDS)


def _work(session: ort.InferenceSession, waiting: "SimpleQueue[_Run | None]") -> None:
    while (run := waiting.get()) is not None:
        try:
            run.found = session.run([run.output], dict(run.feeds), run.options)[0]
        except BaseException as error:
            run.error = error
        run.done.set()
        del run  # its arrays are the taker's alone


def provider_of(device: str) -> str:
    """onnxruntime's name for a device, checked against what this build of it has."""
    if device not in DEVICES:
        raise DistillError(f"there is no device {device!r}", f"use --device {'|'.join(DEVICES)}")
    if DEVICES[device] not in ort.get_available_providers():
        raise DistillError(
            f"--device {device}: this onnxruntime is built without {DEVICES[device]}",
            f"install {WHEELS.get(device, 'another onnxruntime')} in place of onnxruntime, or use --device cpu",
        )
    return DEVICES[device]


def _preload(device: str) -> list[str]:
    """Load CUDA and cuDNN from the packages beside us, where the system has none; the names of what is not there."""
    preload: Callable[[], None] | None = getattr(ort, "preload_dlls", None)
    if device not in ("cuda", "tensorrt") or preload is None:
        return []
    with redirect_stdout(io.StringIO()) as said, suppress(RuntimeError):
        preload()
    return re.findall(r"^Failed to load (\S+):", said.getvalue(), re.MULTILINE)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Nothing on standard error of what a device lacks, which is said in one line; other sessions keep their log."""
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # onnxruntime's own, as nobody can ask what it was


def _mend(device: str, missing: Sequence[str]) -> str:
    """What to look at where a device is not used."""
    absent = f", of which {', '.join(missing)} cannot be loaded" if missing else ""
    return f"check {LIBRARIES.get(device, 'its driver and libraries')}{absent}, or use --device cpu"


def _with_helpers(provider: str, threads: int, model: Path | bytes) -> list[str | tuple[str, dict[str, str]]]:
    """The provider, then the one it hands over to what it cannot do; onnxruntime adds the CPU by itself."""
    if provider == "OpenVINOExecutionProvider":  # it has threads of its own, as many as the host has processors
        return [(provider, {"num_of_threads": str(threads)})]
    if provider == "TensorrtExecutionProvider":
        return [(provider, _of_tensorrt(model)), "CUDAExecutionProvider"]
    return [provider]


def _of_tensorrt(model: Path | bytes) -> dict[str, str]:
    """The precisions that TensorRT may compute in: those that the graph itself has, and float32."""
    graph = (onnx.ModelProto.FromString(model) if isinstance(model, bytes) else read_model(model)).graph
    halves = any(one.data_type == onnx.TensorProto.FLOAT16 for one in graph.initializer)
    quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
    return {"trt_fp16_enable": str(int(halves)), "trt_int8_enable": str(int(quantised))}


def _really_runs(session: ort.InferenceSession, provider: str) -> str:
    """The provider that the session runs with: one that is there, but was given no part of the graph, is not it."""
    first = str(session.get_providers()[0])
    assigned: Callable[[], Any] | None = getattr(session, "get_provider_graph_assignment_info", None)
    if first != provider or assigned is None or provider == DEVICES["cpu"]:
        return first
    takers = {str(part.ep_name) for part in assigned()}
    return provider if not takers or takers & {provider, *_named(provider)} else sorted(takers)[0]


def placed(session: ort.InferenceSession) -> dict[str, int]:
    """Nodes of the graph as it runs, by the provider that took them; {} where that was not recorded."""
    assigned: Callable[[], Any] | None = getattr(session, "get_provider_graph_assignment_info", None)
    counts = dict[str, int]()
    try:
        parts = assigned() if assigned is not None else ()
    except RUNTIME_ERRORS:  # a session on the CPU alone records nothing
        return {}
    for part in parts:
        counts[str(part.ep_name)] = counts.get(str(part.ep_name), 0) + len(part.get_nodes())
    return counts


def _named(provider: str) -> list[str]:
    """The providers a device's own may hand its work to without leaving the device."""
    return ["CUDAExecutionProvider"] if provider == "TensorrtExecutionProvider" else []


def is_memory(error: Exception) -> bool:
    """Whether an error of a run means that it wanted more memory than there was."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in NO_MEMORY)

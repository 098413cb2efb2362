"""Real inference servers for tests: MLServer and Triton out of the package index, each in an environment of its own."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest

HERE = Path(__file__).parent / "serving"
CACHE = Path(__file__).parent.parent / ".cache"
START_SECONDS = 60.0
DATATYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "UINT8": "UINT8"}


def environment(name: str, locks: Path = HERE) -> Path:
    """A virtual environment with what NAME.lock lists, made once; skips the test where pip cannot install it."""
    folder, lock = CACHE / f"{name}-venv", locks / f"{name}.lock"
    stamp, wanted = folder / "installed", hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "-r", lock], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {name}: {done.stderr.strip().splitlines()[-1][:200]}")
    stamp.write_text(wanted)
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(kw_only=True)
class _Process:
    """A server process; `root` holds its files, its log among them."""

    root: Path
    port: int
    words: list[str | Path] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, ready: str) -> None:
        """Start it and wait until it answers at `ready`."""
        with (self.root / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.words,
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.variables},
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{ready}", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        self.signal(signal.SIGKILL)
        raise RuntimeError(f"the server did not start:\n{(self.root / 'log.txt').read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to the server and its children."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            if number == signal.SIGKILL:
                self.process.wait()


class MLServer:
    """MLServer with one ONNX model in `root`."""

    def __init__(self, root: Path, model: Path, name: str = "teacher", version: str | None = None) -> None:
        self.model = root / name
        self.model.mkdir(parents=True)
        shutil.copy(HERE / "mlserver_runtime.py", self.model)
        shutil.copy(model, self.model / "model.onnx")
        settings: dict[str, Any] = {"name": name, "implementation": "mlserver_runtime.OnnxModel", **declared(model)}
        if version:
            settings["parameters"] = {"version": version}
        (self.model / "model-settings.json").write_text(json.dumps(settings))
        http, grpc, metrics = free_ports(3)
        ports = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
        alone = {"parallel_workers": 0, "debug": False, "metrics_endpoint": None}
        (root / "settings.json").write_text(json.dumps({**ports, **alone}))
        python = environment("mlserver") / "bin"
        self._process = _Process(root=root, port=http, words=[python / "mlserver", "start", "."])
        self.base = f"http://127.0.0.1:{http}"
        self._path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
        self.url = self.base + self._path

    def start(self) -> None:
        """Start it, or start it again."""
        self._process.start(f"{self._path}/ready")

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self._process.signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it answering; connections are still taken by the system."""
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.signal(signal.SIGCONT)

    def trouble(self, **what: Any) -> None:
        """Tell it how to misbehave; nothing is to behave."""
        file = self.model / "trouble.json"
        if what:
            file.write_text(json.dumps(what))
        else:
            file.unlink(missing_ok=True)

    def calls(self) -> list[str]:
        """A name for each image it was ever asked about, in order."""
        file = self.model / "calls.txt"
        return file.read_text().split() if file.exists() else []


class Triton:
    """Triton with one ONNX model in `root`, run by its Python backend."""

    def __init__(self, root: Path, model: Path, name: str = "teacher", largest: int = 8) -> None:
        folder = root / "models" / name
        (folder / "1").mkdir(parents=True)
        shutil.copy(model, folder / "model.onnx")
        made = environment("triton")
        packages = made / f"lib/python{sysconfig.get_python_version()}/site-packages"
        code = (HERE / "triton_model.py").read_text()
        (folder / "1/model.py").write_text(f"import sys\n\nsys.path.insert(0, {str(packages)!r})\n{code}")
        (folder / "config.pbtxt").write_text(configuration(model, largest))
        server = packages / "pytriton/tritonserver"
        shutil.copytree(server / "backends", root / "backends")
        stub = server / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
        shutil.copy(stub, root / "backends/python")
        [port] = free_ports(1)
        flags = ["--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1", f"--http-port={port}"]
        places = [f"--model-repository={root / 'models'}", f"--backend-directory={root / 'backends'}"]
        self._process = _Process(
            root=root,
            port=port,
            words=[server / "bin/tritonserver", *places, *flags],
            variables={"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PYTHONHOME": sys.base_prefix},
        )
        self._path = f"/v2/models/{name}"
        self.base = f"http://127.0.0.1:{port}"
        self.url = self.base + self._path

    def start(self) -> None:
        """Start it."""
        self._process.start(f"{self._path}/ready")

    def stop(self) -> None:
        """Let it end by itself, so that it leaves no shared memory behind."""
        self._process.signal(signal.SIGTERM)
        if self._process.process is not None:
            try:
                self._process.process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.signal(signal.SIGKILL)


def tensors(model: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of an ONNX file as the protocol declares them; -1 is a free side."""
    graph = onnx.load(model).graph

    def told(values: Sequence[Any]) -> list[dict[str, Any]]:
        found = []
        for one in values:
            kind = one.type.tensor_type
            name = DATATYPES[onnx.TensorProto.DataType.Name(kind.elem_type)]
            found.append({"name": one.name, "datatype": name, "shape": [d.dim_value or -1 for d in kind.shape.dim]})
        return found

    return told(graph.input), told(graph.output)


def declared(model: Path) -> dict[str, Any]:
    """The part of MLServer's model-settings.json that declares tensors."""
    inputs, outputs = tensors(model)
    return {"inputs": inputs, "outputs": outputs}


def configuration(model: Path, largest: int) -> str:
    """Triton's config.pbtxt."""
    inputs, outputs = tensors(model)

    def told(values: list[dict[str, Any]]) -> str:
        lines = [
            f'{{name: "{one["name"]}" data_type: TYPE_{one["datatype"]} dims: {one["shape"][1:]}}}' for one in values
        ]
        return f"[{', '.join(lines)}]"

    return (
        f'backend: "python"\nmax_batch_size: {largest}\ninput {told(inputs)}\noutput {told(outputs)}\n'
        "instance_group [{kind: KIND_CPU}]\n"
    )

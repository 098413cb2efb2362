"""Files that mean harm, by the thousand and one by one: refused in a line, or harmless."""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mutants
import pytest
from mutants import Mutant
from test_real import DATA

import distilltool

COUNT = 1000
SEED = 20261121
ISOLATED = 25  # a child costs about a second each
SECONDS = 20.0
MEMORY = 2 << 30
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """How one file ended."""

    name: str
    outcome: str
    message: str
    seconds: float
    memory: int


class Workers:
    """A process that opens one file after the other, started again where it died or hung."""

    def __init__(self, kind: str, sandbox: Path) -> None:
        self._kind, self._sandbox = kind, sandbox
        self._process: subprocess.Popen[str] | None = None

    def _alive(self) -> "subprocess.Popen[str]":
        if self._process is None:
            for name in ("home", "tmp", "work"):
                (self._sandbox / name).mkdir(exist_ok=True)
            paths = os.pathsep.join([str(Path(distilltool.__file__).parents[1]), str(HERE)])
            places = {"HOME": str(self._sandbox / "home"), "TMPDIR": str(self._sandbox / "tmp")}
            self._process = subprocess.Popen(
                [sys.executable, "-B", str(HERE / "worker.py"), self._kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=self._sandbox / "work",
                env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, **places},
            )
        return self._process

    def open(self, path: Path) -> Tried:
        """One file; a worker's death or silence is an outcome too."""
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        began = time.monotonic()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], 2 * SECONDS)[0]:
            self.close()
            return Tried(name=path.name, outcome="hangs", message="", seconds=2 * SECONDS, memory=0)
        line = process.stdout.readline()
        if not line:
            self.close()
            seconds = time.monotonic() - began
            return Tried(name=path.name, outcome="dies", message=str(process.returncode), seconds=seconds, memory=0)
        said = json.loads(line)
        return Tried(
            name=path.name,
            outcome=said["outcome"],
            message=said["message"],
            seconds=said["seconds"],
            memory=said["bytes"],
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder: mode, time of change, content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run_all(kind: str, found: Iterator[Mutant], ending: str, root: Path) -> list[Tried]:
    """Try every mutant in a sandbox; nothing outside it, and nothing but it, may change."""
    canary, sandbox = root / "canary", root / "sandbox"
    canary.mkdir()
    sandbox.mkdir()
    (canary / "secret").write_text("not to be touched")
    workers = Workers(kind, sandbox)
    workers._alive()
    tried = []
    before = snapshot(canary)
    try:
        for mutant in found:
            path = sandbox / "work" / f"{mutant.name}{ending}"
            path.write_bytes(mutant.content)
            tried.append(workers.open(path))
            assert path.read_bytes() == mutant.content
            path.unlink()
    finally:
        workers.close()
    assert snapshot(canary) == before
    assert [path for path in root.rglob("*") if path.is_file()] == [canary / "secret"]
    return tried


def check(tried: Sequence[Tried], capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """No traceback, no death, no hang, no flood; prints the count of each outcome."""
    counts = Counter(one.outcome for one in tried)
    longest, largest = max(one.seconds for one in tried), max(one.memory for one in tried)
    with capsys.disabled():
        print(f"\n{dict(counts)}, at most {longest:.1f} s and {largest / 1e6:.0f} MB", end=" ")
    assert [one for one in tried if one.outcome not in ("ran", "refused")] == []
    assert [one for one in tried if one.seconds > SECONDS] == []
    assert [one for one in tried if one.memory > MEMORY] == []
    return counts


@pytest.mark.slow
def test_a_thousand_spoilt_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = mutants.models(tmp_path / "sources")
    for path in (tmp_path / "sources").iterdir():
        path.unlink()
    counts = check(run_all("onnx", mutants.onnx_mutants(sources, COUNT, SEED), ".onnx", tmp_path / "sources"), capsys)
    assert sum(counts.values()) == COUNT
    assert counts["ran"] > 50 and counts["refused"] > 500, "the mutants reach onnxruntime, and are spoilt"


@pytest.mark.slow
def test_spoilt_models_in_isolation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same outcome in a child process as without, message for message."""
    sources = mutants.models(tmp_path / "sources")
    found = list(islice(mutants.onnx_mutants(sources, COUNT, SEED), 0, COUNT, COUNT // ISOLATED + 1))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    isolated = run_all("isolated", iter(found), ".onnx", tmp_path / "a")
    check(isolated, capsys)
    plain = run_all("onnx", iter(found), ".onnx", tmp_path / "b")
    assert [one.outcome for one in isolated] == [one.outcome for one in plain]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
def test_spoilt_real_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("squeezenet1.1_fp16_caffe", "mobilenet_v1_embedder_uint8_qdq", "mobilefacenet")
    sources = {name: (DATA / f"models/{name}.onnx").read_bytes() for name in names}
    check(run_all("onnx", mutants.onnx_mutants(sources, 150, SEED), ".onnx", tmp_path), capsys)


@pytest.mark.slow
def test_a_thousand_spoilt_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = check(run_all("image", mutants.image_mutants(COUNT, SEED), "", tmp_path), capsys)
    assert sum(counts.values()) == COUNT
    assert counts["ran"] > 50 and counts["refused"] > 200

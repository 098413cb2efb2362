"""Devices and threads: what was asked for is what runs, or an error; never more processors than we may use."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from builders import devices, onnx_teacher

from distilltool import images
from distilltool.errors import DistillError
from distilltool.runtime import DEVICES, is_memory, open_session
from distilltool.teacher import TeacherOptions, open_teacher

PLAIN = ("scale=1/255", "mean=0", "std=1")
HERE = set(ort.get_available_providers())
WHEELS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "coreml": "macOS",
}


@pytest.mark.parametrize("device", [one for one, provider in DEVICES.items() if provider not in HERE])
def test_a_device_that_is_not_here_is_an_error(teacher: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names what to install; nothing runs elsewhere instead, nothing is printed."""
    with pytest.raises(DistillError) as caught:
        open_teacher(teacher, TeacherOptions(preprocess=PLAIN, device=device))
    assert f"--device {device}" in caught.value.message and WHEELS[device] in caught.value.fix
    assert "--device cpu" in caught.value.fix and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_device_nobody_knows(teacher: Path) -> None:
    with pytest.raises(DistillError, match="no device 'gpu'.*cpu|cuda"):
        open_session(teacher, 1, "gpu")


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("shape", ["whole", "cut", "external and cut"])
def test_a_device_that_is_here_gives_the_same_vectors(tmp_path: Path, device: str, shape: str) -> None:
    """From a file, from a part of it, and with weights beside it."""
    path = onnx_teacher(tmp_path / "t.onnx", external=shape.startswith("external"))
    output = None if shape == "whole" else "shaped"
    rows = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    both = [open_teacher(path, TeacherOptions(preprocess=PLAIN, output=output, device=one)) for one in ("cpu", device)]
    assert both[1].provider == DEVICES[device]
    np.testing.assert_allclose(both[1].embed(rows), both[0].embed(rows), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("text", ["Failed to allocate memory for requested buffer of size 1", "std::bad_alloc"])
def test_what_means_out_of_memory(text: str) -> None:
    assert is_memory(RuntimeError(text)) and is_memory(MemoryError()) and not is_memory(RuntimeError("bad shape"))


CHILD = """
import os, sys
from pathlib import Path
from distilltool import images
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
from distilltool.teacher import TeacherOptions, open_teacher
before = len(os.listdir("/proc/self/task"))
teacher = open_teacher(Path(sys.argv[1]), TeacherOptions(preprocess=("scale=1/255", "mean=0", "std=1")))
held = [cell.cell_contents for cell in teacher.model.run.__closure__]
session = next(one._session for one in held if hasattr(one, "_session"))
print(images.workers(), session.get_session_options().intra_op_num_threads, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_follow_affinity(teacher: Path) -> None:
    """A process held to one processor opens a session of one thread, and starts none beside its own."""
    result = subprocess.run([sys.executable, "-c", CHILD, str(teacher)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "1", "0"]


def test_session_takes_the_threads_we_may_use(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cpu_quota", lambda: 1.9)
    assert images.workers() == 1
    monkeypatch.setattr(images, "cpu_quota", lambda: 0.25)
    assert images.workers() == 1
    monkeypatch.setattr(images, "cpu_quota", lambda: 4096.0)
    assert images.workers() == len(os.sched_getaffinity(0))


QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


def groups(root: Path, membership: str, files: dict[str, str]) -> float | None:
    """The quota read from control groups that hold these files."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(membership)
    return images.cpu_quota(root / "cgroup", root / "self")


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3.0),
        ("0::/elsewhere\n", {"cpu.max": "100000 50000\n"}, 2.0),
        ("0::/../up\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("4:cpu,cpuacct:/docker/x\n", {f"cpu,cpuacct/{QUOTA}": "250000", f"cpu,cpuacct/{PERIOD}": "100000"}, 2.5),
        ("4:cpu:/docker/x\n", {f"cpu/docker/x/{QUOTA}": "50000", f"cpu/docker/x/{PERIOD}": "100000"}, 0.5),
        ("4:cpu:/\n0::/\n", {f"cpu/{QUOTA}": "-1", f"cpu/{PERIOD}": "100000"}, None),
        ("3:memory:/m\n", {"memory/m/cpu.max": "1 100000"}, None),
        ("garbage\n", {"cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quota_of_control_groups(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None) -> None:
    """Both versions, nested, fractions; the tightest group counts."""
    assert groups(tmp_path, membership, files) == quota


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert images.cpu_quota(tmp_path / "none", tmp_path / "nothing") is None

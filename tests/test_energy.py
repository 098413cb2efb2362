"""Energy by counters that are made: which are read, when, and whose joules they are taken for."""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from distilltool.energy import Counter, Meter, open_meter
from distilltool.errors import DistillError
from distilltool.progress import Silent
from distilltool.stages.bench import Lane, _turns

RENEWED = 0.1  # seconds


def zone(root: Path, place: str, name: str, now: int, most: int = 10_000_000) -> Path:
    folder = root / f"intel-rapl:{place}"
    folder.mkdir()
    for file, value in (("name", name), ("energy_uj", now), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_rapl_is_read_and_wraps(tmp_path: Path) -> None:
    """Two packages in microjoules, one of which starts anew at its limit."""
    first = zone(tmp_path, "0", "package-0", 1_000_000, 9_000_000)
    second = zone(tmp_path, "1", "package-1-die-0", 8_000_000)
    meter = open_meter("cpu", tmp_path)
    before = meter.read()
    assert meter.source == "RAPL" and before == (1.0, 8.0)
    (first / "energy_uj").write_text("3500000\n")
    (second / "energy_uj").write_text("500000\n")
    assert meter.since(before) == pytest.approx(2.5 + 2.5)
    with pytest.raises(DistillError, match="no RAPL"):
        open_meter("cpu", tmp_path / "nowhere")


def test_nothing_is_counted_twice(tmp_path: Path) -> None:
    """The platform has the packages in it, a package its cores."""
    zone(tmp_path, "0", "package-0", 1_000_000)
    zone(tmp_path, "0:0", "core", 400_000)
    zone(tmp_path, "1", "psys", 5_000_000)
    zone(tmp_path, "10", "package-1", 3_000_000)
    assert sorted(open_meter("cpu", tmp_path).read()) == [1.0, 3.0]


def test_the_platform_alone_is_no_processor(tmp_path: Path) -> None:
    zone(tmp_path, "0", "psys", 5_000_000)
    with pytest.raises(DistillError, match="no RAPL"):
        open_meter("cpu", tmp_path)


class Power:
    """A machine whose counter is renewed from time to time."""

    def __init__(self) -> None:
        self.times, self.joules = [0.0], [0.0]

    def spend(self, seconds: float, watts: float) -> None:
        self.times.append(self.times[-1] + seconds)
        self.joules.append(self.joules[-1] + seconds * watts)

    def read(self) -> float:
        return float(np.interp(self.times[-1] // RENEWED * RENEWED, self.times, self.joules))


class Runs:
    """A worker whose runs take so long and spend so much."""

    def __init__(self, power: Power, seconds: float, watts: float) -> None:
        self._power, self._seconds, self._watts = power, seconds, watts

    def warm(self, copies: str) -> dict[str, float]:
        return {"seconds": 10 * self._seconds, "runs": 10}

    def block(self, seconds: float, copies: str) -> NDArray[np.float64]:
        count = max(2, round(seconds / self._seconds))
        self._power.spend((count + 1) * self._seconds, self._watts)
        return np.full(count, self._seconds)

    def peak(self) -> int:
        return 0


@pytest.mark.parametrize("seconds", [0.001, 0.03, 1.5])
def test_each_model_is_given_its_own_joules(seconds: float) -> None:
    """Turns are shorter than what the counter takes to be renewed: 300 watts beside 30."""
    power = Power()
    meter = Meter(source="NVML", counters=[Counter(read=power.read)])
    sides = {"baseline": 30.0, "model": 300.0, "again": 30.0}
    lanes = [
        Lane(side=side, subject=cast(Any, None), fed=(), worker=cast(Any, Runs(power, seconds, watts)))
        for side, watts in sides.items()
    ]
    found = {one.lane.side: one.joules for one in _turns(lanes, "none", 3.0, meter, Silent())}
    assert found["model"] == pytest.approx(300 * seconds, rel=0.06)
    assert found["baseline"] == pytest.approx(30 * seconds, rel=0.06)
    assert found["again"] is None


class Nvml:
    """Two GPUs as NVML lists them, by their place on the bus."""

    NVMLError = RuntimeError

    def __init__(self, *names: str) -> None:
        self._names = names

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, at: int) -> int:
        return at

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"MIG-1": 1}[uuid]

    def nvmlDeviceGetUUID(self, at: int) -> str:
        return f"GPU-{at}{at}-abc"

    def nvmlDeviceGetName(self, at: int) -> str:
        return self._names[at]

    def nvmlDeviceGetTotalEnergyConsumption(self, at: int) -> int:
        return 1000 * (at + 1)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs alike; what CUDA may see of them is not said."""
    monkeypatch.setitem(sys.modules, "pynvml", cast(Any, Nvml("H", "H")))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("said", "joules"),
    [(None, 1.0), ("1", 2.0), ("1,0", 2.0), ("GPU-11", 2.0), ("GPU-00-abc,GPU-11-abc", 1.0), ("MIG-1", 2.0)],
)
def test_the_gpu_that_cuda_takes_first_is_read(two: pytest.MonkeyPatch, said: str | None, joules: float) -> None:
    if said is not None:
        two.setenv("CUDA_VISIBLE_DEVICES", said)
    meter = open_meter("cuda")
    assert (meter.source, meter.read()) == ("NVML", (joules,))


@pytest.mark.parametrize("said", ["", "-1", "5", "GPU-", "GPU-7", "none"])
def test_a_gpu_that_is_not_there_is_said(two: pytest.MonkeyPatch, said: str) -> None:
    two.setenv("CUDA_VISIBLE_DEVICES", said)
    with pytest.raises(DistillError, match=f"CUDA_VISIBLE_DEVICES={said} names no GPU"):
        open_meter("cuda")


def test_gpus_of_two_kinds(two: pytest.MonkeyPatch) -> None:
    """CUDA may count the fastest first: only a UUID, or the order of the bus, says which that is."""
    two.setitem(sys.modules, "pynvml", cast(Any, Nvml("slow", "fast")))
    with pytest.raises(DistillError, match="which of fast, slow CUDA takes first"):
        open_meter("tensorrt")
    two.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert open_meter("tensorrt").read() == (1.0,)
    two.delenv("CUDA_DEVICE_ORDER")
    two.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert open_meter("tensorrt").read() == (2.0,)


def test_counters_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (zone(tmp_path, "0", "package-0", 1) / "energy_uj").unlink()
    with pytest.raises(DistillError, match="cannot be read"):
        open_meter("cpu", tmp_path)

"""Energy as the machine counts it: processor packages by RAPL, a GPU by NVML. It counts all that runs, not us alone."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilltool.errors import DistillError

RAPL = Path("/sys/class/powercap")
ZONES = "intel-rapl:*"  # AMD's processors are counted below the same name
PACKAGE = "package"  # other zones are parts of these, or of the whole platform (psys), which has them in it
LAG = 0.2  # seconds until a counter holds what was spent: NVML's is renewed every 20 to 100 ms
LEAST_SECONDS = 2.0  # between two readings, so that the lag is a twentieth at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Counter:
    """A counter that only grows. read: joules since some time; wraps: joules at which it starts anew, 0 for never."""

    read: Callable[[], float]
    wraps: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """What counts energy. source: its name."""

    source: str
    counters: Sequence[Counter]

    def read(self) -> tuple[float, ...]:
        """Where the counters stand."""
        return tuple(one.read() for one in self.counters)

    def since(self, before: tuple[float, ...]) -> float:
        """Joules since an earlier reading."""
        spent = 0.0
        for one, was in zip(self.counters, before, strict=True):
            grown = one.read() - was
            spent += grown + one.wraps if grown < 0 else grown
        return spent


def open_meter(device: str, root: Path = RAPL) -> Meter:
    """A meter for a device; DistillError where this machine does not say, with the reason."""
    return _nvml() if device in ("cuda", "tensorrt") else _rapl(root)


def _rapl(root: Path) -> Meter:
    """Every package's `energy_uj` (Linux, power/powercap)."""
    try:
        zones = [one for one in sorted(root.glob(ZONES)) if (one / "name").read_text().startswith(PACKAGE)]
        if not zones:
            raise DistillError("this machine does not say what energy it takes (no RAPL)", "leave --energy out")
        counters = [
            Counter(read=_reader(zone / "energy_uj"), wraps=int((zone / "max_energy_range_uj").read_text()) / 1e6)
            for zone in zones
        ]
        for one in counters:
            one.read()
    except OSError as error:
        raise DistillError(
            f"the energy counters cannot be read ({error.strerror})", f"let root make {error.filename} readable"
        ) from None
    return Meter(source="RAPL", counters=counters)


def _reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _nvml() -> Meter:
    """The count of the GPU that is CUDA's first (nvmlDeviceGetTotalEnergyConsumption, in millijoules)."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise DistillError("the GPU's energy is read by a package", "install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        gpu = _first_gpu(pynvml, os.environ)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError as error:
        raise DistillError(f"the GPU does not say what energy it takes ({error})", "leave --energy out") from None
    return Meter(source="NVML", counters=[Counter(read=lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)])


def _first_gpu(nvml: Any, environment: Mapping[str, str]) -> Any:
    """NVML's handle of what CUDA takes for device 0: the first that CUDA_VISIBLE_DEVICES names (CUDA C++ Programming
    Guide, environment variables).

    nvml: the module. Raises DistillError where that cannot be known: NVML counts by place on the bus, CUDA may count
    the fastest first.
    """
    said = environment.get("CUDA_VISIBLE_DEVICES")
    first = "0" if said is None else said.split(",")[0].strip()
    if first.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    every = [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]
    if first.startswith("GPU-"):  # as much of it as is unambiguous
        found = [one for one in every if _text(nvml.nvmlDeviceGetUUID(one)).startswith(first)]
    else:
        found = every[int(first) :][:1] if first.isdecimal() else []
        kinds = {_text(nvml.nvmlDeviceGetName(one)) for one in every}
        if len(kinds) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise DistillError(
                f"nobody says which of {', '.join(sorted(kinds))} CUDA takes first",
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name one by its UUID in CUDA_VISIBLE_DEVICES",
            )
    if len(found) != 1:
        raise DistillError(f"CUDA_VISIBLE_DEVICES={said or ''} names no GPU", "name one that nvidia-smi -L lists")
    return found[0]


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode()

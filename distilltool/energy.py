"""Energy as the machine counts it: processor packages by RAPL, a GPU by NVML. It counts all that runs, not us alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distilltool.errors import DistillError

RAPL = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:?"  # AMD's processors are counted below the same name


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
    zones = sorted(root.glob(PACKAGES))
    if not zones:
        raise DistillError("this machine does not say what energy it takes (no RAPL)", "leave --energy out")
    try:
        counters = [
            Counter(read=_reader(zone / "energy_uj"), wraps=int((zone / "max_energy_range_uj").read_text()) / 1e6)
            for zone in zones
        ]
        for one in counters:
            one.read()
    except OSError as error:
        raise DistillError(
            f"the energy counters cannot be read ({error.strerror})", f"let root read {zones[0]}/energy_uj"
        ) from None
    return Meter(source="RAPL", counters=counters)


def _reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _nvml() -> Meter:
    """The first GPU's own count (nvmlDeviceGetTotalEnergyConsumption, in millijoules)."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise DistillError("the GPU's energy is read by a package", "install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError as error:
        raise DistillError(f"the GPU does not say what energy it takes ({error})", "leave --energy out") from None
    return Meter(source="NVML", counters=[Counter(read=lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)])

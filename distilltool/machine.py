"""What a measurement was taken on, in enough detail to judge it later and to refuse to compare it with another's."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distilltool import __version__
from distilltool.images import cpu_quota
from distilltool.latency import machine

DECIDING = {
    "cpu": "processor",
    "vector": "vector instructions",
    "processors": "number of processors",
    "affinity": "processors it may use",
    "quota": "processors' worth of time it may use",
    "onnxruntime": "onnxruntime",
}
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def facts() -> dict[str, Any]:
    """Processor, what of it may be used, load, versions."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        **machine(),
        "flags": _flags(),
        "processors": os.cpu_count(),
        "affinity": affinity,
        "quota": cpu_quota(),
        "governor": _text(GOVERNOR),
        "load": [round(one, 2) for one in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "distilltool": __version__,
        "implementation": sys.implementation.name,
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """In what two machines, or what may be used of them, differ so that their times cannot be compared; empty where
    they do not."""
    return [
        f"{what}: {_said(theirs.get(key))} there, {_said(ours.get(key))} here"
        for key, what in DECIDING.items()
        if ours.get(key) != theirs.get(key)
    ]


def _said(value: Any) -> str:
    """A fact within a sentence: of the numbers of many processors the stretches, 0-63."""
    if value is None:
        return "unlimited or unknown"
    if not isinstance(value, list):
        return str(value)
    stretches = list[list[Any]]()
    for one in value:
        if stretches and isinstance(one, int) and one == stretches[-1][-1] + 1:
            stretches[-1].append(one)
        else:
            stretches.append([one])
    return " ".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in stretches) or "none"


def _flags() -> list[str]:
    """Everything the processor says it can do."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return value.split()
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""What this process holds in memory, and giving back what it no longer uses."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
LARGEST = 32 << 20  # bytes that glibc's own rule lets stay at most
KEPT = 1 << 30  # bytes that may stay meanwhile


def in_use(field: str) -> int:
    """Bytes of this process in the processor's memory: VmRSS is now, VmHWM is the peak. Where the system does not tell
    them apart (anything but Linux), the peak."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let the peak begin with what is in use now, where the system allows that (Linux, filesystems/proc)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def give_back() -> None:
    """Return to the system what was freed and is kept for later by the C library, where that is glibc's: after a
    network has run that is hundreds of megabytes (malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def freed_kept() -> Iterator[None]:
    """Large arrays that are freed meanwhile stay for the next ones, where the C library is glibc's: a network in
    training frees and takes the same ones in every step, and of fresh memory the system clears each page. At the end
    all is given back, and what is freed from then on is where glibc's own rule ends up (mallopt(3)). A glibc that does
    not let arrays this large stay lets them up to where its rule ends."""
    tune = getattr(ctypes.CDLL(None), "mallopt", lambda which, size: 0)
    if not (tune(MMAP_THRESHOLD, KEPT) or tune(MMAP_THRESHOLD, LARGEST)):
        yield  # the other threshold alone would end glibc's own rule too soon
        return
    tune(TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        tune(MMAP_THRESHOLD, LARGEST)
        tune(TRIM_THRESHOLD, 2 * LARGEST)
        give_back()

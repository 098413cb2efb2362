"""Ctrl-C and SIGTERM as a wish to stop at the next safe point rather than a blow."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Set once the user wants to stop; work looks at it where everything is safe on disk."""

    def __init__(self) -> None:
        self.wanted = False


@contextmanager
def stop_gently() -> Iterator[StopWish]:
    """Turn the first Ctrl-C or SIGTERM into a wish; a second one interrupts at once.

    Outside the main thread signals are left alone and the wish is never set.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if wish.wanted:
            raise KeyboardInterrupt
        wish.wanted = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

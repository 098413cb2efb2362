"""Messages between a process and its isolated child: a JSON header and at most one array, never a pickle.

A message is the length of the header (4 bytes, big-endian), the header in UTF-8, and the bytes of the array it names.
What comes out of a child is not trusted: lengths, types and shapes are checked before memory is taken for them.
"""

import json
import math
import os
import select
import struct
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_LIMIT = 16 << 20  # bytes; the facts of a model with 200,000 nodes stay below
ARRAY_LIMIT = 4 << 30  # bytes of one array: a batch of 32 maps of 2048 × 112 × 112 float32
KINDS = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()  # no objects, no strings
)


class Broken(Exception):
    """The other side is gone, or speaks nonsense."""


class Late(Exception):
    """The other side did not answer in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """header: JSON values. array: what came with it, None where nothing did."""

    header: dict[str, Any]
    array: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """Two pipe ends that do not block. Every wait ends at `deadline`, a time of time.monotonic(), inf is never."""

    reading: int
    writing: int

    def send(self, header: dict[str, Any], array: NDArray[Any] | None = None, deadline: float = math.inf) -> None:
        """Send a header and, with it, an array of plain numbers."""
        if array is not None:
            header = {**header, "array": {"dtype": array.dtype.name, "shape": list(array.shape)}}
            array = np.ascontiguousarray(array)  # gives a number an axis, so the shape was taken before
        text = json.dumps(header).encode()
        self._write(memoryview(struct.pack("!I", len(text)) + text), deadline)
        if array is not None and array.size:
            flat: Any = array.reshape(-1)  # mypy on Python 3.11 does not know an array for a buffer
            self._write(memoryview(flat).cast("B"), deadline)

    def receive(self, deadline: float = math.inf) -> Message:
        """Wait for one message. Raises Broken at its end, Late at the deadline."""
        (length,) = struct.unpack("!I", self._read(4, deadline))
        if length > HEADER_LIMIT:
            raise Broken("a header too long")
        try:
            header = json.loads(bytes(self._read(length, deadline)))
        except (ValueError, RecursionError):
            raise Broken("a header that is no JSON") from None
        if not isinstance(header, dict):
            raise Broken("a header that is no object")
        return Message(header=header, array=self._array(header.pop("array"), deadline) if "array" in header else None)

    def _array(self, said: Any, deadline: float) -> NDArray[Any]:
        kind, shape = (said.get("dtype"), said.get("shape")) if isinstance(said, dict) else (None, None)
        if kind not in KINDS or not isinstance(shape, list) or len(shape) > 32:
            raise Broken("an array of no known type")
        if not all(isinstance(side, int) and 0 <= side <= ARRAY_LIMIT for side in shape):
            raise Broken("an array of no known shape")
        dtype = np.dtype(kind)
        length = math.prod(shape) * dtype.itemsize
        if length > ARRAY_LIMIT:
            raise Broken("an array too long")
        return np.frombuffer(self._read(length, deadline), dtype).reshape(shape)

    def _read(self, length: int, deadline: float) -> bytearray:
        found = bytearray(length)
        view, at = memoryview(found), 0
        while at < length:
            _wait(self.reading, False, deadline)
            try:
                got = os.readv(self.reading, [view[at:]])
            except BlockingIOError:
                continue
            except OSError:
                got = 0
            if got == 0:
                raise Broken("the end")
            at += got
        return found

    def _write(self, view: memoryview, deadline: float) -> None:
        while view:
            _wait(self.writing, True, deadline)
            try:
                view = view[os.write(self.writing, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Broken("the end") from None


def open_wire(reading: int, writing: int) -> Wire:
    """A wire over two pipe ends, which belong to it from now on."""
    for end in (reading, writing):
        os.set_blocking(end, False)
    return Wire(reading=reading, writing=writing)


def _wait(end: int, to_write: bool, deadline: float) -> None:
    """Wait until a pipe end is ready; poll, for select cannot take descriptors above 1,023."""
    poll = select.poll()
    poll.register(end, select.POLLOUT if to_write else select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Late
        if poll.poll(min(left, 3600.0) * 1000):
            return

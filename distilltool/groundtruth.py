"""Ground truth that is published as a pickle, read without running anything that is in it, and kept as JSON.

A pickle is a program. Of what it may call, the few steps by which numpy puts an array together are admitted, and even
those build plain objects of ours: nothing of numpy is called with what the file says.
"""

import hashlib
import io
import json
import math
import pickle
import pickletools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distilltool.errors import DistillError
from distilltool.rundir import write_json

MOST_BYTES = 1 << 26
MOST_VALUES = 1 << 24  # so that lists which hold each other many times over do not fill the memory
DEEPEST = 50
REMEMBER = {"PUT", "BINPUT", "LONG_BINPUT"}
FORBIDDEN = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER"}
NUMBERS = "biuf"


class _Kind:
    """Stands for a numpy type that an array is made of."""

    def __init__(self, *_: Any) -> None:
        pass


class _Dtype:
    """What a pickled numpy.dtype says: its code, as i8 or O8, and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """What a pickled numpy array says."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.data: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


class _Scalar:
    """What a pickled numpy scalar says."""

    def __init__(self, dtype: Any, data: Any) -> None:
        self.dtype, self.data = dtype, data


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """An array as numpy pickles it by protocol 5."""
    array = _Array()
    array.data, array.dtype, array.shape, array.fortran = data, dtype, shape, order == "F"
    return array


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes as Python 3 pickles them for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes what is no bytes")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """The same of no bytes at all."""
    return b""


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.{name}", function): stand_in
        for core in ("core", "_core")
        for name, function, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """Lists, dicts, texts and numbers of a pickle; numpy arrays become lists. A `.npy` of objects is such a pickle too.

    Raises DistillError for a pickle that does anything else, or that unfolds to more than a benchmark holds.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MB")
        data = path.read_bytes()
        if data.startswith(b"\x93NUMPY"):
            data = _behind_header(data)
        _look(data)
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load(), 0, [0])
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check the path") from None
    except Exception as error:  # noqa: BLE001 a damaged pickle raises whatever it likes
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise DistillError(f"{path} is not read as ground truth ({why})", "get the file anew from its source") from None


def _behind_header(data: bytes) -> bytes:
    """The pickle inside a `.npy` of objects (numpy.lib.format)."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(file)
    if not dtype.hasobject:
        raise ValueError("its numbers are no pickle")
    return file.read()


def _look(data: bytes) -> None:
    """Refuse what an unpickler would follow blindly: other ways of making objects, and a memo larger than the file."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in FORBIDDEN:
            raise ValueError(f"it makes objects by {opcode.name}")
        if opcode.name in REMEMBER and int(argument or 0) > len(data):
            raise ValueError("it claims more memory than it has bytes")


def _plain(value: Any, depth: int, count: list[int]) -> Any:
    """Values as JSON has them. count: how many there were so far."""
    count[0] += 1
    if count[0] > MOST_VALUES or depth > DEEPEST:
        raise ValueError("it unfolds to more than a benchmark holds")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("it holds NaN or infinity")
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {str(_plain(key, depth + 1, count)): _plain(one, depth + 1, count) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, depth + 1, count) for one in value]
    if isinstance(value, _Array):
        return _array(value, depth, count)
    if isinstance(value, _Scalar):
        return _numbers(value.dtype, value.data, (), False, count)
    raise ValueError(f"it holds a {type(value).__name__.strip('_')}")


def _array(array: _Array, depth: int, count: list[int]) -> Any:
    shape = tuple(array.shape)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("it holds an array of no shape")
    if not isinstance(array.dtype, _Dtype) or str(array.dtype.code).lstrip("|<>=")[:1] != "O":
        return _numbers(array.dtype, array.data, shape, bool(array.fortran), count)
    if not isinstance(array.data, list) or len(array.data) != math.prod(shape) or len(shape) > 2:
        raise ValueError("it holds an array whose values do not fill it")
    values = [_plain(one, depth + 1, count) for one in array.data]  # row by row, whatever order they had in memory
    if len(shape) < 2:
        return values if shape else values[0]
    rows, columns = shape
    return [values[row * columns : (row + 1) * columns] for row in range(rows)]


def _numbers(dtype: Any, data: Any, shape: tuple[int, ...], fortran: bool, count: list[int]) -> Any:
    """An array of numbers from its bytes."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("it holds an array of no type")
    kind = np.dtype(f"{dtype.order if dtype.order in ('<', '>') else ''}{str(dtype.code).lstrip('|<>=')}")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data) if isinstance(data, bytearray) else data
    if kind.kind not in NUMBERS or not isinstance(raw, bytes) or len(raw) != math.prod(shape) * kind.itemsize:
        raise ValueError("it holds an array whose bytes are no numbers")
    count[0] += math.prod(shape)
    found = np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
    if not np.isfinite(found).all():
        raise ValueError("it holds NaN or infinity")
    return found.tolist()


def read_kept(path: Path, keep: Path | None) -> Any:
    """What `read_pickle` finds, read from JSON in the folder `keep` where it was read before, else kept there.

    The JSON is named by the pickle's own hash: a file that changed is read anew.
    """
    if keep is None:
        return read_pickle(path)
    try:
        kept = keep / f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.json"
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check the path") from None
    try:
        return json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError):  # not there, or half written by another program
        found = read_pickle(path)
    with suppress(OSError, DistillError):  # a folder that is not to be written costs time alone
        write_json(kept, found)
    return found

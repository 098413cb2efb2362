"""Facts of a model as JSON values and back, for what crosses the border of an isolated process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from distilltool.errors import DistillError
from distilltool.onnx_file import OnnxFile, hash_of, inside

Whole = TypeVar("Whole")


def marked(value: Any) -> Any:
    """Plain values as JSON that tells tuples from lists: tuples and dicts are wrapped in an object of their kind."""
    if isinstance(value, tuple):
        return {"tuple": [marked(one) for one in value]}
    if isinstance(value, list):
        return [marked(one) for one in value]
    if isinstance(value, dict):
        return {"dict": {str(name): marked(one) for name, one in value.items()}}
    return value


def unmarked(value: Any) -> Any:
    """The values that `marked` was given."""
    if isinstance(value, list):
        return [unmarked(one) for one in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "tuple":
            return tuple(unmarked(one) for one in inner)
        return {name: unmarked(one) for name, one in inner.items()}
    return value


def of_file(file: OnnxFile) -> dict[str, Any]:
    """What the parent cannot find out without parsing the file."""
    names = [one.relative_to(file.path.parent).as_posix() for one in file.external]
    return {"metadata": dict(file.metadata), "external": names, "sha256": file.sha256}


@contextmanager
def believed(path: Path) -> Iterator[None]:
    """Take facts apart that a child sent about a file: those that are not what they should be are a DistillError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise DistillError(f"the child process of {path} sent no facts", "do not trust this file") from None


def made(kind: type[Whole], facts: dict[str, Any]) -> Whole:
    """A dataclass of facts whose types are looked at, for they come from a child. Raises TypeError."""
    for name, hint in get_type_hints(kind).items():
        if name in facts and not _fits(facts[name], hint):
            raise TypeError(f"{kind.__name__}.{name} is no {hint}")
    return kind(**facts)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, all the way down; a whole number is no bool, but a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is None:
        return hint is Any or value is None
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and len(inner) == 2 and inner[1] is ...:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin is not None:
        return callable(value)  # not from a child
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def file_of(path: Path, said: dict[str, Any]) -> OnnxFile:
    """A file's facts with its hash taken by ourselves: a model that took over the child names no other's answers."""
    with believed(path):
        return _file_of(path, said)


def _file_of(path: Path, said: dict[str, Any]) -> OnnxFile:
    names = [str(one) for one in said["external"]]
    files = [path, *inside(path, names)]
    sha256 = hash_of(files)
    if sha256 != said["sha256"]:
        raise DistillError(f"{path} changed while it was read", "run the same command again")
    return OnnxFile(
        path=path,
        sha256=sha256,
        metadata={str(key): str(value) for key, value in said["metadata"].items()},
        size_bytes=sum(one.stat().st_size for one in files),
        external=tuple(files[1:]),
    )

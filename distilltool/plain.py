"""Facts of a model as JSON values and back, for what crosses the border of an isolated process."""

from pathlib import Path
from typing import Any

from distilltool.errors import DistillError
from distilltool.onnx_file import OnnxFile, hash_of, inside


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


def file_of(path: Path, said: dict[str, Any]) -> OnnxFile:
    """A file's facts with its hash taken by ourselves: a model that took over the child names no other's answers."""
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

"""An ONNX file and the files it keeps its weights in: read and hashed without being run."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from distilltool.errors import DistillError
from distilltool.graph import tensors
from distilltool.hazards import check_count, check_text

EXPORT_ANEW = "export the model anew, or fetch it again"
LIMIT = 2**31 - 1  # bytes of one protobuf message; more must lie in external data


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxFile:
    """What a file says of itself without being run. size_bytes and sha256 take in its external data."""

    path: Path
    sha256: str
    metadata: dict[str, str]
    size_bytes: int
    external: tuple[Path, ...] = ()


def read_file(path: Path) -> OnnxFile:
    """Read a model file without running it; hash it with the external data it needs."""
    return describe(path, read_model(path))


def describe(path: Path, model: onnx.ModelProto) -> OnnxFile:
    """Hash a model that is read already, with its external data."""
    extra = external_files(path, model)
    return OnnxFile(
        path=path,
        sha256=hash_of([path, *extra]),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        size_bytes=sum(one.stat().st_size for one in (path, *extra)),
        external=tuple(extra),
    )


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators that a model asks for; 0 where it has none of them."""
    return next((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)


def hash_of(files: Sequence[Path]) -> str:
    """sha256 of files one after the other, in hex."""
    digest = hashlib.sha256()
    for one in files:
        with one.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a model file, external data left where it is; what is no model is a DistillError of one line."""
    check_path(path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise DistillError(
            f"{path} is no ONNX model ({first_line(error)})", "give a file written by an ONNX exporter"
        ) from None
    if not model.HasField("graph") or not model.graph.node:
        raise DistillError(f"{path} is no ONNX model (it holds no graph)", "give a file written by an ONNX exporter")
    check_text(path, model)
    check_count(path, model)
    return model


def check_path(path: Path) -> None:
    """Refuse what cannot be a model, before anything of it is parsed."""
    if not path.exists():
        raise DistillError(f"there is no file {path}", "check the path of the ONNX model")
    if path.is_dir():
        raise DistillError(f"{path} is a folder", "give the .onnx file itself")
    if not path.is_file():
        raise DistillError(f"{path} is no ordinary file", "give the .onnx file itself")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check its permissions") from None
    if head.startswith(b"version https://git-lfs"):
        raise DistillError(f"{path} is a Git LFS pointer, not the model itself", "fetch the model with: git lfs pull")
    if head[4:8] == b"ORTM":  # onnxruntime would take it for its own format, whatever we parsed
        raise DistillError(f"{path} is in onnxruntime's own format", "give the .onnx file it was made from")
    if path.stat().st_size > LIMIT:
        raise DistillError(
            f"{path} is larger than 2 GB in one file, which no ONNX reader takes",
            "export it with external data (save_as_external_data)",
        )


def external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files a model keeps its weights in, in order of name; missing ones and ones elsewhere are an error."""
    held = [tensor for tensor in tensors(model.graph) if uses_external_data(tensor)]
    try:
        places = {(one.location, one.offset or 0, one.length or 0) for one in map(ExternalDataInfo, held)}
    except (ValueError, TypeError) as error:
        raise DistillError(f"{path} keeps its weights where none can be ({first_line(error)})", EXPORT_ANEW) from None
    files = inside(path, [location for location, _, _ in places])
    sizes = {one: one.stat().st_size for one in files}
    for location, offset, length in places:
        if max(offset, 0) + max(length, 0) > sizes[path.parent / location]:
            raise DistillError(
                f"{path} wants {length:,} bytes from place {offset:,} of {location}, which is shorter", EXPORT_ANEW
            )
    return files


def inside(path: Path, names: Sequence[str]) -> list[Path]:
    """Files beside a model by the names it gives them, each once, in order of name.

    A link beside the model may point to an ordinary file anywhere, as model hubs keep their caches, for whoever can
    make links in that folder can put files there too; a name in the model may not.
    """
    for name in names:
        if not _stays(name):
            raise DistillError(
                f"{path} wants to read {name!r}, which is outside its folder",
                "do not trust this file: nothing was read",
            )
    files = [path.parent / name for name in sorted(set(names))]
    missing = [one.name for one in files if not one.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DistillError(
            f"{path} keeps its weights in {missing[0]}{more}, which is not there",
            f"put it into {path.parent}, beside the model",
        )
    odd = [one.name for one in files if not one.is_file()]
    if odd:
        raise DistillError(f"{path} keeps its weights in {odd[0]}, which is no ordinary file", "do not trust this file")
    unread = [one.name for one in files if not os.access(one, os.R_OK)]
    if unread:
        raise DistillError(f"{path} keeps its weights in {unread[0]}, which cannot be read", "check its permissions")
    return files


def settle_external(model: onnx.ModelProto, path: Path) -> Path:
    """Name a model's external files by where they really are; returns the folder that the names start from.

    onnxruntime follows no link out of a model's folder, as which model hubs keep their files; `external_files` has
    judged the names before.
    """
    kept = [tensor for tensor in tensors(model.graph) if uses_external_data(tensor)]
    real = {name: (path.parent / name).resolve() for name in {ExternalDataInfo(tensor).location for tensor in kept}}
    if not real:
        return path.absolute().parent
    folder = Path(os.path.commonpath([one.parent for one in real.values()]))
    for tensor in kept:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = real[entry.value].relative_to(folder).as_posix()
    return folder


def _stays(name: str) -> bool:
    """Whether a name given in a model leads to a file in the model's folder or below it."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return (
        bool(name)
        and "\0" not in name
        and not any(one.is_absolute() or one.drive or ".." in one.parts for one in kinds)
    )


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line of bearable length, less the path of onnxruntime's source that it names."""
    place = r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\) (?:const )?(?:\[with [^\]]*\] )?"
    text = re.sub(place, "", str(error).strip().split("\n")[0])
    return (text[:157] + "...") if len(text) > 160 else text or type(error).__name__

"""The ONNX file whose graph and weights a student is made of: the teacher's own, or another that is at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilltool.embedder import Teacher
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.progress import Progress
from distilltool.teacher import OnnxEmbedder, OnnxModel, TeacherOptions, file_of, open_teacher

AUTO = "auto"  # the student that ranks best untrained
KEYS = ("cut", "width", "preprocess")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file to make a student of. output: the tensor of its embedding; pool: how a map or tokens there become a
    vector, "none" where they need not. fixed: height and width where the graph declares them."""

    path: Path
    name: str
    sha256: str
    output: str
    pool: str
    preprocess: Preprocess
    fixed: tuple[int, int] | None


def asked(spec: str) -> dict[str, str]:
    """The settings of a whole spec: of `teacher:cut=0.6` and of `onnx:FILE,width=0.5`."""
    kind, _, name = spec.partition(":")
    return settings(name.partition(",")[2] if kind == "onnx" else name)


def named(spec: str) -> str:
    """A spec as it may travel: of a file its name alone, not the folders of this machine."""
    kind, _, name = spec.partition(":")
    if kind != "onnx":
        return spec
    path, comma, rest = name.partition(",")
    return f"onnx:{Path(path).name}{comma}{rest}"


def settings(text: str) -> dict[str, str]:
    """What a spec says after its name: `cut=0.6,preprocess=imagenet` → {"cut": "0.6", "preprocess": "imagenet"}."""
    found = {}
    for piece in filter(None, text.split(",")):
        key, equals, value = piece.partition("=")
        if not equals or not value or key not in KEYS:
            raise DistillError(
                f"{piece!r} says nothing of a student", "write cut=0.6, cut=TENSOR, width=0.5 or preprocess=NAME"
            )
        found[key] = value
    return found


def open_source(
    spec: str, teacher: Teacher, isolate: bool, photos: Sequence[Path], progress: Progress
) -> Source | None:
    """The file that the spec of a student names, opened and understood; None for students of other kinds.

    isolate: the teacher's file is not to run in this process. photos: for finding out how a file wants its images where
    nothing says it, which costs no query: it is not the teacher that is asked.
    """
    kind, _, name = spec.partition(":")
    if spec == AUTO:
        readable = isinstance(teacher, OnnxEmbedder) and not isolate and not teacher.model.settings
        return _of(teacher) if readable and isinstance(teacher, OnnxEmbedder) else None
    if kind == "teacher":
        return _own(teacher, isolate)
    if kind != "onnx":
        return None
    path, _, rest = name.partition(",")
    given = settings(rest).get("preprocess")
    same = isinstance(teacher, OnnxEmbedder) and file_of(Path(path), isolate).sha256 == teacher.file.sha256
    if same and (isolate or not given):
        return _own(teacher, isolate)

    def guess(model: OnnxModel, said: Sequence[Mapping[str, Any]]) -> Preprocess:
        from distilltool import probe

        ranking = probe.look(model, said, probe.pictures(photos), progress)
        if not ranking.clear:
            raise DistillError(
                f"nothing says how {Path(path).name} wants its images, and its answers do not tell ({ranking.why})",
                f"say it: --student onnx:{path},preprocess=imagenet",
            )
        found = probe.guessed(model, said, ranking)
        progress.note(f"{Path(path).name}: images as {ranking.best.name}, guessed from its own answers")
        return found

    return _of(open_teacher(Path(path), TeacherOptions(preprocess=(given,) if given else ()), guess=guess))


def _own(teacher: Teacher, isolate: bool) -> Source:
    """The teacher itself, which must be a file that we may read."""
    if not isinstance(teacher, OnnxEmbedder):
        raise DistillError(
            "--student teacher makes a student of the teacher's own graph, but this teacher is no ONNX file",
            "use --student timm:NAME or onnx:FILE",
        )
    if isolate:
        raise DistillError(
            "--student teacher runs the teacher's graph here, which --isolate is to prevent",
            "leave one of the two away",
        )
    return _of(teacher)


def _of(embedder: OnnxEmbedder) -> Source:
    if embedder.model.settings:
        raise DistillError(
            f"{embedder.name} reads {', '.join(embedder.model.settings)} beside the image",
            "no student can be made of such a file: use --student timm:NAME or onnx:FILE",
        )
    return Source(
        path=embedder.file.path,
        name=embedder.file.path.name,
        sha256=embedder.file.sha256,
        output=embedder.output,
        pool=embedder.pool,
        preprocess=embedder.preprocess,
        fixed=embedder.model.size,
    )

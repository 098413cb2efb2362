"""Open any ONNX file that turns an image into a vector: a teacher, or a student we exported."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool import plain
from distilltool.embedder import Teacher, one_size
from distilltool.errors import DistillError, OutOfMemory
from distilltool.graph import Graph, Value, sides
from distilltool.hazards import check_graph, check_sizes
from distilltool.images import workers
from distilltool.inputs import as_text, settings_of, spread, the_image
from distilltool.isolate import Child
from distilltool.ledger import TeacherKey
from distilltool.onnx_file import (
    OnnxFile,
    check_path,
    describe,
    first_line,
    read_file,
    read_model,
    settle_external,
)
from distilltool.preprocess import Preprocess, parse_flags
from distilltool.roles import Choice, choose
from distilltool.runtime import RUNTIME_ERRORS, Runner, is_memory, open_session
from distilltool.said import fixed_size, layout_of, nominal_size, said_of, settle, unknown_preprocess

SPACE_KEY = "distilltool.space_id"
DIMS_KEY = "distilltool.dims"  # lengths at which a student's vectors are of use when cut
POOLS = ("avg", "max", "gem", "cls")
GEM_POWER = 3.0  # Radenovic et al. 2018, the value GeM is trained from


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """What the user says of a teacher.

    preprocess: `--preprocess` values. output, pool: names, None where unsaid. inputs: `name=value` for inputs other
    than the image. device: where it runs. isolate: in a child process with limits.
    """

    preprocess: tuple[str, ...] = ()
    output: str | None = None
    pool: str | None = None
    inputs: tuple[str, ...] = ()
    device: str = "cpu"
    isolate: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxModel:
    """A file opened and ready to run, before anything is decided about preprocessing.

    said: partial preprocessing by metadata, sidecar and graph, the most believed first. settings: inputs beside the
    image, as `name=value`. dim: length of a vector where the graph says it. run: a batch as fed → the raw output.
    ready: a batch as fed → one inference on it and nothing else, to be timed; None where it runs in another process.
    """

    file: OnnxFile
    choice: Choice
    image: Value
    settings: tuple[str, ...]
    said: tuple[dict[str, Any], ...]
    dim: int | None
    provider: str
    run: Callable[[NDArray[Any]], NDArray[Any]]
    ready: Callable[[NDArray[Any]], Callable[[], Any]] | None

    @property
    def batch(self) -> int | None:
        """The one batch size the graph takes, None where it is free."""
        side = self.image.shape[0] if self.image.shape else None
        return side if isinstance(side, int) else None

    @property
    def output(self) -> str:
        """The tensor that holds the embedding, with the settings it is computed under."""
        settings = ("?" + "&".join(self.settings)) if self.settings else ""
        return self.choice.tensor + settings

    @property
    def layout(self) -> str:
        """NCHW or NHWC, by where the three channels are."""
        return layout_of(self.image)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where the graph fixes them."""
        return fixed_size(self.image)


Guess = Callable[[OnnxModel, Sequence[Mapping[str, Any]]], Preprocess | None]


class OnnxEmbedder(Teacher):
    """An ONNX model with one image input, run by onnxruntime.

    Any batch size is taken: a fixed one is filled up. Outputs of shape (N, D), (N, D, 1, 1) and (N, 1, 1, D) are
    vectors already; tokens (N, T, D) and maps are pooled as the model's choice says.
    """

    def __init__(self, model: OnnxModel, preprocess: Preprocess) -> None:
        self.model = model
        self._preprocess = preprocess
        self._dim = model.dim

    @property
    def file(self) -> OnnxFile:
        """The file it was opened from."""
        return self.model.file

    @property
    def output(self) -> str:
        """The tensor that holds the embedding, with the settings it is computed under."""
        return self.model.output

    @property
    def pool(self) -> str:
        """How a map or tokens become a vector, "none" where they need not."""
        return self.model.choice.pool

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.path.stem

    @property
    def where(self) -> str:
        """The file's absolute path."""
        return str(self.file.path.absolute())

    @property
    def size_bytes(self) -> int:
        """Of the file, external data included."""
        return self.file.size_bytes

    @property
    def why(self) -> str:
        """How the output came to be chosen."""
        return self.model.choice.why

    @property
    def dim(self) -> int | None:
        """Length of a vector; None until the first answer where the graph does not declare it."""
        return self._dim

    @property
    def batch(self) -> int | None:
        """The one batch size the graph takes, None where it is free."""
        return self.model.batch

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared and fed."""
        return self._preprocess

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""
        return self.model.provider

    @property
    def space_id(self) -> str:
        """The space stamped on a student; for others a name for file, output, pooling and length 1."""
        stamped = self.file.metadata.get(SPACE_KEY)
        return stamped or space_id(self.file.sha256, self.output, self.pool)

    @property
    def key(self) -> TeacherKey:
        """Which answers in a ledger are this model's."""
        return TeacherKey(
            sha256=self.file.sha256,
            output=self.output,
            pool=self.pool,
            preprocess=self.preprocess.identity(),
            source=self.preprocess.source,
            name=self.file.path.name,
        )

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared images, (N, H, W, 3) uint8 → (N, D) float32 as the model gives them.

        Raises ValueError for images of another size, OutOfMemory where the batch is too large for the machine,
        DistillError where the model fails on them otherwise.
        """
        shape = images_NHWC.shape[1:]
        if len(shape) != 3 or shape[2] != 3 or not self.preprocess.fits(shape[:2]) or images_NHWC.dtype != np.uint8:
            raise ValueError(
                f"images are {images_NHWC.dtype} {images_NHWC.shape}, want uint8 (N, {self.preprocess.size}, 3)"
            )
        step = self.batch or len(images_NHWC)
        parts = [self._run(images_NHWC[at : at + step]) for at in range(0, len(images_NHWC), step)]
        vectors = np.concatenate(parts)
        self._dim = vectors.shape[1]
        return vectors

    def viewed(self, preprocess: Preprocess) -> "OnnxEmbedder":
        """The same model shown its images in another way; DistillError where its graph takes one size alone."""
        one_size(self.file.path.name, self.model.size, preprocess)
        return OnnxEmbedder(self.model, preprocess)

    def _run(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images_NHWC)
        if self.batch and count < self.batch:
            images_NHWC = np.concatenate([images_NHWC, np.repeat(images_NHWC[-1:], self.batch - count, axis=0)])
        try:
            found = np.asarray(self.model.run(self.preprocess.feed(images_NHWC)))
        except RUNTIME_ERRORS as error:
            height, width = images_NHWC.shape[1:3]
            raise _failed(self.file.path, count, (height, width), error) from None
        last = self.model.choice.channels_last
        vectors = to_vectors(
            found, self.pool, channels_last(found.shape, self.preprocess.layout) if last is None else last
        )
        if len(vectors) < count:
            raise DistillError(
                f"{self.file.path} gives {len(vectors)} vectors for {count} images",
                "use --batch 1, or another --output",
            )
        return vectors[:count]


def _failed(path: Path, count: int, size: tuple[int, int], error: Exception) -> DistillError:
    """What a model's failure on a batch means for the user."""
    said = first_line(error)
    if is_memory(error):
        return OutOfMemory(
            f"{path} needs more memory for {count} images than there is ({said})", "use a smaller --batch"
        )
    return DistillError(
        f"{path} fails on a batch of {count} images of {size[0]}x{size[1]} ({said})",
        "check --preprocess size=, or --batch 1",
    )


def space_id(sha256: str, output: str, pool: str) -> str:
    """Name the space of a model's normalised vectors."""
    return hashlib.sha256(f"{sha256}|{output}|{pool}|unit".encode()).hexdigest()[:16]


def to_vectors(found: NDArray[Any], pool: str, channels_last: bool) -> NDArray[np.float32]:
    """Bring a model's output to (N, D) float32: (N, D, 1, 1) is squeezed, tokens and maps are pooled by name."""
    values = found.astype(np.float32)
    if values.ndim >= 2 and values.size == len(values) * max(values.shape[1:]):
        return values.reshape(len(values), -1)
    if pool != "none" and values.ndim == 4:  # a map is tokens, one for each place
        values = values if channels_last else values.transpose(0, 2, 3, 1)
        values = values.reshape(len(values), -1, values.shape[3])
    if pool != "none" and values.ndim == 3:
        return _pool_tokens(values, pool)
    shape = "×".join(str(side) for side in found.shape)
    raise DistillError(
        f"the output is {shape}, not one vector per image",
        f"choose a pooling with --pool {'|'.join(POOLS)}, or another --output",
    )


def channels_last(shape: tuple[int, ...], layout: str) -> bool:
    """Whether a map is (N, h, w, D) where no graph says: by which two sides are equal, else as the input is."""
    if len(shape) == 4 and (shape[1] == shape[2]) != (shape[2] == shape[3]):
        return shape[1] == shape[2]
    return layout == "NHWC"


def _pool_tokens(values_NTD: NDArray[np.float32], pool: str) -> NDArray[np.float32]:
    pooled: NDArray[np.float32]
    if pool == "avg":
        pooled = values_NTD.mean(axis=1)
    elif pool == "max":
        pooled = values_NTD.max(axis=1)
    elif pool == "cls":
        pooled = values_NTD[:, 0]
    else:
        pooled = np.mean(np.maximum(values_NTD, 1e-6) ** GEM_POWER, axis=1) ** (1 / GEM_POWER)
    return pooled


def open_teacher(
    path: Path,
    options: TeacherOptions | None = None,
    *,
    known: Preprocess | None = None,
    guess: Guess | None = None,
    threads: int = 0,
) -> OnnxEmbedder:
    """Open an ONNX file as an embedder; every fault of the file is a DistillError of one line.

    known: preprocessing that is settled already, as an earlier command recorded it. guess: asked for it where nothing
    else says. threads: 0 is every processor we may use.
    """
    options = options or TeacherOptions()
    flags = parse_flags(options.preprocess)
    model = open_model(path, options, size=known.size if known else flags.get("size"), threads=threads)
    sources = [source for source in (flags, *model.said) if source]
    settled = known or resolve(model, sources) or (guess(model, sources) if guess else None)
    if settled is None:
        raise unknown_preprocess(path.name)
    return OnnxEmbedder(model, settled)


def open_model(
    path: Path, options: TeacherOptions, *, size: tuple[int, int] | None = None, threads: int = 0
) -> OnnxModel:
    """Read a file, choose its embedding, cut the graph there if need be, and start a session on it.

    size: height and width to reason with where the graph leaves them free.
    """
    if options.pool is not None and options.pool not in POOLS:
        raise DistillError(f"there is no pooling {options.pool!r}", f"use --pool {'|'.join(POOLS)}")
    if options.isolate:
        return _isolated(path, options, size, threads)
    proto = read_model(path)
    file = describe(path, proto)
    graph = Graph(proto)
    image = the_image(path, graph)
    check_graph(path, graph, image)
    said = said_of(file, graph, image)
    nominal = nominal_size(image, size, said)
    shapes = graph.shapes(image.name, nominal, layout_of(image))
    check_sizes(path, shapes)
    choice = choose(graph, image.name, shapes, options.output, options.pool)
    feeds = settings_of(path, graph, choice, image, options.inputs)
    whole = {one.name for one in graph.outputs} >= {choice.tensor} and len(graph.inputs) == 1 + len(feeds)
    whole = whole and not any(one.is_symlink() for one in file.external)
    part = None if whole else graph.cut(choice.tensor)
    folder = settle_external(part, path) if part is not None else None
    source = path if part is None else part.SerializeToString()
    session = open_session(source, threads or workers(), options.device, folder)
    return OnnxModel(
        file=file,
        choice=choice,
        image=image,
        settings=tuple(sorted(f"{name}={as_text(value)}" for name, (value, _) in feeds.items())),
        said=said,
        dim=_dim(shapes.get(choice.tensor), choice, layout_of(image)),
        provider=str(session.get_providers()[0]),
        run=_runner(session, choice.tensor, image, feeds),
        ready=_bare(session, choice.tensor, image, feeds),
    )


def _isolated(path: Path, options: TeacherOptions, size: tuple[int, int] | None, threads: int) -> OnnxModel:
    """The same from a child process with limits, where the file is parsed and run."""
    check_path(path)
    child = Child(path, options.device)
    inner = plain.marked(asdict(replace(options, isolate=False)))
    said = child.open(inner, plain.marked(size), threads or workers())
    with plain.believed(path):
        facts: dict[str, Any] = {name: plain.unmarked(said[name]) for name in ("settings", "said", "dim", "provider")}
        facts["choice"] = plain.made(Choice, plain.unmarked(said["choice"]))
        facts["image"] = plain.made(Value, plain.unmarked(said["image"]))
        return plain.made(OnnxModel, {**facts, "file": plain.file_of(path, said), "run": child.run, "ready": None})


def file_of(path: Path, isolate: bool) -> OnnxFile:
    """What a file says of itself, read in a child process with limits where it is not to be trusted."""
    if not isolate:
        return read_file(path)
    check_path(path)
    child = Child(path)
    try:
        return plain.file_of(path, child.read())
    finally:
        child.close()


Feeds = Mapping[str, tuple[NDArray[Any], Value]]


def _runner(session: Any, output: str, image: Value, feeds: Feeds) -> Callable[[NDArray[Any]], NDArray[Any]]:
    runner = Runner(session)
    return lambda batch: runner.run(output, _filled(batch, image, feeds))


def _bare(session: Any, output: str, image: Value, feeds: Feeds) -> Callable[[NDArray[Any]], Callable[[], Any]]:
    """The session as whoever deploys the file would run it: without a thread between, every input at hand."""

    def ready(batch: NDArray[Any]) -> Callable[[], Any]:
        filled = _filled(batch, image, feeds)
        return lambda: session.run([output], filled)

    return ready


def _filled(batch: NDArray[Any], image: Value, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Every input of the graph for a batch as fed: the images, and the settings in the shape of the batch."""
    extra = {name: spread(value, info.shape or (), len(batch)) for name, (value, info) in feeds.items()}
    return {image.name: batch, **extra}


def _dim(value: Value | None, choice: Choice, layout: str) -> int | None:
    """Length of a vector where the inferred shape says it."""
    shape = value.shape if value is not None else None
    if shape is None:
        return None
    several = sides(shape)
    if len(several) > 1:  # tokens or a map: the channels
        last = layout == "NHWC" if choice.channels_last is None else choice.channels_last
        several = [shape[1]] if len(shape) == 4 and not last else [shape[-1]]
    return several[0] if several and isinstance(several[0], int) else None


def resolve(model: OnnxModel, sources: Sequence[Mapping[str, Any]]) -> Preprocess | None:
    """Lay the sources over each other; None where none says how pixels are scaled."""
    return settle(model.file.path.name, model.size, sources)

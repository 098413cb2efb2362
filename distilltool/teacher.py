"""Open any ONNX file that turns an image into a vector: a teacher, or a student we exported."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as ort_state
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from distilltool.embedder import Teacher
from distilltool.errors import DistillError
from distilltool.images import workers
from distilltool.ledger import TeacherKey
from distilltool.preprocess import METADATA_KEY, PRESETS, Preprocess, from_sidecar, merge, parse_flags

# what onnxruntime raises when it refuses or fails: a dozen classes of its own without a common base
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
SPACE_KEY = "distilltool.space_id"
SIDECARS = ("preprocessor_config.json", "open_clip_config.json", "config.json")
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
POOLS = ("avg", "max", "gem", "cls")
GEM_POWER = 3.0  # Radenovic et al. 2018, the value GeM is trained from
EMBEDDING_NAMES = (
    "image_embeds",
    "image_embedding",
    "embeddings",
    "embedding",
    "sentence_embedding",
    "pooler_output",
    "features",
    "feature",
)
SCORE_NAMES = ("prob", "softmax", "logit", "score", "class")


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxFile:
    """What a file says of itself without being run."""

    path: Path
    sha256: str
    metadata: dict[str, str]
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """What the user says of a teacher. preprocess: `--preprocess` values. output, pool: names, None where unsaid."""

    preprocess: tuple[str, ...] = ()
    output: str | None = None
    pool: str | None = None


class OnnxEmbedder(Teacher):
    """An ONNX model with one image input, run by onnxruntime on the CPU.

    Any batch size is taken: a fixed one is filled up. Outputs of shape (N, D), (N, D, 1, 1) and (N, 1, 1, D) are
    vectors already; tokens (N, T, D) and maps need `pool`.
    """

    def __init__(
        self, file: OnnxFile, session: ort.InferenceSession, output: str, pool: str, why: str, preprocess: Preprocess
    ) -> None:
        self.file = file
        self.output = output
        self.pool = pool
        self._why = why
        self._session = session
        self._preprocess = preprocess
        self._input = _image_input(file.path, session)
        batch = self._input.shape[0]
        self._batch = batch if isinstance(batch, int) and batch > 0 else None
        self._dim = self._declared_dim()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.path.stem

    @property
    def where(self) -> str:
        """The file's absolute path."""
        return str(self.file.path.resolve())

    @property
    def size_bytes(self) -> int:
        """Of the file, external data included."""
        return self.file.size_bytes

    @property
    def why(self) -> str:
        """How the output came to be chosen."""
        return self._why

    @property
    def dim(self) -> int | None:
        """Length of a vector; None until the first answer where the graph does not declare it."""
        return self._dim

    @property
    def batch(self) -> int | None:
        """The one batch size the graph takes, None where it is free."""
        return self._batch

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared and fed."""
        return self._preprocess

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""
        return str(self._session.get_providers()[0])

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
        )

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared images, (N, H, W, 3) uint8 → (N, D) float32 as the model gives them.

        Raises ValueError for images of another size, DistillError where the model fails on them.
        """
        if images_NHWC.shape[1:] != (*self.preprocess.size, 3) or images_NHWC.dtype != np.uint8:
            raise ValueError(
                f"images are {images_NHWC.dtype} {images_NHWC.shape}, want uint8 (N, {self.preprocess.size}, 3)"
            )
        step = self._batch or len(images_NHWC)
        parts = [self._run(images_NHWC[at : at + step]) for at in range(0, len(images_NHWC), step)]
        vectors = np.concatenate(parts)
        self._dim = vectors.shape[1]
        return vectors

    def _run(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images_NHWC)
        if self._batch and count < self._batch:
            images_NHWC = np.concatenate([images_NHWC, np.repeat(images_NHWC[-1:], self._batch - count, axis=0)])
        try:
            found = self._session.run([self.output], {self._input.name: self.preprocess.feed(images_NHWC)})[0]
        except RUNTIME_ERRORS as error:
            raise DistillError(
                f"{self.file.path} fails on a batch of {count} images of {self.preprocess.size} ({_first_line(error)})",
                "check --preprocess size=, or --batch 1",
            ) from None
        return to_vectors(np.asarray(found), self.pool, self.preprocess.layout == "NHWC")[:count]

    def _declared_dim(self) -> int | None:
        """Length of a vector where the graph declares it."""
        shape = next(one.shape for one in self._session.get_outputs() if one.name == self.output)
        sides = [side for side in shape[1:] if side != 1]
        if len(sides) > 1:  # tokens or a map: the channels
            sides = [shape[1]] if len(shape) == 4 and self.preprocess.layout == "NCHW" else [shape[-1]]
        return sides[0] if sides and isinstance(sides[0], int) else None


def space_id(sha256: str, output: str, pool: str) -> str:
    """Name the space of a model's normalised vectors."""
    return hashlib.sha256(f"{sha256}|{output}|{pool}|unit".encode()).hexdigest()[:16]


def to_vectors(found: NDArray[Any], pool: str, channels_last: bool) -> NDArray[np.float32]:
    """Bring a model's output to (N, D) float32: (N, D, 1, 1) is squeezed, tokens and maps are pooled by name."""
    values = found.astype(np.float32)
    if values.ndim >= 2 and values.size == len(values) * max(values.shape[1:]):
        return values.reshape(len(values), -1)
    if pool != "none" and values.ndim == 4:  # a map is tokens, one for each place
        values = values if _channels_last(values.shape, channels_last) else values.transpose(0, 2, 3, 1)
        values = values.reshape(len(values), -1, values.shape[3])
    if pool != "none" and values.ndim == 3:
        return _pool_tokens(values, pool)
    shape = "×".join(str(side) for side in found.shape)
    raise DistillError(
        f"the output is {shape}, not one vector per image",
        f"choose a pooling with --pool {'|'.join(POOLS)}, or another --output",
    )


def _channels_last(shape: tuple[int, ...], input_is: bool) -> bool:
    """Whether a map is (N, h, w, D): by which two sides are equal, else as the input is laid out."""
    if (shape[1] == shape[2]) != (shape[2] == shape[3]):
        return shape[1] == shape[2]
    return input_is


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
    path: Path, options: TeacherOptions | None = None, *, known: Preprocess | None = None, threads: int = 0
) -> OnnxEmbedder:
    """Open an ONNX file as an embedder; every fault of the file is a DistillError of one line.

    known: preprocessing that is settled already, as an earlier command recorded it. threads: 0 is every processor we
    may use.
    """
    options = options or TeacherOptions()
    pool = options.pool
    if pool is not None and pool not in POOLS:
        raise DistillError(f"there is no pooling {pool!r}", f"use --pool {'|'.join(POOLS)}")
    file = read_file(path)
    session = open_session(path, threads or workers())
    image = _image_input(path, session)
    settled = known or _resolve_preprocess(file, image, options.preprocess)
    chosen, why = choose_output(session.get_outputs(), options.output)
    sides = next(one.shape for one in session.get_outputs() if one.name == chosen)
    return OnnxEmbedder(file, session, chosen, pooling(chosen, sides, pool), why, settled)


def pooling(output: str, sides: Sequence[int | str | None], wanted: str | None) -> str:
    """How an output declared with these sides becomes a vector: "none" where it is one already, else as wanted."""
    if wanted is not None and wanted not in POOLS:
        raise DistillError(f"there is no pooling {wanted!r}", f"use --pool {'|'.join(POOLS)}")
    if len(sides) <= 2 or sum(side != 1 for side in sides[1:]) <= 1:
        return "none"
    if wanted is None:
        raise DistillError(
            f"the output {output} is {list(sides)}, not one vector per image",
            f"choose a pooling with --pool {'|'.join(POOLS)}, or another --output",
        )
    return wanted


def read_file(path: Path) -> OnnxFile:
    """Read a model file without running it; hash it with the external data it needs."""
    if not path.exists():
        raise DistillError(f"there is no file {path}", "check the path of the ONNX model")
    if path.is_dir():
        raise DistillError(f"{path} is a folder", "give the .onnx file itself")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror})", "check its permissions") from None
    if head.startswith(b"version https://git-lfs"):
        raise DistillError(f"{path} is a Git LFS pointer, not the model itself", "fetch the model with: git lfs pull")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise DistillError(
            f"{path} is no ONNX model ({_first_line(error)})", "give a file written by an ONNX exporter"
        ) from None
    if not model.HasField("graph") or not model.graph.node:
        raise DistillError(f"{path} is no ONNX model (it holds no graph)", "give a file written by an ONNX exporter")
    extra = external_files(path, model)
    digest = hashlib.sha256()
    for one in (path, *extra):
        with one.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return OnnxFile(
        path=path,
        sha256=digest.hexdigest(),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        size_bytes=sum(one.stat().st_size for one in (path, *extra)),
    )


def external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files a model keeps its weights in, in order of name; missing ones are an error."""
    names = {ExternalDataInfo(tensor).location for tensor in _tensors(model.graph) if uses_external_data(tensor)}
    files = [path.parent / name for name in sorted(names)]
    missing = [one.name for one in files if not one.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DistillError(
            f"{path} keeps its weights in {missing[0]}{more}, which is not there",
            f"put it into {path.parent}, beside the model",
        )
    return files


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor a graph holds: initializers, constants, and those of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Start onnxruntime on the CPU with this many threads; a model it refuses is a DistillError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to the decoders
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise DistillError(
            f"onnxruntime cannot run {path} ({_first_line(error)})",
            "check it with onnx.checker; custom operators are not supported",
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return (text[:157] + "...") if len(text) > 160 else text or type(error).__name__


def _image_input(path: Path, session: ort.InferenceSession) -> Any:
    inputs = session.get_inputs()
    images = [one for one in inputs if len(one.shape) == 4]
    if len(inputs) != 1 or len(images) != 1:
        seen = ", ".join(f"{one.name} {one.shape}" for one in inputs)
        raise DistillError(
            f"{path} does not take one image batch; its inputs are {seen}",
            "give a model whose only input is (N, 3, H, W) or (N, H, W, 3)",
        )
    if images[0].type not in DTYPES:
        raise DistillError(
            f"the input {images[0].name} of {path} is {images[0].type}", f"inputs may be {', '.join(DTYPES.values())}"
        )
    return images[0]


def choose_output(outputs: Sequence[Any], wanted: str | None) -> tuple[str, str]:
    """The output that holds the embedding, and why it was taken; each has a name and a shape."""
    names = [one.name for one in outputs]
    if wanted is not None:
        if wanted not in names:
            raise DistillError(f"the model has no output {wanted!r}", f"its outputs are {', '.join(names)}")
        return wanted, "asked for"
    if len(outputs) == 1:
        return names[0], "the only output"
    for name in EMBEDDING_NAMES:
        if name in [n.lower() for n in names]:
            return names[[n.lower() for n in names].index(name)], f"its name, out of {', '.join(names)}"
    vectors = [one for one in outputs if len(one.shape) == 2 and not any(s in one.name.lower() for s in SCORE_NAMES)]
    chosen = (vectors or outputs)[0]
    return chosen.name, f"the first that looks like a vector, out of {', '.join(names)}"


def _resolve_preprocess(file: OnnxFile, image: Any, flags: Sequence[str]) -> Preprocess:
    """Flag, our metadata, sidecar, graph, in this order of belief; an error with the choices where all are silent."""
    sources = [parse_flags(flags), _said_by_metadata(file), _said_by_sidecar(file.path)]
    return settle(file.path.name, sources, said_by_graph(image))


def settle(name: str, said: Sequence[dict[str, Any]], graph: dict[str, Any]) -> Preprocess:
    """One preprocessing out of what was said, the most believed first, and of what the graph declares."""
    sources = [*said, graph]
    if "size" not in graph and not any("size" in source for source in sources):
        sources.append({"size": (224, 224)})  # what a network of free size was most likely trained at
    found = merge([source for source in sources if source])
    if found is None:
        raise DistillError(
            f"nothing says how {name} wants its images prepared",
            f"say it with --preprocess {'|'.join(PRESETS)}, a sidecar FILE, or single fields such as "
            f"--preprocess scale=1/255 --preprocess mean=0.5,0.5,0.5 --preprocess std=0.5,0.5,0.5",
        )
    fixed = graph.get("size")
    if fixed and fixed != found.size:
        raise DistillError(
            f"{name} takes images of {fixed[0]}x{fixed[1]}, the preprocessing says {found.size[0]}x{found.size[1]}",
            f"use --preprocess size={fixed[0]}x{fixed[1]}",
        )
    return found


def _said_by_metadata(file: OnnxFile) -> dict[str, Any]:
    if METADATA_KEY not in file.metadata:
        return {}
    try:
        values = json.loads(file.metadata[METADATA_KEY])
        values.pop("source", None)
    except (ValueError, AttributeError):
        raise DistillError(
            f"the metadata {METADATA_KEY} of {file.path.name} is no JSON object", "say it with --preprocess instead"
        ) from None
    return {**values, "said_by": "metadata of the model"}


def _said_by_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar file beside the model, or one folder up as model hubs lay out onnx/model.onnx."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    for folder in folders:
        for name in SIDECARS:
            try:
                values = json.loads((folder / name).read_text("utf-8"))
            except (OSError, ValueError):
                continue
            found = from_sidecar(values) if isinstance(values, dict) else None
            if found:
                return {**found, "said_by": f"sidecar {name}"}
    return {}


def said_by_graph(image: Any) -> dict[str, Any]:
    """Layout, dtype and fixed size; a uint8 input also says that pixels go in as they are.

    image: an input whose name, shape and type are as onnxruntime has them.
    """
    shape: Sequence[int | str | None] = image.shape
    last = shape[3] == 3 and shape[1] != 3
    if not last and isinstance(shape[1], int) and shape[1] != 3:
        raise DistillError(f"the input {image.name} has {shape[1]} channels", "give a model for RGB images")
    height, width = shape[1:3] if last else shape[2:4]
    said: dict[str, Any] = {"layout": "NHWC" if last else "NCHW", "dtype": DTYPES[image.type]}
    if isinstance(height, int) and isinstance(width, int):
        said["size"] = (height, width)
    if said["dtype"] == "uint8":
        said |= {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "said_by": "graph (uint8 input)"}
    return said

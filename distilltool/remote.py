"""A teacher behind the Open Inference Protocol v2 over HTTP, as Triton, OpenVINO Model Server, MLServer and KServe
speak it: https://github.com/kserve/open-inference-protocol

Each request has a connection of its own, so that it is always known whether any of it can have reached the server.
"""

import email.utils
import hashlib
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from distilltool import __version__
from distilltool.embedder import Teacher, one_size
from distilltool.errors import DistillError, Exit, Unsure
from distilltool.graph import Value
from distilltool.ledger import TeacherKey
from distilltool.preprocess import Preprocess, parse_flags
from distilltool.progress import Progress
from distilltool.roles import choose_declared, input_role
from distilltool.said import declared, fixed_size, settle, unknown_preprocess
from distilltool.teacher import TeacherOptions, space_id, to_vectors

TOKEN = "DISTILLTOOL_TOKEN"  # environment variable whose value is sent as the bearer token
CONNECT_SECONDS = 10.0
ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt, doubled before each further one
LONGEST_WAIT = 30.0  # seconds; a server that asks for more is busy, and the user is told so
LARGEST = 1 << 30  # bytes of an answer
DTYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "u1", "INT8": "i1", "INT32": "<i4"}
FED = {"FP32": "float32", "FP16": "float16", "UINT8": "uint8"}  # types of an image, as numpy names them
BINARY = "binary_tensor_data"  # the extension by which tensors travel as bytes after the JSON
# announces no extensions, but takes bytes: https://docs.openvino.ai/2024/ovms_docs_rest_api_kfs.html
BINARY_SERVERS = ("OpenVINO Model Server",)
HEADER = "Inference-Header-Content-Length"
ADDRESS = re.compile(r"(?P<prefix>.*?)(/v2(/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?(/infer)?)?)?/*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a model is served, without any secret. base: https://host:port and a path; model: "" where not named."""

    base: str
    model: str
    version: str

    def url(self) -> str:
        """The address as it is recorded."""
        return self.base + self.path()

    def path(self, what: str = "") -> str:
        """The path of the model below `base`, and of one of its endpoints."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.model, safe='')}{version}{what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a server said. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """An input or output as the server declares it. datatype: as the protocol names it."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    @property
    def value(self) -> Value:
        """The same as a tensor of a graph."""
        return Value(name=self.name, shape=self.shape, dtype=FED.get(self.datatype, self.datatype))


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What a server says of itself and of one model. largest: batch it takes at most, None where it does not say."""

    address: Address
    server: str
    binary: bool
    metadata: Mapping[str, Any]
    largest: int | None
    image: Tensor
    outputs: tuple[Tensor, ...]


class NotSent(Exception):
    """The server could not be reached: nothing of a request can have arrived."""


class NoReply(Exception):
    """A request was sent, in part or whole, and nothing that can be understood came back."""


class Server:
    """One HTTP server. timeout: seconds it may be silent once it has a request."""

    def __init__(self, base: str, timeout: float) -> None:
        self._base = base
        self._timeout = timeout
        self._token = _token()

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own; raises NotSent or NoReply."""
        parts = urlsplit(self._base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=CONNECT_SECONDS)
        try:
            try:
                connection.connect()
            except (OSError, ValueError) as error:
                raise NotSent(_reason(error)) from error
            connection.sock.settimeout(self._timeout)
            return self._exchange(connection, method, parts.path + path, body, dict(headers or {}))
        finally:
            connection.close()

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> Reply:
        headers |= {"User-Agent": f"distilltool/{__version__}", "Connection": "close", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            try:
                connection.request(method, path, body or None, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have refused after the first lines: what it said is still to be read
            response = connection.getresponse()
            found = response.read(LARGEST + 1)
        except TimeoutError as error:
            raise NoReply(f"no answer within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoReply(_reason(error)) from error
        if len(found) > LARGEST:
            raise NoReply("its answer is larger than 1 GiB")
        return Reply(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=found,
        )

    def said(self, reply: Reply) -> str:
        """What the server gives as the reason of a failure, in a few words and without our token."""
        try:
            values = json.loads(reply.body)
            text = str(values.get("error") or values.get("detail") or values) if isinstance(values, dict) else ""
        except ValueError:
            text = reply.body[:1000].decode("utf-8", "replace")
        text = text.replace(self._token, "...") if self._token else text
        text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        phrase = f"{reply.status} {http.client.responses.get(reply.status, '')}".strip()
        return f"{phrase}: {text[:200]}" if text else phrase


class ServedTeacher(Teacher):
    """A model on a server; each `embed` is one request, and its retries where nothing can have been done twice."""

    def __init__(
        self, model: Model, server: Server, output: Tensor, pool: str, why: str, preprocess: Preprocess
    ) -> None:
        self.model = model
        self.pool = pool
        self._server = server
        self._output = output
        self._why = why
        self._preprocess = preprocess
        self._dim: int | None = None

    @property
    def name(self) -> str:
        """The model's name, fit for a folder's."""
        return re.sub(r"[^\w.-]+", "_", self.model.address.model).strip(".") or "served"

    @property
    def where(self) -> str:
        """The model's address."""
        return self.model.address.url()

    @property
    def size_bytes(self) -> int:
        """0: its file is not here."""
        return 0

    @property
    def why(self) -> str:
        """How the output came to be chosen."""
        return self._why

    @property
    def dim(self) -> int | None:
        """Length of a vector, None before the first answer."""
        return self._dim

    @property
    def batch(self) -> int | None:
        """The one batch size the model takes, None where it is free."""
        return self.model.image.shape[0]

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared and sent."""
        return self._preprocess

    @property
    def provider(self) -> str:
        """The server's name and version."""
        return self.model.server

    @property
    def space_id(self) -> str:
        """A name for the space of this model's vectors at length 1."""
        return space_id(self.key.sha256, self._output.name, self.pool)

    @property
    def key(self) -> TeacherKey:
        """Which answers in a ledger are this model's: by its address, name, version and what the server says of it."""
        said = json.dumps(self.model.metadata, sort_keys=True)
        return TeacherKey(
            sha256=hashlib.sha256(f"{self.where}\n{said}".encode()).hexdigest(),
            output=self._output.name,
            pool=self.pool,
            preprocess=self.preprocess.identity(),
            source=self.preprocess.source,
        )

    def viewed(self, preprocess: Preprocess) -> "ServedTeacher":
        """The same model shown its images in another way; DistillError where it takes one size alone."""
        one_size(self.where, fixed_size(self.model.image.value), preprocess)
        return ServedTeacher(self.model, self._server, self._output, self.pool, self._why, preprocess)

    def largest(self, wanted: int) -> int:
        """How many of so many images may be asked about in one request."""
        return self.batch or min(wanted, self.model.largest or wanted)

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared images in one request, (N, H, W, 3) uint8 → (N, D) float32.

        Raises DistillError where the server did not do it, Unsure where it may have.
        """
        count = len(images_NHWC)
        if self.batch and count < self.batch:
            images_NHWC = np.concatenate([images_NHWC, np.repeat(images_NHWC[-1:], self.batch - count, axis=0)])
        body, headers = self._request(self.preprocess.feed(images_NHWC))
        try:
            reply = patiently(
                lambda: self._server.ask("POST", self.model.address.path("/infer"), body, headers), self.where
            )
        except NoReply as error:
            raise self._unsure(f"{error}", count) from None
        if 400 <= reply.status < 500:
            raise DistillError(
                f"{self.where} refuses {count} images of {self.preprocess.size} ({self._server.said(reply)})",
                f"check --batch, --preprocess and, where it wants to know who asks, the variable {TOKEN}",
            )
        if reply.status != 200:
            raise self._unsure(self._server.said(reply), count)
        try:
            vectors = to_vectors(self._answer(reply), self.pool, self.preprocess.layout == "NHWC")[:count]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, DistillError) as error:
            raise self._unsure(f"its answer cannot be read: {error}", count) from None
        if len(vectors) != count:
            raise self._unsure(f"it gave {len(vectors)} answers", count)
        self._dim = vectors.shape[1]
        return vectors

    def _unsure(self, why: str, count: int) -> Unsure:
        return Unsure(
            f"{self.where} was asked about {count} images and gave no usable answer ({why}); it may have counted them",
            "run it again with --ambiguous retry to ask about these once more, or --ambiguous skip to leave them out",
        )

    def _request(self, tensor: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
        """Body and headers that put a tensor to the model."""
        given: dict[str, Any] = {
            "name": self.model.image.name,
            "shape": list(tensor.shape),
            "datatype": self.model.image.datatype,
        }
        wanted: dict[str, Any] = {"name": self._output.name}
        if not self.model.binary:
            image = f'{json.dumps(given)[:-1]}, "data": [{_written(tensor)}]}}'
            body = f'{{"inputs": [{image}], "outputs": [{json.dumps(wanted)}]}}'
            return body.encode(), {"Content-Type": "application/json"}
        raw = np.ascontiguousarray(tensor, DTYPES[self.model.image.datatype]).tobytes()
        given["parameters"] = {"binary_data_size": len(raw)}
        wanted["parameters"] = {"binary_data": True}
        head = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
        return head + raw, {"Content-Type": "application/octet-stream", HEADER: str(len(head))}

    def _answer(self, reply: Reply) -> NDArray[Any]:
        """The wanted output out of a reply, be it numbers in JSON or bytes behind it."""
        length = int(reply.headers.get(HEADER.lower(), len(reply.body)))
        at = length
        for one in json.loads(reply.body[:length])["outputs"]:
            size = int((one.get("parameters") or {}).get("binary_data_size", 0))
            if one["name"] == self._output.name:
                if size:
                    values = np.frombuffer(reply.body[at : at + size], DTYPES[one["datatype"]])
                else:
                    values = np.asarray(one["data"], np.float64)
                return values.reshape(one["shape"])
            at += size
        raise KeyError(f"it holds no output {self._output.name}")


def _written(tensor: NDArray[Any]) -> str:
    """Numbers as JSON, exact in the tensor's type; images hold few distinct ones, so each is turned to text once."""
    values, places = np.unique(tensor, return_inverse=True)
    texts = [str(value) for value in values]  # the shortest that is read as the same number of this type
    exact = [
        text if tensor.dtype.type(float(text)) == value else repr(float(value))
        for text, value in zip(texts, values, strict=True)
    ]
    return ",".join(np.array(exact, object)[places.ravel()].tolist())


def is_address(text: str) -> bool:
    """Whether a teacher is named by an address rather than a file."""
    return text.lower().startswith(("http://", "https://"))


def open_server(
    text: str,
    options: TeacherOptions,
    *,
    timeout: float,
    progress: Progress,
    known: Preprocess | None = None,
) -> ServedTeacher:
    """Find a model by its address and learn from the server how it is asked; nothing is asked of the model yet.

    text: http://host:port/v2/models/NAME[/versions/V], or http://host:port where the server has one model. known:
    preprocessing that is settled already. timeout: seconds for one answer.
    """
    address = read_address(text)
    server = Server(address.base, timeout)
    if _token() and address.base.startswith("http://") and not _is_local(address.base):
        progress.warn(f"the token in {TOKEN} goes to {address.base} unencrypted: use https:// where the server has it")
    model = _describe(server, address)
    choice = choose_declared([one.value for one in model.outputs], options.output, options.pool)
    chosen, why, pool = choice.tensor, choice.why, choice.pool
    output = next(one for one in model.outputs if one.name == chosen)
    if output.datatype not in DTYPES:
        raise DistillError(
            f"the output {chosen} of {model.address.url()} is {output.datatype}", "choose another --output"
        )
    image = model.image.value
    channels = (image.shape or (None, None))[1]
    if input_role(image) != "image":
        raise DistillError(
            f"the input {image.name} of {model.address.url()} has {channels} channels", "name a model for RGB images"
        )
    said = [one for one in (parse_flags(options.preprocess), declared(image)) if one]
    settled = known or settle(model.address.model, fixed_size(image), said)
    if settled is None:
        raise unknown_preprocess(model.address.model)
    return ServedTeacher(model, server, output, pool, why, settled)


def read_address(text: str) -> Address:
    """Take an address apart; one that holds a secret is refused without repeating it."""
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").lower()
        found = ADDRESS.fullmatch(parts.path)
    except ValueError:
        host, found = "", None
    if not host or found is None:
        raise DistillError("the teacher's address cannot be read", "write http://host:port/v2/models/NAME", Exit.USAGE)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise DistillError(
            f"the address of {host} holds a user, a password or a query",
            f"give the address alone; a token is sent from the environment variable {TOKEN}",
            Exit.USAGE,
        )
    shown = f"[{host}]" if ":" in host else host
    return Address(
        base=f"{parts.scheme.lower()}://{shown}:{port}{found['prefix'].rstrip('/')}",
        model=unquote(found["model"] or ""),
        version=unquote(found["version"] or ""),
    )


def patiently(ask: Callable[[], Reply], where: str, attempts: int = ATTEMPTS) -> Reply:
    """Ask, and ask again after a while where the server certainly did nothing: it could not be reached, or it said
    429, or 503 with the time to come back at. Raises DistillError where it still did nothing in the end."""
    wait, last = FIRST_WAIT, ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(wait, LONGEST_WAIT))
        wait = FIRST_WAIT * 2**attempt
        try:
            reply = ask()
        except NotSent as error:
            last = str(error)
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                break
            continue
        asked_to_wait = _retry_after(reply)
        if reply.status != 429 and not (reply.status == 503 and asked_to_wait is not None):
            return reply
        last = f"{reply.status} {http.client.responses[reply.status]}"
        wait = max(wait, asked_to_wait or 0.0)
        if wait > LONGEST_WAIT:
            last = f"{last}, come back in {wait:.0f} s"
            break
    raise DistillError(
        f"{where} cannot be asked now ({last})", "start the server or wait for it, then run the same command again"
    )


def _retry_after(reply: Reply) -> float | None:
    """Seconds until the server wants to be asked again; None where it does not say."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _describe(server: Server, address: Address) -> Model:
    """Ask a server about itself and about one model."""
    about = _json(server, address, "GET", "/v2") or {}
    if not address.model:
        address = replace(address, model=_only_model(server, address))
    metadata = _json(server, address, "GET", address.path())
    if metadata is None:
        names = _models(server, address)
        fix = f"it has {', '.join(names)}" if names else "check the model's name and version"
        raise DistillError(f"there is no model {address.model!r} at {address.base}", fix)
    ready = _get(server, address, "GET", address.path("/ready"))
    if ready.status != 200:
        raise DistillError(f"{address.url()} is not ready ({server.said(ready)})", "wait until it is loaded")
    inputs, outputs = (_tensors(address, metadata, which) for which in ("inputs", "outputs"))
    extensions = about.get("extensions") or ()
    name = str(about.get("name") or "server")
    largest = None
    if "model_configuration" in extensions:  # Triton's: the batch that its metadata leaves open
        largest = (_json(server, address, "GET", address.path("/config")) or {}).get("max_batch_size")
    return Model(
        address=address,
        server=f"{name} {about.get('version') or ''}".strip(),
        binary=BINARY in extensions or name.startswith(BINARY_SERVERS),
        metadata=metadata,
        largest=largest if isinstance(largest, int) and largest > 0 else None,
        image=_image(address, inputs),
        outputs=outputs,
    )


def _get(server: Server, address: Address, method: str, path: str, body: bytes = b"") -> Reply:
    """A question that costs nothing, so that every failure may be told and tried again."""
    headers = {"Content-Type": "application/json"} if body else {}
    try:
        return patiently(lambda: server.ask(method, path, body, headers), address.base, attempts=2)
    except NoReply as error:
        raise DistillError(
            f"{address.base} does not answer ({error})", "check that it is an inference server and running"
        ) from None


def _json(server: Server, address: Address, method: str, path: str, body: bytes = b"") -> dict[str, Any] | None:
    """A JSON object the server has, None where it has none; whoever must not see it is told so."""
    reply = _get(server, address, method, path, body)
    if reply.status in (401, 403):
        raise DistillError(
            f"{address.base} lets nobody in without a token ({server.said(reply)})",
            f"put the token into the environment variable {TOKEN}",
        )
    if 400 <= reply.status < 500:
        return None
    values = _parsed(reply) if reply.status == 200 else None
    if not isinstance(values, dict):
        raise DistillError(
            f"{address.base}{path} does not speak the Open Inference Protocol ({server.said(reply)})",
            "give the HTTP address of Triton, OpenVINO Model Server, MLServer or KServe",
        )
    return values


def _parsed(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        return None


def _models(server: Server, address: Address) -> list[str]:
    """The models a server says it has; none where it does not tell."""
    reply = _get(server, address, "POST", "/v2/repository/index", b"{}")
    values = _parsed(reply) if reply.status == 200 else None
    found = values if isinstance(values, list) else []
    ready = [one for one in found if isinstance(one, dict) and one.get("state", "READY") == "READY"]
    return sorted({str(one["name"]) for one in ready if "name" in one})


def _only_model(server: Server, address: Address) -> str:
    names = _models(server, address)
    if len(names) != 1:
        seen = f"it has {', '.join(names)}" if names else "it does not tell which models it has"
        raise DistillError(
            f"{address.base} does not say which model to ask: {seen}", f"write {address.base}/v2/models/NAME"
        )
    return names[0]


def _tensors(address: Address, metadata: Mapping[str, Any], which: str) -> tuple[Tensor, ...]:
    """The inputs or outputs a server declares; a side below 1 is free."""
    try:
        found = tuple(
            Tensor(
                name=str(one["name"]),
                datatype=str(one["datatype"]),
                shape=tuple(int(side) if int(side) > 0 else None for side in one["shape"]),
            )
            for one in metadata.get(which) or ()
        )
    except (KeyError, TypeError, ValueError):
        found = ()
    if not found:
        raise DistillError(
            f"{address.url()} does not say what its {which} are",
            "let the server declare name, datatype and shape (MLServer: in model-settings.json)",
        )
    return found


def _image(address: Address, inputs: Sequence[Tensor]) -> Tensor:
    """The one input, which must be a batch of images."""
    seen = ", ".join(f"{one.name} {one.datatype} {_shape(one)}" for one in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].datatype not in FED:
        raise DistillError(
            f"{address.url()} does not take one image batch; its inputs are {seen}",
            f"its only input must be (N, 3, H, W) or (N, H, W, 3) of {', '.join(FED)}",
        )
    return inputs[0]


def _shape(one: Tensor) -> str:
    return "×".join("?" if side is None else str(side) for side in one.shape)


def _token() -> str:
    """The token to send; one that cannot stand in a header is refused without being shown."""
    token = os.environ.get(TOKEN, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise DistillError(f"the variable {TOKEN} holds what no token can", "set it to the token alone")
    return token


def _is_local(base: str) -> bool:
    return urlsplit(base).hostname in ("localhost", "127.0.0.1", "::1")


def _reason(error: Exception) -> str:
    """What went wrong below HTTP, in a few words."""
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
    return str(text)[:160]

"""Teachers on servers: real ones from the package index (slow), and one that misbehaves to the letter."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import class_folders, onnx_teacher, photo_folder
from numpy.typing import NDArray
from servers import MLServer, Triton, free_ports
from test_bad_input import fails
from typer.testing import CliRunner

import distilltool
from distilltool import images, remote
from distilltool.cli import app
from distilltool.errors import DistillError, Unsure
from distilltool.ledger import Ledger
from distilltool.progress import Silent
from distilltool.remote import ServedTeacher, open_server, read_address
from distilltool.teacher import TeacherOptions, open_teacher

PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
FLAGS = [word for one in PRE for word in ("--preprocess", one)]
COUNT = 20
STORE = "runs/ledger.sqlite"


def call(*words: object) -> dict[str, Any]:
    """Run a command with --json."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def opened(url: str, *pre: str, timeout: float = 20, **options: Any) -> ServedTeacher:
    """A served teacher with our preprocessing."""
    chosen = TeacherOptions(preprocess=tuple(pre or PRE), **options)
    return open_server(url, chosen, timeout=timeout, progress=Silent())


def bought(url: str, folder: Path, pre: tuple[str, ...] = ()) -> NDArray[np.float32]:
    """What the ledger holds about the images of a folder, in their order; all must be there."""
    with Ledger.open(Path(STORE)) as ledger:
        photos = images.take_stock(images.find(folder)).photos
        vectors = ledger.vectors(ledger.teacher(opened(url, *pre).key), [photo.sha256 for photo in photos])
        return np.stack([vectors[photo.sha256] for photo in photos])


def by_file(teacher: Path, folder: Path, pre: tuple[str, ...] = (), **options: Any) -> NDArray[np.float32]:
    """What the ONNX file itself says about the images of a folder."""
    model = open_teacher(teacher, TeacherOptions(preprocess=pre or tuple(PRE), **options))
    photos = images.take_stock(images.find(folder)).photos
    prepared, _ = images.load([photo.path for photo in photos], model.preprocess)
    return model.embed(prepared)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pictures in `imgs` and nothing that waits long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.delenv(remote.TOKEN, raising=False)
    photo_folder(tmp_path / "imgs", COUNT)
    return tmp_path


# ---- addresses


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://Host:8000/v2/models/m", "http://host:8000/v2/models/m"),
        ("http://host/v2/models/m/", "http://host:80/v2/models/m"),
        ("HTTPS://host/v2/models/m/versions/3", "https://host:443/v2/models/m/versions/3"),
        ("https://host/in/front/v2/models/m/infer", "https://host:443/in/front/v2/models/m"),
        ("http://[::1]:9/v2/models/a%20b", "http://[::1]:9/v2/models/a%20b"),
    ],
)
def test_addresses_have_one_spelling(text: str, url: str) -> None:
    assert read_address(text).url() == url


@pytest.mark.parametrize("text", ["http://host:1", "http://host:1/", "http://host:1/v2", "http://host:1/v2/"])
def test_an_address_may_leave_the_model_out(text: str) -> None:
    found = read_address(text)
    assert (found.base, found.model) == ("http://host:1", "")


@pytest.mark.parametrize(
    "text", ["http://user:hunter2@host/v2/models/m", "http://host/v2/models/m?key=hunter2", "http://host/#hunter2"]
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str, folder: Path) -> None:
    line = fails(2, "query", text, "imgs", *FLAGS)
    assert "hunter2" not in line and remote.TOKEN in line
    assert not (folder / STORE).exists()


@pytest.mark.parametrize("text", ["http://", "http://host:port/", "http://host:99999/", "http:///v2/models/m"])
def test_addresses_that_are_none(text: str, folder: Path) -> None:
    assert "cannot be read" in fails(2, "query", text, "imgs", *FLAGS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_numbers_are_written_exactly(dtype: str, rng: np.random.Generator) -> None:
    """As short as they can be, but every bit of them."""
    tensor = (rng.normal(size=(3, 4, 5)) * 10.0 ** rng.integers(0, 3, (3, 4, 5))).astype(dtype)
    tensor[0, 0, :2] = 1 / np.array([3, 255])
    read = np.array(json.loads(f"[{remote._written(tensor)}]"), np.float64).astype(dtype).reshape(tensor.shape)
    np.testing.assert_array_equal(read, tensor)


# ---- a server that misbehaves

Step = Callable[["Misbehaving"], None]


class Misbehaving(BaseHTTPRequestHandler):
    """Speaks the protocol for a model that answers (sum of the red, green, blue values); each inference first takes
    the next step of the script, and is done properly once there is none left."""

    server: "Scripted"

    def do_GET(self) -> None:
        """Metadata and readiness."""
        self.server.seen.append(dict(self.headers))
        path = self.path.removeprefix("/v2")
        if self.server.asks_for_token and "Authorization" not in self.headers:
            self.send(401, {"error": "who are you"})
        elif path in ("", "/models/m", "/models/m/ready"):
            self.send(200, self.server.about if not path else self.server.metadata)
        else:
            self.send(404, {"error": "there is none"})

    def do_POST(self) -> None:
        """Inference and the list of models."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v2/repository/index":
            return self.send(200, [{"name": name, "state": "READY"} for name in self.server.models])
        self.server.seen.append(dict(self.headers))
        self.server.asked.append(len(json.loads(body)["inputs"][0]["data"]) // (3 * 32 * 32))
        if self.server.script:
            return self.server.script.pop(0)(self)
        self.answer(json.loads(body)["inputs"][0])

    def answer(self, given: dict[str, Any]) -> None:
        """A proper answer."""
        values = np.asarray(given["data"], np.float32).reshape(given["shape"]).sum((2, 3))
        self.send(200, {"outputs": [output(values.shape, values.ravel().tolist())]})

    def send(self, status: int, values: Any, **headers: str) -> None:
        """A reply in JSON."""
        body = json.dumps(values).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


class Scripted(ThreadingHTTPServer):
    """What `Misbehaving` does and has seen."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Misbehaving)
        self.script: list[Step] = []
        self.asked: list[int] = []
        self.seen: list[dict[str, str]] = []
        self.models = ["m"]
        self.asks_for_token = False
        self.about: dict[str, Any] = {"name": "scripted", "version": "1", "extensions": []}
        self.metadata: dict[str, Any] = {
            "name": "m",
            "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
            "outputs": [{"name": "sums", "datatype": "FP32", "shape": [-1, 3]}],
        }

    @property
    def url(self) -> str:
        """The model's address."""
        return f"http://127.0.0.1:{self.server_address[1]}/v2/models/m"


def output(shape: Any, data: Any) -> dict[str, Any]:
    """One tensor of an answer."""
    return {"name": "sums", "datatype": "FP32", "shape": list(shape), "data": data}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A misbehaving server."""
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def status(code: int, **headers: str) -> Step:
    """Answer with an error."""

    def step(handler: Misbehaving) -> None:
        handler.send(code, {"error": f"step {code}"}, **headers)

    return step


def hang_up(handler: Misbehaving) -> None:
    """Take the request and close the connection."""
    handler.connection.close()


def half(handler: Misbehaving) -> None:
    """Begin an answer and close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"outputs":')


def sleepy(handler: Misbehaving) -> None:
    """Take longer than anybody waits."""
    time.sleep(2)


def too_few(handler: Misbehaving) -> None:
    handler.send(200, {"outputs": [output((1, 3), [1, 2, 3])]})


def no_such_output(handler: Misbehaving) -> None:
    handler.send(200, {"outputs": [{**output((1, 3), [1, 2, 3]), "name": "other"}]})


def no_numbers(handler: Misbehaving) -> None:
    handler.send(200, {"outputs": [output((8, 3), ["x"] * 24)]})


def wrong_shape(handler: Misbehaving) -> None:
    handler.send(200, {"outputs": [output((8, 3), [1.0] * 23)]})


def no_json(handler: Misbehaving) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>hello</html>")


def spent(url: str) -> int:
    """How many questions the ledger counts."""
    with Ledger.open(Path(STORE)) as ledger:
        return ledger.spent(opened(url).key.sha256)


@pytest.mark.parametrize(
    "script",
    [
        [status(429)],
        [status(429), status(429, Retry_After="0"), status(503, Retry_After="0")],
        [status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
    ],
)
def test_what_the_server_says_it_did_not_do_is_asked_again(
    script: list[Step], scripted: Scripted, folder: Path
) -> None:
    scripted.script = list(script)
    report = call("query", scripted.url, "imgs", *FLAGS, "--batch", 8)
    assert (report["queried"], report["spent"], report["pending"]) == (COUNT, COUNT, 0)
    assert scripted.asked == [8] * len(script) + [8, 8, 4]


@pytest.mark.parametrize("step", [status(429), status(503, Retry_After="0")])
def test_a_server_that_stays_busy_is_given_up_and_nothing_is_counted(
    step: Step, scripted: Scripted, folder: Path
) -> None:
    scripted.script = [step] * 99
    assert "cannot be asked now" in fails(1, "query", scripted.url, "imgs", *FLAGS)
    assert len(scripted.asked) == remote.ATTEMPTS and spent(scripted.url) == 0
    scripted.script.clear()
    assert call("query", scripted.url, "imgs", *FLAGS)["queried"] == COUNT


def test_a_server_that_wants_long_to_be_left_alone_is(scripted: Scripted, folder: Path) -> None:
    scripted.script = [status(503, Retry_After="3600")]
    assert "come back in 3600 s" in fails(1, "query", scripted.url, "imgs", *FLAGS)
    assert len(scripted.asked) == 1 and spent(scripted.url) == 0


@pytest.mark.parametrize("code", [400, 401, 403, 404, 408, 413, 422])
def test_a_refused_batch_is_given_back(code: int, scripted: Scripted, folder: Path) -> None:
    scripted.script = [status(code)]
    line = fails(1, "query", scripted.url, "imgs", *FLAGS)
    assert f"step {code}" in line
    assert scripted.asked == [COUNT] and spent(scripted.url) == 0
    assert call("query", scripted.url, "imgs", *FLAGS)["queried"] == COUNT


UNSURE = {
    "500": status(500),
    "502": status(502),
    "503 without a time": status(503),
    "504": status(504),
    "elsewhere": status(302, Location="http://127.0.0.1:9/"),
    "hang up": hang_up,
    "half": half,
    "sleepy": sleepy,
    "too few": too_few,
    "no such output": no_such_output,
    "no numbers": no_numbers,
    "wrong shape": wrong_shape,
    "no json": no_json,
}


@pytest.mark.parametrize("name", UNSURE)
def test_what_may_have_been_done_is_never_asked_again_unasked(name: str, scripted: Scripted, folder: Path) -> None:
    """The claim stays and counts; the next run stops at it, skips it, or asks again, as the user says."""
    words = ["query", scripted.url, "imgs", *FLAGS, "--batch", 8, "--timeout", 1]
    scripted.script = [lambda handler: handler.send(200, {"outputs": [output((8, 3), [1.0] * 24)]}), UNSURE[name]]
    line = fails(1, *words)
    assert "--ambiguous retry" in line and "it may have counted them" in line
    assert scripted.asked == [8, 8] and spent(scripted.url) == 16
    line = fails(1, *words)
    assert "8 images were sent" in line and "--ambiguous skip" in line
    assert scripted.asked == [8, 8], "stopped before anything was asked"
    skipped = call(*words, "--ambiguous", "skip")
    assert scripted.asked == [8, 8, 4]
    assert (skipped["queried"], skipped["cached"], skipped["pending"], skipped["ambiguous"]) == (4, 8, 8, 8)
    again = call(*words, "--ambiguous", "retry")
    assert scripted.asked == [8, 8, 4, 8]
    assert (again["queried"], again["pending"], again["spent"], again["ambiguous"]) == (8, 0, COUNT + 8, 0)


def test_a_budget_counts_what_may_have_been_done(scripted: Scripted, folder: Path) -> None:
    scripted.script = [hang_up]
    fails(1, "query", scripted.url, "imgs", *FLAGS, "--batch", 8, "--budget", 12)
    report = call("query", scripted.url, "imgs", *FLAGS, "--batch", 8, "--ambiguous", "retry")
    assert (report["queried"], report["spent"], report["budget"]) == (4, 12, 12)


@pytest.mark.parametrize(("cost", "price", "granted"), [(1.0, 0.1, 10), (0.3, 0.1, 3), (0.29, 0.1, 2), (0, 0.1, 0)])
def test_a_largest_cost_is_kept_over_several_calls(
    cost: float, price: float, granted: int, scripted: Scripted, folder: Path
) -> None:
    words = ["query", scripted.url, "imgs", *FLAGS, "--batch", 4, "--price-per-query", price]
    report = call(*words, "--max-cost", cost)
    assert (report["queried"], report["budget"]) == (granted, granted)
    assert report["cost"] == pytest.approx(granted * price) and report["cost"] <= cost + 1e-9
    assert call(*words, "--max-cost", cost)["queried"] == 0
    assert call(*words)["queried"] == 0, "the ledger remembers the ceiling"
    assert sum(scripted.asked) == granted


def test_the_smaller_of_budget_and_cost_holds(scripted: Scripted, folder: Path) -> None:
    terms = ["--price-per-query", 2, "--max-cost", 13]
    assert call("query", scripted.url, "imgs", *FLAGS, "--budget", 5, *terms)["queried"] == 5
    assert call("query", scripted.url, "imgs", *FLAGS, "--budget", 50, *terms)["spent"] == 6


def test_a_plan_tells_the_cost(scripted: Scripted, folder: Path) -> None:
    photo_folder(folder / "more", 40, seed=3)
    report = call("query", scripted.url, "more", *FLAGS, "--plan", "--price-per-query", 0.25)
    assert (report["queried"], report["cost"], report["plan"]["cost"]) == (32, 8.0, 2.0)


@pytest.mark.parametrize(
    "terms", [("--max-cost", 1), ("--max-cost", -1, "--price-per-query", 1), ("--price-per-query", 0)]
)
def test_terms_that_make_no_sense(terms: tuple[object, ...], folder: Path) -> None:
    fails(2, "query", "http://127.0.0.1:9", "imgs", *FLAGS, *terms)


def test_the_token_is_sent_and_never_shown(scripted: Scripted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.asks_for_token = True
    assert remote.TOKEN in fails(1, "query", scripted.url, "imgs", *FLAGS)
    monkeypatch.setenv(remote.TOKEN, "hunter2")
    call("query", scripted.url, "imgs", *FLAGS, "--budget", 1)
    assert {one["Authorization"] for one in scripted.seen[1:]} == {"Bearer hunter2"}
    scripted.script = [lambda handler: handler.send(400, {"error": "hunter2 may not"})]
    line = fails(1, "query", scripted.url, "imgs", *FLAGS, "--budget", 9)
    assert "hunter2" not in line and "may not" in line
    assert b"hunter2" not in b"".join(one.read_bytes() for one in (folder / "runs").iterdir())
    monkeypatch.setenv(remote.TOKEN, "hunter2\nX-Other: 1")
    assert "hunter2" not in fails(1, "query", scripted.url, "imgs", *FLAGS)


def test_a_token_on_an_open_line_is_warned_of(
    scripted: Scripted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote.TOKEN, "hunter2")
    monkeypatch.setattr(remote, "_is_local", lambda base: False)
    said = CliRunner().invoke(app, ["query", scripted.url, "imgs", *FLAGS]).stderr
    assert "unencrypted" in said and "hunter2" not in said


def test_a_redirection_is_not_followed(scripted: Scripted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the images, and the token, to somebody nobody named."""
    with Scripted() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        scripted.script = [status(307, Location=other.url + "/infer")]
        assert "307" in fails(1, "query", scripted.url, "imgs", *FLAGS)
        assert other.asked == [] and other.seen == []
        other.shutdown()


@pytest.mark.parametrize(
    ("which", "value", "said"),
    [
        ("inputs", None, "does not say what its inputs are"),
        ("outputs", [], "does not say what its outputs are"),
        ("inputs", [{"name": "x", "datatype": "FP32", "shape": [-1, 128]}], "does not take one image batch"),
        ("inputs", [{"name": "x", "datatype": "BYTES", "shape": [-1, 3, 32, 32]}], "does not take one image batch"),
        ("inputs", [{"name": "x", "datatype": "FP32", "shape": [-1, 4, 32, 32]}], "4 channels"),
        ("inputs", [{"name": "x"}], "does not say"),
        ("outputs", [{"name": "y", "datatype": "BYTES", "shape": [-1, 3]}], "is BYTES"),
        ("outputs", [{"name": "y", "datatype": "FP32", "shape": [-1, 9, 9]}], "choose a pooling"),
    ],
)
def test_models_that_cannot_be_teachers(which: str, value: Any, said: str, scripted: Scripted, folder: Path) -> None:
    scripted.metadata[which] = value
    assert said in fails(1, "query", scripted.url, "imgs", *FLAGS)
    assert scripted.asked == []


def test_scaling_nobody_told_is_asked_for(scripted: Scripted, folder: Path) -> None:
    assert "--preprocess imagenet" in fails(1, "query", scripted.url, "imgs")
    assert "takes images of 32x32" in fails(1, "query", scripted.url, "imgs", *FLAGS, "--preprocess", "size=64")
    scripted.metadata["inputs"][0]["datatype"] = "UINT8"
    assert call("query", scripted.url, "imgs")["queried"] == COUNT


def test_several_outputs_are_chosen_as_in_a_file(scripted: Scripted, folder: Path) -> None:
    sums = scripted.metadata["outputs"][0]
    scripted.metadata["outputs"] = [{**sums, "name": "probs"}, sums]
    assert call("query", scripted.url, "imgs", *FLAGS)["teacher"]["output"] == "sums"
    assert "has no output 'none'" in fails(1, "query", scripted.url, "imgs", *FLAGS, "--output", "none")


def test_what_is_no_inference_server(scripted: Scripted, folder: Path) -> None:
    scripted.about = scripted.metadata = []  # type: ignore[assignment]
    assert "does not speak the Open Inference Protocol" in fails(1, "query", scripted.url, "imgs", *FLAGS)


def test_which_of_several_models(scripted: Scripted, folder: Path) -> None:
    base = scripted.url.removesuffix("/v2/models/m")
    assert call("query", "--teacher-url", base, "imgs", *FLAGS)["queried"] == COUNT
    scripted.models = ["a", "b"]
    assert "it has a, b" in fails(1, "query", base, "imgs", *FLAGS)
    assert "it has a, b" in fails(1, "query", f"{base}/v2/models/c", "imgs", *FLAGS)


def test_a_model_that_says_something_else_is_another_teacher(scripted: Scripted, folder: Path) -> None:
    before = opened(scripted.url).key
    assert opened(scripted.url).key == before
    scripted.metadata["versions"] = ["2"]
    assert opened(scripted.url).key.sha256 != before.sha256


def test_one_request_a_batch_where_the_batch_is_fixed(scripted: Scripted, folder: Path) -> None:
    """Else the answers of the first requests would be lost with the last."""
    scripted.metadata["inputs"][0]["shape"][0] = 3
    report = call("query", scripted.url, "imgs", *FLAGS)
    assert scripted.asked == [3] * 7 and report["queried"] == COUNT
    assert len(bought(scripted.url, folder / "imgs")) == COUNT


def test_the_server_is_told_apart_from_the_network(folder: Path) -> None:
    """A port nobody listens on, a name nobody has: nothing was sent, nothing is counted."""
    [port] = free_ports(1)
    assert "Connection refused" in fails(1, "query", f"http://127.0.0.1:{port}", "imgs", *FLAGS)
    assert "cannot be asked now" in fails(1, "query", "http://no.such.host.invalid/v2/models/m", "imgs", *FLAGS)


def test_a_server_that_is_gone_when_asked_keeps_the_claims_free(scripted: Scripted, folder: Path) -> None:
    teacher = opened(scripted.url)
    scripted.shutdown()
    scripted.server_close()
    with pytest.raises(DistillError, match="cannot be asked now") as caught:
        teacher.embed(np.zeros((1, 32, 32, 3), np.uint8))
    assert not isinstance(caught.value, Unsure)


# ---- MLServer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX teacher of 32 × 32 images with two outputs."""
    return onnx_teacher(tmp_path_factory.mktemp("model") / "teacher.onnx", outputs=("probs", "embedding"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[MLServer]:
    """MLServer with that teacher."""
    server = MLServer(tmp_path_factory.mktemp("mlserver"), model)
    try:
        server.start()
        yield server
    finally:
        server.resume()
        server.kill()


@pytest.fixture
def mlserver(running: MLServer) -> Iterator[MLServer]:
    """The same, well-behaved and with no calls counted."""
    running.trouble()
    (running.model / "calls.txt").unlink(missing_ok=True)
    yield running
    running.trouble()


@pytest.mark.slow
def test_mlserver_answers_as_the_file_does(mlserver: MLServer, model: Path, folder: Path) -> None:
    report = call("query", "--teacher-url", mlserver.url, "imgs", *FLAGS, "--batch", 8)
    assert (report["queried"], report["cached"], report["spent"]) == (COUNT, 0, COUNT)
    assert (report["teacher"]["output"], report["teacher"]["dim"]) == ("embedding", 16)
    assert len(mlserver.calls()) == len(set(mlserver.calls())) == COUNT
    np.testing.assert_allclose(bought(mlserver.url, folder / "imgs"), by_file(model, folder / "imgs"), atol=1e-5)
    assert opened(mlserver.url).provider == "mlserver 1.7.1"
    again = call("query", mlserver.base, "imgs", *FLAGS)
    assert (again["queried"], again["cached"], len(mlserver.calls())) == (0, COUNT, COUNT)


@pytest.mark.slow
def test_mlserver_without_that_model(mlserver: MLServer, folder: Path) -> None:
    line = fails(1, "query", f"{mlserver.base}/v2/models/other", "imgs", *FLAGS)
    assert "there is no model 'other'" in line and "it has teacher" in line


@pytest.mark.slow
def test_mlserver_refuses(mlserver: MLServer, folder: Path) -> None:
    """Its answer of 4xx is that it did not do it."""
    mlserver.trouble(call=1, status=422)
    assert "told to fail" in fails(1, "query", mlserver.url, "imgs", *FLAGS)
    assert spent(mlserver.url) == 0
    mlserver.trouble()
    assert call("query", mlserver.url, "imgs", *FLAGS)["spent"] == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("code", [500, 503])
def test_mlserver_fails(code: int, mlserver: MLServer, folder: Path) -> None:
    """Its answer of 5xx says nothing of whether it was done: it was not, but who knows."""
    mlserver.trouble(call=1, status=code)
    assert "told to fail" in fails(1, "query", mlserver.url, "imgs", *FLAGS, "--batch", 8)
    assert spent(mlserver.url) == 8
    mlserver.trouble()
    fails(1, "query", mlserver.url, "imgs", *FLAGS)
    assert call("query", mlserver.url, "imgs", *FLAGS, "--ambiguous", "retry")["spent"] == COUNT + 8


@pytest.mark.slow
def test_mlserver_that_stops_answering(mlserver: MLServer, folder: Path) -> None:
    """The system still takes connections and requests: only the wait for an answer ends."""
    words = ["query", mlserver.url, "imgs", *FLAGS, "--batch", 8, "--timeout", 2]
    mlserver.pause()
    try:
        assert "does not answer (no answer within 2 s)" in fails(1, *words)
    finally:
        mlserver.resume()
    mlserver.trouble(call=1, sleep=30)
    began = time.monotonic()
    assert "no answer within 2 s" in fails(1, *words)
    assert time.monotonic() - began < 15
    mlserver.trouble()
    assert spent(mlserver.url) == 8
    report = call(*words, "--ambiguous", "retry")
    assert (report["pending"], report["spent"]) == (0, COUNT + 8)


def asking(url: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """`query` in a process of its own."""
    words = [sys.executable, "-m", "distilltool", "query", url, "imgs", *FLAGS, "--batch", "4", *more]
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)


def wait_for(count: int, server: MLServer) -> None:
    """Until the server was asked about so many images."""
    end = time.monotonic() + 60
    while len(server.calls()) < count:
        assert time.monotonic() < end, "it was never asked"
        time.sleep(0.02)


@pytest.mark.slow
def test_mlserver_killed_in_the_middle_and_started_again(tmp_path: Path, model: Path, folder: Path) -> None:
    """What it had answered is kept; what it had been sent is unsure and asked once more only when told so."""
    server = MLServer(tmp_path / "server", model)
    try:
        server.start()
        server.trouble(call=3, sleep=60)
        process = asking(server.url, folder)
        wait_for(12, server)
        server.kill()
        assert "--ambiguous retry" in process.communicate(timeout=60)[1] and process.returncode == 1
        assert "cannot be asked now" in fails(1, "query", server.url, "imgs", *FLAGS)
        server.trouble()
        server.start()
        assert spent(server.url) == 12
        fails(1, "query", server.url, "imgs", *FLAGS)
        skipped = call("query", server.url, "imgs", *FLAGS, "--ambiguous", "skip")
        assert (skipped["cached"], skipped["queried"], skipped["ambiguous"]) == (8, 8, 4)
        again = call("query", server.url, "imgs", *FLAGS, "--ambiguous", "retry")
        assert (again["queried"], again["pending"], again["spent"]) == (4, 0, COUNT + 4)
        calls = server.calls()
        assert len(calls) == COUNT + 4 and len(set(calls)) == COUNT
        assert sorted(calls.count(one) for one in set(calls)) == [1] * (COUNT - 4) + [2] * 4
        np.testing.assert_allclose(bought(server.url, folder / "imgs"), by_file(model, folder / "imgs"), atol=1e-5)
    finally:
        server.kill()


@pytest.mark.slow
def test_the_asking_process_killed_in_the_middle(mlserver: MLServer, folder: Path) -> None:
    """Ours this time: its claims are of a dead process, and unsure all the same."""
    mlserver.trouble(call=0, sleep=5)
    process = asking(mlserver.url, folder)
    wait_for(4, mlserver)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    mlserver.trouble()
    assert "4 images were sent" in fails(1, "query", mlserver.url, "imgs", *FLAGS)
    report = call("query", mlserver.url, "imgs", *FLAGS, "--ambiguous", "retry")
    assert (report["pending"], report["spent"], len(set(mlserver.calls()))) == (0, COUNT + 4, COUNT)


@pytest.mark.slow
def test_a_student_is_trained_measured_and_exported_from_a_server(
    mlserver: MLServer, model: Path, tmp_path: Path, folder: Path
) -> None:
    """The whole chain by address; the run remembers the address, and eval asks there again."""
    photo_folder(tmp_path / "many", 48, seed=5)
    class_folders(tmp_path / "labelled", classes=4, each=4)
    small = ["--student", "timm:test_efficientnet", "--input", "32", "--set", "schedule.epochs=2"]
    made = call("distill", "--teacher-url", mlserver.url, "many", *FLAGS, *small, "--out", "run")
    assert made["queries"] == {"new": 48, "cached": 0, "spent": 48}
    told = json.loads((tmp_path / "run/run.json").read_text())["teacher"]
    assert (told["path"], told["output"], told["bytes"]) == (mlserver.url, "embedding", 0)
    judged = call("eval", "run", "--data", "labelled")
    assert judged["teacher_queries"] == {"new": 16, "cached": 0}
    by_name = call("eval", "run", "--data", "labelled", "--teacher", mlserver.base)
    assert by_name["teacher_queries"] == {"new": 0, "cached": 16}
    by_file_ = distilltool.evaluate(
        str(model), "labelled", teacher=mlserver.url, preprocess=PRE, store="other.sqlite", output="embedding"
    )
    assert by_file_.models[1].fidelity is not None
    assert by_file_.models[1].fidelity["overlap@10"].value == 1, "the server's answers rank as the file's do"
    shipped = call("export", "run", "--seconds", "1")
    assert shipped["teacher"]["latency"] == [] and shipped["variants"][0]["status"] == "accepted"


# ---- Triton


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Callable[..., Triton]]:
    """Start Triton with an ONNX teacher made for it."""
    started: list[Triton] = []

    def start(largest: int = 8, **how: Any) -> Triton:
        server = Triton(tmp_path / "triton", onnx_teacher(tmp_path / "teacher.onnx", **how), largest=largest)
        started.append(server)
        server.start()
        return server

    yield start
    for one in started:
        one.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "pre", "atol"),
    [
        ({"outputs": ("probs", "embedding")}, tuple(PRE), 1e-5),
        ({"layout": "NHWC", "dtype": "uint8"}, ("resize=stretch",), 1e-2),
        ({"dtype": "float16", "layout": "NHWC"}, tuple(PRE), 2e-2),
    ],
)
def test_triton_is_sent_bytes_in_batches_it_takes(
    how: dict[str, Any], pre: tuple[str, ...], atol: float, triton: Callable[..., Triton], folder: Path
) -> None:
    server = triton(**how)
    teacher = opened(server.url, *pre)
    assert teacher.model.binary and teacher.provider.startswith("triton 2.")
    flags = [word for one in pre for word in ("--preprocess", one)]
    report = call("query", server.base, "imgs", *flags)
    assert (report["queried"], report["pending"]) == (COUNT, 0), "batches of 8 at most, as its configuration says"
    theirs = by_file(folder / "teacher.onnx", folder / "imgs", pre)
    np.testing.assert_allclose(bought(server.url, folder / "imgs", pre), theirs, atol=atol)
    assert "there is no model 'nope'" in fails(1, "query", f"{server.base}/v2/models/nope", "imgs", *FLAGS)


@pytest.mark.slow
def test_triton_pools_a_map(triton: Callable[..., Triton], folder: Path) -> None:
    server = triton(output="map")
    assert "choose a pooling" in fails(1, "query", server.url, "imgs", *FLAGS)
    call("query", server.url, "imgs", *FLAGS, "--pool", "max")
    with Ledger.open(Path(STORE)) as ledger:
        photos = images.take_stock(images.find(folder / "imgs")).photos
        number = ledger.teacher(opened(server.url, pool="max").key)
        vectors = ledger.vectors(number, [photo.sha256 for photo in photos])
    ours = np.stack([vectors[photo.sha256] for photo in photos])
    theirs = by_file(folder / "teacher.onnx", folder / "imgs", pool="max")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_other_views_are_asked_for_by_themselves(scripted: Scripted, folder: Path, tmp_path: Path) -> None:
    """A mirrored view is another question to a server; other sizes than it takes are refused before any."""
    onnx_teacher(tmp_path / "student.onnx")

    def measured(**how: Any) -> dict[str, int]:
        return distilltool.evaluate(
            tmp_path / "student.onnx",
            folder / "imgs",
            teacher=scripted.url,
            store=tmp_path / "e.sqlite",
            preprocess=["unit"],
            **how,
        ).teacher_queries

    with pytest.raises(DistillError, match="takes images of 32x32 alone"):
        measured(scales="1,0.5")
    assert sum(scripted.asked) == 0
    assert measured(flip=True) == {"new": 2 * COUNT, "cached": 0}
    assert sum(scripted.asked) == 2 * COUNT
    assert measured(flip=True) == {"new": 0, "cached": 2 * COUNT}

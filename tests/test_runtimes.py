"""The exported file where it is deployed: other runtimes, with nothing of ours beside them, give its vectors."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from browser import browsing
from numpy.typing import NDArray
from servers import CACHE, environment
from test_chain import run_dir, work  # noqa: F401  fixtures

import distilltool
from distilltool import deploy, golden
from distilltool.teacher import SPACE_KEY

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "runtimes"
SEARCH = Path(__file__).parent.parent / "examples" / "search.py"
FLOAT32, INT8, ANY = "student.onnx", "student.int8-static.onnx", "student.any.onnx"
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # largest difference of a coordinate in float32
INT8_NEAR = 0.98  # least cosine of 8 bits to those of onnxruntime: runtimes round and sum them differently
WEB_SECONDS = 120.0
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
ALLOWED = "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'"  # a page that reaches nothing else


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A bundle with a variant of 8 bits, whatever it is worth."""
    folder = tmp_path_factory.mktemp("runtimes") / "bundle"
    free = {"smaller": 1.0, "min_overlap": 0.3, "max_drop": 1.0}
    report = distilltool.export(run_dir, bundle=folder, seconds=1.0, precision=["int8-static"], image="any", **free)
    assert [one.status for one in report.variants] == ["accepted"] * 3
    return folder


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Prepared images, (7, H, W, 3) uint8, and what onnxruntime in Python makes of the first 1, 2 and 7 of them, by
    file: (10, D) float32."""

    pixels: NDArray[np.uint8]
    vectors: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def expected(exported: Path, work: Path) -> Expected:  # noqa: F811
    """What every runtime is held to; images are so different that no vector can pass for another."""
    photos = sorted((work / "imgs").glob("photo*"))[: BATCHES[-1]]
    student = deploy.Student(exported / FLOAT32)
    pixels = np.stack([deploy.resize(deploy.open_rgb(photo), student.spec) for photo in photos])
    found = {}
    for name in (FLOAT32, INT8):
        session = deploy.Student(exported / name).session
        [given] = session.get_inputs()
        found[name] = np.concatenate([session.run(None, {given.name: pixels[:batch]})[0] for batch in BATCHES])
        last = found[name][-BATCHES[-1] :]
        assert np.max(last @ last.T - np.eye(len(last))) < 0.9
    return Expected(pixels=pixels, vectors=found)


def same(found: NDArray[np.float32], vectors: NDArray[np.float32], name: str) -> None:
    """Float32 to a tolerance, 8 bits by their cosine."""
    assert found.shape == vectors.shape
    if name == FLOAT32:
        assert found == pytest.approx(vectors, abs=TOLERANCE)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-3)
    assert (found * vectors).sum(axis=1).min() >= INT8_NEAR


def alone(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `cwd` with none of this process's settings."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [FLOAT32, INT8])
def test_deploy_py_needs_onnxruntime_numpy_and_pillow_alone(name: str, exported: Path, tmp_path: Path) -> None:
    """In an environment of these three the golden pictures get the vectors that the bundle carries."""
    python = environment("deploy", HERE) / "bin/python"
    listed = alone(python, "-I", "-m", "pip", "list", "--format", "freeze", cwd=tmp_path).stdout
    names = {line.split("==")[0].lower() for line in listed.splitlines()}
    needed = {"flatbuffers", "packaging", "protobuf"}  # by onnxruntime
    assert names - {"pip", "setuptools"} == {"onnxruntime", "numpy", "pillow", *needed}
    folder = exported / golden.FOLDER
    pictures = sorted(one for one in folder.iterdir() if one.name != golden.VECTORS)
    saved = tmp_path / "v.npy"
    done = alone(python, "-I", exported / "deploy.py", exported / name, *pictures, "--save", saved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(folder / golden.VECTORS) as kept:
        same(np.load(saved), kept[golden.TRAINED if name == FLOAT32 else name], name)


@pytest.mark.parametrize("name", [FLOAT32, INT8])
def test_openvino(name: str, exported: Path, expected: Expected, tmp_path: Path) -> None:
    python = environment("openvino", HERE) / "bin/python"
    np.save(tmp_path / "pixels.npy", expected.pixels)
    words = [exported / name, tmp_path / "pixels.npy", tmp_path / "v.npy", *(str(batch) for batch in BATCHES)]
    done = alone(python, "-I", HERE / "openvino_vectors.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same(np.load(tmp_path / "v.npy"), expected.vectors[name], name)


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with what package-lock.json lists, installed once; skips where npm cannot."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("there is no node with npm")
    folder, lock = CACHE / "npm", HERE / "package-lock.json"
    stamp, wanted = folder / "installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (lock.name, "package.json"):
        shutil.copy(HERE / name, folder)
    words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {lock}: {done.stderr.strip()[:200]}")
    stamp.write_text(wanted)
    return folder


@pytest.mark.parametrize("name", [FLOAT32, INT8])
def test_onnxruntime_node(name: str, exported: Path, expected: Expected, packages: Path, tmp_path: Path) -> None:
    (tmp_path / "pixels").write_bytes(expected.pixels.tobytes())
    side = str(expected.pixels.shape[1])
    words = ["node", HERE / "node.mjs", packages, exported / name, tmp_path / "pixels", side, *map(str, BATCHES)]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    vectors = expected.vectors[name]
    same(np.frombuffer(done.stdout, np.float32).reshape(-1, vectors.shape[1]), vectors, name)


@dataclass(kw_only=True)
class Site:
    """What a page may fetch, by path, and what it posted, (path, body)."""

    files: dict[str, bytes]
    dist: Path
    posted: list[tuple[str, bytes]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def get(self, path: str) -> bytes | None:
        """The file of a path; /ort/NAME is one of onnxruntime-web's."""
        if path.startswith("/ort/") and (self.dist / Path(path).name).is_file():
            return (self.dist / Path(path).name).read_bytes()
        return self.files.get(path)


class Handler(BaseHTTPRequestHandler):
    """Serves a site."""

    def __init__(self, site: Site, *given: Any) -> None:
        self.site = site
        super().__init__(*given)

    def do_GET(self) -> None:
        """Give out a file, to a page that may fetch from here alone."""
        path = urlsplit(self.path).path
        body = self.site.get(path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", TYPES.get(Path(path).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("Content-Security-Policy", ALLOWED)
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        """Take what the page found."""
        self.site.posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.site.done.set()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def served(site: Site) -> Iterator[str]:
    """A server of this machine for this machine; where it is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("name", [FLOAT32, INT8])
def test_onnxruntime_web(name: str, exported: Path, expected: Expected, packages: Path, tmp_path: Path) -> None:
    """WebAssembly in a headless browser, from files of this machine alone."""
    files = {
        "/web.html": (HERE / "web.html").read_bytes(),
        "/model": (exported / name).read_bytes(),
        "/pixels": expected.pixels.tobytes(),
    }
    site = Site(files=files, dist=packages / "node_modules/onnxruntime-web/dist")
    asked = "&".join([f"side={expected.pixels.shape[1]}", *(f"batch={batch}" for batch in BATCHES)])
    with served(site) as url, browsing(f"{url}/web.html?{asked}", tmp_path) as log:
        assert site.done.wait(WEB_SECONDS), log.read_text(errors="replace")[-3000:]
    [(path, body)] = site.posted
    assert path == "/vectors", body.decode()
    vectors = expected.vectors[name]
    same(np.frombuffer(body, np.float32).reshape(-1, vectors.shape[1]), vectors, name)


def search(bundle: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call examples/search.py where only what it needs is installed."""
    return alone(environment("search", HERE) / "bin/python", "-I", SEARCH, bundle, *words, cwd=cwd)


@pytest.mark.parametrize("name", [FLOAT32, ANY])
def test_a_folder_is_searched_by_a_photograph(name: str, exported: Path, work: Path, tmp_path: Path) -> None:  # noqa: F811
    """From JPEG to the ten nearest: those that the vectors say, itself first; and how long it took."""
    images, index = work / "imgs", tmp_path / "index.faiss"
    done = search(exported, "index", images, "--index", index, "--model", name, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("65 images"), done.stderr
    assert "torn.jpg" in done.stderr
    names = json.loads((tmp_path / "index.faiss.json").read_text())["files"]
    photo = images / "photo0004.jpg"
    done = search(exported, "query", photo, "--index", index, "--model", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line.split("  ") for line in done.stdout.splitlines()]
    student = deploy.Student(exported / name)
    cosines = student.embed([images / file for file in names]) @ student.embed([photo])[0]
    best = np.argsort(-cosines)[:10]
    assert [file for _, file in said] == [names[at] for at in best] and said[0] == ["1.0000", photo.name]
    assert [float(value) for value, _ in said] == pytest.approx(cosines[best], abs=1e-4)
    *parts, whole = (float(value) for value in re.findall(r"([\d.]+) ms", done.stderr))
    assert len(parts) == 3 and parts[0] > 0 and parts[1] > 0
    assert max(parts) <= whole


def test_an_index_of_another_space_is_refused(exported: Path, work: Path, tmp_path: Path) -> None:  # noqa: F811
    """A bundle whose file says that its vectors live elsewhere."""
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    model = onnx.load(other / FLOAT32)
    said = {one.key: one.value for one in model.metadata_props}
    onnx.helper.set_model_props(model, {**said, SPACE_KEY: "own-elsewhere"})
    onnx.save_model(model, other / FLOAT32)
    index, photo = tmp_path / "index.faiss", work / "imgs" / "photo0004.jpg"
    assert search(other, "index", work / "labelled", "--index", index, cwd=tmp_path).returncode == 0
    assert search(other, "query", photo, "--index", index, cwd=tmp_path).returncode == 0
    done = search(exported, "query", photo, "--index", index, cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert "own-elsewhere" in done.stderr and said[SPACE_KEY] in done.stderr

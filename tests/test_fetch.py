"""`--fetch`: small pretrained networks come from a hub where it is said, and from nowhere where it is not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from builders import photo_folder
from safetensors.torch import save_file
from test_auto import FLAGS, SIDE
from test_exports import export, network

pytestmark = pytest.mark.slow
NAME, REPOSITORY = "mobilenetv3_large_100", "timm/mobilenetv3_large_100.ra_in1k"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, photographs, and the weights that the hub has."""
    root = tmp_path_factory.mktemp("fetch")
    export(network("resnet18", 0), root / "teacher.onnx", torch.rand(2, 3, SIDE, SIDE), new=False)
    photo_folder(root / "imgs", 60)
    torch.manual_seed(5)
    save_file(network(NAME, 0).state_dict(), root / "model.safetensors")
    return root


@pytest.fixture
def hub(work: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a hub of one repository, and what it was asked for."""
    asked, weights = list[str](), (work / "model.safetensors").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            known = self.path in ("/", f"/{REPOSITORY}/resolve/main/model.safetensors")
            self.send_response(200 if known else 404)
            self.send_header("ETag", '"5e"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(weights) if known else 0))
            self.end_headers()
            if known and with_body:
                self.wfile.write(weights)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def distill(work: Path, home: Path, hub: str, *more: str) -> tuple[int, str, str]:
    """`distill --student auto` in a process whose hub is this one and whose cache is empty at first."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "distilltool", "distill", "teacher.onnx", "imgs", *FLAGS, "--json", *more],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_auto_asks_a_hub_only_where_it_is_told_to(work: Path, tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    address, asked = hub
    code, out, err = distill(work, tmp_path / "home", address, "--out", "without")
    assert code == 0, err
    assert not asked and "--fetch" in err
    assert json.loads(out)["student"]["spec"].startswith("teacher")
    code, out, err = distill(work, tmp_path / "home", address, "--out", "with", "--fetch")
    assert code == 0, err
    assert f"GET /{REPOSITORY}/resolve/main/model.safetensors" in asked
    assert f"timm:{NAME}" in err
    before = len(asked)
    code, _, err = distill(work, tmp_path / "home", address, "--out", "later")
    assert code == 0 and f"timm:{NAME}" in err and len(asked) == before  # from the cache


def test_a_hub_that_is_not_there_is_said_and_no_reason_to_stop(work: Path, tmp_path: Path) -> None:
    code, out, err = distill(work, tmp_path / "home", "http://127.0.0.1:9", "--out", "alone", "--fetch")
    assert code == 0, err
    assert "could not be fetched" in err and json.loads(out)["student"]["spec"].startswith("teacher")

"""One way to do harm at a time, with models and with images: refused in a line, or harmless."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import bombs
import numpy as np
import onnx
import pytest
from bombs import PRE
from builders import drawn, onnx_teacher, photo_folder
from onnx import TensorProto
from PIL import Image
from typer.testing import CliRunner

from distilltool import deploy, images
from distilltool.cli import app
from distilltool.datasets.csv import csv
from distilltool.errors import DistillError
from distilltool.names import json_text, printable
from distilltool.onnx_file import read_file
from distilltool.preprocess import Preprocess
from distilltool.teacher import TeacherOptions, open_teacher

WAY = Preprocess(size=(16, 16))
FLAGS = ["--preprocess", "scale=1/255"]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """No single file may take longer than 20 s."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


def refused(path: Path) -> str:
    """What is said of a model that is refused before it runs."""
    with pytest.raises(DistillError) as found:
        open_teacher(path, TeacherOptions(preprocess=PRE))
    assert "\n" not in str(found.value)
    return str(found.value)


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_external(path: Path, location: str, offset: str = "0", length: str = "96") -> Path:
    """A model that keeps one weight elsewhere."""
    model = bombs.plain()
    tensor = next(one for one in model.graph.initializer if one.name == "ones")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return saved(path, model)


# models


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", "a\0b", "*/_ORT_MEM_ADDR_/*"]
)
def test_external_data_elsewhere(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(96))
    (tmp_path / "in").mkdir()
    said = refused(with_external(tmp_path / "in" / "m.onnx", location))
    assert "outside its folder" in said or "not there" in said
    assert "\0" not in printable(said)


@pytest.mark.parametrize(
    ("offset", "length", "said"),
    [
        (str(2**62), "96", "shorter"),
        ("0", str(2**62), "shorter"),
        ("1", "96", "shorter"),
        ("-1", "96", "where none can be"),
        ("0", "-96", "where none can be"),
        ("x", "96", "where none can be"),
        ("0", "9" * 5000, "where none can be"),
    ],
)
def test_external_data_beyond_its_file(offset: str, length: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(96))
    assert said in refused(with_external(tmp_path / "m.onnx", "w", offset, length))


def test_external_data_through_links(tmp_path: Path) -> None:
    """As model hubs keep it: the model and its weights are links into one cache, symbolic or hard."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "blob").write_bytes(np.ones(24, np.float32).tobytes())
    with_external(cache / "model", "w")
    for name, link in (("a", os.symlink), ("b", os.link)):
        (tmp_path / name).mkdir()
        link(cache / "blob", tmp_path / name / "w")
        link(cache / "model", tmp_path / name / "m.onnx")
        teacher = open_teacher(tmp_path / name / "m.onnx", TeacherOptions(preprocess=PRE))
        assert teacher.embed(np.full((1, 8, 8, 3), 255, np.uint8)) == pytest.approx(3)


def test_what_is_no_file_is_never_read(tmp_path: Path) -> None:
    """A pipe would be waited on for ever, a device read without end: as the model and as its weights."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "round").symlink_to("round")
    for name in ("pipe", "endless"):
        assert "no ordinary file" in refused(tmp_path / name)
        assert "no ordinary file" in refused(with_external(tmp_path / "m.onnx", name))
    assert "there is no file" in refused(tmp_path / "round")
    assert "not there" in refused(with_external(tmp_path / "m.onnx", "round"))


def test_custom_operators_are_never_loaded(tmp_path: Path) -> None:
    """A domain that needs a library is refused; no name in a file makes one load."""
    model = bombs.model([onnx.helper.make_node("Mystery", ["start"], ["embedding"], domain="ai.onnx.contrib")])
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.contrib", 1))
    for key in ("custom_ops_library", "ort_config", "library"):
        model.metadata_props.add(key=key, value=str(tmp_path / "evil.so"))
    before = Path("/proc/self/maps").read_text().count("evil")
    assert "custom operators are not supported" in refused(saved(tmp_path / "m.onnx", model))
    assert Path("/proc/self/maps").read_text().count("evil") == before == 0


def test_a_model_cannot_set_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles, optimised copies and the like, which onnxruntime can be told to write."""
    monkeypatch.chdir(tmp_path)
    model = bombs.plain()
    options = {
        "session_options": {"enable_profiling": 1, "optimized_model_filepath": "written.onnx", "graph_level": 99}
    }
    model.metadata_props.add(key="ort_config", value=json.dumps(options))
    teacher = open_teacher(saved(tmp_path / "m.onnx", model), TeacherOptions(preprocess=PRE))
    teacher.embed(np.zeros((1, 8, 8, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (bombs.constant_of_shape, "more than any embedding model needs"),
        (bombs.expand, "more than any embedding model needs"),
        (bombs.tile, "more than any embedding model needs"),
        (bombs.count, "more than any embedding model needs"),
        (lambda: bombs.loop(2**40), "loops 1,099,511,627,776 times"),
        (lambda: bombs.laughs(40), "549,755,813,"),
        (lambda: bombs.chain(200_000), "nodes"),
        (lambda: bombs.axes(1_000_000), "1,000,000 axes"),
        (lambda: bombs.weight_axes(1_000_000), "1,000,000 axes"),
    ],
    ids="constant expand tile range loop functions nodes axes weights".split(),
)
def test_bombs(model: Callable[[], onnx.ModelProto], said: str, tmp_path: Path) -> None:
    assert said in refused(saved(tmp_path / "m.onnx", model()))


def test_a_range_that_is_computed(tmp_path: Path) -> None:
    """Reading the graph must not count it out; onnxruntime says that it has no room for it."""
    teacher = open_teacher(saved(tmp_path / "m.onnx", bombs.count_computed()), TeacherOptions(preprocess=PRE))
    with pytest.raises(DistillError, match="memory"):
        teacher.embed(np.zeros((1, 8, 8, 3), np.uint8))


def test_functions_that_call_each_other(tmp_path: Path) -> None:
    model = bombs.laughs(3)
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "f0", "ha"
    assert "call each other" in refused(saved(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("levels", [20, 100, 1000])
def test_graphs_within_graphs(levels: int, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(bombs.nested(levels))
    refused(tmp_path / "m.onnx")


def test_functions_loops_and_nodes_of_sound_models_run(tmp_path: Path) -> None:
    """The limits are far from what models need."""
    for name, model in (("a", bombs.laughs(6)), ("b", bombs.loop(100)), ("c", bombs.chain(3000))):
        teacher = open_teacher(saved(tmp_path / f"{name}.onnx", model), TeacherOptions(preprocess=PRE))
        assert teacher.embed(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 8)


def test_a_batch_that_nobody_fixes(tmp_path: Path) -> None:
    model = bombs.plain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 65536
    assert "65,536 images at once" in refused(saved(tmp_path / "m.onnx", model))


def test_the_runtimes_own_format_in_disguise(tmp_path: Path) -> None:
    """A file that protobuf reads as one model and onnxruntime would read as another."""
    content = b"\x12\x06\x00\x00ORTM" + bombs.plain().SerializeToString()
    assert onnx.load_from_string(content).graph.node, "protobuf takes it"
    (tmp_path / "m.onnx").write_bytes(content)
    assert "own format" in refused(tmp_path / "m.onnx")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """Answers of NaN are never kept as if they were vectors."""
    model = bombs.plain()
    tensor = next(one for one in model.graph.initializer if one.name == "ones")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((3, 8), np.nan, np.float32), "ones"))
    photo_folder(tmp_path / "imgs", 3)
    words = ["query", str(saved(tmp_path / "m.onnx", model)), str(tmp_path / "imgs"), *FLAGS]
    found = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "l.sqlite"), "--json"])
    assert found.exit_code == 0, found.stderr
    report = json.loads(found.stdout)
    assert [one["reason"] for one in report["skipped"]] == ["the teacher's answer is not finite"] * 3


def test_ctrl_c_ends_a_loop_without_end(tmp_path: Path) -> None:
    """In the process itself: onnxruntime is told to stop, and the command ends as an interrupted one does."""
    photo_folder(tmp_path / "imgs", 3)
    saved(tmp_path / "m.onnx", bombs.loop(None))
    command = [sys.executable, "-m", "distilltool", "query", "m.onnx", "imgs", *FLAGS]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=dict(os.environ))
    try:
        time.sleep(5)
        assert process.poll() is None, "it runs without end"
        for _ in range(2):  # the first asks it to stop after this batch
            process.send_signal(2)
            time.sleep(0.5)
        said = process.communicate(timeout=10)[1].decode()
        assert process.returncode == 130, said
        assert "Traceback" not in said
    finally:
        process.kill()


@pytest.mark.parametrize("name", ["\x1b[2J", "\x9b2J", "a\u202eb", "line\nbreak"])
def test_names_in_models_cannot_command_the_terminal(name: str, tmp_path: Path) -> None:
    """A tensor's name, in the note on what was understood and in errors."""
    path = onnx_teacher(tmp_path / "m.onnx", outputs=[f"{name}embedding"])
    photo_folder(tmp_path / "imgs", 2)
    words = ["query", str(path), str(tmp_path / "imgs"), *FLAGS, "--store", str(tmp_path / "l.sqlite")]
    for extra, code in (([], 0), (["--output", "wrong"], 1), (["--json"], 0)):
        found = CliRunner().invoke(app, [*words, *extra])
        assert found.exit_code == code, found.stderr
        assert "embedding" in found.stderr
        assert name not in found.stderr and name not in found.stdout
        assert not set("\x1b\x9b\u202e") & set(found.stderr + found.stdout)
    assert json.loads(found.stdout)["teacher"]["output"] == f"{name}embedding", "JSON keeps it, escaped"


# images


def decoded(path: Path) -> str:
    """Why an image is refused, and that it is so quickly and in little memory."""
    code = (
        "import sys, time, re, warnings; from pathlib import Path; warnings.simplefilter('ignore')\n"
        "from distilltool import images; from distilltool.preprocess import Preprocess\n"
        "began = time.monotonic(); path = Path(sys.argv[1]); images.take_stock([path])\n"
        "found = images.prepare(path, Preprocess(size=(16, 16)))\n"
        "print(found if isinstance(found, str) else 'image')\n"
        "print(time.monotonic() - began)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    said, seconds, kilobytes = run.stdout.splitlines()
    assert float(seconds) < 10 and int(kilobytes) < 1_500_000, run.stdout
    return said


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *extra: bytes, content: bytes = b"") -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def huge_png() -> bytes:
    return png(50_000, 50_000, content=zlib.compress(bytes(50_001 * 1000)))


def text_png() -> bytes:
    text = zlib.compress(bytes(200 << 20))
    return png(8, 8, *[png_chunk(b"zTXt", b"a\0\0" + text)] * 5, content=zlib.compress(bytes(72)))


def profile_png() -> bytes:
    profile = zlib.compress(bytes(500 << 20))
    return png(8, 8, png_chunk(b"iCCP", b"a\0\0" + profile), content=zlib.compress(bytes(72)))


def long_gif() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("P", (64, 64), number % 250) for number in range(2000)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def huge_gif() -> bytes:
    """A frame of the largest size there is."""
    frame = struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x01\0\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + frame


def strip_tiff() -> bytes:
    """One strip that says it is 4 GB long."""
    tags = [
        (256, 4, 9000),
        (257, 4, 8000),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 4, 2**32 - 1),
        (279, 4, 2**32 - 1),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    return b"II*\0\x08\0\0\0" + body + bytes(4) + bytes(200)


def huge_webp() -> bytes:
    """An animation on the largest canvas."""
    side = (16383).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + side + side
    chunks += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "WEBP")
    frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + stream.getvalue()[12:]
    chunks += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (huge_png, "too large"),
        (text_png, ""),
        (profile_png, ""),
        (long_gif, "image"),
        (huge_gif, "too large"),
        (strip_tiff, "cannot be decoded"),
        (huge_webp, ""),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_decompression_bombs(make: Callable[[], bytes], wanted: str, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(make())
    said = decoded(tmp_path / "bomb")
    assert wanted in said or "million" in said, said


def test_large_images_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    """Four transparent pictures just below the limit, in a few kilobytes each, decoded by several threads."""
    image = Image.new("P", (8900, 8900))
    image.info["transparency"] = 0
    image.save(tmp_path / "a.png", transparency=0)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    code = (
        "import re, sys, warnings; from pathlib import Path; warnings.simplefilter('ignore')\n"
        "from distilltool import images; from distilltool.preprocess import Preprocess\n"
        "work = lambda path: images.prepare(path, Preprocess(size=(16, 16)))\n"
        "found = list(images.ahead([Path(sys.argv[1])] * 4, work, threads=4))\n"
        "assert not any(isinstance(one, str) for one in found), found\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2_000_000


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder of two good images among names and things that are none."""
    root = tmp_path / "zoo"
    photo_folder(root, 2)
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(root)  # a socket's path has 108 bytes
        bound.bind("socket.jpg")
        os.chdir(before)
    (root / "round.jpg").symlink_to("round.jpg")
    (root / "endless.jpg").symlink_to("/dev/zero")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "loop").symlink_to(root, target_is_directory=True)
    return root


def test_what_is_no_ordinary_file_is_skipped(zoo: Path) -> None:
    """Nothing is waited for, nothing read without end."""
    found = images.find(zoo)
    stock = images.take_stock(found)
    assert len(stock.photos) == 2
    reasons = {Path(one.path).name: one.reason for one in stock.skipped}
    assert set(reasons) == {"pipe.jpg", "socket.jpg", "round.jpg", "endless.jpg", "gone.jpg"}
    assert reasons["pipe.jpg"] == reasons["socket.jpg"] == reasons["endless.jpg"] == "is no ordinary file"
    for name in reasons:
        assert isinstance(images.prepare(zoo / name, WAY), str)


def test_a_sparse_file_without_end(tmp_path: Path) -> None:
    """A terabyte of nothing takes no disk, and is not read."""
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    assert "too large" in images.take_stock([tmp_path / "sparse.jpg"]).skipped[0].reason


NAMES = [
    b"line\nbreak.jpg",
    b"\x1b[2J\x1b]0;title\x07.jpg",
    "\x9b31m.jpg".encode(),
    "a\u202egpj.exe.jpg".encode(),
    b"\xff\xfe not text.jpg",
    b"n" * 251 + b".jpg",
    b"a\\..\\..\\x.jpg",
    b"a.zip.jpg",
    b"--json.jpg",
    b"%s%n{0}.jpg",
    b"[red]markup.jpg",
]


@pytest.mark.parametrize("good", [True, False], ids=["images", "no images"])
def test_names_of_files(good: bool, tmp_path: Path) -> None:
    """Whatever a file is called, it is one image, and no name reaches the terminal or spoils the JSON."""
    root = tmp_path / "imgs"
    root.mkdir()
    for number, name in enumerate(NAMES):
        drawn(number).save(root / "new", "PNG")
        path = (root / "new").rename(root / os.fsdecode(name))
        if not good:
            path.write_bytes(b"no image" + bytes([number]))
    onnx_teacher(tmp_path / "t.onnx")
    for words in (["--json"], []):
        command = [sys.executable, "-m", "distilltool", "query", "t.onnx", "imgs", *FLAGS, *words]
        run = subprocess.run([*command, "--store", "l.sqlite"], cwd=tmp_path, capture_output=True, check=False)
        assert run.returncode == 0, run.stderr.decode()
        for text in (run.stdout.decode(), run.stderr.decode()):
            assert all(char.isprintable() or char == "\n" for char in text)
        if words:
            report = json.loads(run.stdout)
            skipped = {os.fsencode(Path(one["path"]).name) for one in report["skipped"]}
            assert report["queried"] == (len(NAMES) if good else 0)
            assert skipped == (set() if good else set(NAMES)), "JSON keeps every name, to the byte"
    assert {one.name for one in tmp_path.iterdir()} == {"imgs", "t.onnx", "l.sqlite"}
    assert {os.fsencode(one.name) for one in root.iterdir()} == set(NAMES)


def test_json_reads_back() -> None:
    for text in ("\udcff", "\x9b", "\u202e", "é 漢 😀", "\x1b\n\x7f", "\U000e0001"):
        written = json_text({"a": text})
        assert written.isprintable() and json.loads(written) == {"a": text}


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_archives_are_not_unpacked(kind: str, tmp_path: Path) -> None:
    """Not even one with names that climb."""
    path = tmp_path / "in" / f"photos.{kind}"
    path.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../climbed.jpg", b"x")
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            archive.addfile(tarfile.TarInfo("../climbed.jpg"))
    with pytest.raises(DistillError, match="unpack it first"):
        images.find(path)
    assert [one.name for one in tmp_path.rglob("*")] == ["in", path.name]


def test_lists_may_name_images_anywhere_and_nothing_else(tmp_path: Path) -> None:
    """A CSV is its owner's own list: paths outside its folder count, what is no image is skipped."""
    (tmp_path / "lists").mkdir()
    photo = photo_folder(tmp_path / "photos", 1)[0]
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = [f"../photos/{photo.name}", str(photo), "/etc/passwd", "../pipe.jpg", "/dev/zero", "a\0b", "../lists"]
    (tmp_path / "lists" / "l.csv").write_text("path\n" + "".join(f"{row}\n" for row in rows))
    dataset = csv(tmp_path / "lists" / "l.csv")
    stock = images.take_stock(dataset.paths)
    assert len(stock.photos) == 2
    assert len(stock.skipped) == 4 and stock.photos[1].path == Path("/etc/passwd")
    assert images.prepare(Path("/etc/passwd"), WAY) == "is no image of a known format"


def test_nothing_is_kept_or_sent_by_the_runtime(tmp_path: Path) -> None:
    """onnxruntime's wheels keep an identifier below HOME and report their use, unless they are told not to."""
    onnx_teacher(tmp_path / "t.onnx", metadata={"distilltool.preprocess": WAY_JSON, "distilltool.space_id": "x"})
    photo_folder(tmp_path / "imgs", 1)
    code = "import distilltool; distilltool.query('t.onnx', 'imgs', preprocess=['scale=1'])"
    deployed = "import sys; sys.argv = ['d', 't.onnx', 'imgs/photo0000.jpg']; import deploy; deploy.main()"
    (tmp_path / "deploy.py").write_text(Path(deploy.__file__).read_text())
    for words in (code, deployed):
        (tmp_path / "home").mkdir(exist_ok=True)
        places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "home")}
        path = os.pathsep.join([".", str(Path(deploy.__file__).parents[1])])
        run = subprocess.run(
            [sys.executable, "-B", "-c", words],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **places},
            capture_output=True,
            check=False,
        )
        assert b"ONNXRuntime" in run.stderr or run.returncode == 0, run.stderr.decode()
        assert list((tmp_path / "home").rglob("*")) == []


WAY_JSON = json.dumps(Preprocess(size=(32, 32), source="x").to_dict())


def test_hashes_do_not_depend_on_how_a_file_is_reached(tmp_path: Path) -> None:
    """A link to a model is the model."""
    path = onnx_teacher(tmp_path / "t.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    assert read_file(path).sha256 == read_file(tmp_path / "link.onnx").sha256

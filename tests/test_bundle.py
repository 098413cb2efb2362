"""What an export leaves behind: hashes that hold, pictures that tell, descriptions that others read."""

import hashlib
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_chain import PRE, run, run_dir, work  # noqa: F401  fixtures

import distilltool
from distilltool import bundle, deploy, golden, images
from distilltool.card import render_card
from distilltool.preprocess import Preprocess, from_sidecar
from distilltool.report import ExportReport, Interval, LatencyReport, VariantReport

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A bundle with every kind of file in it."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    report = distilltool.export(
        run_dir,
        bundle=folder,
        seconds=1.0,
        precision=["fp16"],
        smaller=1.0,
        vectors=run_dir.parent / "imgs",
    )
    assert [one.status for one in report.variants] == ["accepted", "accepted"]
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """One that may be spoilt."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_bundle_is_sound_where_it_was_made_and_elsewhere(exported: Path, copy: Path) -> None:
    for folder in (exported, copy):
        found = distilltool.verify(folder)
        assert not found.faults and found.files == len(bundle.files(folder))
        assert [one.file for one in found.golden] == ["student.fp16.onnx", "student.onnx"]
        assert all(one.same and one.pictures == 6 for one in found.golden)
        assert found.golden[1].difference_max < 1e-4  # to the student in torch
    code, _, err = run(copy, "verify", str(copy))
    assert code == 0 and "sound" in err


def test_others_can_check_the_hashes(copy: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", bundle.SUMS], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(bundle.files(copy))


def _appended(folder: Path) -> None:
    with (folder / "deploy.py").open("a") as file:
        file.write("# changed\n")


def _removed(folder: Path) -> None:
    (folder / "golden" / "0-wide.jpg").unlink()


def _added(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(b"x")


def _outside(folder: Path) -> None:
    with (folder / bundle.SUMS).open("a") as file:
        file.write("0" * 64 + "  ../secret\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_appended, "deploy.py was changed"),
        (_removed, "golden/0-wide.jpg is missing"),
        (_added, "other.onnx was not exported"),
        (_outside, "../secret is outside"),
    ],
)
def test_what_was_changed_is_named(spoil: Callable[[Path], None], said: str, copy: Path) -> None:
    spoil(copy)
    assert any(said in fault for fault in distilltool.verify(copy).faults)
    code, out, err = run(copy, "verify", str(copy), "--json")
    assert code == 1 and any(said in fault for fault in json.loads(out)["faults"])
    code, _, err = run(copy, "verify", str(copy))
    assert code == 1 and said in " ".join(err.split())


def test_another_network_under_right_hashes_is_found_by_the_pictures(copy: Path) -> None:
    """The vectors tell, where somebody has written the hashes anew."""
    model = onnx.load(copy / "student.onnx")
    weights = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weights.name))
    onnx.save_model(model, copy / "student.onnx")
    bundle.seal(copy)
    found = distilltool.verify(copy)
    assert found.faults == (found.faults[0],) and "student.onnx gives other vectors" in found.faults[0]


def _no_bytes_of_text(folder: Path) -> None:
    with (folder / bundle.SUMS).open("ab") as file:
        file.write(b"0" * 64 + b"  caf\xe9\n")


def _a_line_of_nothing(folder: Path) -> None:
    with (folder / bundle.SUMS).open("a") as file:
        file.write("something else\n")


def _no_model(folder: Path) -> None:
    (folder / "student.onnx").write_bytes(b"no ONNX at all")
    bundle.seal(folder)


def _no_metadata(folder: Path) -> None:
    model = onnx.load(folder / "student.onnx")
    onnx.helper.set_model_props(model, {})
    onnx.save_model(model, folder / "student.onnx")
    bundle.seal(folder)


def _no_golden(folder: Path) -> None:
    shutil.rmtree(folder / "golden")
    bundle.seal(folder)


def _no_pictures(folder: Path) -> None:
    for path in (folder / "golden").glob("[0-9]*"):
        path.unlink()
    bundle.seal(folder)


def _spoilt_golden(folder: Path) -> None:
    (folder / "golden" / "vectors.npz").write_bytes(b"no zip")
    bundle.seal(folder)


def _spoilt_picture(folder: Path) -> None:
    (folder / "golden" / "0-wide.jpg").write_bytes(b"no picture")
    bundle.seal(folder)


def _fewer_pictures(folder: Path) -> None:
    (folder / "golden" / "5-grey.png").unlink()
    bundle.seal(folder)


def _a_further_student(folder: Path) -> None:
    shutil.copyfile(folder / "student.onnx", folder / "student.x.onnx")
    bundle.seal(folder)


def _no_student(folder: Path) -> None:
    for path in folder.glob("student*.onnx"):
        path.unlink()
    bundle.seal(folder)


def _no_variant(folder: Path) -> None:
    (folder / "student.fp16.onnx").unlink()
    bundle.seal(folder)


def _an_empty_list(folder: Path) -> None:
    (folder / bundle.SUMS).write_text("")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_bytes_of_text, r"caf\xe9"),
        (_a_line_of_nothing, "a line that names no file, or one again: something else"),
        (_no_model, "student.onnx cannot be run"),
        (_no_metadata, "student.onnx cannot be run (nothing in it says 'distilltool.preprocess')"),
        (_no_golden, "golden/vectors.npz is not in SHA256SUMS"),
        (_no_pictures, "names no golden pictures"),
        (_spoilt_golden, "golden/vectors.npz cannot be read"),
        (_spoilt_picture, "cannot be run (cannot identify image file"),
        (_fewer_pictures, "student.onnx gives 5 x "),
        (_a_further_student, "student.x.onnx cannot be checked"),
        (_no_student, "student.onnx is not in SHA256SUMS"),
        (_no_variant, "vectors of student.fp16.onnx, which is not there"),
        (_an_empty_list, "student.onnx is not in SHA256SUMS"),
    ],
)
def test_what_cannot_be_checked_is_a_fault_and_no_traceback(
    spoil: Callable[[Path], None], said: str, copy: Path
) -> None:
    """Whoever wrote the hashes anew: what is not a model, has nothing to be held against, or is not there."""
    spoil(copy)
    code, out, err = run(copy, "verify", str(copy), "--json")
    assert code == 1 and any(said in fault for fault in json.loads(out)["faults"]), out
    code, _, err = run(copy, "verify", str(copy))
    assert code == 1 and "sound" not in err and "fault" in err


def test_the_card_says_what_the_student_was_made_from(exported: Path, run_dir: Path, work: Path) -> None:  # noqa: F811
    """Each hash as whoever has the sources computes it by what the card says of it."""
    card, said = (exported / "card.md").read_text(), json.loads((exported / "report.json").read_text())["sources"]
    made = json.loads((run_dir / "run.json").read_text())
    photos = [str(path) for path in (work / "imgs").iterdir() if path.name != "torn.jpg"]
    found = card.partition("a line each: `")[2].partition("`")[0].replace("FILES", shlex.join(photos))
    listed = subprocess.run(["bash", "-c", found], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[0] == said["images"]
    with sqlite3.connect(work / "ledger.sqlite") as ledger:
        rows = ledger.execute(
            "SELECT image, vector FROM answers JOIN teachers ON teachers.id = teacher "
            "WHERE sha256=? AND state='done' ORDER BY image",
            (made["teacher"]["sha256"],),
        ).fetchall()
    assert len(rows) == 64
    assert hashlib.sha256(b"".join(image + vector for image, vector in rows)).hexdigest() == said["answers"]
    text = json.dumps(made["recipe"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == said["recipe"] and made["recipe"]["student"]["input"] == 32
    assert {*said} == {"images", "answers", "recipe"} and all(f"sha256 `{one}`" in card for one in said.values())
    assert card.count("| _fill in_ | _fill in_ |") == 3 and "| images | _fill in_" in card


@pytest.mark.parametrize(
    ("device", "provider", "copies"),
    [
        ("cpu", "CPUExecutionProvider", "nothing to copy"),
        ("cuda", "CUDAExecutionProvider", "copies to and from the device are included"),
    ],
)
def test_the_card_says_where_it_was_timed(device: str, provider: str, copies: str, run_dir: Path) -> None:  # noqa: F811
    """And of a run by an earlier version that no hashes were kept."""
    timed = LatencyReport(
        **{"device": device, "provider": provider, "threads": 1, "batch": 1, "n": 100, "min_ms": 1.0, "p50_ms": 1.0},
        **{"p90_ms": 1.0, "p95_ms": None, "p99_ms": None, "throughput": 1000.0},
    )
    variant = VariantReport(
        **{"precision": "fp32", "file": "student.onnx", "bytes": 1, "sha256": "0", "opset": 20, "status": "accepted"},
        **{"reason": "", "parity": {"cosine_min": 1.0}, "latency": (timed,)},
        overlap_at_10=Interval(value=1.0, low=1.0, high=1.0),
    )
    machine = {"cpu": "A processor", "onnxruntime": "1.0"}
    report = ExportReport(bundle="b", variants=(variant,), teacher={"name": "t", "latency": []}, machine=machine)
    card = render_card(report, json.loads((run_dir / "run.json").read_text()), distilltool.load_student(run_dir).card)
    [line] = [line for line in card.splitlines() if line.startswith("On A processor")]
    assert provider in line and f"--device {device}" in line and copies in line
    assert "kept no hashes" in card


def test_files_are_run_on_the_processors_that_may_be_used(
    run_dir: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What onnxruntime takes unasked are the host's, whatever a container may use of them."""
    begin, asked = deploy.Student.__init__, list[int]()

    def noting(student: deploy.Student, model: Path, threads: int = 0) -> None:
        asked.append(threads)
        begin(student, model, threads)

    monkeypatch.setattr(deploy.Student, "__init__", noting)
    distilltool.export(run_dir, bundle=tmp_path / "b", seconds=1.0, precision=["fp32"], image="any")
    assert not distilltool.verify(tmp_path / "b").faults
    assert asked == [images.workers()] * 5  # the resizing one judged, both golden, both verified


def test_the_card_may_be_filled_in(copy: Path) -> None:
    (copy / "card.md").write_text("licence: mine")
    assert not distilltool.verify(copy).faults


def test_licences_that_were_filled_in_stay(
    run_dir: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through the next export of what was made of the same teacher and images; of others they are to be checked."""
    card = tmp_path / "b" / "card.md"

    def export() -> str:
        caplog.clear()
        distilltool.export(run_dir, bundle=tmp_path / "b", seconds=0.1, precision=["fp32"])
        return card.read_text()

    first = export()
    assert export().split("## Licence")[1] == first.split("## Licence")[1] and "filled in" not in caplog.text
    card.write_text(first.replace("_fill in_ | _fill in_", "CC-BY-4.0 | Ünsere", 1) + "\nAsked on Monday.\n")
    again = export()
    assert "CC-BY-4.0 | Ünsere" in again and again.endswith("\nAsked on Monday.\n") and "filled in" not in caplog.text
    assert again.count("_fill in_") == 4 and not distilltool.verify(tmp_path / "b").faults
    teacher = json.loads((run_dir / "run.json").read_text())["teacher"]["sha256"]
    card.write_text(again.replace(teacher, "0" * 64))
    other = export()
    assert other.count("_fill in_") == 6 + 4 and "fill them in anew" in caplog.text
    assert "| CC-BY-4.0 | Ünsere |" in other.partition("<!-- of an earlier card")[2]


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, _, err = run(tmp_path, "verify", str(folder))
        assert code == 1 and "is no bundle" in " ".join(err.split())


def test_verify_needs_no_torch(exported: Path) -> None:
    code = "import sys, distilltool; distilltool.verify(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(exported)], check=True)


def test_vectors_are_those_of_the_images_they_name(exported: Path, work: Path) -> None:  # noqa: F811
    vectors, said = np.load(exported / "vectors.npy"), json.loads((exported / "vectors.json").read_text())
    names = said["files"]
    assert "torn.jpg" not in names and len(names) == len(vectors) == 65
    student = deploy.Student(exported / "student.onnx")
    assert said["space_id"] == student.space_id
    some = [0, 7, 64]
    assert student.embed([work / "imgs" / names[at] for at in some]) == pytest.approx(vectors[some], abs=1e-5)


def everything(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _theirs(folder: Path) -> None:
    """Somebody's work, some of it under names that an export writes."""
    (folder / "golden").mkdir(parents=True)
    for name in ("student.mine.onnx", "config.json", "card.md", "vectors.npy", "notes.txt", "golden/standard.txt"):
        (folder / name).write_text(f"mine: {name}")


def _listed(folder: Path) -> None:
    """A download with hashes of its own."""
    _theirs(folder)
    bundle.seal(folder)


def _reported(folder: Path) -> None:
    """With a report of something else."""
    _theirs(folder)
    (folder / "report.json").write_text('{"runs": []}')


@pytest.mark.parametrize("fill", [_theirs, _listed, _reported])
def test_a_folder_that_is_no_bundle_is_left_alone(
    fill: Callable[[Path], None],
    run_dir: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused before the student is even loaded."""
    monkeypatch.setattr("distilltool.api.load_student", None)
    folder = tmp_path / "mine"
    fill(folder)
    before = everything(folder)
    code, _, err = run(tmp_path, "export", str(run_dir), "--bundle", str(folder), "--seconds", "1")
    assert code == 1 and "holds something that is no bundle" in " ".join(err.split()) and "--bundle" in err
    assert everything(folder) == before
    code, _, err = run(tmp_path, "export", str(run_dir), "--bundle", str(folder / "notes.txt"))
    assert code == 1 and "is a file" in " ".join(err.split())


def test_files_of_others_in_a_bundle_stay_and_are_not_sealed(copy: Path, run_dir: Path) -> None:  # noqa: F811
    """They are named, and verify takes them for what they are; one where the export has to write stops it before."""
    (copy / "notes.txt").write_text("mine")
    (copy / "golden" / "kept").mkdir()
    with (copy / bundle.SUMS).open("a") as file:
        file.write("0" * 64 + "  ../mine.txt\n")
    outside = copy.parent / "mine.txt"
    outside.write_text("mine")
    code, _, err = run(copy, "export", str(run_dir), "--bundle", str(copy), "--seconds", "1", "--precision", "fp32")
    assert code == 0 and "notes.txt, which is none of the bundle's" in " ".join(err.split())
    assert (copy / "notes.txt").read_text() == outside.read_text() == "mine"
    assert "notes.txt" not in bundle.sealed(copy) and not (copy / "student.fp16.onnx").exists()
    assert distilltool.verify(copy).faults == ("notes.txt was not exported",)
    (copy / "vectors.npy").write_text("mine")
    before = everything(copy)
    code, _, err = run(copy, "export", str(run_dir), "--bundle", str(copy), "--seconds", "1")
    assert code == 1 and "vectors.npy, which no export wrote" in " ".join(err.split())
    assert everything(copy) == before


def test_an_export_that_is_stopped_leaves_the_earlier_bundle_whole(
    copy: Path,
    run_dir: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = everything(copy)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilltool.stages.export._write_golden", stopped)
    for folder in (copy, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            distilltool.export(run_dir, bundle=folder, seconds=1.0, precision=["fp32"])
    assert everything(copy) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("call", range(12))
def test_a_bundle_is_known_for_one_while_another_takes_its_place(
    call: int, copy: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any step: the next export finds a bundle, no file of which is anybody else's."""
    replace, steps = Path.replace, list[Path]()

    def stopping(path: Path, target: Path) -> Path:
        steps.append(path)
        if len(steps) > call:
            raise KeyboardInterrupt
        return replace(path, target)

    for folder in (copy, tmp_path / "new"):
        monkeypatch.setattr(Path, "replace", stopping)
        steps.clear()
        with suppress(KeyboardInterrupt), bundle.replaced(folder) as fresh:
            shutil.copytree(exported, fresh, dirs_exist_ok=True)
        assert len(steps) > call
        monkeypatch.setattr(Path, "replace", replace)
        with bundle.replaced(folder) as fresh:
            shutil.copytree(exported, fresh, dirs_exist_ok=True)
        assert everything(folder) == everything(exported) and not bundle.foreign(folder)


def test_an_export_without_vectors_leaves_none_of_an_earlier_one(exported: Path, copy: Path, run_dir: Path) -> None:  # noqa: F811
    distilltool.export(run_dir, bundle=copy, seconds=1.0, precision=["fp32"])
    names = {path.name for path in copy.iterdir()}
    assert "vectors.npy" not in names and "student.fp16.onnx" not in names
    assert not distilltool.verify(copy).faults


def as_clip(said: dict[str, Any], image: Image.Image) -> NDArray[np.uint8]:
    """What transformers' CLIPImageProcessor (4.50, 5.23) makes of an image by such a description: (H, W, 3)."""
    assert said["image_processor_type"] == "CLIPImageProcessor"
    assert said["do_resize"] and not said["do_rescale"] and not said["do_normalize"]
    if "shortest_edge" in said["size"]:
        short = said["size"]["shortest_edge"]
        wide, high = (int(short * side / min(image.size)) for side in image.size)
    else:
        wide, high = said["size"]["width"], said["size"]["height"]
    image = image.resize((wide, high), said["resample"])
    if said["do_center_crop"]:
        cut = said["crop_size"]
        left, top = (wide - cut["width"]) // 2, (high - cut["height"]) // 2
        image = image.crop((left, top, left + cut["width"], top + cut["height"]))
    return np.asarray(image)


@pytest.mark.parametrize("photo", [(90, 70), (70, 90), (120, 120)])
@pytest.mark.parametrize(
    ("how", "far"),
    [
        ({"size": (48, 64)}, 0.0),
        ({"size": (48, 48), "crop_pct": 0.8}, 0.5),
        ({"size": (150, 150), "crop_pct": 0.9}, 1.0),  # whole margins are near, not equal
        ({"size": (48, 48), "resize": "shortest", "resize_to": 56}, 0.0),
    ],
    ids=["stretch", "crop", "crop roughly", "shortest"],
)
def test_the_hubs_description_prepares_images_alike(how: dict[str, Any], far: float, photo: tuple[int, int]) -> None:
    """Mean difference in levels of 255. The processor is one that stretches, keeps proportions and cuts in every
    version: ViTImageProcessor of transformers 4 would give the whole image in another size."""
    given = Preprocess(**how, layout="NHWC", dtype="uint8")
    said = bundle.preprocessor_config(given)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(pixels).resize(photo, Image.Resampling.BICUBIC)
    theirs, ours = as_clip(said, image), given.prepare(image)
    assert theirs.shape == ours.shape
    assert np.abs(theirs.astype(float) - ours).mean() <= far
    read = from_sidecar(said)
    assert read is not None and read["size"] == how["size"]


def test_golden_pictures_are_drawn_alike_everywhere(tmp_path: Path) -> None:
    """The same bytes of pixels each time, of several modes, one turned by its orientation."""
    first, second = golden.draw(tmp_path / "a"), golden.draw(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    modes = [Image.open(path).mode for path in first]
    assert {"RGB", "RGBA", "P", "L"} <= set(modes)
    turned = next(path for path in first if "turned" in path.name)
    assert Image.open(turned).getexif()[0x0112] == 6

"""A preprocessing that nobody wrote down: guessed from the teacher's answers, paid for once, kept, recorded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import distilltool
from distilltool import guess
from distilltool.cli import app
from distilltool.ledger import Ledger
from distilltool.onnx_file import read_file

COUNT = 40
SIDE = 32


def picky(path: Path, *, sees: bool = True) -> Path:
    """A network for pixels of 0 to 1: it rounds them to bytes, and answers with how the colours vary together.

    sees: without it, its answers are the same however the pixels are scaled.
    """
    parts = {
        "top": np.float32(255),
        "zero": np.float32(0),
        "little": np.float32(1 if sees else 1e-6),
        "flat": np.array([0, 3, -1], np.int64),
        "row": np.array([0, -1], np.int64),
        "weight": np.array([1, 1, 0.3], np.float32).reshape(1, 3, 1),
        "count": np.float32(SIDE * SIDE),
    }
    read = [
        ("Mul", ["images", "top"], "wide"),
        ("Round", ["wide"], "whole"),
        ("Clip", ["whole", "zero", "top"], "pixels"),
    ]
    nodes = [
        *(read if sees else [("Identity", ["images"], "pixels")]),
        ("Reshape", ["pixels", "flat"], "rows"),
        ("ReduceMean", ["rows"], "mean"),
        ("Sub", ["rows", "mean"], "centred"),
        ("Mul", ["centred", "centred"], "squares"),
        ("ReduceMean", ["squares"], "variance"),
        ("Sqrt", ["variance"], "deviation"),
        ("Add", ["deviation", "little"], "scale"),
        ("Div", ["centred", "scale"], "even"),
        ("Mul", ["even", "weight"], "seen"),
        ("Transpose", ["seen"], "turned"),
        ("MatMul", ["seen", "turned"], "products"),
        ("Div", ["products", "count"], "together"),
        ("Reshape", ["together", "row"], "pairs"),
        ("Mul", ["seen", "seen"], "two"),
        ("Mul", ["two", "seen"], "three"),
        ("ReduceMean", ["three"], "skew3"),
        ("Reshape", ["skew3", "row"], "skew"),
        ("ReduceMean", ["seen"], "level3"),
        ("Reshape", ["level3", "row"], "level"),
        ("Concat", ["pairs", "skew", "level"], "embedding"),
    ]
    attributes = {
        "mean": {"axes": [1, 2]},
        "variance": {"axes": [1, 2]},
        "skew3": {"axes": [2]},
        "level3": {"axes": [2]},
        "turned": {"perm": [0, 2, 1]},
        "embedding": {"axis": 1},
    }
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **attributes.get(out, {})) for kind, ins, out in nodes],
        "picky",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 15])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in parts.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a network finds its views less surely than a real one; how sure is enough is tested with the guess."""
    monkeypatch.setattr(guess, "FOUND", 0.6)
    monkeypatch.setattr(guess, "FEWEST", 12)
    monkeypatch.setattr(guess, "MOST", 16)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Pictures of fine specks, each in four colours of its own: every crop shows the same colours."""
    folder = tmp_path / "imgs"
    folder.mkdir()
    for number in range(COUNT):
        rng = np.random.default_rng(600 + number)
        palette = rng.integers(0, 256, (4, 3))
        specks = palette[rng.integers(0, 4, (48, 64))].repeat(2, 0).repeat(2, 1).astype(np.uint8)
        Image.fromarray(specks).save(folder / f"{number:02d}.bmp")
    return folder


def test_query_needs_no_flag(tmp_path: Path, textures: Path) -> None:
    """The guess is used, named as the source, and costs nothing beyond the images themselves."""
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    report = distilltool.query(teacher, textures, store=store)
    assert report.teacher.preprocess["source"] == "guessed"
    assert report.teacher.preprocess["scale"] == pytest.approx(1 / 255) and report.teacher.preprocess["mean"] == [0] * 3
    assert (report.spent, report.cached, report.queried) == (COUNT, guess.MOST, COUNT - guess.MOST)
    told = distilltool.query(teacher, textures, store=tmp_path / "told.sqlite", preprocess=["unit"])
    with Ledger.open(store) as ours, Ledger.open(tmp_path / "told.sqlite") as theirs:
        photos = [bytes.fromhex(one) for one in _hashes(textures)]
        guessed, said = ours.vectors(1, photos), theirs.vectors(1, photos)
    assert told.spent == COUNT and guessed.keys() == said.keys()
    for image, vector in said.items():
        np.testing.assert_allclose(guessed[image], vector, atol=1e-5)


def _hashes(folder: Path) -> list[str]:
    from distilltool.images import digest

    return [digest(path) for path in sorted(folder.iterdir())]


def test_the_guess_is_made_once(tmp_path: Path, textures: Path) -> None:
    """The ledger remembers the outcome: the same command again asks nothing, and prints how to fix it."""
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    distilltool.query(teacher, textures, store=store)
    words = ["query", str(teacher), str(textures), "--store", str(store)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "--preprocess unit" in " ".join(result.stderr.split()) and "probing" not in result.stderr
    again = distilltool.query(teacher, textures, store=store)
    assert (again.spent, again.queried) == (COUNT, 0)


def test_probes_count_against_the_budget(tmp_path: Path, textures: Path) -> None:
    """A budget of 20 is 16 probes and four more; one of 5 is too small to guess with, and is not touched."""
    teacher = picky(tmp_path / "t.onnx")
    report = distilltool.query(teacher, textures, store=tmp_path / "a.sqlite", budget=guess.MOST + 4)
    assert (report.spent, report.queried, report.pending) == (guess.MOST + 4, 4, COUNT - guess.MOST - 4)
    with pytest.raises(distilltool.DistillError, match="the budget of 5 leaves 5"):
        distilltool.query(teacher, textures, store=tmp_path / "b.sqlite", budget=5)
    with Ledger.open(tmp_path / "b.sqlite") as ledger:
        assert ledger.spent(read_file(teacher).sha256) == 0


def test_two_processes_make_one_guess(tmp_path: Path, textures: Path) -> None:
    """The second waits for the first one's outcome: every image is paid for once."""
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    code = (
        "import sys, distilltool\n"
        "from distilltool import guess\n"
        "guess.FEWEST, guess.MOST, guess.FOUND = 12, 16, 0.6\n"
        "print(distilltool.query(sys.argv[1], sys.argv[2], store=sys.argv[3]).teacher.preprocess['source'])\n"
    )
    words = [sys.executable, "-c", code, str(teacher), str(textures), str(store)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=120)[0].strip() for one in both] == ["guessed"] * 2
    with Ledger.open(store) as ledger:
        assert ledger.spent(read_file(teacher).sha256) == COUNT


def test_a_guess_that_was_killed_is_made_again(tmp_path: Path, textures: Path) -> None:
    """A reservation whose process is gone holds nobody up; what it may have asked stays paid."""
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from distilltool.ledger import Ledger\n"
        "Ledger.open(Path(sys.argv[1])).reserve_guess(sys.argv[2], 'embedding', 16, 0, None)\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(store), read_file(teacher).sha256], check=False)
    report = distilltool.query(teacher, textures, store=store)
    assert report.teacher.preprocess["source"] == "guessed" and report.spent == COUNT + 16


def test_what_is_not_clear_is_an_error_with_the_ranking(tmp_path: Path, textures: Path) -> None:
    """A network that does not care how pixels are scaled gives no ground for a guess; that is paid for once too."""
    teacher, store = picky(tmp_path / "t.onnx", sees=False), tmp_path / "l.sqlite"
    errors = []
    for _ in range(2):
        with pytest.raises(distilltool.DistillError) as caught:
            distilltool.query(teacher, textures, store=store)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    for word in ("not clear", "imagenet", "tf", "--preprocess"):
        assert word in errors[0]
    with Ledger.open(store) as ledger:
        assert ledger.spent(read_file(teacher).sha256) == guess.MOST
    assert distilltool.query(teacher, textures, store=store, preprocess=["tf"]).queried == COUNT


def test_too_few_images_are_tried_again_with_more(tmp_path: Path, textures: Path) -> None:
    """Fewer images than a guess takes are an error that costs nothing; with more of them it is made."""
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(textures.iterdir())[: guess.FEWEST - 1]:
        (few / path.name).write_bytes(path.read_bytes())
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    with pytest.raises(distilltool.DistillError, match=f"guessing takes {guess.FEWEST}"):
        distilltool.query(teacher, few, store=store)
    assert distilltool.query(teacher, textures, store=store).spent == COUNT


def test_what_is_said_is_believed(tmp_path: Path, textures: Path) -> None:
    """A sidecar silences the guess, and a size said by a flag is kept by it."""
    teacher = picky(tmp_path / "t.onnx")
    said = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": {"height": SIDE, "width": SIDE}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    report = distilltool.query(teacher, textures, store=tmp_path / "a.sqlite")
    assert report.teacher.preprocess["source"].startswith("sidecar") and report.queried == COUNT
    (tmp_path / "preprocessor_config.json").unlink()
    other = distilltool.query(
        teacher, textures, store=tmp_path / "b.sqlite", preprocess=["resize=shortest", f"resize_to={SIDE + 4}"]
    )
    assert (other.teacher.preprocess["source"], other.teacher.preprocess["resize_to"]) == ("guessed", SIDE + 4)


def test_inspect_shows_the_ranking(tmp_path: Path, textures: Path) -> None:
    """With images it is shown where nothing is known, and where it is, on request; without images it cannot be."""
    teacher = picky(tmp_path / "t.onnx")
    found = distilltool.inspect(teacher, textures)
    assert found.guess is not None and found.guess["clear"] and found.guess["best"] == "unit"
    assert found.preprocess is not None and found.preprocess["source"] == "guessed"
    assert distilltool.inspect(teacher, textures, preprocess=["tf"]).guess is None
    asked = distilltool.inspect(teacher, textures, preprocess=["tf"], guess_preprocess=True)
    assert asked.guess is not None and asked.guess["best"] == "unit" and asked.preprocess["source"] == "flag tf"
    result = CliRunner().invoke(app, ["inspect", str(teacher), "--guess-preprocess"])
    assert result.exit_code == 2 and "images" in result.stderr
    shown = CliRunner().invoke(
        app, ["inspect", str(teacher), "--guess-preprocess", str(textures)], env={"COLUMNS": "80"}
    )
    assert shown.exit_code == 0 and "--preprocess unit" in shown.stderr
    assert max(map(len, shown.stderr.splitlines())) <= 80


def test_a_model_to_evaluate_is_guessed_too(tmp_path: Path, textures: Path) -> None:
    """Teacher and model are the same file, and nothing was said of either."""
    teacher = picky(tmp_path / "t.onnx")
    report = distilltool.evaluate(teacher, textures, teacher=teacher, store=tmp_path / "e.sqlite")
    assert report.models[1].fidelity["overlap@10"].value == 1.0


def test_isolated_and_guessed(tmp_path: Path, textures: Path) -> None:
    """The child process is probed as the file is."""
    teacher = picky(tmp_path / "t.onnx")
    report = distilltool.query(teacher, textures, store=tmp_path / "l.sqlite", isolate=True)
    assert report.teacher.preprocess["source"] == "guessed" and report.spent == COUNT


@pytest.mark.slow
def test_run_and_model_record_it(tmp_path: Path, textures: Path) -> None:
    """The run says that it was guessed, and so does the exported student."""
    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    distilltool.distill(
        teacher,
        textures,
        store=store,
        out=tmp_path / "run",
        student="timm:test_efficientnet",
        input_size=32,
        changes=["schedule.epochs=1"],
    )
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["teacher"]["preprocess"]["source"] == "guessed"
    distilltool.export(tmp_path / "run", seconds=1)
    metadata = {one.key: one.value for one in onnx.load(tmp_path / "run" / "bundle" / "student.onnx").metadata_props}
    assert json.loads(metadata["distilltool.teacher_preprocess"])["source"] == "guessed"


def test_a_size_that_was_said_is_not_remembered(tmp_path: Path, textures: Path) -> None:
    """What is kept of a guess is the convention; the size a user gave belongs to that command alone."""
    path, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"
    said = ["resize=shortest", f"resize_to={SIDE + 4}"]
    distilltool.query(path, textures, store=store, preprocess=said)
    again = distilltool.query(path, textures, store=store)
    assert (again.teacher.preprocess["resize_to"], again.teacher.preprocess["source"]) == (None, "guessed")


def test_a_guess_that_fails_holds_nobody_up(tmp_path: Path, textures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while probing lets go of the reservation: another process need not wait for this one's end."""
    from distilltool import probe

    teacher, store = picky(tmp_path / "t.onnx"), tmp_path / "l.sqlite"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "look", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        distilltool.query(teacher, textures, store=store)
    assert "16 images count" in stop.value.kept
    with Ledger.open(store) as ledger:
        assert ledger.guess("x", "embedding") is None
        rows = list(ledger.select("SELECT outcome, asked FROM guesses"))
    assert rows == [("{}", 16)]


def test_a_plan_after_a_guess_knows_the_time(tmp_path: Path, textures: Path) -> None:
    """Nothing more is asked, and the answers of the guess say how long one takes."""
    report = distilltool.query(picky(tmp_path / "t.onnx"), textures, store=tmp_path / "l.sqlite", plan=True)
    assert report.plan is not None and report.plan.queries == COUNT - report.cached - report.queried
    assert report.plan.seconds is not None and report.plan.seconds > 0


def test_inspect_with_few_images_goes_on(tmp_path: Path, textures: Path) -> None:
    """Too few to guess with are enough to be timed; only who asks for the ranking is told."""
    few = tmp_path / "few"
    few.mkdir()
    (few / "one.bmp").write_bytes((textures / "00.bmp").read_bytes())
    teacher = picky(tmp_path / "t.onnx")
    found = distilltool.inspect(teacher, few)
    assert found.problem is None and found.ms_per_image is not None and found.guess is None


@pytest.mark.parametrize(
    "metadata",
    ["[1]", "[" * 200_000, '{"size": ["a", "b"]}', '{"size": 32, "scale": 1, "crop_ratio": 0}', '{"scale": "NaN"}'],
)
def test_metadata_that_is_no_preprocessing(tmp_path: Path, textures: Path, metadata: str) -> None:
    """One line, whatever stands there."""
    model = onnx.load(picky(tmp_path / "t.onnx"))
    helper.set_model_props(model, {"distilltool.preprocess": metadata})
    onnx.save_model(model, tmp_path / "t.onnx")
    with pytest.raises(distilltool.DistillError):
        distilltool.query(tmp_path / "t.onnx", textures, store=tmp_path / "l.sqlite")


@pytest.mark.parametrize("flag", ["scale=nan", "mean=inf", "std=nan", "scale=0"])
def test_numbers_that_are_none(tmp_path: Path, textures: Path, flag: str) -> None:
    """Refused before the teacher is asked."""
    with pytest.raises(distilltool.DistillError):
        distilltool.query(picky(tmp_path / "t.onnx"), textures, store=tmp_path / "l.sqlite", preprocess=["tf", flag])
    assert not (tmp_path / "l.sqlite").exists()


def test_a_teacher_that_answers_nothing_finite_is_asked_no_more(tmp_path: Path, textures: Path) -> None:
    """Eight useless answers are enough."""
    model = onnx.load(picky(tmp_path / "t.onnx"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "nan"))
    model.graph.node[-1].output[0] = "fine"
    model.graph.node.append(helper.make_node("Mul", ["fine", "nan"], ["embedding"]))
    onnx.save_model(model, tmp_path / "t.onnx")
    with pytest.raises(distilltool.DistillError, match="not finite"):
        distilltool.query(tmp_path / "t.onnx", textures, store=tmp_path / "l.sqlite", preprocess=["unit"])
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.spent(read_file(tmp_path / "t.onnx").sha256) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--import", "v.npz", "--input", "a=1"], "mean nothing for a file of answers"),
        (["--import", "v.npz", "--isolate"], "mean nothing for a file of answers"),
        (["--import", "v.npz", "--budget", "3"], "budget means nothing"),
        (
            ["--teacher-url", "http://127.0.0.1:9/v2/models/x", "--device", "cuda"],
            "mean nothing for a model on a server",
        ),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    tmp_path: Path, textures: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than taken in silence."""
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", paths=np.array(["00.bmp"]), vectors=np.ones((1, 4), np.float32))
    result = CliRunner().invoke(app, ["query", str(textures), *words])
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_the_selection_is_checked_before_anything_is_paid(tmp_path: Path, textures: Path) -> None:
    """A name that is none costs no probe."""
    with pytest.raises(distilltool.DistillError, match="no selection"):
        distilltool.query(picky(tmp_path / "t.onnx"), textures, store=tmp_path / "l.sqlite", select="nonsense")
    assert not (tmp_path / "l.sqlite").exists()

"""Every benchmark from its files to the report: figures beside the same definitions written out, crops, distractors."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import plain
import pytest
from builders import drawn, photo_folder
from layouts import EXPECTED, GND, LAYOUTS, revisited, write
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

import distilltool
from distilltool import images
from distilltool.cli import app
from distilltool.datasets import open_dataset
from distilltool.errors import DistillError, Exit
from distilltool.ledger import Ledger
from distilltool.preprocess import Preprocess
from distilltool.report import EvalReport

DATA = Path(os.environ.get("DISTILLTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
KAPPAS = (1, 5, 10)
LEVELS = (
    ("easy", ["easy"], ["junk", "hard"]),
    ("medium", ["easy", "hard"], ["junk"]),
    ("hard", ["hard"], ["junk", "easy"]),
)


def measured(models: Path, data: Path, protocol: str | None = None, teacher: Path | None = None) -> EvalReport:
    """The student beside the teacher."""
    return distilltool.evaluate(
        models / "student.onnx",
        data,
        teacher=teacher or models / "teacher.onnx",
        protocol=protocol,
        store=data.parent / "store" / "e.sqlite",
        preprocess=PRE,
    )


def embedded(model: Path, pictures: list[Image.Image]) -> NDArray[np.float32]:
    """Vectors of length 1 of pictures, by onnxruntime and Pillow alone."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = np.stack([np.asarray(one.resize((32, 32), Image.Resampling.BILINEAR)) for one in pictures])
    found = session.run(None, {"images": ((rows / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)})[0]
    vectors: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"csv", "folders", "unlabelled"}))
def test_a_benchmark_from_files_to_report(name: str, models: Path, tmp_path: Path) -> None:
    """Figures in their order for teacher and student, how much is kept, and what each figure means."""
    report = measured(models, LAYOUTS[name](tmp_path / "data"))
    queries, gallery, figures = EXPECTED[name]
    assert (report.protocol, report.queries, report.gallery) == (name, queries, gallery)
    for model in report.models:
        assert list(model.metrics) == figures
    student = report.models[1]
    assert list(student.retention) == figures
    assert all(student.metrics[one].value == student.metrics[one].value for one in figures)  # none is NaN
    assert student.fidelity is not None and 0 < student.fidelity["overlap@10"].value < 1
    bases = {one.partition("-")[0] if one != "r-precision" else one for one in figures}
    for base in bases:
        measure, at, cut = base.partition("@")
        assert (base if not at or cut == "r" else f"{measure}@k") in report.conventions


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_revisited_figures(name: str, models: Path, tmp_path: Path) -> None:
    """Against revisitop's own definition on vectors of crops that Pillow made."""
    root = revisited(tmp_path / "data", name)
    report = measured(models, root)
    pictures = [Image.open(path).convert("RGB") for path in sorted((root / "jpg").glob("all_souls*"))]
    crops = [
        Image.open(path).convert("RGB").crop(gnd["bbx"])
        for path, gnd in zip(sorted((root / "jpg").glob("oxford*")), GND, strict=True)
    ]
    for model, file in zip(report.models, ("teacher.onnx", "student.onnx"), strict=True):
        scores = embedded(models / file, crops) @ embedded(models / file, pictures).T
        for level, right, ignored in LEVELS:
            rows = [
                plain.revisitop(
                    row.tolist(), [i for k in right for i in gnd[k]], [i for k in ignored for i in gnd[k]], KAPPAS
                )
                for row, gnd in zip(scores, GND, strict=True)
            ]
            ap, precisions = zip(*rows, strict=True)
            assert model.metrics[f"map-{level}"].value == pytest.approx(np.nanmean(ap), abs=1e-6)
            for k, values in zip(KAPPAS, zip(*precisions, strict=True), strict=True):
                assert model.metrics[f"mp@{k}-{level}"].value == pytest.approx(np.nanmean(values), abs=1e-6)
    assert "trapezoid" in report.conventions["map"]


def answers(name: str, root: Path) -> dict[Path, tuple[set[Path], list[Path]]]:
    """For each query what is right, and the gallery, as told by names of files and folders rather than by the lists."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() == ".jpg")
    if name == "gldv2":
        index = [path for path in files if "index" in path.parts]
        right = {"a": "03", "c": "5"}
        asks = [path for path in files if "test" in path.parts and path.stem[0] in right]
        return {ask: ({one for one in index if one.stem[0] in right[ask.stem[0]]}, index) for ask in asks}
    if name == "inshop":
        roles = {row.split()[0]: row.split()[2] for row in (root / "Eval/list_eval_partition.txt").open() if "/" in row}
        files = [path for path in files if roles[path.relative_to(root / "Img").as_posix()] != "train"]
        found = [path for path in files if roles[path.relative_to(root / "Img").as_posix()] == "gallery"]
        return {
            ask: ({one for one in found if one.parent == ask.parent}, found) for ask in files if ask not in set(found)
        }
    if name == "cub200":
        files = [path for path in files if path.parent.name > "100.Z"]
    label = {
        "sop": lambda path: path.name.split("_")[0],
        "cub200": lambda path: path.parent,
        "ukbench": lambda path: int(path.stem[7:]) // 4,
    }[name]
    return {
        ask: ({one for one in files if one != ask and label(one) == label(ask)}, [one for one in files if one != ask])
        for ask in files
    }


@pytest.mark.parametrize("name", ["cub200", "gldv2", "inshop", "sop", "ukbench"])
def test_figures_of_a_benchmark(name: str, models: Path, tmp_path: Path) -> None:
    """Who is asked about whom, and what is right: the report's figures are those of a loop over the files."""
    root = LAYOUTS[name](tmp_path / "data")
    report = measured(models, root)
    asked = answers(name, root)
    assert report.queries == len(asked)
    for model, file in zip(report.models, ("teacher.onnx", "student.onnx"), strict=True):
        paths = sorted({*asked, *(one for _, found in asked.values() for one in found)})
        rows = embedded(models / file, [Image.open(path).convert("RGB") for path in paths])
        vectors = dict(zip(paths, rows, strict=True))
        each: dict[str, list[float]] = {}
        for ask, (right, found) in asked.items():
            ranks = plain.ranking([float(vectors[ask] @ vectors[one]) for one in found])
            ok = {at for at, one in enumerate(found) if one in right}
            half = {"a": "-private", "c": "-public"}[ask.stem[0]] if name == "gldv2" else ""
            each.setdefault("map", []).append(plain.average_precision(ranks, ok))
            each.setdefault(f"map@100{half}", []).append(plain.average_precision(ranks, ok, 100))
            each.setdefault("ns", []).append(plain.ns_score(ranks, ok))
            first = ranks[: len(ok)]
            each.setdefault("r-precision", []).append(sum(one in ok for one in first) / len(ok))
            each.setdefault("map@r", []).append(plain.average_precision(first, ok))
            for k in (1, 2, 4, 8, 10, 20, 30, 100, 1000):
                each.setdefault(f"recall@{k}", []).append(plain.recall(ranks, ok, k))
        for figure, value in model.metrics.items():
            assert value.value == pytest.approx(np.mean(each[figure]), abs=1e-6), figure


def test_a_crop_is_another_question(models: Path, tmp_path: Path) -> None:
    """The same file as a whole and in a box: two answers, two queries spent, none asked for twice."""
    root = revisited(tmp_path / "data", "roxford5k")
    store = tmp_path / "e.sqlite"

    def asked(data: Path, protocol: str | None = None) -> dict[str, int]:
        return distilltool.evaluate(
            models / "student.onnx",
            data,
            teacher=models / "teacher.onnx",
            protocol=protocol,
            store=store,
            preprocess=PRE,
        ).teacher_queries

    assert asked(root / "jpg", "unlabelled") == {"new": 11, "cached": 0}
    assert asked(root) == {"new": 3, "cached": 8}
    assert asked(root) == {"new": 0, "cached": 11}
    assert asked(root / "jpg", "unlabelled") == {"new": 0, "cached": 11}
    with Ledger.open(store) as ledger:
        views = {row[0] for row in ledger.select("SELECT view FROM answers WHERE state='done'")}
        assert views == {"", "crop=4,2,40,32", "crop=0,0,24,40", "crop=10,8,48,40"}
        audit = distilltool.api.ledger_verify(store, images_dir=root / "jpg")
        assert audit.faults == () and audit.coverage[0].known == 11 and not audit.coverage[0].orphans


def test_a_box_beside_the_picture(tmp_path: Path) -> None:
    """Of a box that reaches beyond it what is inside counts; one that lies beside it is no picture."""
    path = write(tmp_path / "p.png", 1)
    view = Preprocess(size=(32, 32))
    whole, over = images.prepare(path, view), images.prepare(path, view, (-5, -5, 90, 70))
    assert not isinstance(whole, str) and not isinstance(over, str)
    np.testing.assert_array_equal(whole, over)
    part = images.prepare(path, view, (8, 4, 40, 36))
    np.testing.assert_array_equal(part, np.asarray(drawn(1, seed=5).crop((8, 4, 40, 36))))
    assert "none of them in the box" in str(images.prepare(path, view, (60, 0, 70, 40)))


def vectors_of(path: Path, files: list[Path], rows: NDArray[np.float32]) -> Path:
    np.savez(path, paths=[str(file) for file in files], vectors=rows)
    return path


def test_bought_answers_about_crops(models: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """A file of vectors names a query's file; its row is about the box that the benchmark asks about."""
    root = revisited(tmp_path / "data", "roxford5k")
    files = sorted((root / "jpg").iterdir())
    rows = rng.normal(size=(11, 6)).astype(np.float32)
    report = measured(models, root, teacher=vectors_of(tmp_path / "bought.npz", files, rows))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = [
        plain.revisitop(row.tolist(), gnd["easy"], gnd["junk"] + gnd["hard"], (1,))[0]
        for row, gnd in zip(rows[8:] @ rows[:8].T, GND, strict=True)
    ]
    assert report.models[0].metrics["map-easy"].value == pytest.approx(np.nanmean(wanted), abs=1e-6)


def test_an_image_asked_about_whole_and_in_part_is_unclear(tmp_path: Path) -> None:
    """A row of bought vectors names a file: which of the two it is about nobody can tell."""
    from distilltool.bought import open_bought
    from distilltool.teacher import TeacherOptions

    path = write(tmp_path / "p.png", 1)
    stock = images.take_stock([path, path], [None, (0, 0, 9, 9)])
    assert len(stock.photos) == 2
    bought = open_bought(vectors_of(tmp_path / "b.npz", [path], np.ones((1, 4), np.float32)), TeacherOptions())
    with pytest.raises(DistillError, match="could mean several images"):
        bought.match(stock, tmp_path)


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_distractors(kind: str, models: Path, tmp_path: Path) -> None:
    """They stand behind the database, in the gallery of every model, right for nobody, and push others down."""
    root = revisited(tmp_path / "data", "roxford5k")
    more = photo_folder(tmp_path / "more", 30, seed=9)
    before = measured(models, root)
    pictures = [Image.open(path).convert("RGB") for path in more]
    folder = tmp_path / "more"
    if kind == "vectors":
        folder = tmp_path / "vectors"
        folder.mkdir()
        for name in ("teacher", "student"):
            np.save(folder / f"{name}.npy", 3 * embedded(models / f"{name}.onnx", pictures))
    report = measured(models, root, f"roxford5k:distractors={folder}")
    assert (report.queries, report.gallery) == (3, 8 + 30)
    database = [Image.open(path).convert("RGB") for path in sorted((root / "jpg").glob("all_souls*"))] + pictures
    crops = [
        Image.open(path).convert("RGB").crop(gnd["bbx"])
        for path, gnd in zip(sorted((root / "jpg").glob("oxford*")), GND, strict=True)
    ]
    for at, file in enumerate(("teacher.onnx", "student.onnx")):
        scores = embedded(models / file, crops) @ embedded(models / file, database).T
        wanted = [
            plain.revisitop(row.tolist(), gnd["easy"] + gnd["hard"], gnd["junk"], (1,))[0]
            for row, gnd in zip(scores, GND, strict=True)
        ]
        assert report.models[at].metrics["map-medium"].value == pytest.approx(np.nanmean(wanted), abs=1e-6)
        assert report.models[at].metrics["map-medium"].value < before.models[at].metrics["map-medium"].value


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "student.npy cannot be read"),
        (np.zeros((4, 9), np.float32), "must be floats"),
        (np.zeros((4, 12), np.int64), "must be floats"),
        (np.full((4, 12), np.nan, np.float32), "NaN"),
        (np.ones((3, 12), np.float32), "another number of vectors"),
        (np.array([None] * 4), "cannot be read"),
    ],
)
def test_distractors_that_do_not_fit(rows: NDArray[Any] | None, said: str, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "teacher.npy", np.ones((4, 16), np.float32))
    if rows is not None:
        np.save(folder / "student.npy", rows, allow_pickle=True)
    with pytest.raises(DistillError, match=said):
        measured(models, revisited(tmp_path / "data", "roxford5k"), f"roxford5k:distractors={folder}")


def test_a_missing_image_is_said_and_left_out(models: Path, tmp_path: Path) -> None:
    """A query and a positive that are not there leave the lists; the rest is measured."""
    root = revisited(tmp_path / "data", "roxford5k")
    (root / "jpg" / "oxford_000001.jpg").unlink()
    (root / "jpg" / "all_souls_000000.jpg").unlink()
    report = measured(models, root)
    assert (report.queries, report.gallery, len(report.skipped)) == (2, 7, 2)
    dataset = open_dataset(root)
    rows = [row for row, path in enumerate(dataset.paths) if path.is_file()]
    kept = dataset.truth["easy"].among(rows, range(3))
    assert [[rows[at] - 3 for at in one.tolist()] for one in kept.positives] == [[3], [4]]
    assert [[rows[at] - 3 for at in one.tolist()] for one in kept.ignored] == [[1, 5], [7]]


def test_repeated_files_count_as_published(models: Path, tmp_path: Path) -> None:
    """A benchmark counts every file of its list; copies of one image are asked about once."""
    root = LAYOUTS["sop"](tmp_path / "data")
    files = sorted(root.rglob("*.JPG"))
    files[1].write_bytes(files[0].read_bytes())
    report = measured(models, root)
    assert (report.queries, report.gallery, report.teacher_queries["new"]) == (8, 8, 7)


@pytest.mark.parametrize("kind", ["list", "frames", "csv"])
def test_places_by_list_by_frames_or_by_names(kind: str, models: Path, tmp_path: Path) -> None:
    """Three ways to say that a frame and its two neighbours show a place; 2.jpg comes before 10.jpg."""
    root = LAYOUTS["paired"](tmp_path / "data")
    for folder in ("query", "ref"):
        for path in sorted((root / folder).iterdir()):
            path.rename(path.with_name(f"frame{int(path.stem)}.jpg"))
    protocol = {"list": "paired", "frames": "paired:frames=1", "csv": "paired"}[kind]
    if kind != "list":
        (root / "ground_truth_new.npy").unlink()
    if kind == "csv":
        rows = [f"frame{at}.jpg,frame{one}.jpg" for at in range(12) for one in (at - 1, at, at + 1) if 0 <= one < 12]
        (root / "ground_truth.csv").write_text("query,reference\n" + "\n".join(rows))
    report = measured(models, root, protocol)
    for model, file in zip(report.models, ("teacher.onnx", "student.onnx"), strict=True):
        sides = [
            embedded(models / file, [Image.open(root / side / f"frame{at}.jpg").convert("RGB") for at in range(12)])
            for side in ("query", "ref")
        ]
        for k in (1, 5, 10):
            hits = [
                plain.recall(plain.ranking(row.tolist()), {at - 1, at, at + 1}, k)
                for at, row in enumerate(sides[0] @ sides[1].T)
            ]
            assert model.metrics[f"recall@{k}"].value == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("name", "protocol", "break_", "said"),
    [
        ("paired", "paired:frames=two", None, "no number of frames"),
        ("paired", "paired:frames=1,truth=x.csv", None, "both say"),
        ("paired", "paired:truth=nothing.npy", None, "cannot be read"),
        ("paired", "paired:frame=1", None, "frames="),
        ("paired", "paired:keep=elsewhere", None, "not understood"),
        ("paired", "paired:frames=1", "query/0000011.jpg", "11 queries and 12 references"),
        ("paired", "paired", "ref/0000011.jpg", "does not list places"),
        ("paired", "paired", "ground_truth_new.npy", "frames=2"),
        ("ukbench", "ukbench:size=3", None, "takes no settings"),
        ("sop", "sop", "Ebay_test.txt", "cannot be read"),
        ("inshop", "inshop", "Eval/list_eval_partition.txt", "cannot be read"),
        ("cub200", "cub200", "images.txt", "cannot be read"),
        ("gldv2", "gldv2", "retrieval_solution_v2.1.csv", "cannot be read"),
        ("roxford5k", "roxford5k", "gnd_roxford5k.pkl", "check the path"),
        ("roxford5k", "roxford5k:distractors=nowhere", None, "no distractors"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    name: str, protocol: str, break_: str | None, said: str, tmp_path: Path
) -> None:
    root = LAYOUTS[name](tmp_path / "data")
    if break_ is not None:
        (root / break_).unlink()
    with pytest.raises(DistillError) as raised:
        open_dataset(root, protocol, tmp_path / "kept")
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("sop", "Ebay_test.txt", "bicycle_final", "../../bicycle_final"),
        ("sop", "Ebay_test.txt", " 1 ", " "),
        ("cub200", "image_class_labels.txt", "7 200", "70 200"),
        ("cub200", "images.txt", "101.A_bird", "/101.A_bird"),
        ("inshop", "Eval/list_eval_partition.txt", "query", "asks"),
        ("gldv2", "retrieval_solution_v2.1.csv", "0000000000000000", "../../000000000"),
        ("gldv2", "retrieval_solution_v2.1.csv", "Usage", "Use"),
    ],
)
def test_a_damaged_list_is_said_in_a_line(name: str, file: str, old: str, new: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(DistillError) as raised:
        open_dataset(root, name)
    assert "\n" not in str(raised.value)


def test_on_the_command_line(models: Path, tmp_path: Path) -> None:
    """Figures in JSON and in the table; a gate may name them, and one that the protocol has not fails."""
    root = revisited(tmp_path / "data", "roxford5k")
    words = ["eval", str(models / "teacher.onnx"), "--teacher", str(models / "teacher.onnx"), "--data", str(root)]
    words += ["--store", str(tmp_path / "e.sqlite"), *(word for one in PRE for word in ("--preprocess", one))]
    gates = ["--gate", "retention.map-medium>=1", "--gate", "metrics.mp@5-hard.low>=0"]
    found = CliRunner().invoke(app, [*words, *gates, "--json"])
    assert found.exit_code == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["conventions"]["hard"].startswith("positives hard")
    assert [one["outcome"] for one in report["gates"]] == ["holds", "holds"]
    table = CliRunner(env={"COLUMNS": "160"}).invoke(app, words).stderr
    assert "mAP medium" in table and "mP@10 hard" in table and "mAP hard kept" in table
    missing = CliRunner().invoke(app, [*words, "--gate", "retention.map-esay>=0.5"])
    assert missing.exit_code == Exit.GATE and "map-easy" in missing.stderr


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_the_published_check(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """The script for those who have the features: real ground truth, features that know half of it, revisitop's own
    definition; it says that these are not the published figures."""
    real = pickle.loads((DATA / "revisitop" / f"gnd_{name}.pkl").read_bytes())
    queries, database = rng.normal(size=(70, 16)), rng.normal(size=(len(real["imlist"]), 16))
    for query, gnd in zip(queries, real["gnd"], strict=True):
        database[gnd["easy"]] += 0.8 * query
        database[gnd["junk"]] += query
    queries, database = queries.astype(np.float32), database.astype(np.float32)
    savemat(tmp_path / "f.mat", {"Q": queries.T, "X": database.T})
    script = Path(__file__).parents[1] / "benchmarks" / "revisited.py"
    words = [sys.executable, script, name, DATA / "revisitop", tmp_path / "f.mat"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not the published figures" in done.stderr, done.stderr
    found = {row["figure"]: row["found"] for row in json.loads(done.stdout)}
    scores = np.stack([database @ query for query in queries])
    for level, right, ignored in LEVELS:
        rows = [
            plain.revisitop(
                row.tolist(), [i for k in right for i in gnd[k]], [i for k in ignored for i in gnd[k]], KAPPAS
            )
            for row, gnd in zip(scores, real["gnd"], strict=True)
        ]
        wanted = [np.nanmean([ap for ap, _ in rows]), *np.nanmean([precisions for _, precisions in rows], axis=0)]
        for figure, value in zip(("map", "mp@1", "mp@5", "mp@10"), wanted, strict=True):
            assert found[f"{figure}-{level}"] == pytest.approx(100 * value, abs=0.006), (figure, level)
    assert found["map-easy"] > found["map-hard"] > 0


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data; DISTILLTOOL_DATA names its folder")
def test_a_real_walk(tmp_path: Path) -> None:
    """MobileNetV2 on a corridor walked twice: recall as a loop over its vectors has it."""
    model = DATA / "models/mobilenetv2_fp32.onnx"
    pre = ["imagenet", "resize=stretch", "size=96"]
    report = distilltool.evaluate(
        model, DATA / "corridor", teacher=model, store=tmp_path / "e.sqlite", preprocess=pre, protocol="paired"
    )
    assert (report.queries, report.gallery) == (111, 111)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    sides = []
    for folder in ("query", "ref"):
        rows = []
        for at in range(111):
            with Image.open(DATA / "corridor" / folder / f"{at:07d}.jpg") as image:
                pixels = np.asarray(image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR))
            rows.append(((pixels / 255 - mean) / std).transpose(2, 0, 1))
        found = session.run(["embedding"], {"input": np.stack(rows).astype(np.float32)})[0]
        sides.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    for k in (1, 5, 10):
        hits = [
            plain.recall(plain.ranking(row.tolist()), range(at - 2, at + 3), k)
            for at, row in enumerate(sides[0] @ sides[1].T)
        ]
        assert report.models[1].metrics[f"recall@{k}"].value == pytest.approx(np.mean(hits), abs=1e-6)
    assert report.models[1].metrics["recall@1"].value > 0.3  # five of 111 by chance

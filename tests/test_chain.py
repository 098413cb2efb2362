"""The whole chain on a small real teacher: query, distill, eval, export, deploy."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import class_folders, onnx_teacher, photo_folder
from PIL import Image
from typer.testing import CliRunner

import distilltool
from distilltool.cli import app
from distilltool.recipe import shipped
from distilltool.report import to_json
from distilltool.weights import read_weights

STUDENT = "timm:test_efficientnet"
PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
SMALL = {
    "student": STUDENT,
    "input_size": 32,
    "changes": ["schedule.epochs=3", "schedule.batch=16", "schedule.evaluations=3"],
    "preprocess": PRE,
}
PRE_FLAGS = [word for one in PRE for word in ("--preprocess", one)]
SMALL_FLAGS = [
    *PRE_FLAGS,
    "--student",
    STUDENT,
    "--input",
    "32",
    "--set",
    "schedule.epochs=3",
    "--set",
    "schedule.batch=16",
    "--set",
    "schedule.evaluations=3",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, 64 photographs of which some are odd, and labelled ones."""
    root = tmp_path_factory.mktemp("chain")
    onnx_teacher(root / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(root / "imgs", 64)
    first = sorted((root / "imgs").iterdir())[0]
    (root / "imgs" / "again.jpg").write_bytes(first.read_bytes())
    (root / "imgs" / "torn.jpg").write_bytes(first.read_bytes()[: first.stat().st_size * 2 // 3])
    class_folders(root / "labelled", classes=5, each=6)
    return root


def run(work: Path, *words: str) -> tuple[int, str, str]:
    """Call the command line in the folder `work`: exit code, stdout, stderr."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def stepped(run_dir: Path) -> dict[int, float]:
    """The loss of every step, in what a run or its parts logged: it tells steps apart where the best one is none."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def interrupted(words: list[str], module: str, owner: str, method: str, call: int) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own that gets Ctrl-C while it is in the n-th call of a method."""
    code = (
        "import importlib, os, signal, sys\n"
        f"owner = importlib.import_module({module!r}).{owner}\n"
        f"method, calls = owner.{method}, []\n"
        "def stopping(*given):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return method(*given)\n"
        f"owner.{method} = stopping\n"
        f"sys.argv = {words!r}\n"
        "from distilltool.cli import main\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run_dir(work: Path) -> Path:
    """A finished run of the default recipe."""
    distilltool.distill(work / "teacher.onnx", work / "imgs", out=work / "run", store=work / "ledger.sqlite", **SMALL)
    return work / "run"


def test_query_counts_duplicates_and_torn_images_once_and_asks_nothing_twice(work: Path) -> None:
    words = [
        "query",
        str(work / "teacher.onnx"),
        str(work / "imgs"),
        *PRE_FLAGS,
        "--store",
        str(work / "q.sqlite"),
        "--json",
    ]
    code, out, _ = run(work, *words)
    first = json.loads(out)
    assert code == 0
    assert (first["images"], first["files"], first["duplicates"]) == (64, 66, 1)
    assert (first["queried"], first["cached"], first["spent"]) == (64, 0, 64)
    assert [Path(one["path"]).name for one in first["skipped"]] == ["torn.jpg"]
    assert "truncated" in first["skipped"][0]["reason"].lower()
    second = json.loads(run(work, *words)[1])
    assert (second["queried"], second["cached"], second["spent"]) == (0, 64, 64)


def test_budget_is_a_hard_ceiling_over_several_calls(work: Path) -> None:
    def ask(budget: int) -> dict[str, Any]:
        report = distilltool.query(
            work / "teacher.onnx", work / "imgs", store=work / "b.sqlite", budget=budget, preprocess=PRE, batch=8
        )
        values: dict[str, Any] = to_json(report)
        return values

    assert ask(10)["queried"] == 10
    assert ask(10)["queried"] == 0
    more = ask(23)
    assert (more["queried"], more["cached"], more["spent"]) == (13, 10, 23)
    assert more["pending"] in (41, 42)  # the torn one may not have been met yet


def test_another_output_of_the_same_file_counts_against_the_same_budget(work: Path) -> None:
    onnx_teacher(work / "two.onnx", size=(48, 48), outputs=("embedding", "other"))
    common = {"store": work / "two.sqlite", "budget": 10, "preprocess": PRE}
    assert distilltool.query(work / "two.onnx", work / "imgs", output="embedding", **common).queried == 10
    assert distilltool.query(work / "two.onnx", work / "imgs", output="other", **common).queried == 0


def test_plan_asks_about_32_at_most_and_keeps_them(work: Path) -> None:
    store = work / "plan.sqlite"
    report = distilltool.query(work / "teacher.onnx", work / "imgs", store=store, plan=True, preprocess=PRE)
    assert report.plan is not None
    assert report.queried <= 32
    assert report.plan.queries in (64 - report.queried, 65 - report.queried)  # the torn one may not have been met yet
    assert report.plan.seconds > 0 and report.plan.disk_bytes > 0 and report.plan.memory_bytes > 1e6
    later = distilltool.query(work / "teacher.onnx", work / "imgs", store=store, preprocess=PRE)
    assert (later.queried, later.cached) == (64 - report.queried, report.queried)


@pytest.mark.slow
def test_distill_reports_as_the_contract_says(run_dir: Path) -> None:
    report = json.loads((run_dir / "run.json").read_text())["report"]
    assert report["images"]["train"] + report["images"]["validation"] == 64
    assert report["images"]["skipped"] == 1
    assert report["student"]["input"] == [32, 32]
    assert report["queries"] == {"new": 64, "cached": 0, "spent": 64}
    fidelity = report["fidelity"]["overlap@10"]
    assert 0 <= fidelity["low"] <= fidelity["value"] <= fidelity["high"] <= 1
    assert fidelity["value"] >= report["undistilled"]["overlap@10"]["value"]
    assert not list(run_dir.rglob("*.pkl")) and not list(run_dir.rglob("*.pt"))


@pytest.mark.slow
def test_a_second_distill_returns_the_same_report_and_asks_nothing(run_dir: Path, work: Path) -> None:
    before = (run_dir / "run.json").read_bytes()
    words = [
        "distill",
        str(work / "teacher.onnx"),
        str(work / "imgs"),
        *SMALL_FLAGS,
        "--out",
        str(run_dir),
        "--store",
        str(work / "ledger.sqlite"),
        "--json",
    ]
    code, out, err = run(work, *words)
    assert code == 0
    assert json.loads(out)["fidelity"] == json.loads(before)["report"]["fidelity"]
    assert "finished already" in err
    assert (run_dir / "run.json").read_bytes() == before
    code, out, err = run(work, *words[:-1])
    assert code == 0 and "1 file that cannot be read" in out + err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["drd", "regression", "rkd"])
def test_every_recipe_trains_evaluates_and_exports(recipe: str, work: Path) -> None:
    out = work / f"run-{recipe}"
    distilltool.distill(
        work / "teacher.onnx", work / "imgs", recipe=recipe, out=out, store=work / "ledger.sqlite", **SMALL
    )
    report = distilltool.evaluate([out], work / "labelled", store=work / "eval.sqlite")
    teacher, student = report.models
    assert teacher.fidelity is None and student.fidelity is not None
    assert 0 < student.retention["map"].value < 2
    assert (student.asymmetric is not None) == (recipe == "regression")
    exported = distilltool.export(out, seconds=1.0)
    assert exported.variants[0].status == "accepted"
    assert exported.variants[0].parity["cosine_min"] > 0.9999
    again = distilltool.evaluate(
        [out / "bundle/student.onnx"],
        work / "labelled",
        teacher=work / "teacher.onnx",
        store=work / "eval.sqlite",
        preprocess=PRE,
    )
    assert again.models[1].metrics["map"].value == pytest.approx(student.metrics["map"].value, abs=1e-3)
    assert again.teacher_queries["new"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(set(shipped()) - {"drd", "regression", "rkd"}))
def test_every_other_recipe_trains(recipe: str, work: Path) -> None:
    """Two epochs; what is compared with the teacher's gallery afterwards is what says that it may be."""
    out = work / f"run-{recipe}"
    settings = {**SMALL, "changes": [*SMALL["changes"], "schedule.epochs=2"], "store": work / "ledger.sqlite"}
    report = distilltool.distill(work / "teacher.onnx", work / "imgs", recipe=recipe, out=out, **settings)
    assert report.steps == 6
    card = json.loads((out / "student.json").read_text())
    assert (card["space"] == "teacher") == (recipe in ("csd", "rop"))
    losses = [json.loads(line).get("loss") for line in (out / "log.jsonl").read_text().splitlines()]
    seen = [one for one in losses if one is not None]
    assert len(seen) == 6 and all(0 < one < 1000 for one in seen)


@pytest.fixture(scope="module")
def bundle(run_dir: Path, work: Path) -> Path:
    """The exported bundle of the default run, evaluated before."""
    distilltool.evaluate([run_dir], work / "labelled", store=work / "eval.sqlite")
    distilltool.export(run_dir, seconds=1.0)
    return run_dir / "bundle"


@pytest.mark.slow
def test_eval_writes_a_page_of_a_run_and_of_its_file(bundle: Path, run_dir: Path, work: Path, tmp_path: Path) -> None:
    """Curves from the run's log, times from the bundle's report; what each query got lies in the run."""
    pytest.importorskip("matplotlib", reason="the page needs distilltool[report]")
    words = [str(run_dir), str(bundle / "student.onnx"), "--data", str(work / "labelled"), *PRE_FLAGS]
    words += ["--store", str(work / "eval.sqlite"), "--html", str(tmp_path / "page.html")]
    code, _, said = run(work, "eval", *words)
    assert code == 0 and "mAP − teacher's" in said
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    report = json.loads((bundle / "report.json").read_text())
    milliseconds = f"{report['variants'][0]['latency'][0]['p50_ms']:.2f}"
    assert "Training of run" in html and html.count(f">{milliseconds}<") == 2 and "Pareto front" in html
    [kept] = [path for path in (run_dir / "evaluations").glob("labelled-*.csv")]
    assert kept.with_name(kept.name.replace(".queries.csv", ".json")).exists()
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 1 + 30


@pytest.mark.slow
def test_the_exported_file_is_one_checked_graph_without_traces_of_this_machine(bundle: Path) -> None:
    wanted = {"card.md", "deploy.py", "report.json", "student.onnx", "golden", "SHA256SUMS"}
    wanted |= {"config.json", "preprocessor_config.json"}
    assert {path.name for path in bundle.iterdir()} - {
        "student.int8-static.onnx"
    } == wanted  # which ships if it is faster
    model = onnx.load(bundle / "student.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [one.version for one in model.opset_import if one.domain == ""] == [20]
    entry = model.graph.input[0].type.tensor_type
    assert entry.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in entry.shape.dim] == ["batch", 32, 32, 3]
    metadata = {one.key: one.value for one in model.metadata_props}
    assert {
        "distilltool.preprocess",
        "distilltool.space_id",
        "distilltool.teacher_sha256",
        "distilltool.dim",
        "distilltool.recipe",
        "distilltool.versions",
    } <= set(metadata)
    for path in (one for one in bundle.rglob("*") if one.is_file()):
        raw = path.read_bytes()
        for trace in (str(Path.cwd()), sys.prefix, str(Path.home()) + "/", "site-packages", str(bundle)):
            assert trace.encode() not in raw, path
        assert not re.search(rb"/(?:home|usr|root|tmp|work|opt|var)/[\w.-]+/", raw), path


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_exported_file_equals_the_student_from_jpeg_files(
    batch: int, run_dir: Path, bundle: Path, work: Path
) -> None:
    files = [path for path in sorted((work / "imgs").glob("photo*.jpg"))][:batch]
    student = distilltool.load_student(run_dir)
    rows = np.stack([student.preprocess.prepare(Image.open(file).convert("RGB")) for file in files])
    sys.path.insert(0, str(bundle))
    try:
        import deploy
    finally:
        sys.path.remove(str(bundle))
    vectors = deploy.Student(bundle / "student.onnx").embed(files)
    assert vectors.shape == (batch, student.dim)
    np.testing.assert_allclose(vectors, student.embed(rows), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_deploy_runs_where_only_onnxruntime_numpy_and_pillow_are(bundle: Path, work: Path) -> None:
    """Every other package is made unimportable before the copied deploy.py is run."""
    image = next((work / "imgs").glob("photo*.jpg"))
    code = (
        "import sys, runpy\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'onnx', 'faiss', 'typer', 'rich', 'distilltool'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        f"sys.argv = ['deploy.py', {str(bundle / 'student.onnx')!r}, {str(image)!r}, {str(image)!r}]\n"
        f"runpy.run_path({str(bundle / 'deploy.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == [image.name, "1.000", "1.000"]


@pytest.mark.slow
def test_the_card_names_what_whoever_deploys_needs(bundle: Path, run_dir: Path) -> None:
    card = (bundle / "card.md").read_text()
    report = json.loads((bundle / "report.json").read_text())
    manifest = json.loads((run_dir / "run.json").read_text())
    for fact in (report["variants"][0]["sha256"], manifest["teacher"]["sha256"], "labelled", "uint8", "p50 ms"):
        assert fact in card
    speedup = report["variants"][0]["latency"][0]["speedup"]
    assert speedup["low"] <= speedup["value"] <= speedup["high"]


@pytest.mark.slow
def test_eval_without_labels_and_from_csv(run_dir: Path, work: Path) -> None:
    plain = distilltool.evaluate([run_dir], work / "imgs", store=work / "eval.sqlite")
    assert plain.protocol == "unlabelled"
    assert plain.models[1].metrics == {} and plain.models[1].fidelity is not None
    files = sorted((work / "labelled").rglob("*.png"))
    rows = [
        f"{file.relative_to(work)},{file.parent.name},{'query' if at % 3 == 0 else 'gallery'}"
        for at, file in enumerate(files)
    ]
    (work / "set.csv").write_text("path,label,role\n" + "\n".join(rows) + "\n")
    listed = distilltool.evaluate([run_dir], work / "set.csv", store=work / "eval.sqlite")
    assert listed.protocol == "csv"
    assert (listed.queries, listed.gallery) == (10, 20)


@pytest.mark.slow
def test_an_interrupted_distill_goes_on_and_ends_bit_for_bit_as_if_it_had_not_been(run_dir: Path, work: Path) -> None:
    """Killed in the middle by Ctrl-C in a process of its own, then continued by the same command."""
    out = work / "stopped"
    words = [
        sys.executable,
        "-m",
        "distilltool",
        "distill",
        str(work / "teacher.onnx"),
        str(work / "imgs"),
        *SMALL_FLAGS,
        "--out",
        str(out),
        "--store",
        str(work / "ledger.sqlite"),
    ]
    first = interrupted(words[2:], "distilltool.train", "_Trainer", "_step", call=5)
    assert first.returncode == 130, first.stderr
    assert "goes on" in first.stderr and "Traceback" not in first.stderr
    assert (out / "checkpoint.safetensors").exists() and not (out / "run.json").exists()
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "going on from step 5" in second.stderr
    assert (out / "student.safetensors").read_bytes() == (run_dir / "student.safetensors").read_bytes()
    assert len(stepped(out)) > 5 and stepped(out) == stepped(run_dir)


@pytest.mark.slow
def test_what_is_mapped_into_the_teachers_space_goes_on_bit_for_bit_too(work: Path) -> None:
    """The untrained student is mapped and judged before training: a run that goes on does so from the kept start."""
    flags = [*SMALL_FLAGS, "--space", "teacher", "--store", str(work / "ledger.sqlite")]
    words = ["distilltool", "distill", str(work / "teacher.onnx"), str(work / "imgs"), *flags, "--out"]
    whole, stopped = work / "mapped-whole", work / "mapped-stopped"
    code, _, err = run(work, *words[1:], str(whole))
    assert code == 0, err
    first = interrupted([*words, str(stopped)], "distilltool.train", "_Trainer", "_step", call=5)
    assert first.returncode == 130, first.stderr
    assert run(work, *words[1:], str(stopped))[0] == 0
    assert (stopped / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert len(stepped(stopped)) > 5 and stepped(stopped) == stepped(whole)
    reports = [json.loads((one / "run.json").read_text())["report"] for one in (whole, stopped)]
    assert reports[0]["undistilled"] == reports[1]["undistilled"] and reports[0]["student"]["space"] == "teacher"


@pytest.mark.slow
def test_mixing_with_the_bank_goes_on_bit_for_bit_too(run_dir: Path, work: Path) -> None:
    """What the student's side of the bank remembers is in the checkpoint: without it the weights would differ."""
    mixed = [word for one in ("ratio=1", 'partners="bank"', "width=3") for word in ("--set", f"mix.{one}")]
    flags = [*SMALL_FLAGS, *mixed, "--store", str(work / "ledger.sqlite")]
    words = ["distilltool", "distill", str(work / "teacher.onnx"), str(work / "imgs"), *flags, "--out"]
    whole, stopped = work / "bank-whole", work / "bank-stopped"
    code, _, err = run(work, *words[1:], str(whole))
    assert code == 0, err
    first = interrupted([*words, str(stopped)], "distilltool.train", "_Trainer", "_step", call=5)
    assert first.returncode == 130, first.stderr
    kept = read_weights(stopped / "checkpoint.safetensors")["kept.bank"]
    assert kept.shape[0] == 64 - len(json.loads((stopped / "split.json").read_text()))
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(len(kept)))
    code, _, err = run(work, *words[1:], str(stopped))
    assert code == 0 and "going on from step 5" in err
    assert (stopped / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert (whole / "student.safetensors").read_bytes() != (run_dir / "student.safetensors").read_bytes()
    assert len(stepped(stopped)) > 5 and stepped(stopped) == stepped(whole)


@pytest.mark.slow
def test_a_pretrained_start_from_a_file_is_used(work: Path) -> None:
    from safetensors.torch import save_file

    from distilltool.students import Start, build

    module = build(STUDENT, Start(input=32, seed=123)).module
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, work / "start.safetensors")
    loaded = build(STUDENT, Start(input=32, seed=0, weights=work / "start.safetensors"))
    assert loaded.start == "file start.safetensors"
    for key, value in module.state_dict().items():
        assert (loaded.module.state_dict()[key] == value).all(), key


@pytest.mark.slow
@pytest.mark.alone
def test_time_budget_is_kept(work: Path) -> None:
    report = distilltool.distill(
        work / "teacher.onnx",
        work / "imgs",
        out=work / "timed",
        store=work / "ledger.sqlite",
        time_budget=12.0,
        **{**SMALL, "changes": ["schedule.batch=16", "schedule.evaluations=3", "schedule.patience=1000"]},
    )
    assert 6.0 < report.seconds < 14.0
    assert report.steps > 12


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--dim", "16"], ["--recipe", "regression", "--set", "mix.ratio=2.0"]])
def test_dimensions_and_spaces(words: list[str], work: Path) -> None:
    out = work / ("dim" if "--dim" in words else "space")
    code, text, err = run(
        work,
        "distill",
        str(work / "teacher.onnx"),
        str(work / "imgs"),
        *SMALL_FLAGS,
        *words,
        "--out",
        str(out),
        "--store",
        str(work / "ledger.sqlite"),
        "--json",
    )
    assert code == 0, err
    assert json.loads(text)["student"]["dim"] == (16 if "--dim" in words else 24)
    card = json.loads((out / "student.json").read_text())
    assert card["space_id"].startswith("own-") == ("--dim" in words)


def test_an_interrupted_query_keeps_every_answer_and_asks_only_for_the_rest(work: Path) -> None:
    """Ctrl-C while the teacher works on the third batch: that batch is finished, then the command stops."""
    store = work / "stopped.sqlite"
    words = ["distilltool", "query", str(work / "teacher.onnx"), str(work / "imgs"), *PRE_FLAGS]
    words += ["--store", str(store), "--batch", "8"]
    first = interrupted(words, "distilltool.teacher", "OnnxEmbedder", "embed", call=3)
    assert first.returncode == 130, first.stderr
    assert "24 new answers" in first.stderr and "Traceback" not in first.stderr
    second = distilltool.query(work / "teacher.onnx", work / "imgs", store=store, preprocess=PRE, batch=8)
    assert (second.queried, second.cached, second.spent) == (40, 24, 64)


def test_a_budget_given_once_holds_for_later_commands(work: Path) -> None:
    common = {"store": work / "sticky.sqlite", "preprocess": PRE}
    assert distilltool.query(work / "teacher.onnx", work / "imgs", budget=12, **common).queried == 12
    later = distilltool.query(work / "teacher.onnx", work / "imgs", **common)
    assert (later.queried, later.budget) == (0, 12)
    assert distilltool.query(work / "teacher.onnx", work / "imgs", budget=20, **common).queried == 8


def test_a_plan_asked_for_twice_costs_nothing_the_second_time(work: Path) -> None:
    common = {"store": work / "plans.sqlite", "preprocess": PRE, "plan": True}
    first = distilltool.query(work / "teacher.onnx", work / "imgs", **common)
    second = distilltool.query(work / "teacher.onnx", work / "imgs", **common)
    assert 31 <= first.queried <= 32 and second.queried <= 32 - first.queried


def test_a_batch_the_model_refuses_costs_nothing(work: Path) -> None:
    """A graph that takes any size until it runs: the wrong one is an error, and the budget is untouched."""
    onnx_teacher(work / "free.onnx", size=None)
    common = {"store": work / "free.sqlite", "budget": 8}
    with pytest.raises(distilltool.DistillError, match="fails on a batch"):
        distilltool.query(work / "free.onnx", work / "imgs", preprocess=[*PRE, "size=2"], **common)
    assert distilltool.query(work / "free.onnx", work / "imgs", preprocess=[*PRE, "size=32"], **common).queried == 8


def test_images_another_process_is_asking_about_are_not_silently_left_out(work: Path) -> None:
    """Another process holds a claim: evaluating on the rest would be a figure about other images."""
    from distilltool import images, ledger, teacher

    store = work / "shared.sqlite"
    embedder = teacher.open_teacher(work / "teacher.onnx", teacher.TeacherOptions(preprocess=tuple(PRE)))
    first = images.take_stock(images.find(work / "labelled")).photos[0].sha256
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from distilltool.ledger import Ledger\n"
        "book = Ledger.open(Path(sys.argv[1]))\n"
        "print(len(book.claim(int(sys.argv[2]), [bytes.fromhex(sys.argv[3])], None)), flush=True)\n"
        "time.sleep(60)\n"
    )
    with ledger.Ledger.open(store) as book:
        number = book.teacher(embedder.key)
    words = [sys.executable, "-c", code, str(store), str(number), first.hex()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline().strip() == "1"
        try:
            with pytest.raises(distilltool.DistillError, match="another process"):
                distilltool.evaluate(
                    [work / "teacher.onnx"],
                    work / "labelled",
                    teacher=work / "teacher.onnx",
                    preprocess=PRE,
                    store=store,
                )
        finally:
            other.kill()
    again = distilltool.evaluate(
        [work / "teacher.onnx"], work / "labelled", teacher=work / "teacher.onnx", preprocess=PRE, store=store
    )
    assert again.queries == 30


@pytest.mark.slow
def test_a_student_that_does_not_survive_the_export_is_not_shipped(
    run_dir: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is set higher than any cosine: rejected, exit 3, and nothing of an earlier export stays."""
    from distilltool.stages import export

    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(export, "MIN_COSINE", 1.5)
    code, out, _ = run(run_dir.parent, "export", str(run_dir), "--bundle", str(tmp_path), "--seconds", "1", "--json")
    assert code == 3
    assert json.loads(out)["variants"][0]["status"] == "rejected"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.slow
def test_an_evaluation_without_any_positive_does_not_break_the_export(run_dir: Path, work: Path) -> None:
    files = sorted((work / "labelled").rglob("*.png"))[:12]
    rows = [f"{file.relative_to(work)},label{at}" for at, file in enumerate(files)]
    (work / "lonely.csv").write_text("path,label\n" + "\n".join(rows))
    code, out, _ = run(
        work, "eval", str(run_dir), "--data", str(work / "lonely.csv"), "--store", str(work / "eval.sqlite"), "--json"
    )
    assert code == 0 and json.loads(out)["models"][0]["metrics"]["map"]["value"] is None
    code, _, err = run(work, "export", str(run_dir), "--seconds", "1")
    assert code == 0 and "–" in err
    for file in (run_dir / "evaluations").glob("lonely*"):
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "differing"),
    [
        ({"output": "map", "pool": "max"}, "output and pool"),
        ({"preprocess": [*PRE, "channels=BGR"]}, "preprocessing"),
    ],
    ids=["output", "preprocessing"],
)
def test_runs_of_one_file_asked_differently_are_not_judged_together(
    run_dir: Path, work: Path, said: dict[str, Any], differing: str
) -> None:
    """The vectors of one would be held against those of the other."""
    other = work / differing.replace(" ", "-")
    distilltool.distill(work / "teacher.onnx", work / "imgs", out=other, store=work / "l.sqlite", **{**SMALL, **said})
    common = {"data": work / "labelled", "store": work / "eval.sqlite"}
    for first, second in ((run_dir, other), (other, run_dir)):
        with pytest.raises(distilltool.DistillError, match=f"the run {second} was .* another {differing} of "):
            distilltool.evaluate([first, second], **common)
    assert distilltool.evaluate([run_dir, run_dir], **common).models[2].fidelity is not None


@pytest.mark.slow
def test_a_teacher_of_fixed_batch_is_timed_against_the_same_batch(work: Path) -> None:
    onnx_teacher(work / "four.onnx", size=(48, 48), batch=4)
    distilltool.distill(work / "four.onnx", work / "imgs", out=work / "four", store=work / "four.sqlite", **SMALL)
    report = distilltool.export(work / "four", seconds=1.0)
    assert report.variants[0].latency[0].batch == report.teacher["latency"][0]["batch"] == 4


def with_classifier(path: Path) -> Path:
    """The teacher's vector followed by scores of 1000 classes, which alone are given out."""
    model = onnx.load(onnx_teacher(path, size=(48, 48), dim=24))
    scale = np.random.default_rng(0).normal(size=(24, 1000)).astype(np.float32)
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(scale, "classes"), onnx.numpy_helper.from_array(scale[0], "offset")]
    )
    model.graph.node.append(onnx.helper.make_node("Gemm", ["embedding", "classes", "offset"], ["scores"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 1000]))
    onnx.save(model, path)
    return path


def with_setting(path: Path) -> Path:
    """The teacher with a second input, `gain`, which its vector is multiplied by."""
    model = onnx.load(onnx_teacher(path, size=(48, 48), dim=24))
    model.graph.input.append(onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, ["N"]))
    model.graph.node[-1].output[0] = "plain"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "last"))
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["gain", "last"], ["column"]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["plain", "column"], ["embedding"]))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "said", "output"),
    [(with_classifier, {}, "embedding"), (with_setting, {"inputs": ["gain=0.1"]}, "embedding?gain=0.1")],
    ids=["cut classifier", "setting"],
)
def test_a_teacher_is_timed_as_it_was_asked(work: Path, make: Any, said: dict[str, Any], output: str) -> None:
    """Cut in front of its classifier, or with a further input set."""
    path, out = make(work / f"{make.__name__}.onnx"), work / make.__name__
    distilltool.distill(path, work / "imgs", out=out, store=work / "as-asked.sqlite", **SMALL, **said)
    assert json.loads((out / "run.json").read_text())["teacher"]["output"] == output
    report = distilltool.export(out, seconds=1.0)
    assert report.variants[0].status == "accepted" and report.variants[0].latency[0].speedup is not None
    assert report.teacher["dim"] == 24
    assert [one["threads"] for one in report.teacher["latency"]] == [1]


@pytest.mark.slow
def test_a_run_with_a_time_budget_stopped_before_its_steps_were_counted_goes_on_after_a_file_was_renamed(
    work: Path,
) -> None:
    out, imgs = work / "early", work / "early-imgs"
    photo_folder(imgs, 48, seed=3)
    words = ["distilltool", "distill", str(work / "teacher.onnx"), str(imgs), *PRE_FLAGS, "--student", STUDENT]
    words += ["--input", "32", "--out", str(out), "--store", str(work / "early.sqlite"), "--time-budget", "10s"]
    first = interrupted(words, "distilltool.train", "_Trainer", "_step", call=6)
    assert first.returncode == 130, first.stderr
    split = (out / "split.json").read_bytes()
    (imgs / "photo0000.jpg").rename(imgs / "zzz.jpg")
    second = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "going on from step 6" in second.stderr
    assert (out / "split.json").read_bytes() == split


@pytest.mark.slow
def test_fine_tuned_weights_are_tried_on_the_way_back_to_their_start(work: Path) -> None:
    """Half of the start stays in, unless another share is better on held-out images beyond doubt."""
    from safetensors.torch import save_file

    from distilltool.students import Start, build

    module = build(STUDENT, Start(input=32, seed=5)).module
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, work / "w.safetensors")
    out = work / "blended"
    changes = [*SMALL["changes"], "optimiser.lr_finetune=3e-3"]
    report = distilltool.distill(
        work / "teacher.onnx",
        work / "imgs",
        out=out,
        store=work / "ledger.sqlite",
        weights=work / "w.safetensors",
        **{**SMALL, "changes": changes},
    )
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tried = {one["start_share"]: one for one in entries if "start_share" in one}
    assert report.best_step and set(tried) == {0.0, 0.25, 0.5, 0.75}
    assert report.fidelity.overlap_at_10.value == pytest.approx(tried[report.start_share]["overlap"], abs=1e-4)
    assert report.start_share == 0.5 or tried[report.start_share]["divergence"] < tried[0.5]["divergence"]

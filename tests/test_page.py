"""The page of an evaluation in a real browser: what it shows is what `--json` says, and it reaches for nothing."""

import csv
import json
import re
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browsing
from builders import class_folders, drawn, onnx_teacher, photo_folder
from PIL import Image

pytest.importorskip("matplotlib", reason="the page needs distilltool[report]")

import distilltool
from distilltool import drift, images, page
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation
from distilltool.page import document, facts
from distilltool.page.charts import clipped
from distilltool.page.map import principal, towards
from distilltool.progress import Silent
from distilltool.report import EvalReport, to_json
from distilltool.rundir import RunDir, write_json

HERE = Path(__file__).parent / "page"
PRE = ["scale=1/255", "mean=0.5", "std=0.5"]
SECONDS = 120.0
SEARCHED = ("recall/value", "p50_ms", "qps")
DARK = "--blink-settings=preferredColorScheme=0"
EVIL_FILES = (
    '"><script>document.title=1<script>.png',
    "--><svg onload=alert(1)>.png",
    "{{7*7}}{% raw %}.png",
    "'onerror='alert(1).png",
    "a\u202egnp.exe\u2066.png",
    "x\ny.png",
)
EVIL_LABELS = (
    "</title></script><script>document.title='owned'</script>",
    "<img src=http://example.invalid/x onerror=alert(1)>",
    "$\\frac{1}{$ &amp; ]]> -->",
    "=cmd|' /C calc'!A0",
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What `eval` was about to write: an evaluation, and what `page.write` was given with it."""

    evaluation: Evaluation
    teacher: Any
    models: Any

    def html(self, **changed: Any) -> str:
        """The page; changed: fields of the facts about its models."""
        known = facts.gather(self.evaluation, self.teacher, changed.pop("models", self.models))
        return document.render(self.evaluation, replace(known, **changed))


def evaluated(root: Path, data: Path, **given: Any) -> Made:
    """Evaluate two files beside a third, as `eval --html` does."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write", lambda *words: caught.extend(words))
        given = {"store": root / "e.sqlite", "teacher": root / "teacher.onnx", "preprocess": PRE, **given}
        distilltool.evaluate([root / "s.onnx", root / "t<b>.onnx"], data, html=root / "unused.html", **given)
    return Made(evaluation=caught[1], teacher=caught[2], models=caught[3])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    for name, dim, seed in (("teacher", 16, 0), ("s", 12, 1), ("t<b>", 12, 2)):
        onnx_teacher(root / f"{name}.onnx", dim=dim, seed=seed)
    class_folders(root / "labelled", classes=5, each=6)
    photo_folder(root / "plain", 24, endings=("png",))
    return root


@pytest.fixture(scope="module")
def labelled(work: Path) -> Made:
    return evaluated(
        work, work / "labelled", gates=["retention.map>=0.999"], binary=True, index="flat,ivf-pq,hnsw,binary"
    )


@pytest.fixture(scope="module")
def hostile(work: Path) -> Made:
    """Names and labels of a CSV that try to be something else."""
    folder = work / "hostile"
    folder.mkdir()
    names = [*EVIL_FILES, *(f"plain{at}.png" for at in range(10))]
    with (folder / "set.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for at, name in enumerate(names):
            drawn(at).save(folder / name)
            writer.writerow([name, EVIL_LABELS[at % len(EVIL_LABELS)]])
    return evaluated(work, folder / "set.csv", csv=folder / "out.csv", markdown=folder / "out.md")


@dataclass(kw_only=True)
class Site:
    """Pages by path, and what a browser asked for and posted."""

    pages: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    posted: list[bytes] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Serves the pages and the probe that looks at them."""

    def __init__(self, site: Site, *given: Any) -> None:
        self.site = site
        super().__init__(*given)

    def do_GET(self) -> None:
        """Give out a page."""
        path = self.path.split("?")[0]
        self.site.asked.append(path)
        self.send_response(200 if path in self.site.pages else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.site.pages.get(path, b""))

    def do_POST(self) -> None:
        """Take what the probe found."""
        self.site.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.site.done.set()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser made of a page. console: what the page wrote there; elsewhere: paths that no page has."""

    found: dict[str, Any]
    console: list[str]
    elsewhere: list[str]


def seen(pages: dict[str, tuple[str, int]], folder: Path, *flags: str) -> dict[str, Seen]:
    """Open pages, each in a frame of its width, and look at them."""
    served = {f"/{name}.html": html.encode() for name, (html, _) in pages.items()}
    site = Site(pages={**served, "/probe.html": (HERE / "probe.html").read_bytes()})
    query = "&".join(f"{name}={width}" for name, (_, width) in pages.items())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/probe.html?{query}"
        try:
            with browsing(url, folder, *flags) as log:
                assert site.done.wait(SECONDS), log.read_text(errors="replace")[-3000:]
                console = [line for line in log.read_text(errors="replace").splitlines() if ":CONSOLE" in line]
        finally:
            server.shutdown()
    assert all(any(path in line for path in served) for line in console), console
    return {
        name: Seen(
            found=found,
            console=[line for line in console if f"/{name}.html" in line],
            elsewhere=[path for path in site.asked if path not in site.pages],
        )
        for name, found in json.loads(site.posted[0]).items()
    }


def drifting(made: Made, folder: Path, known: int = 14) -> Made:
    """The same where the first student is a run that was trained on the first of these images and held out others."""
    run = a_run(folder, 24, None)
    vectors = made.evaluation.models[1].vectors
    np.save(run.seen, vectors[:14].astype(np.float16))
    np.save(run.unseen, vectors[10:20].astype(np.float16))
    contents = [bytes.fromhex(images.digest(path)) for path in made.evaluation.files]
    np.save(run.trained, np.frombuffer(b"".join(contents[:known]), np.uint8).reshape(-1, 32))
    run.card.write_text(json.dumps({"dim": vectors.shape[1]}))
    return replace(made, evaluation=drift.added(made.evaluation, [run, None], contents, Silent()))


def sound(one: Seen) -> None:
    """What holds for every page, whatever it shows."""
    found = one.found
    assert "error" not in found, found
    assert one.console == [] and found["fetched"] == []
    assert found["overflow"] <= 0 and found["outside"] == []
    assert found["broken"] == found["silent"] == found["uncaptioned"] == found["unscoped"] == 0
    assert found["doubled"] == found["dangling"] == found["handlers"] == found["faint"] == []
    assert found["scripts"] == 1 and found["pictures"] > 20 and found["tables"] >= 5
    levels = [int(name[1]) for name, _ in found["headings"]]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def at_key(values: Any, key: str) -> Any:
    """A value of a report by the path that the page gives."""
    for part in key.split("/"):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def same_figures(found: dict[str, Any], report: EvalReport) -> None:
    """Every figure in the page is the JSON's, and every figure of the JSON is in the page."""
    values = json.loads(json.dumps(to_json(report)))
    for key, value, text in found["figures"]:
        expected = at_key(values, key)
        assert float(value) == expected
        shown = float(re.sub(r"^≈ ", "", text).replace("−", "-").replace(",", "").split()[0])
        if re.fullmatch(r"models/\d+/indexes/.*(p50_ms|qps|bytes|build_seconds)", key):
            assert shown == pytest.approx(expected / (1e6 if key.endswith("bytes") else 1), rel=0.006)
            continue
        times, digits = (100, 1) if "retention" in key or key.startswith("differences") else (1, 3)
        assert shown == pytest.approx(times * expected, abs=0.5001 * 10**-digits)
    keys = {key for key, _, _ in found["figures"]}
    for at, model in enumerate(values["models"]):
        for place, one in enumerate(model["indexes"]):
            wanted = {f"points/{number}/{what}" for number in range(len(one["points"])) for what in SEARCHED}
            if one["points"]:
                wanted |= {"bytes", "build_seconds"}
            assert {f"models/{at}/indexes/{place}/{what}" for what in wanted} <= keys
        for family in ("metrics", "retention", "fidelity", "asymmetric", "reverse"):
            for figure, one in (model[family] or {}).items():
                assert one["value"] is None or f"models/{at}/{family}/{figure}/value" in keys
    assert {f"differences/{at}/difference/value" for at in range(len(values["differences"]))} <= keys
    assert {f"worst/{at}/value" for at in range(len(values["worst"]))} <= keys
    assert {f"classes/{at}/models/0/value" for at in range(len(values["classes"]))} <= keys


BAD = """<!doctype html><title>x</title><body><main><p id=a style="color:#eee">faint</p><p id=a>b</p>
<svg></svg><table><tr><th>x</table><img src="http://example.invalid/x.png"><div style="width:3000px">wide</div></main>
<script>console.error("no")</script><script src="/other.js"></script>"""


def a_run(folder: Path, answers: int, milliseconds: float | None, cpu: str = "a") -> RunDir:
    """The files of a finished run that the page reads."""
    write_json(folder / "plan.json", {})
    overlap = {"value": 0.6, "low": 0.5, "high": 0.7}
    report = {
        "recipe": "best",
        "seed": 3,
        "student": {"spec": "timm:x", "params": 2_000_000, "input": [128, 96], "start": "its <weights>"},
        "images": {"train": answers - 10, "validation": 10, "skipped": 0},
        "steps": 4,
        "seconds": 90.0,
        "verdict": "keeps <b>60 %</b>",
        "fidelity": {"overlap@10": overlap},
        "undistilled": {"overlap@10": {"value": 0.4, "low": 0.3, "high": 0.5}},
    }
    write_json(folder / "run.json", {"report": report})
    lines: list[dict[str, float]] = [{"step": 0, "overlap": 0.4}, *({"step": n, "loss": 1 / n} for n in range(1, 5))]
    lines += [{"step": 4, "overlap": 0.625}, {"start_share": 0.25, "overlap": 0.3}]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if milliseconds is not None:
        way = {"device": "cpu", "threads": 1, "batch": 1}
        faster = {"value": 20 / milliseconds, "low": 18 / milliseconds, "high": 22 / milliseconds}
        variant = {"precision": "fp32", "image": "prepared", "sha256": "0" * 64}
        bundle = {
            "variants": [{**variant, "latency": [{**way, "p50_ms": milliseconds, "speedup": faster}]}],
            "teacher": {"latency": [{**way, "p50_ms": 20.0}]},
        }
        write_json(folder / "bundle" / "report.json", bundle)
    return RunDir(folder)


@pytest.fixture(scope="module")
def light(work: Path, labelled: Made, hostile: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Every kind of page, looked at by one browser."""
    folder = tmp_path_factory.mktemp("light")
    runs = [a_run(folder / "one", 100, 4.0), a_run(folder / "two", 1000, 5.0)]
    pages = {
        "labelled": (labelled.html(), 1200),
        "hostile": (hostile.html(), 390),
        "plain": (evaluated(work, work / "plain").html(), 700),
        "drift": (drifting(labelled, folder / "three").html(), 390),
        "runs": (labelled.html(models=runs), 390),
    }
    return seen(pages, folder)


def shown(one: Seen, made: Made) -> None:
    """A page of a labelled evaluation, whatever the window."""
    sound(one)
    found, report = one.found, made.evaluation.report
    same_figures(found, report)
    for text in (report.verdict, "retention.map>=0.999", "✗ fails", "R@10 kept", made.teacher.key.sha256):
        assert text in found["text"]
    assert len(report.worst) == 40 and all(query.path in found["text"] for query in report.worst)
    assert "No time is known" in found["text"] and "Nothing is known of training" in found["text"]
    assert "answers of the teacher" not in found["text"]  # nobody says how many
    assert "No ivf-pq: a gallery of 30 is too small" in found["text"] and "mAP kept, binary" in found["text"]
    assert sum("against the time of a query, by index type" in one for one in found["charts"]) == 3
    assert found["marks"] == 3 * report.queries
    (first, count), (second, _), (back, _), (nothing, none), (pointed, _) = found["steps"]
    assert count == 3 and none == 0 and first == back != second and nothing == "No mark is pointed at." and pointed
    assert re.fullmatch(r"class\d/photo\d+\.png, class\d; AP \d\.\d\d; first: class\d/photo\d+\.png", first)


@pytest.mark.slow
def test_what_the_browser_shows_is_what_json_says(labelled: Made, light: dict[str, Seen]) -> None:
    shown(light["labelled"], labelled)
    assert not light["labelled"].found["dark"]


@pytest.mark.slow
def test_in_the_dark_on_a_phone_it_is_the_same(labelled: Made, tmp_path: Path) -> None:
    one = seen({"labelled": (labelled.html(), 360)}, tmp_path, DARK)["labelled"]
    shown(one, labelled)
    assert one.found["dark"]


@pytest.mark.slow
def test_names_that_are_markup_stay_names(hostile: Made, light: dict[str, Seen]) -> None:
    sound(light["hostile"])
    found = light["hostile"].found
    assert found["title"].endswith("set.csv – distilltool")
    for label in EVIL_LABELS:
        assert label in found["text"]
    for name in EVIL_FILES[:4]:
        assert name in found["text"]
    assert "a\ufffdgnp.exe\ufffd.png" in found["text"] and "\u202e" not in found["text"]
    same_figures(found, hostile.evaluation.report)


@pytest.mark.slow
def test_without_labels_the_teacher_is_the_measure(light: dict[str, Seen]) -> None:
    sound(light["plain"])
    text = light["plain"].found["text"]
    assert "without labels nothing more can be said" in text and "The images have no classes" in text
    assert "is among the first five of the other model too" in text and "mAP" not in text.split("How figures")[0]


@pytest.mark.slow
def test_what_runs_and_bundles_say_is_shown(light: dict[str, Seen]) -> None:
    """Times, answers and curves; two bundles are two measurements."""
    sound(light["runs"])
    text = light["runs"].found["text"]
    for said in ("5.00 (4.50 to 5.50)", "4.00 (3.60 to 4.40)", "Times of different measurements", "keeps <b>60 %</b>"):
        assert said in text
    for said in ("1,000 answers of the teacher, 10 of them held out", "128×96 px", "its <weights>", "0.625"):
        assert said in text
    charts = " ".join(light["runs"].found["charts"])
    for said in ("time of one image, share of the teacher's", "mAP kept against answers", "Training of s:"):
        assert said in charts


@pytest.mark.slow
def test_images_unlike_those_it_knows_are_shown(light: dict[str, Seen], labelled: Made, tmp_path: Path) -> None:
    """Every figure of it but the farthest queries' paths is the JSON's."""
    made = drifting(labelled, tmp_path / "three")
    one = made.evaluation.report.models[1].drift
    assert one is not None and one.seen == 14 and one.queries == 16
    sound(light["drift"])
    found = light["drift"].found
    same_figures(found, made.evaluation.report)
    keys = {key for key, _, _ in found["figures"] if "/drift/" in key}
    fields = ("limit", "median", "held_out_median", "beyond/value", "correlation/value", "adjusted/value")
    assert keys >= {f"models/1/drift/{name}/{field}" for name in ("span", "nearest") for field in fields}
    assert keys >= {f"models/1/drift/span/groups/{at}/overlap/value" for at in range(5)}
    assert keys >= {f"models/1/drift/farthest/{at}/distance" for at in range(16)}
    assert one.verdict in found["text"] and "14 queries were trained on themselves" in found["text"]
    assert any("against the distance from what it was trained on" in label for label in found["charts"])


def test_a_run_that_was_trained_on_all_queries_has_its_sentence(labelled: Made, tmp_path: Path) -> None:
    made = drifting(labelled, tmp_path / "three", len(labelled.evaluation.files))
    one = made.evaluation.report.models[1].drift
    assert one is not None and one.queries == 0
    text = " ".join(made.html().split())
    section = text[text.index('<h2 id="drift">') :].partition("</section>")[0]
    assert one.verdict in section and "<figure" not in section and "<table" not in section


@pytest.mark.slow
def test_the_probe_notices_what_it_looks_for(tmp_path: Path) -> None:
    """A page with every fault that `sound` rules out."""
    one = seen({"bad": (BAD, 700)}, tmp_path)["bad"]
    found = one.found
    assert len(one.console) == 1 and one.elsewhere == ["/other.js"] and len(found["fetched"]) >= 2
    assert found["overflow"] > 0 and found["outside"] and found["broken"] == 1 and found["silent"] == 2
    assert found["uncaptioned"] == found["unscoped"] == 1 and found["doubled"] == ["a"]
    assert found["faint"] == [["P", "faint"]]


def known(made: Made, *runs: RunDir | Path) -> facts.Facts:
    return facts.gather(made.evaluation, made.teacher, list(runs))


def test_times_of_one_measurement_stay_milliseconds(labelled: Made, tmp_path: Path) -> None:
    """The teacher's own time stands beside one bundle's, on the front are models that nothing beats."""
    found = known(labelled, a_run(tmp_path / "one", 100, 4.0), labelled.models[1])
    titles = ["teacher", "s", "t"]
    times = document._times(labelled.evaluation.report, found, titles)
    assert times is not None and not times.relative and times.drawing is not None
    assert [(name, ms) for name, _, ms, *_ in times.lines] == [("teacher", "20.00"), ("s", "4.00")]
    teacher, student = (labelled.evaluation.report.models[at].metrics["map"].value for at in (0, 1))
    assert [front for *_, front in times.lines] == [teacher > student, True]


def test_a_file_is_timed_by_the_bundle_it_lies_in(labelled: Made, work: Path, tmp_path: Path) -> None:
    """By its hash; another file of that name is not."""
    run = a_run(tmp_path / "run", 100, 4.0)
    report = json.loads((run.bundle / "report.json").read_text())
    file = run.bundle / "student.onnx"
    file.write_bytes((work / "s.onnx").read_bytes())
    assert known(labelled, file, file).models[1].timed is None
    report["variants"][0]["sha256"] = distilltool.inspect(file).sha256
    write_json(run.bundle / "report.json", report)
    timed = known(labelled, file, file).models[1].timed
    assert timed is not None and timed.p50_ms == 4.0 and timed.speedup is not None and timed.speedup.value == 5.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"variants": [{}]}', '{"variants": 3}'])
def test_a_bundle_that_cannot_be_read_is_not_known(text: str, labelled: Made, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 100, 4.0)
    (run.bundle / "report.json").write_text(text)
    assert known(labelled, run).models[1].timed is None


def test_training_is_what_the_log_says(labelled: Made, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 100, None)
    one = known(labelled, run).models[1]
    assert one.answers == 100 and one.timed is None and one.curve is not None
    assert one.curve.losses == ((1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25))
    assert one.curve.held_out == ((0, 0.4), (4, 0.625)) and (one.curve.undistilled, one.curve.kept) == (0.4, 0.6)
    run.log.write_text('{"step": 0, "overlap": 0.4}\n')
    assert known(labelled, run).models[1].curve is None


@pytest.mark.slow
def test_the_page_is_small_whatever_it_shows(work: Path) -> None:
    """Many models, classes and noisy pictures stay below the limit."""
    rng, long = np.random.default_rng(0), "of a long name " * 15
    for label in range(100):
        (work / "many" / f"class {label} {long}").mkdir(parents=True)
        for at in range(2):
            noise = Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8))
            noise.save(work / "many" / f"class {label} {long}" / f"{at}.png")
    made = evaluated(work, work / "many")
    times = 6
    more = replace(
        made.evaluation,
        models=(made.evaluation.models[0], *made.evaluation.models[1:] * times),
        report=replace(
            made.evaluation.report,
            models=(made.evaluation.report.models[0], *made.evaluation.report.models[1:] * times),
            classes=tuple(
                replace(each, models=(each.models[0], *each.models[1:] * times))
                for each in made.evaluation.report.classes * 6
            ),
            differences=tuple(
                replace(gap, at=(a, b))
                for a in range(1, 13)
                for b in range(a)
                for gap in made.evaluation.report.differences[:6]
            ),
        ),
    )
    many = len(replace(made, evaluation=more).html(models=made.models * times).encode())
    assert 1_000_000 < many < document.LIMIT


@pytest.mark.parametrize("each", [1, 2])
def test_a_set_with_hardly_anything_in_it_has_a_page(each: int, work: Path, tmp_path: Path) -> None:
    """Two images; or classes of one image each, whose queries have nothing to find."""
    names = [f"c{at}" for at in range(5)] if each == 1 else ["c", "c"]
    with (tmp_path / "set.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for at, name in enumerate(names):
            drawn(at).save(tmp_path / f"{at}.png")
            writer.writerow([f"{at}.png", name])
    html = evaluated(work, tmp_path / "set.csv").html()
    assert ("No query has anything to find" in html) == (each == 1)
    assert ('<h2 id="map">' in html) == (each == 1)
    assert not re.search(r"\bnan\b", re.sub(r"data:image[^\"]+", "", html), re.IGNORECASE)


def test_vectors_without_images_are_named_and_not_pictured(labelled: Made) -> None:
    """Distractors stand in the gallery behind all images; here each is the first query's own vector."""
    made = labelled.evaluation
    count = len(made.files)
    models = tuple(
        replace(one, vectors=np.concatenate([one.vectors, np.repeat(one.vectors[:1], 3, axis=0)]))
        for one in made.models
    )
    task = replace(made.task, gallery=np.concatenate([made.task.gallery, np.arange(count, count + 3)]))
    html = replace(labelled, evaluation=replace(made, task=task, models=models)).html()
    assert "class0/photo0000.png, class0; AP" in html and "; first: a distractor</title>" in html
    assert re.search(r'aria-label="a distractor, miss">no picture<', html)


def test_what_draws_the_page_is_asked_for_before_the_teacher(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    words = {"teacher": work / "teacher.onnx", "store": work / "fresh.sqlite", "preprocess": PRE}
    with pytest.raises(DistillError, match="matplotlib and jinja2.*distilltool\\[report\\]"):
        distilltool.evaluate(work / "s.onnx", work / "labelled", html=work / "no.html", **words)
    assert not (work / "fresh.sqlite").exists() and not (work / "no.html").exists()


def test_the_page_is_the_same_for_the_same_evaluation(labelled: Made) -> None:
    """Nothing in a chart depends on the moment or the process."""
    made_at = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert made_at.sub("", labelled.html()) == made_at.sub("", labelled.html())


def test_the_map_holds_what_the_vectors_hold(rng: np.random.Generator) -> None:
    """A plane within 30 dimensions comes back whole, up to rotation; `towards` undoes the rotation."""
    plane = rng.normal(size=(50, 2)) * [3, 1]
    basis = np.linalg.qr(rng.normal(size=(30, 30)))[0][:2]
    flat = principal((plane @ basis + 5).astype(np.float32))
    assert flat.share == pytest.approx(1, abs=1e-6)
    centred = plane - plane.mean(axis=0)
    assert towards(centred, flat.at) == pytest.approx(centred, abs=1e-4)
    assert principal(np.ones((4, 3), np.float32)).share == 0


def test_long_names_lose_their_middle() -> None:
    assert clipped("abcdefghij", 10) == "abcdefghij"
    assert clipped("a" * 50 + "z" * 50, 20) == "a" * 12 + "…" + "z" * 7 and len(clipped("x" * 99, 30)) == 30

"""Students that are chosen: parts of the teacher at the asked cost, judged untrained, the same again after a stop."""

import json
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import onnx_teacher, photo_folder
from test_chain import PRE, PRE_FLAGS, interrupted, run, stepped
from test_exports import export, network

import distilltool
from distilltool import candidates, imported, pruning, sources, students
from distilltool.anatomy import dissect
from distilltool.candidates import Candidate, Sought
from distilltool.contest import Score
from distilltool.errors import DistillError, NoStudent
from distilltool.progress import Silent
from distilltool.recipe import load
from distilltool.sources import Source
from distilltool.students import Backbone, Start
from distilltool.target import parse
from distilltool.teacher import TeacherOptions, open_teacher
from distilltool.trial import Choice, Scored, Trial
from distilltool.weights import read_weights

pytestmark = pytest.mark.slow
SIDE = 128
QUICK = ["schedule.epochs=2", "schedule.batch=16", "schedule.evaluations=2"]
FLAGS = [*PRE_FLAGS, *[word for one in QUICK for word in ("--set", one)], "--store", "ledger.sqlite"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional teacher, exported as users do it, and photographs."""
    root = tmp_path_factory.mktemp("auto")
    export(network("resnet18", 0), root / "teacher.onnx", torch.rand(2, 3, SIDE, SIDE), new=False)
    export(network("mobilenetv3_small_050", 10), root / "other.onnx", torch.rand(2, 3, 96, 96), new=False)
    photo_folder(root / "imgs", 60)
    return root


def source_of(path: Path) -> Source:
    """The teacher as a student's source."""
    teacher = open_teacher(path, TeacherOptions(preprocess=tuple(PRE)))
    found = sources.open_source("teacher", teacher, False, [], Silent())
    assert found is not None
    return found


def found_for(work: Path, target: str, side: int | None = None, spec: str = "auto") -> tuple[Candidate, ...]:
    """What is at hand beside the teacher of this folder."""
    source = source_of(work / "teacher.onnx")
    photos = tuple(sorted((work / "imgs").iterdir()))
    start = Start(input=SIDE, seed=0, source=source, prepared=source.preprocess, photos=photos, fetch="cached")
    return candidates.at_hand(Sought(spec=spec, goal=parse(target), side=side), source, start, Silent())


def test_parts_of_the_teacher_fit_the_cost(work: Path) -> None:
    whole = candidates.total(source_of(work / "teacher.onnx"))
    assert whole == dissect(work / "teacher.onnx", TeacherOptions()).flops
    found = found_for(work, "flops<0.5x")
    assert found and all(one.flops <= whole / 2 and 64 <= one.input <= SIDE for one in found)
    specs = [one.spec for one in found]
    assert specs[0] == "teacher" and len(set(specs)) == len(specs)
    assert any("cut=" in one for one in specs)
    with pytest.raises(NoStudent, match="flops<0.001x"):
        found_for(work, "flops<0.001x")
    asked = found_for(work, "flops<0.5x", 80)
    assert asked and {one.input for one in asked} == {80} and all(one.flops <= whole / 2 for one in asked)


def test_narrower_ones_are_tried_last_at_larger_images(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fitted to find that out, and their work is what the fitted ones take."""
    fitted, prune = list[bool](), pruning.prune

    def counted(*given: Any, **how: Any) -> pruning.Pruned:
        fitted.append(how.get("refit", True))
        return prune(*given, **how)

    monkeypatch.setattr(pruning, "prune", counted)
    found = found_for(work, "flops<0.3x")
    whole, *_, wider, narrower = found
    assert (whole.spec, wider.spec, narrower.spec) == ("teacher", "teacher:width=0.7", "teacher:width=0.5")
    assert whole.input < wider.input < narrower.input <= SIDE and fitted and not any(fitted)
    source = source_of(work / "teacher.onnx")
    photos = tuple(sorted((work / "imgs").iterdir()))
    start = Start(input=wider.input, seed=0, source=source, prepared=source.preprocess, photos=photos)
    made, rough = (students.build(wider.spec, one) for one in (start, replace(start, rough=True)))
    assert made.fitted and fitted[-2:] == [True, False]
    assert [one.shape for one in made.module.parameters()] == [one.shape for one in rough.module.parameters()]
    monkeypatch.setattr(candidates, "FITTING", 1e6)  # a teacher so large that fitting takes minutes
    assert [one.spec for one in found_for(work, "flops<0.3x")] == [one.spec for one in found[:-2]]


def test_a_narrower_one_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is looked at, and others in between; of those only the last is kept."""
    made = list[str]()

    def build(spec: str, start: Start) -> Backbone:
        made.append(spec)
        fitted = "width" in spec
        return Backbone(module=torch.nn.Identity(), width=9, mean=(0, 0, 0), std=(1, 1, 1), start="", fitted=fitted)

    monkeypatch.setattr(students, "build", build)
    trial = Told({}, {})
    for spec in ("teacher:width=0.7", "teacher", "teacher:width=0.5", "teacher", "teacher:width=0.7", "teacher:cut=a"):
        trial.built(spec, 64)
    assert made == ["teacher:width=0.7", "teacher", "teacher:width=0.5", "teacher", "teacher:cut=a"]
    trial.built("teacher:width=0.7", 96)
    assert made[-1] == "teacher:width=0.7"


def test_a_named_student_gets_the_largest_images_it_may_have(work: Path) -> None:
    half, quarter = (found_for(work, target, spec="teacher") for target in ("flops<0.5x", "flops<0.25x"))
    assert [one.spec for one in (*half, *quarter)] == ["teacher", "teacher"]
    assert half[0].input == 80 and quarter[0].input == 64  # of 128 px: 90 and 64, in steps of 16
    (timed,) = found_for(work, "p50<1000ms", spec="teacher")
    assert timed.input == SIDE and timed.ms is not None and 0 < timed.ms <= 1000
    with pytest.raises(NoStudent, match="keeps to p50<1us"):
        found_for(work, "p50<1us", spec="teacher:cut=0.5")


@pytest.mark.alone
def test_time_is_what_a_target_of_time_is_about(work: Path) -> None:
    """Half of the time of the whole teacher is kept to, and by images larger than the smallest."""
    (whole,) = found_for(work, "p50<1000ms", spec="teacher")
    assert whole.ms is not None
    (half,) = found_for(work, f"p50<{0.6 * whole.ms:.3f}ms@cpu:1", spec="teacher")
    assert half.ms is not None and half.ms <= 0.6 * whole.ms and half.input < SIDE


@pytest.mark.alone
def test_several_targets_make_several_students_of_the_same_answers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    flags = [*FLAGS, "--target", "flops<0.5x", "--target", "flops<0.25x", "--target", "flops<0.0001x"]
    code, out, err = run(work, "distill", "teacher.onnx", "imgs", *flags, "--out", "several", "--json")
    assert code == 0, err
    found = json.loads(out)
    by_target = {one["target"]: one for one in found["points"]}
    assert set(by_target) == {"flops<0.25x", "flops<0.5x"} and found["teacher_p50_ms"] > 0
    whole = candidates.total(source_of(work / "teacher.onnx"))
    assert all(by_target[f"flops<{share}x"]["flops"] <= share * whole for share in (0.25, 0.5))
    assert list(found["refused"]) == ["flops<0.0001x"]
    fast, slow = found["points"]  # which is which is up to the clock: both may take about as long
    kept = [one["student"]["fidelity"]["overlap@10"]["value"] for one in (fast, slow)]
    assert 0 < fast["p50_ms"] <= slow["p50_ms"] and fast["front"] and slow["front"] == (kept[1] >= kept[0])
    assert len({one["student"]["queries"]["spent"] for one in found["points"]}) == 1
    assert by_target["flops<0.25x"]["student"]["queries"]["new"] == 0
    assert json.loads((work / "several" / "pareto.json").read_text()) == found
    drawn = find_spec("matplotlib") is not None and find_spec("jinja2") is not None
    assert found["drawing"] == ("several/pareto.svg" if drawn else None)
    assert (work / "several" / "pareto.svg").is_file() == drawn
    code, out, _ = run(work, "eval", "several/flops-0.25x", "several/flops-0.5x", "--data", "imgs", "--json")
    assert code == 0 and len(json.loads(out)["models"]) == 3
    code, _, err = run(work, "distill", "teacher.onnx", "imgs", *flags, "--out", "several")
    said = " ".join(err.split())
    assert code == 0 and "overlap@" in err and "is finished already" in said
    assert f"quality against time: {'several/pareto.svg' if drawn else 'pip install'}" in said
    code, _, err = run(work, "distill", "teacher.onnx", "imgs", *flags, "--out", "several/flops-0.5x")
    assert code == 1 and "is a single run" in err


def test_a_finished_choice_can_be_made_anew(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    for more in ([], ["--restart"]):
        code, _, err = run(work, "distill", "teacher.onnx", "imgs", *FLAGS, "--out", "again", *more)
        assert code == 0, err


def test_a_teacher_that_cannot_be_read_leaves_what_else_there_is(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a share of it is asked for."""

    def unread(source: Source) -> int:
        raise DistillError("it cannot be read", "name a student")

    network = candidates._Network(spec="timm:resnet18", flops=10, longest=64)
    monkeypatch.setattr(candidates, "total", unread)
    monkeypatch.setattr(candidates, "_of_timm", lambda start: iter([network]))
    source = source_of(work / "teacher.onnx")
    start = Start(input=SIDE, seed=0, source=source, prepared=source.preprocess)
    found = candidates.at_hand(Sought(spec="auto"), source, start, Silent())
    assert [(one.spec, one.input) for one in found] == [("timm:resnet18", 64)]
    with pytest.raises(DistillError, match="cannot be read"):
        candidates.at_hand(Sought(spec="auto", goal=parse("flops<0.1x")), source, start, Silent())


def test_a_target_is_understood_before_anything_is_asked(work: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="is not understood"):
        distilltool.distill(work / "teacher.onnx", work / "imgs", target="fast", store=tmp_path / "ledger.sqlite")
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_share_of_a_teacher_that_is_no_file_is_told(work: Path) -> None:
    with pytest.raises(DistillError, match="no file that can be read"):
        candidates.limit(parse("flops<0.1x"), None)
    assert candidates.limit(None, None) == float("inf") and candidates.limit(parse("flops<3M"), None) == 3e6


def test_the_best_untrained_is_taken_and_the_others_are_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    code, out, err = run(work, "distill", "teacher.onnx", "imgs", *FLAGS, "--out", "auto", "--json")
    assert code == 0, err
    flat = " ".join(err.split())
    assert "runner-up: teacher:cut=" in flat and "taken: teacher:" in flat and "scratch" not in flat
    report = json.loads(out)
    chosen = json.loads((work / "auto" / "choice.json").read_text())
    assert report["student"]["spec"] == chosen["spec"] and report["student"]["input"] == [chosen["input"]] * 2
    assert report["student"]["start"].startswith("the weights of teacher.onnx")
    (work / "teacher.onnx").rename(work / "away.onnx")
    try:  # the run holds all that the student is
        student = distilltool.load_student("auto")
        assert student.dim == report["student"]["dim"]
    finally:
        (work / "away.onnx").rename(work / "teacher.onnx")


class Told(Trial):
    """A trial of students of which it is said how they rank, and how with features of an earlier tensor."""

    def __init__(self, plain: dict[str, Any], tapped: dict[str, Any], seconds: float | None = None) -> None:
        self.plain, self.tapped, self.asked = plain, tapped, list[str]()
        self.seconds, self.began = seconds, time.perf_counter() - 100
        self.fit = [Candidate(spec=one, input=64, flops=1, fitting=float("width" in one)) for one in plain]
        photos = tuple(Path(str(at)) for at in range(9))
        self.recipe, self.start, self.progress = load("best"), Start(input=64, seed=0, photos=photos), Silent()
        self._made = {}

    def _scored(self, backbone: Any, spec: str, side: int) -> Scored:
        return Scored(choice=Choice(spec=spec, input=side), score=Score(overlap=self.plain[spec]))

    def _closer(self, backbone: Any, scored: Scored) -> Scored:
        spec = scored.choice.spec
        self.asked.append(spec)
        if self.tapped[spec] is None:
            raise DistillError("it cannot be built again", "mend it")
        return Scored(choice=replace(scored.choice, tap="t"), score=Score(overlap=self.tapped[spec]))

    def _refined(self, backbone: Any, scored: Scored) -> Choice:
        return scored.choice


def test_what_is_about_as_good_is_compared_with_earlier_features_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is ahead of the whole by chance, and behind it once the whole has the features of that part; what cannot
    be looked at again is compared as it is."""
    backbone = Backbone(module=torch.nn.Identity(), width=9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), start="a file")
    monkeypatch.setattr(students, "build", lambda spec, start: backbone)
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 200))
    plain = {"part": 0.52 + noise[0], "whole": 0.51 + noise[1], "poor": 0.3 + noise[2]}
    assert plain["part"].mean() > plain["whole"].mean()
    better = {"part": plain["part"], "whole": plain["whole"] + 0.05, "poor": plain["poor"] + 0.9}
    trial = Told(plain, better)
    assert trial.choose() == Choice(spec="whole", input=64, tap="t", start="a file")
    assert trial.asked == ["part", "whole"]
    broken = Told(plain, {**better, "whole": None})
    assert broken.choose().spec == "part" and broken.asked == ["part", "whole"]
    late = Told(plain, better, seconds=1.0)  # its budget is over
    ranked = late._compared_again([(late._scored(None, one.spec, 64), one) for one in late.fit])
    assert [one.spec for _, one in ranked] == ["part", "whole", "poor"] and late.asked == ["part"]


@pytest.mark.parametrize(("ahead", "taken"), [(0.02, "teacher:cut=a"), (0.1, "teacher:width=0.7")])
def test_what_is_fitted_to_images_must_be_better_for_certain(
    ahead: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(module=torch.nn.Identity(), width=9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), start="a file")
    monkeypatch.setattr(students, "build", lambda spec, start: backbone)
    noise = np.random.default_rng(0).normal(0, 0.15, (3, 200))
    plain = {"teacher:cut=a": 0.5 + noise[0], "teacher": 0.4 + noise[1], "teacher:width=0.7": 0.5 + ahead + noise[2]}
    assert plain["teacher:width=0.7"].mean() > plain["teacher:cut=a"].mean()
    trial = Told(plain, plain)
    assert trial.choose().spec == taken and trial.asked == ["teacher:width=0.7", "teacher:cut=a"]


def tried(work: Path, spec: str, answered: int, unasked: int) -> tuple[Trial, set[Path]]:
    """A trial of students at 0.3 of the cost, after so many answers and images nobody was asked about; and those that
    are held out."""
    photos = sorted((work / "imgs").iterdir())
    vectors = np.random.default_rng(0).normal(size=(answered, 8)).astype(np.float32)
    held = np.arange(answered) % 10 == 0
    source = source_of(work / "teacher.onnx")
    every = tuple(photos[: answered + unasked])
    start = Start(input=SIDE, seed=0, source=source, prepared=source.preprocess, photos=every, fetch="cached")
    sought = Sought(spec=spec, goal=parse("flops<0.3x"))
    fit = candidates.at_hand(sought, source, start, Silent())
    paths = photos[:answered]
    trial = Trial(paths, vectors, held, source.preprocess, load("best"), start, Silent(), fit)
    return trial, {paths[row] for row in np.flatnonzero(held)}


def test_none_is_judged_on_images_that_it_is_fitted_to(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are held-out ones fitted to; images nobody was asked about come first, and where they suffice all others
    judge. One that is named has all. Where few were asked about, all of them judge."""
    trial, held = tried(work, "auto", 50, 10)
    assert len(trial.start.photos) == 10 and len(trial.paths) == 45 and not set(trial.start.photos) & set(trial.paths)
    monkeypatch.setattr("distilltool.trial.SPARED", 0)
    trial, held = tried(work, "auto", 50, 10)
    judged, fitted = set(trial.paths), set(trial.start.photos)
    assert len(fitted) == 10 + int(0.3 * 45) and len(judged) == 45 - int(0.3 * 45)
    assert not judged & fitted and not held & (judged | fitted)
    for spec in ("teacher:width=0.7", "teacher:width=0.5"):
        first, again = (tried(work, "auto", 50, 10)[0].built(spec, 96).module.state_dict() for _ in range(2))
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    monkeypatch.setattr(imported, "looked_at", lambda size: 10)
    trial, held = tried(work, "auto", 50, 10)
    assert len(trial.start.photos) == 10 and len(trial.paths) == 45 and not set(trial.start.photos) & set(trial.paths)
    trial, held = tried(work, "teacher:width=0.5", 50, 0)
    assert len(trial.start.photos) == 50 and len(trial.paths) == 45 and len(trial.fit) == 1


def test_where_images_are_too_few_to_fit_and_judge_none_is_fitted(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "distilltool")
    trial, _ = tried(work, "auto", 24, 0)
    assert len(trial.paths) == 21 and "width=" not in trial.choose().spec
    assert "left out: teacher:width=0.7: there are too few images" in caplog.text


def test_an_interrupted_choice_ends_bit_for_bit_as_if_it_had_not_been(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reference too: what it knows of each view is made once and read again."""
    monkeypatch.chdir(work)
    flags = [*FLAGS, "--student", "onnx:other.onnx,preprocess=unit", "--input", "64", "--set", "reference.input=112"]
    flags += ["--set", "reference.weight=2", "--set", "schedule.epochs=8", "--set", "schedule.batches_finetune=3"]
    words = ["distilltool", "distill", "teacher.onnx", "imgs", *flags, "--out"]
    code, _, err = run(work, *words[1:], "whole")
    assert code == 0, err
    first = interrupted([*words, "stopped"], "distilltool.train", "_Trainer", "_step", call=3)
    assert first.returncode == 130, first.stderr
    code, _, err = run(work, *words[1:], "stopped")
    assert code == 0 and "going on from step 3" in " ".join(err.split())
    assert json.loads((work / "whole" / "choice.json").read_text())["reference"] == 112
    whole, stopped = (read_weights(work / name / "student.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())
    assert len(stepped(work / "stopped")) > 3 and stepped(work / "stopped") == stepped(work / "whole")


def test_images_nobody_was_asked_about_teach_without_a_query(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another network than the teacher knows of them; the same weights after a stop, whatever the folder holds by
    then; the budget holds."""
    monkeypatch.chdir(work)
    photo_folder(work / "many", 220)
    (work / "many" / "torn.jpg").write_bytes((work / "many" / "photo0000.jpg").read_bytes()[:900])
    flags = [*FLAGS, "--student", "onnx:other.onnx,preprocess=unit", "--input", "64", "--budget", "50"]
    flags += [
        "--set",
        "reference.input=112",
        "--set",
        "schedule.epochs=8",
        "--set",
        "unasked.share=0.5",
        "--set",
        "unasked.after=2",
    ]
    flags += ["--store", "few.sqlite"]
    words = ["distilltool", "distill", "teacher.onnx", "many", *flags, "--json", "--out"]
    code, out, err = run(work, *words[1:], "few")
    assert code == 0, err
    report = json.loads(out)
    used = report["images"]["unasked"]
    assert report["queries"]["new"] == 50 and 64 <= used <= 171
    assert f"{used} images nobody was asked about teach too" in " ".join(err.split())
    assert len(np.load(work / "few" / "trained_unasked.npy")) == used
    first = interrupted([*words, "fewer"], "distilltool.train", "_Trainer", "_step", call=4)
    assert first.returncode == 130, first.stderr
    for name in json.loads((work / "fewer" / "cache" / "unasked.json").read_text())["names"][:30]:
        (work / name).unlink()
    assert run(work, *words[1:], "fewer")[0] == 0
    few, fewer = (read_weights(work / name / "student.safetensors") for name in ("few", "fewer"))
    assert all(torch.equal(tensor, fewer[name]) for name, tensor in few.items())
    assert len(stepped(work / "fewer")) > 4 and stepped(work / "fewer") == stepped(work / "few")
    assert not (work / "few" / "cache").exists()


SMALL_OTHER = ("--student", "onnx:other.onnx,preprocess=unit", "--set", "reference.input=112")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--recipe", "csd"), "the loss csd needs the teacher's answer"),
        (("--student", "teacher", "--set", "reference.input=128"), "the student is the teacher, and would ask itself"),
        (("--student", "timm:test_efficientnet"), "the student starts from nothing"),
        (SMALL_OTHER, "there is time for 2 passes over the others, and they come after 10"),
        (("--budget", "78"), "they are too few"),
    ],
)
def test_images_nobody_was_asked_about_that_do_not_teach_are_told(
    work: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(work)
    photo_folder(work / "others", 140)
    words = [*FLAGS, "--store", "told.sqlite", "--budget", "40", "--student", "teacher", "--input", "64"]
    words += ["--set", "unasked.share=0.5", *flags]
    code, out, err = run(work, "distill", "teacher.onnx", "others", *words, "--json", "--restart", "--out", "told")
    assert code == 0 and json.loads(out)["images"]["unasked"] == 0, err
    assert f"images nobody was asked about do not teach: {why}" in " ".join(err.split())


def test_the_whole_teacher_is_no_reference_under_any_name(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own size it would be the teacher, asked about every view for nothing."""
    monkeypatch.chdir(work)
    forced = [*FLAGS, "--input", "64", "--set", "reference.weight=1", "--set", "reference.input=128"]
    for place, spec in enumerate(("teacher", "teacher:cut=1.0", "onnx:teacher.onnx")):
        code, _, err = run(work, "distill", "teacher.onnx", "imgs", *forced, "--student", spec, "--out", f"ref{place}")
        assert code == 0, err
        assert json.loads((work / f"ref{place}" / "choice.json").read_text())["reference"] == 0


def test_more_dimensions_than_features_are_told_and_not_trained(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    code, _, err = run(work, "distill", "teacher.onnx", "imgs", *FLAGS, "--dim", "4000", "--out", "wide")
    assert code == 1 and "fewer than --dim" in " ".join(err.split())


def test_nothing_at_hand_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    """A teacher too small to be cut, no weights on the machine: one line that says what to name, and no query."""
    onnx_teacher(tmp_path / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(tmp_path / "imgs", 50)
    with pytest.raises(DistillError, match="no student is at hand") as found:
        distilltool.distill(
            tmp_path / "teacher.onnx",
            tmp_path / "imgs",
            out=tmp_path / "run",
            store=tmp_path / "ledger.sqlite",
            preprocess=PRE,
        )
    assert "--student timm:NAME" in found.value.fix
    assert not (tmp_path / "ledger.sqlite").exists() and not (tmp_path / "run").exists()

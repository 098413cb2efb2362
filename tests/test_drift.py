"""Whether a student fails on images unlike those it was distilled on: figures by hand, verdicts, and a real run."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import class_folders, drawn, onnx_teacher, photo_folder
from PIL import Image
from test_chain import SMALL_FLAGS, run

from distilltool import drift, images
from distilltool.drift import Far, _beyond, _correlated, _groups, _ranks, check, principal, verdict
from distilltool.embedder import unit
from distilltool.errors import DistillError, Exit
from distilltool.report import DriftDistance, DriftReport, Interval
from distilltool.rundir import RunDir


def test_what_lies_in_the_span_is_at_no_distance(rng: np.random.Generator) -> None:
    """Vectors of a plane within 8 dimensions: a quarter of them are two directions, which are the plane's."""
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    plane = rng.normal(size=(40, 2)).astype(np.float32) @ basis[:2] + 3 * basis[2]
    mean, axes = principal(plane)
    assert axes.shape == (8, 2) and axes.T @ axes == pytest.approx(np.eye(2), abs=1e-5)
    known = drift.Known(trained=plane, held_out=plane + 2 * basis[3], images=frozenset(), answers=0)
    found = drift._far(known, np.concatenate([plane[:3], plane[:3] - 5 * basis[4]]))[drift.SPAN]
    assert found.queries == pytest.approx([0, 0, 0, 5, 5, 5], abs=1e-4)
    assert found.held_out == pytest.approx(np.full(40, 2.0), abs=1e-4) and found.limit == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("count", [6, 60])
def test_few_and_many_vectors_have_the_same_principal_directions(count: int, rng: np.random.Generator) -> None:
    """By whichever of the two matrices is smaller."""
    vectors = rng.normal(size=(count, 20)).astype(np.float32)
    mean, axes = principal(vectors)
    assert axes.shape == (20, max(1, min(count, 20) // 4))
    right = np.linalg.svd((vectors - mean).astype(np.float64), full_matrices=False)[2][: axes.shape[1]]
    assert np.abs(right @ axes).max(axis=1) == pytest.approx(1, abs=1e-4)


def test_the_nearest_is_by_cosine() -> None:
    trained = unit(np.array([[1, 0], [0, 1]], np.float32))
    known = drift.Known(trained=trained, held_out=trained, images=frozenset(), answers=0)
    queries = unit(np.array([[1, 0], [1, 1], [-1, 0]], np.float32))
    found = drift._far(known, queries)[drift.NEAREST]
    assert found.queries == pytest.approx([0, 1 - 2**-0.5, 1], abs=1e-6) and found.held_out == pytest.approx([0, 0])


def test_the_share_beyond_counts_both_uncertainties(rng: np.random.Generator) -> None:
    """Of the same distribution about 5 % are beyond, in nine of ten draws within the interval; few held-out images
    leave it wide."""
    inside, widths = 0, []
    for _ in range(60):
        found = _beyond(rng.normal(size=300), rng.normal(size=100))
        inside += found.low <= 0.05 <= found.high
        widths.append(found.high - found.low)
    assert inside >= 52
    assert np.mean([_beyond(rng.normal(size=300), rng.normal(size=24)).high for _ in range(20)]) > 0.12
    assert _beyond(rng.normal(size=200) + 5, rng.normal(size=50)).low > 0.9
    one = _beyond(np.array([0.0, 1.0, 2.0, 3.0]), np.arange(101) / 100)
    assert one.value == 0.75


def test_correlations_by_hand_and_by_partial_regression(rng: np.random.Generator) -> None:
    """Spearman's as the textbook's, the third taken out as the correlation of residuals."""
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert _correlated([_ranks(a), _ranks(b)]).value == pytest.approx(1 - 6 * 4 / (5 * 24))
    third = rng.normal(size=400)
    x, y = third + 0.5 * rng.normal(size=400), third + 0.5 * rng.normal(size=400)
    ranks = [_ranks(one) for one in (x, y, third)]
    plain, partial = _correlated(ranks[:2]), _correlated(ranks)
    residuals = [one - ranks[2] * (one @ ranks[2]) / (ranks[2] @ ranks[2]) for one in ranks[:2]]
    assert partial.value == pytest.approx(np.corrcoef(*residuals)[0, 1])
    assert plain.low > 0.6 and partial.low < 0 < partial.high  # what a third causes is no correlation of two
    flat = _correlated([_ranks(np.ones(9)), _ranks(np.arange(9.0))])
    assert np.isnan(flat.value)


def test_groups_are_fifths_in_order() -> None:
    distances, overlap = np.array([0.5, 0.1, 0.3, 0.2, 0.4, 0.6]), np.array([0.0, 1.0, 0.5, 0.9, 0.4, 0.1])
    groups = _groups(distances, overlap)
    assert [one.queries for one in groups] == [2, 1, 1, 1, 1]
    assert (groups[0].low, groups[0].high, groups[0].overlap.value) == (0.1, 0.2, 0.95)
    assert len(_groups(distances[:3], overlap[:3])) == 3


def distance(beyond: float, low: float, adjusted: tuple[float, float]) -> DriftDistance:
    middle = sum(adjusted) / 2
    return DriftDistance(
        limit=0.5,
        median=0.3,
        held_out_median=0.4,
        beyond=Interval(value=beyond, low=low, high=min(1.0, beyond + 0.1)),
        correlation=Interval(value=-0.9, low=-1.0, high=-0.8),
        adjusted=Interval(value=middle, low=adjusted[0], high=adjusted[1]),
        groups=(),
    )


BARE = DriftReport(
    trained=90,
    held_out=30,
    queries=100,
    seen=0,
    span=distance(0.01, 0.0, (-0.1, 0.1)),
    nearest=distance(0.01, 0.0, (-0.1, 0.1)),
    near=Interval(value=0.6, low=0.5, high=0.7),
    far=Interval(value=0.2, low=0.1, high=0.3),
    farthest=(),
    unlike=False,
    fails=None,
    ask=0,
    verdict="",
)


def test_the_sentence_says_what_to_do() -> None:
    assert "Nothing more needs asking" in verdict(BARE, "s") and "correlate" not in verdict(BARE, "s")
    weaker = verdict(replace(BARE, span=distance(0.01, 0.0, (-0.3, -0.1))), "s")
    assert "like the farthest may help" in weaker and "Nothing more" not in weaker
    far = replace(BARE, span=distance(0.5, 0.3, (-0.4, -0.2)), unlike=True, ask=90)
    said = verdict(replace(far, fails=True), "s")
    assert said.startswith("s fails on images unlike those it was trained on: 50.0 % (30.0 to 60.0)")
    for part in ("of these it keeps 20 %", "of the others 60 %", "−0.30 (−0.40 to −0.20)", "some 90 such images"):
        assert part in said
    assert "does not fail on them" in verdict(replace(far, fails=False, ask=0), "s")
    unsure = verdict(replace(far, near=None), "s")
    assert "cannot be told from these" in unsure and "To be sure, ask the teacher about some 90" in unsure
    unsure = verdict(replace(BARE, unlike=None), "s")
    assert "cannot be told from 30 held-out images" in unsure and "where 5 % are to be expected" in unsure
    assert "trained on all of these images" in verdict(replace(BARE, queries=0), "s")


def test_what_may_be_twice_the_usual_share_is_not_ruled_out() -> None:
    for low, high, expected in ((0.0, 0.09, False), (0.04, 0.11, None), (0.06, 0.09, False)):
        assert drift._unlike(Interval(value=(low + high) / 2, low=low, high=high), 500, 1000) is expected
    assert drift._unlike(Interval(value=0.2, low=0.15, high=0.25), 500, 1000) is True
    assert drift._unlike(Interval(value=0.2, low=0.15, high=0.25), 500, 24) is None
    assert drift._unlike(Interval(value=float("nan"), low=float("nan"), high=float("nan")), 0, 24) is None


@pytest.mark.parametrize("held", [24, 69])
def test_images_of_the_same_kind_are_seldom_called_unlike(held: int, rng: np.random.Generator) -> None:
    """However few were held out; of images of another kind most are told even then."""
    same = [
        drift._unlike(_beyond(rng.normal(size=300), one := rng.normal(size=held)), 300, len(one)) for _ in range(80)
    ]
    assert same.count(True) <= 6
    other = [drift._unlike(_beyond(rng.normal(size=300) + 3, rng.normal(size=held)), 300, held) for _ in range(20)]
    assert other.count(True) >= 18


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [(-0.4, -0.3, -0.1, True), (-0.1, 0.0, 0.1, False), (-0.4, -0.1, 0.1, None), (np.nan, np.nan, np.nan, None)],
)
def test_that_it_does_not_fail_needs_evidence_too(low: float, value: float, high: float, expected: bool | None) -> None:
    assert drift._fails(Interval(value=value, low=low, high=high)) is expected


def test_as_many_are_asked_for_as_make_them_as_common() -> None:
    for share, wanted in ((0.25, 100), (0.5, 300), (0.9, 300), (1.0, 300), (0.001, 1)):
        assert drift._wanted(replace(BARE, span=distance(share, 0.0, (0, 0))), 300) == wanted


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="a file does not say") as error:
        check([None], True)
    assert error.value.code == Exit.USAGE
    with pytest.raises(DistillError, match="--whiten away"):
        check([RunDir(tmp_path)], False)
    with pytest.raises(DistillError, match="earlier version.*--restart"):
        check([RunDir(tmp_path)], True)


def test_the_limit_is_the_95th_percentile() -> None:
    assert Far(queries=np.zeros(1), held_out=np.arange(101.0)).limit == 95.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made of drawn pictures, more of the same kind, and noise."""
    root = tmp_path_factory.mktemp("drift")
    onnx_teacher(root / "teacher.onnx", size=(48, 48), dim=24)
    photo_folder(root / "imgs", 120)
    photo_folder(root / "same", 60, seed=5)
    noise = np.random.default_rng(0)
    for name, count in (("noise", 40), ("both", 40)):
        (root / name).mkdir()
        for at in range(count):
            Image.fromarray(noise.integers(0, 256, (48, 48, 3), np.uint8)).save(root / name / f"noise{at}.png")
    for at in range(60):
        drawn(at, seed=6).save(root / "both" / f"photo{at}.png")
    class_folders(root / "labelled", classes=3, each=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        code, _, err = run(root, "distill", "teacher.onnx", "imgs", *SMALL_FLAGS, "--store", "l.sqlite", "--out", "run")
    assert code == 0, err
    return root


def told(work: Path, monkeypatch: pytest.MonkeyPatch, folder: str, *more: str) -> dict[str, object]:
    monkeypatch.chdir(work)
    code, out, err = run(work, "eval", "run", "--data", folder, "--drift", "--json", *more)
    assert code == 0, err
    found: dict[str, object] = json.loads(out)["models"][1]["drift"]
    return found


@pytest.mark.slow
def test_a_run_keeps_the_vectors_of_its_images(work: Path) -> None:
    """As `eval` makes them, of those trained on and of those held out, apart."""
    import distilltool

    manifest = json.loads((work / "run" / "run.json").read_text())
    seen, unseen = (np.load(work / "run" / f"{name}.npy") for name in ("seen", "unseen"))
    counts = manifest["report"]["images"]
    assert (len(seen), len(unseen)) == (counts["train"], counts["validation"]) and seen.dtype == np.float16
    student = distilltool.load_student(work / "run")
    rows, _ = images.load([Path(path) for path in manifest["held_out"]], student.preprocess)
    assert unit(student.embed(rows)) == pytest.approx(unseen.astype(np.float32), abs=2e-3)


@pytest.mark.slow
def test_noise_is_unlike_and_the_same_kind_is_not(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = told(work, monkeypatch, "same")
    assert same["unlike"] is not True and same["ask"] == 0
    noise = told(work, monkeypatch, "noise")
    assert noise["unlike"] is True, noise["verdict"]
    assert noise["fails"] is None
    assert 0 < int(str(noise["ask"])) <= int(str(noise["trained"]))
    both = told(work, monkeypatch, "both", "--csv", "both.csv", "--markdown", "both.md")
    assert both["unlike"] is not False  # of few held-out images a tenth tells little
    paths = [one["path"] for one in both["farthest"]]  # type: ignore[attr-defined]
    assert len(paths) == 20 and "noise" in paths[0]
    with (work / "both.csv").open(newline="") as file:
        rows = {(row["family"], row["figure"]): row for row in csv.DictReader(file)}
    span = both["span"]
    assert float(rows["drift.span", "beyond"]["value"]) == span["beyond"]["value"]  # type: ignore[index]
    assert float(rows["drift.span", "limit"]["value"]) == span["limit"]  # type: ignore[index]
    groups = [row for (family, _), row in rows.items() if family.startswith("drift.span.group")]
    assert len(groups) == 2 * drift.GROUPS or len(groups) == drift.GROUPS
    assert "distance" in (work / "both.md").read_text()
    with (work / "both.queries.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    far = np.array([float(row["run: distance to span"]) for row in lines])
    noisy = np.array(["noise" in row["path"] for row in lines])
    assert np.median(far[noisy]) > np.median(far[~noisy])
    beyond = float((far > span["limit"]).mean())  # type: ignore[index]
    assert beyond == pytest.approx(span["beyond"]["value"])  # type: ignore[index]


@pytest.mark.slow
def test_images_it_was_trained_on_do_not_count(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(work, monkeypatch, "imgs")
    assert found["seen"] == found["trained"] and found["queries"] == found["held_out"]


@pytest.mark.slow
def test_nor_do_images_it_was_trained_on_without_an_answer(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = told(work, monkeypatch, "same")
    hashes = [bytes.fromhex(images.digest(path)) for path in sorted((work / "same").glob("*.jpg"))[:5]]
    monkeypatch.setattr(RunDir, "trained_unasked", property(lambda _: work / "others.npy"))
    np.save(work / "others.npy", np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32))
    after = told(work, monkeypatch, "same")
    assert (after["seen"], after["queries"]) == (5, int(str(before["queries"])) - 5) and before["seen"] == 0
    assert after["trained"] == before["trained"]


@pytest.mark.slow
def test_the_command_says_what_is_wrong(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    for words, code, said in (
        (["teacher.onnx", "--data", "same", "--teacher", "teacher.onnx", "--drift"], 2, "name a run"),
        (["run", "--data", "same", "--drift", "--flip"], 2, "leave --scales, --flip and --whiten away"),
    ):
        got, out, err = run(work, "eval", *words)
        assert (got, out) == (code, "") and said in " ".join(err.split())
    monkeypatch.setenv("COLUMNS", "80")
    code, _, err = run(work, "eval", "run", "--data", "both", "--drift")
    assert code == 0 and "distance from what run knows" in err and "the farthest: noise" in err
    assert max(len(line) for line in err.splitlines() if line[:1] in "┃│") <= 80
    kept = (work / "run" / "seen.npy").read_bytes()
    for broken in (b"", kept[:200]):
        (work / "run" / "seen.npy").write_bytes(broken)
        code, _, err = run(work, "eval", "run", "--data", "same", "--drift")
        assert code == 1 and "distill it again with --restart" in " ".join(err.split())
    (work / "run" / "seen.npy").write_bytes(kept)

"""Whether a student fails on images unlike those it was distilled on, and about how many such to ask the teacher.

How unlike an image is, the student alone says, as after deployment nobody else is at hand, by two distances of its
vector. To the span: how far it lies outside the principal directions of the vectors of images trained on (as in the
residual of ViM, Wang et al. 2022). To the nearest of them: one less the cosine. What is far, the run's held-out images
say: they were clusters of their own, so that new kinds of the same sort of image are no alarm. The span decides; the
nearest alone does not notice drawings, where photographs were trained on (docs/LOG.md).

Overlap falls with distance anyhow: images that resemble few others have neighbours that nobody ranks surely. So how
dense the teacher's own neighbours are is taken out of the correlation before it counts as failure.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool import metrics
from distilltool.embedder import unit
from distilltool.errors import DistillError, Exit
from distilltool.evaluation import ALIKE, Evaluation
from distilltool.progress import Progress
from distilltool.report import DriftDistance, DriftGroup, DriftReport, FarQuery, Interval
from distilltool.rundir import RunDir, read_json
from distilltool.search import Gallery

USUAL = 0.95  # of the held-out images are nearer
SPANNED = 4  # vectors, or numbers where these are fewer, for a direction
TWICE = 2.0  # times the share that is to be expected beyond the limit, up to which an interval is no alarm
GROUPS = 5
FARTHEST = 20
DIGEST = 32  # bytes of a SHA-256
FEW = 10  # queries on a side, with fewer of which the two are not compared
FAMILIAR = 0.2  # share of the queries nearer than the middle of the held-out images, with less there is no contrast
WEAK = 0.2  # a correlation that costs little
RESAMPLES = 1000
CHANCES = 10_000  # draws of what chance puts beyond the limit
BLOCK = 4096  # vectors at once
HELD = 1 << 22  # numbers of resamples that are held at once
SPAN, NEAREST = "distance to span", "distance to nearest"
CONVENTIONS = {
    "drift": "distance of the student's vector of a query to the span of those of images it was trained on (length of "
    "what lies outside their principal directions, a quarter of as many as there are) and to the nearest of them "
    f"(1 − cosine); unlike: beyond {100 * USUAL:.0f} % of the run's held-out images, which are whole clusters; "
    "intervals resample queries and held-out images; adjusted: Spearman's partial correlation, given the mean "
    "similarity of the teacher's own ten nearest",
}


Measure = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A run's own vectors at length 1. trained, held_out: (N, D); images: SHA-256 of all that it was trained on;
    answers: of so many the teacher's answer was known."""

    trained: NDArray[np.float32]
    held_out: NDArray[np.float32]
    images: frozenset[bytes]
    answers: int


def check(runs: Sequence[RunDir | None], plain: bool) -> None:
    """Fail on what cannot be compared before anything is asked. plain: each image's vector is the student's own."""
    if not any(runs):
        raise DistillError(
            "--drift is about runs: a file does not say what it was trained on", "name a run", Exit.USAGE
        )
    if not plain:
        raise DistillError(
            "--drift compares vectors as the student makes them", "leave --scales, --flip and --whiten away", Exit.USAGE
        )
    for run in runs:
        if run is not None:
            _known(run)


def added(made: Evaluation, runs: Sequence[RunDir | None], contents: Sequence[bytes], progress: Progress) -> Evaluation:
    """The evaluation with what each run's student makes of images unlike its own. runs: one for each student, None for
    a file; contents: SHA-256 of each image."""
    reports, models = list(made.report.models), list(made.models)
    progress.begin("comparing with images trained on", sum(run is not None for run in runs), "runs")
    for at, run in enumerate(runs, 1):
        if run is None:
            progress.note(f"{reports[at].name} is no run: nothing is known of what it was trained on")
            continue
        known = _known(run)
        found = _far(known, models[at].vectors[made.task.query])
        counted = np.array([contents[row] not in known.images for row in made.task.query.tolist()])
        reports[at] = replace(reports[at], drift=_report(made, at, known, found, counted))
        values = {name: np.where(counted, one.queries, np.nan) for name, one in found.items()}
        models[at] = replace(models[at], values={**models[at].values, **values})
        progress.advance()
    progress.end()
    report = replace(made.report, models=tuple(reports), conventions={**made.report.conventions, **CONVENTIONS})
    return replace(made, report=report, models=tuple(models))


def _known(run: RunDir) -> Known:
    """What a run keeps of its images; DistillError where that is not there, or not of use."""
    again = "distill it again with --restart; what is answered is not asked again"
    if not all(one.is_file() for one in (run.seen, run.unseen, run.trained)):
        raise DistillError(
            f"the run {run.root} was made by an earlier version and keeps no vectors of its images", again
        )
    dim = int(read_json(run.card)["dim"])

    def read(path: Path, width: int, kind: str, least: int) -> NDArray[Any]:
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DistillError(f"{path} cannot be read ({str(error).splitlines()[0]})", again) from None
        if found.ndim != 2 or found.shape[1] != width or found.dtype.kind != kind or len(found) < least:
            raise DistillError(f"{path} holds {found.dtype} of shape {found.shape}, not the run's images", again)
        return np.asarray(found)

    seen, unseen = (unit(read(path, dim, "f", 2).astype(np.float32)) for path in (run.seen, run.unseen))
    known = read(run.trained, DIGEST, "u", 1)
    others = read(run.trained_unasked, DIGEST, "u", 0) if run.trained_unasked.is_file() else known[:0]
    images = frozenset(one.tobytes() for one in (*known, *others))
    return Known(trained=seen, held_out=unseen, images=images, answers=len(known))


@dataclass(frozen=True, kw_only=True, slots=True)
class Far:
    """One distance to the vectors of images trained on: of queries, (Q,), and of held-out images, (H,)."""

    queries: NDArray[np.float64]
    held_out: NDArray[np.float64]

    @property
    def limit(self) -> float:
        """Within which most held-out images stay."""
        return float(np.quantile(self.held_out, USUAL))


def _far(known: Known, vectors_QD: NDArray[np.float32]) -> dict[str, Far]:
    mean_D, axes_DK = principal(known.trained)
    gallery = Gallery(known.trained)

    def outside(some_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        centred = some_ND - mean_D
        rest: NDArray[np.float64] = np.linalg.norm(centred - (centred @ axes_DK) @ axes_DK.T, axis=1).astype(np.float64)
        return rest

    def to_nearest(some_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.maximum(0.0, 1.0 - gallery.nearest(some_ND, 1).scores[:, 0].astype(np.float64))

    def of_all(measure: Measure, some_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.concatenate([measure(some_ND[at : at + BLOCK]) for at in range(0, len(some_ND), BLOCK)])

    return {
        name: Far(queries=of_all(measure, vectors_QD), held_out=of_all(measure, known.held_out))
        for name, measure in ((SPAN, outside), (NEAREST, to_nearest))
    }


def principal(vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean of vectors, (D,), and their first principal directions, (D, K), K a quarter of what there can be."""
    mean_D = vectors_ND.mean(axis=0)
    centred = (vectors_ND - mean_D).astype(np.float64)
    count, dim = centred.shape
    kept = max(1, min(count, dim) // SPANNED)
    if dim <= count:
        axes_DK = np.linalg.eigh(centred.T @ centred)[1][:, -kept:]
    else:
        _, left_NK = np.linalg.eigh(centred @ centred.T)
        axes_DK, _ = np.linalg.qr(centred.T @ left_NK[:, -kept:])
    return mean_D, axes_DK.astype(np.float32)


def _report(made: Evaluation, at: int, known: Known, found: dict[str, Far], counted: NDArray[np.bool_]) -> DriftReport:
    """What the queries that were not trained on say."""
    overlap = made.models[at].values[ALIKE][counted]
    dense = _density(made)[counted]
    span = found[SPAN]
    far = span.queries[counted]
    beyond = far > span.limit
    by = {name: _distance(one, counted, overlap, dense) for name, one in found.items()}
    report = DriftReport(
        trained=len(known.trained),
        held_out=len(known.held_out),
        queries=int(counted.sum()),
        seen=int((~counted).sum()),
        span=by[SPAN],
        nearest=by[NEAREST],
        near=_mean(overlap[~beyond]),
        far=_mean(overlap[beyond]),
        farthest=_farthest(made, np.flatnonzero(counted), far, overlap),
        unlike=_unlike(by[SPAN].beyond, int(counted.sum()), len(known.held_out)),
        fails=None,
        ask=0,
        verdict="",
    )
    familiar = int((far <= report.span.held_out_median).sum())
    if beyond.sum() >= FEW and familiar >= max(FEW, FAMILIAR * len(far)):
        report = replace(report, fails=_fails(report.span.adjusted))
    if report.unlike and report.fails is not False:
        report = replace(report, ask=_wanted(report, known.answers))
    return replace(report, verdict=verdict(report, made.report.models[at].name))


def _unlike(beyond: Interval, queries: int, held_out: int) -> bool | None:
    """Whether more are beyond the limit than chance puts there; None where it may be twice as many, or not.

    Of images of the same kind the share beyond the k-th of H is Beta(H + 1 − k, k) distributed, whatever the distances
    are, and nearly so between two of them (Stigler 1977): of few held-out images, the limit may lie anywhere.
    """
    if not queries:
        return None
    rng = np.random.default_rng(0)
    place = USUAL * (held_out - 1) + 1
    shares = rng.beta(held_out + 1 - place, place, CHANCES)
    if beyond.value > float(np.quantile(rng.binomial(queries, shares), 0.975)) / queries:
        return True
    return None if beyond.high > TWICE * (1 - USUAL) else False


def _fails(adjusted: Interval) -> bool | None:
    """Whether overlap falls with distance; None where it may, so that it matters, or not."""
    if not math.isfinite(adjusted.value):
        return None
    if adjusted.high < 0:
        return True
    return None if adjusted.low < -WEAK else False


def _distance(
    far: Far, counted: NDArray[np.bool_], overlap: NDArray[np.float64], dense: NDArray[np.float64]
) -> DriftDistance:
    queries = far.queries[counted]
    ranks = [_ranks(one) for one in (queries, overlap, dense)]
    return DriftDistance(
        limit=far.limit,
        median=_median(queries),
        held_out_median=_median(far.held_out),
        beyond=_beyond(queries, far.held_out),
        correlation=_correlated(ranks[:2]),
        adjusted=_correlated(ranks),
        groups=_groups(queries, overlap),
    )


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _mean(values: NDArray[np.float64]) -> Interval | None:
    return metrics.interval(values) if len(values) else None


def _density(made: Evaluation) -> NDArray[np.float64]:
    """How near the teacher's own neighbours of each query are, (Q,): their mean similarity."""
    task, vectors = made.task, made.models[0].vectors
    gallery = Gallery(vectors, task.gallery)
    found = gallery.nearest(vectors[task.query], metrics.reach(gallery.size), task.itself).scores
    dense: NDArray[np.float64] = np.where(np.isfinite(found), found, 0.0).mean(axis=1, dtype=np.float64)
    return dense


def _beyond(queries: NDArray[np.float64], held_out: NDArray[np.float64]) -> Interval:
    """Share of queries beyond what most held-out images stay within, both drawn anew."""
    if not len(queries):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    rng = np.random.default_rng(0)
    rising = np.sort(queries)
    limits = np.quantile(held_out[rng.integers(0, len(held_out), (RESAMPLES, len(held_out)))], USUAL, axis=1)
    shares = 1 - np.searchsorted(rising, limits, "right") / len(rising)
    drawn = rng.binomial(len(rising), shares) / len(rising)  # queries drawn anew, as far as they are beyond a limit
    low, high = np.quantile(drawn, (0.025, 0.975))
    value = float((queries > np.quantile(held_out, USUAL)).mean())
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, equals sharing their mean, less the mean of all."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks - ranks.mean() if len(ranks) else ranks


def _correlated(ranks: Sequence[NDArray[np.float64]]) -> Interval:
    """Correlation of the first two, a third taken out of both where there is one, with an interval over resamples of
    the queries, which keep the ranks that these have among all."""
    nothing = float("nan")
    rows_MQ = np.stack(ranks)
    count = rows_MQ.shape[1]
    if count < 3:
        return Interval(value=nothing, low=nothing, high=nothing)
    rng = np.random.default_rng(0)
    drawn = list[NDArray[np.float64]]()
    step = max(1, HELD // count)
    for at in range(0, RESAMPLES, step):
        some = min(step, RESAMPLES - at)
        times_RQ = rng.multinomial(count, np.full(count, 1 / count), some) / count
        drawn.append(_correlation(rows_MQ, times_RQ))
    values = np.concatenate(drawn)
    [value] = _correlation(rows_MQ, np.full((1, count), 1 / count))
    if not np.isfinite(value):
        return Interval(value=nothing, low=nothing, high=nothing)
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Interval(value=float(value), low=float(low), high=float(high))


def _correlation(rows_MQ: NDArray[np.float64], weights_RQ: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted correlation of two rows, or their partial correlation given the third, (R,); NaN where one is flat."""
    means = weights_RQ @ rows_MQ.T

    def between(a: int, b: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = weights_RQ @ (rows_MQ[a] * rows_MQ[b]) - means[:, a] * means[:, b]
        return found

    with np.errstate(invalid="ignore", divide="ignore"):

        def r(a: int, b: int) -> NDArray[np.float64]:
            found: NDArray[np.float64] = between(a, b) / np.sqrt(between(a, a) * between(b, b))
            return found

        if len(rows_MQ) == 2:
            return r(0, 1)
        by_third, other = r(0, 2), r(1, 2)
        partial: NDArray[np.float64] = (r(0, 1) - by_third * other) / np.sqrt((1 - by_third**2) * (1 - other**2))
        return partial


def _groups(distances: NDArray[np.float64], overlap: NDArray[np.float64]) -> tuple[DriftGroup, ...]:
    """Fifths of the queries in order of distance, fewer where there are fewer queries."""
    order = np.argsort(distances, kind="stable")
    return tuple(
        DriftGroup(
            low=float(distances[some[0]]),
            high=float(distances[some[-1]]),
            queries=len(some),
            overlap=metrics.interval(overlap[some]),
        )
        for some in np.array_split(order, GROUPS)
        if len(some)
    )


def _farthest(
    made: Evaluation, places: NDArray[np.int64], distances: NDArray[np.float64], overlap: NDArray[np.float64]
) -> tuple[FarQuery, ...]:
    order = np.argsort(-distances, kind="stable")[:FARTHEST]
    return tuple(
        FarQuery(
            path=made.name(int(made.task.query[places[at]])),
            distance=float(distances[at]),
            overlap=float(overlap[at]),
        )
        for at in order.tolist()
    )


def _wanted(report: DriftReport, answers: int) -> int:
    """So many that such images are as common among the answers as among the queries, at most as many as there were."""
    share = report.span.beyond.value
    return max(1, min(answers, round(answers * share / (1 - share)))) if share < 1 else answers


def verdict(report: DriftReport, name: str) -> str:
    """What was found and what to do, in a sentence or two."""
    if not report.queries:
        return f"{name} was trained on all of these images: nothing can be said of others."
    share = f"{_percent(report.span.beyond)} of the queries lie beyond 95 % of its held-out images"
    adjusted = report.span.adjusted
    rho = f"{adjusted.value:+.2f} ({adjusted.low:+.2f} to {adjusted.high:+.2f})".replace("-", "−")
    falls = f"distance and overlap correlate by {rho}, the teacher's own density taken out"
    if report.unlike is None:
        unsure = f"{name}: whether these images are unlike those it was trained on cannot be told"
        few = f"from {report.held_out:,} held-out images: {share}, where {100 * (1 - USUAL):.0f} % are to be expected"
        return f"{unsure} {few}. Look at the farthest; a run of more answers, or more queries, would tell."
    if not report.unlike:
        like = f"{name}: these images are like those it was trained on: {share}"
        if adjusted.high < 0:
            return f"{like}; still, {falls}: answers about images like the farthest may help."
        return f"{like}. Nothing more needs asking."
    means = [100 * one.value for one in (report.far, report.near) if one is not None]
    kept = f"of these it keeps {means[0]:.0f} % of the teacher's nearest" if report.far is not None else ""
    beside = f", of the others {means[1]:.0f} %" if report.near is not None else ""
    ask = f"ask the teacher about some {report.ask:,} such images, and distill again"
    if report.fails is None:
        why = "whether that is because they are unlike cannot be told from these"
        unlike = f"{name}: these images are unlike those it was trained on"
        return f"{unlike}: {share}; {kept}{beside}; {why}. To be sure, {ask}."
    if report.fails:
        return f"{name} fails on images unlike those it was trained on: {share}; {kept}{beside}; {falls}: {ask}."
    return f"{name}: unlike images are here, but it does not fail on them: {share}; {kept}{beside}; {falls}."


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"

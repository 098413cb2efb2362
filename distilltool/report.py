"""What the commands found out, typed, and the JSON others rely on."""

import math
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

RENAMED = {"overlap_at_10": "overlap@10"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherReport:
    """Which teacher was asked, and how images were prepared for it."""

    sha256: str
    dim: int
    output: str
    preprocess: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file left out and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """A tensor of a graph. role: what it is for; why: what says so; dynamic: its free axes; layout: of an image."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str
    role: str
    why: str
    layout: str
    dynamic: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectReport:
    """What `inspect` understood of a file. embedding: the tensor that would be taken, and `why`; problem: what stands
    in the way, None where nothing does; tensors: others that can serve, where asked for; flops: of one image of `size`;
    ms_per_image: at batch 1 or the graph's own; images: how many real ones the warnings rest on."""

    path: str
    sha256: str
    bytes: int
    external: tuple[str, ...]
    kind: str
    opset: int
    ir_version: int
    domains: dict[str, int]
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    tensors: tuple[TensorReport, ...] | None
    embedding: str | None
    why: str
    pool: str
    dim: int | None
    preprocess: dict[str, Any] | None
    description: str
    params: int
    flops: int | None
    size: tuple[int, int] | None
    provider: str | None
    ms_per_image: float | None
    images: int
    skipped: tuple[Skipped, ...]
    problem: str | None
    warnings: tuple[str, ...]
    guess: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReport:
    """What asking the rest would take. seconds, bytes of memory (peak) and of disk (growth of the ledger); cost: in
    the unit of the price, None without one."""

    queries: int
    seconds: float | None
    memory_bytes: int
    disk_bytes: int
    probed: int
    cost: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryReport:
    """What `query` did. images: distinct readable ones; queried: asked now; cached: answered before;
    spent: asked ever; pending: still unanswered, for want of budget or because another process is at it;
    near_duplicates: put last because they look like another image, None where the budget covers all and nobody looked.
    imported: answers bought elsewhere and taken over now; unmatched: answers offered that belong to no image here;
    ambiguous: of the pending, those sent before without an answer; cost: of all that was ever asked, None without a
    price."""

    store: str
    teacher: TeacherReport
    images: int
    files: int
    duplicates: int
    near_duplicates: int | None
    queried: int
    cached: int
    pending: int
    spent: int
    budget: int | None
    skipped: tuple[Skipped, ...]
    seconds: float
    plan: PlanReport | None = None
    imported: int = 0
    unmatched: int = 0
    ambiguous: int = 0
    cost: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentReport:
    """The student that was trained. params: weights; dim: of its vectors; input: height and width."""

    spec: str
    params: int
    dim: int
    input: tuple[int, int]
    space: str
    start: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How well a student ranks as the teacher does, without labels."""

    overlap_at_10: Interval
    spearman: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """What training changed, held-out image by held-out image: distilled less undistilled, means with 95 % intervals.

    divergence: of the distributions over all other images from the teacher's, the less the better; it tells smaller
    differences than the nearest do. In the teacher's space each is the mean over the student's gallery and the
    teacher's; of vectors that are cut, over their lengths.
    """

    overlap_at_10: Interval
    spearman: Interval
    divergence: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillReport:
    """What `distill` made. fidelity: of the weights kept, on held-out images; undistilled: of the same student
    before its first step. best_step: of the weights kept. start_share: how much of the start's weights these hold.
    soup: runs from the start that training was made of, whose weights are averaged; 1 for a single one.
    nested: of the same vectors cut to each of `--dims`, by length. seen: overlap on images trained on, undistilled and
    where training ended, whatever weights are kept. k: neighbours compared, 10 unless fewer images were held out.
    gain: what training changed. to_teacher: of a student in the teacher's space, how it ranks the teacher's own vectors
    of held-out images, undistilled and distilled; {} for others."""

    run: str
    recipe: str
    student: StudentReport
    queries: dict[str, int]
    images: dict[str, int]
    steps: int
    best_step: int
    start_share: float
    seconds: float
    k: int
    fidelity: Fidelity
    undistilled: Fidelity
    verdict: str
    seed: int
    soup: int = 1
    nested: dict[str, Fidelity] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    gain: Gain | None = None
    to_teacher: dict[str, Fidelity] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoPoint:
    """One student of several. target: what it might cost; flops: of one image; p50_ms: of one inference at batch 1 in
    onnxruntime, all students in turns; front: no other ranks better at as little time."""

    target: str
    flops: int
    p50_ms: float
    front: bool
    student: DistillReport


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoReport:
    """Students of different cost from the same answers, the fastest first. runs: the folder of their runs; refused:
    targets that no student at hand keeps to, and why; threads: of onnxruntime; drawing: file, None where nothing that
    draws is installed."""

    runs: str
    points: tuple[ParetoPoint, ...]
    refused: dict[str, str]
    teacher_p50_ms: float | None
    threads: int
    seconds: float
    drawing: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPoint:
    """One way of searching an index. settings: of the search; recall: of the k nearest by exact search; metrics: what
    the images that are returned say, {} without labels; p50_ms and so on: of n queries one by one on one thread, those
    the samples do not earn None; qps: queries a second, `batch` of them at once on `threads`."""

    settings: dict[str, int]
    recall: Interval
    metrics: dict[str, Interval]
    n: int
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    batch: int
    threads: int
    qps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """A model's gallery in one index type. index: as it was asked for; k: neighbours compared;
    settings: it was built with; bytes: as faiss writes it; points: from the least effort to the most, none where it
    could not be built, `reason` saying why."""

    index: str
    k: int
    queries: int
    gallery: int
    settings: dict[str, int] = field(default_factory=dict)
    build_seconds: float | None = None
    bytes: int | None = None
    points: tuple[IndexPoint, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftGroup:
    """Queries at like distances from what a student was trained on. overlap: with the teacher's nearest."""

    low: float
    high: float
    queries: int
    overlap: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftDistance:
    """Queries by one distance to the vectors of images trained on. limit: within which 95 % of the held-out images
    stay; median, held_out_median: of queries and of these; beyond: share of the queries beyond the limit; correlation:
    Spearman's, of distance and overlap@10; adjusted: the same where the density of the teacher's own neighbours is
    taken out; groups: fifths of the queries, the nearest first."""

    limit: float
    median: float
    held_out_median: float
    beyond: Interval
    correlation: Interval
    adjusted: Interval
    groups: tuple[DriftGroup, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FarQuery:
    """A query unlike the images a student was trained on. path: seen from the data's folder."""

    path: str
    distance: float
    overlap: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Whether a student fails on images unlike those it was distilled on.

    trained: vectors of images trained on that it is compared with; held_out: of images held out; queries: that were not
    trained on themselves, seen: that were and do not count. span, nearest: by the distance to what the trained ones
    span, which decides, and to the nearest of them. near, far: overlap@10 of queries within and beyond the limit, None
    where there are none; farthest: the queries to look at, the farthest first. unlike: whether more are beyond the
    limit than of held-out images, None where that cannot be told; fails: whether overlap falls with distance, None
    where too few are on one side to tell; ask: about how many such images, 0 for none; verdict: a sentence.
    """

    trained: int
    held_out: int
    queries: int
    seen: int
    span: DriftDistance
    nearest: DriftDistance
    near: Interval | None
    far: Interval | None
    farthest: tuple[FarQuery, ...]
    unlike: bool | None
    fails: bool | None
    ask: int
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """One model's figures in `eval`; metrics are {} where there are no labels. asymmetric: its queries in the teacher's
    gallery; reverse: the teacher's queries in its gallery; both None where their vectors do not share a space. nested:
    figures of its vectors cut to the other lengths that they are made for, by length; binary: of their signs as codes;
    indexes: of its gallery in index types; drift: of a run, on images unlike those it was made from; these where asked
    for."""

    name: str
    dim: int
    space: str
    metrics: dict[str, Interval]
    fidelity: dict[str, Interval] | None
    retention: dict[str, Interval]
    asymmetric: dict[str, Interval] | None
    reverse: dict[str, Interval] | None = None
    nested: "dict[str, ModelReport]" = field(default_factory=dict)
    binary: "ModelReport | None" = None
    indexes: tuple[IndexReport, ...] = ()
    drift: DriftReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalGate:
    """A gate on one model. value: None where it could not be measured; outcome: "holds" or "fails"."""

    gate: str
    model: str
    value: Interval | None
    outcome: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One model less another in a figure, paired over the queries. at: their places in `models`."""

    model: str
    other: str
    at: tuple[int, int]
    figure: str
    difference: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstQuery:
    """A query that a student answers badly. at: the student's place in `models`; path: seen from the data's folder;
    figure: what it is judged by, "map", or "overlap@10" where there are no labels; teacher: the same of the teacher's
    answer, None for an overlap with it; first: the path that the student ranks first."""

    model: str
    at: int
    path: str
    label: str | None
    figure: str
    value: float
    teacher: float | None
    first: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassReport:
    """The mAP of the queries of one class. models: in the order of the report's."""

    label: str
    queries: int
    models: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewsReport:
    """What an image's vector is made of. scales: of the sides that each model's own preprocessing gives; flip: each
    view mirrored too; combine: "mean" or "gem"; power: of the generalised mean, 1 for the mean; count: views of
    an image."""

    scales: tuple[float, ...]
    flip: bool
    combine: str
    power: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteningReport:
    """What PCA whitening was learned on. data: as it was named; images: how many, none of them evaluated; dim: of the
    teacher's whitened vectors, a model's own is its `dim`."""

    data: str
    images: int
    dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """What `eval` found. models[0] is the teacher. conventions: how each figure is defined. gates: each on every model
    but the teacher. differences: of every two models; worst: the worst queries of each student, the worst first;
    classes: by name, none without labels; verdict: a sentence for each student. views: what a vector is made of;
    whitening: None without it."""

    data: str
    queries: int
    gallery: int
    protocol: str
    models: tuple[ModelReport, ...]
    skipped: tuple[Skipped, ...]
    teacher_queries: dict[str, int]
    conventions: dict[str, str]
    seconds: float
    gates: tuple[EvalGate, ...] = ()
    differences: tuple[Difference, ...] = ()
    worst: tuple[WorstQuery, ...] = ()
    classes: tuple[ClassReport, ...] = ()
    verdict: str = ""
    views: ViewsReport | None = None
    whitening: WhiteningReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Speedup:
    """Baseline time over model time; above 1 is faster."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyReport:
    """Time of one run in milliseconds; a percentile the samples do not earn is None. throughput: images a second."""

    device: str
    provider: str
    threads: int
    batch: int
    n: int
    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    throughput: float
    speedup: Speedup | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantReport:
    """One exported file and how it was judged.

    overlap_at_10: with the float32 file's ranking, of that with the torch student's; fidelity: of the teacher's ten
    nearest, the share it finds, and fidelity_loss: how much less of them than float32, both None where the teacher's
    answers are not at hand; faster_than_fp32: in the same run; left_in_float: nodes of an 8-bit graph that were left in
    float32 for what they would lose; asked: for by name, so that its rejection is a gate that failed; image: what it
    takes, "prepared" ones or decoded ones of "any" size.
    """

    precision: str
    file: str
    bytes: int
    sha256: str
    opset: int
    status: str
    reason: str
    parity: dict[str, float]
    overlap_at_10: Interval
    latency: tuple[LatencyReport, ...]
    fidelity: Interval | None = None
    fidelity_loss: Interval | None = None
    faster_than_fp32: Speedup | None = None
    left_in_float: int = 0
    asked: bool = True
    image: str = "prepared"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export` shipped. teacher: its size and latency in the same run; evaluations: `eval`'s figures, if any;
    sources: sha256 over images, answers and recipe (`provenance.OVER`), none of a run that kept none."""

    bundle: str
    variants: tuple[VariantReport, ...]
    teacher: dict[str, Any]
    machine: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...] = field(default=())
    sources: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchFile:
    """A file that was timed. sha256 and bytes take in its external data; inputs: name, shape and type as declared."""

    path: str
    sha256: str
    bytes: int
    opset: int
    ir_version: int
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchFed:
    """What one input was fed. source: "drawn" by the signature, "setting" or "images"; said: the setting as it was
    written, sha256 of the prepared images, empty where drawn."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str
    said: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRun:
    """Times of one model in one way of running it, in a fresh process. model: the file's name; side: "model" or
    "baseline". copies: "included" where arrays go to the device and back, "excluded" where they stay there, "none" on a
    CPU. elsewhere: share of the graph's nodes that another provider took, by `nodes`, None where nobody says; wholly:
    nothing could be left to the CPU. shapes: of the inputs, fed: all of what they were given. mad_ms: median
    absolute deviation. warm_up: its seconds and runs. load_ms, first_ms: the session's start from a file in the
    system's cache, the first run. memory_bytes: the process's peak beyond what it had before loading, peak_bytes:
    its whole. joules: of one run, all that runs on the machine counted, None where unknown. noise: the same model
    over itself in a second process, None of a baseline's that has it in the comparison. blocks_ms: every run's
    time, by block."""

    model: str
    side: str
    device: str
    provider: str
    threads: int
    batch: int
    copies: str
    elsewhere: float | None
    nodes: dict[str, int]
    wholly: bool
    shapes: dict[str, tuple[int, ...]]
    fed: tuple[BenchFed, ...]
    n: int
    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mad_ms: float
    throughput: float
    speedup: Speedup | None
    warm_up: dict[str, float]
    load_ms: float
    first_ms: float
    memory_bytes: int
    peak_bytes: int
    joules: float | None
    noise: Interval | None
    blocks_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchComparison:
    """The model against the baseline in one way of running both. ratio: of mean times, above 1 is slower; medians: of
    the medians of all runs, not judged; noise: of one model over itself, by whose value the interval is widened before
    it is judged; p: of Mann-Whitney."""

    device: str
    threads: int
    batch: int
    copies: str
    ratio: Interval
    medians: Interval
    noise: Interval
    widened: Interval
    p: float
    verdict: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchGate:
    """A gate on one way of running the model. value: milliseconds, or mean time over the baseline's, with the noise in
    its interval, None where there are too few runs; medians: over the baseline's, not judged, None of a gate in
    milliseconds; outcome: "holds", "fails" or "inconclusive"."""

    gate: str
    device: str
    threads: int
    batch: int
    copies: str
    value: Interval | None
    medians: Interval | None
    outcome: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What `bench` measured. baseline: None without one; baseline_report: the stored report it was taken from. ratio,
    verdict, why: of the comparison that is worst for the model, None without a baseline; why is empty then. settings:
    what was said of the inputs and the time, as it was written, images by their number. machine: what it was measured
    on, load before and after; energy: what counted it, or why nothing did, None where unasked."""

    model: BenchFile
    baseline: BenchFile | None
    baseline_report: str | None
    runs: tuple[BenchRun, ...]
    comparisons: tuple[BenchComparison, ...]
    gates: tuple[BenchGate, ...]
    ratio: Interval | None
    verdict: str | None
    why: str
    tolerance: float
    inputs: str
    settings: dict[str, Any]
    energy: str | None
    machine: dict[str, Any]
    created: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenReport:
    """What a file of a bundle makes of the golden pictures, beside what is expected of it. difference_max: in a
    coordinate."""

    file: str
    pictures: int
    cosine_min: float
    difference_max: float
    same: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What `verify` found. files: whose hashes were recomputed; golden: one for each graph, none where files differ;
    faults: what is wrong, none where all is well."""

    bundle: str
    files: int
    golden: tuple[GoldenReport, ...]
    faults: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerTeacher:
    """What one ledger holds of one teacher. name: its file's, empty where unknown; source: who said the preprocessing;
    asked: questions for these answers; spent: for its file, whatever the output, probes included; times in UTC, ISO
    8601; bytes: of the vectors. number: under which the ledger keeps it."""

    number: int
    sha256: str
    name: str
    output: str
    pool: str
    preprocess: dict[str, Any]
    source: str
    dim: int | None
    done: int
    failed: int
    claimed: int
    asked: int
    spent: int
    budget: int | None
    first: str | None
    last: str | None
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerGuess:
    """A teacher that was probed for its preprocessing. asked: images paid for; outcome: {} where it was stopped."""

    sha256: str
    output: str
    asked: int
    passes: int
    time: str
    outcome: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerShowReport:
    """What `ledger show` found. bytes: of the file and the log beside it."""

    store: str
    version: int
    bytes: int
    teachers: tuple[LedgerTeacher, ...]
    guesses: tuple[LedgerGuess, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCoverage:
    """One teacher's answers beside a folder. known: its images that have an answer; unanswered: paths of those that
    have none; orphans: sha256 of answered images that the folder does not hold."""

    sha256: str
    output: str
    known: int
    unanswered: tuple[str, ...]
    orphans: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerVerifyReport:
    """What `ledger verify` found. faults: what is wrong, none where all is well; abandoned: questions somebody began
    who is gone, which are asked again when they are wanted; coverage: for each teacher, where a folder was given."""

    store: str
    teachers: int
    done: int
    failed: int
    claimed: int
    abandoned: int
    faults: tuple[str, ...]
    coverage: tuple[LedgerCoverage, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerExportReport:
    """What `ledger export` wrote. rows: answers; bytes: of the file."""

    store: str
    file: str
    format: str
    teachers: int
    rows: int
    bytes: int
    seconds: float


def to_json(report: Any) -> Any:
    """A report as JSON values, field names as in the contract; a figure that has no value is None."""
    if is_dataclass(report) and not isinstance(report, type):
        return to_json(asdict(report))
    if isinstance(report, dict):
        return {RENAMED.get(key, key): to_json(value) for key, value in report.items()}
    if isinstance(report, list | tuple):
        return [to_json(value) for value in report]
    if isinstance(report, float) and not math.isfinite(report):
        return None
    return report

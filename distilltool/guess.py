"""Guess a preprocessing that nobody wrote down: under the right one, images find their own altered views best."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from distilltool.embedder import unit
from distilltool.errors import DistillError
from distilltool.preprocess import Channels, Dtype, Layout, Preprocess, merge, parse_flags

Embed = Callable[[Preprocess, NDArray[np.uint8]], NDArray[np.float32]]
Array = NDArray[np.float64]

# the conventions that are tried, each with the order of colours it usually comes in; where two give the same answers
# the earlier one is named. The names are presets of --preprocess.
FAMILIES: dict[str, Channels] = {
    "imagenet": "RGB",
    "clip": "RGB",
    "tf": "RGB",
    "unit": "RGB",
    "raw": "RGB",
    "caffe": "BGR",
}
USUAL_SIDE = 224
SIDES = (112, 160, 224, 299, 384)  # nearer ones cannot be told from each other, see docs/LOG.md

MOST = 32  # images looked at, at most
FIRST = 8  # of them for every family; the others are for those still in the running
FEWEST = 24  # with fewer, nothing is clear: every crop is found among few images, whatever is fed

# chosen on benchmarks/guess_preprocess.py; how each was arrived at stands in docs/LOG.md
FOUND = 0.85  # clear only where images do find their views: the share of a blind guess's loss that is avoided,
SURE = 3.0  # where the first's separation leads by so many standard errors over images,
CROPS = 0.3  # and where crops alone do not speak for another by more than this in the logarithm of the loss
FLOOR = 0.02  # of a loss: below it all is found, and ratios say nothing
HOPELESS = 4.0  # standard errors behind the first after FIRST images
HOPELESS_LEAD = 0.3  # and logarithm of the separations' ratio
ALIKE = 0.03  # answers are the same where conventions move them less than this share of the distance between images
COLOUR_SURE = 3.0  # standard errors
COLOUR_LEAD = 0.1  # in the logarithm of the ratio between red's and blue's noise
SIZE_LEAD = 0.3  # logarithm of the separations' ratio, for a side other than the usual one
BLIND = 1e-6  # cosine distance between images under which a network says the same of all

COLOUR_NOISE = 30.0  # standard deviation in 0 to 255
TEMPERATURES = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)  # in standard deviations of the similarities


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A convention that may be the right one.

    family: one of FAMILIES. name: the family, with the order of colours where that is not the usual one.
    flags: the fewest `--preprocess` values that fix it.
    """

    family: str
    name: str
    flags: tuple[str, ...]
    preprocess: Preprocess


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A candidate's place in the ranking.

    score: how far views are more similar to their own image's than to other images' views, in standard deviations;
    None where the model failed. found: 1 where every view finds its image, 0 where it does no better than blindly.
    images: how many these were measured on. note: why it failed, or whose answers it shares.
    """

    candidate: Candidate
    score: float | None
    found: float | None
    images: int
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """What the guess found, the best first.

    sides: the first at every input size that the graph leaves open, the one to be used first. margin: standard errors
    between the first family and the next whose answers differ, None where there is none; lead: the logarithm of their
    scores' ratio. clear: the first may be used unasked; otherwise `why` says what keeps it from that.
    red_over_blue: how much more noise in red disturbs than noise in blue, as the first feeds them, and colour_errors
    how many standard errors that is from equal; above 1 speaks for this order. images: looked at. passes: images sent
    through the model, every view counted.
    """

    entries: tuple[Entry, ...]
    sides: tuple[Entry, ...]
    margin: float | None
    lead: float | None
    clear: bool
    why: str
    red_over_blue: float | None
    colour_errors: float | None
    images: int
    passes: int

    @property
    def best(self) -> Candidate:
        """The first candidate."""
        return self.entries[0].candidate


def candidates(layout: Layout | None, dtype: Dtype, size: tuple[int, int] | None) -> tuple[Candidate, ...]:
    """Every convention that fits what the graph's input says; None is what it leaves open.

    A uint8 input takes pixels as they are, so only their order is open.
    """
    return tuple(
        _candidate(family, channels, one_layout, dtype, one_size, layout is None, size is None)
        for one_size in ([size] if size else [(side, side) for side in SIDES])
        for one_layout in ([layout] if layout else _layouts())
        for family in (FAMILIES if dtype != "uint8" else ("raw",))
        for channels in (FAMILIES[family], _other(FAMILIES[family]))
    )


def _layouts() -> tuple[Layout, ...]:
    return "NCHW", "NHWC"


def _other(channels: Channels) -> Channels:
    return "BGR" if channels == "RGB" else "RGB"


def _candidate(
    family: str,
    channels: Channels,
    layout: Layout,
    dtype: Dtype,
    size: tuple[int, int],
    say_layout: bool,
    say_size: bool,
) -> Candidate:
    usual = channels == FAMILIES[family]
    name = family if usual else f"{family}-{channels.lower()}"
    flags: tuple[str, ...] = (
        ("raw-bgr",) if name == "raw-bgr" else (family,) if usual else (family, f"channels={channels}")
    )
    if say_layout:
        flags += (f"layout={layout}",)
    if say_size and size != (USUAL_SIDE, USUAL_SIDE):
        flags += (f"size={size[0]}",)
    graph: dict[str, Any] = {"layout": layout, "dtype": dtype, "size": size}
    preprocess = merge([parse_flags(flags), graph])
    assert preprocess is not None, "a preset says how pixels are scaled"
    return Candidate(family=family, name=name, flags=flags, preprocess=replace(preprocess, source="guessed"))


def rank(embed: Embed, candidates: Sequence[Candidate], images: Sequence[Image.Image]) -> Ranking:
    """Rank conventions without labels, by how well images find their own altered views among those of the others.

    embed: a convention and pixels, (N, H, W, 3) uint8 RGB at its size → (N, D); it is to use the convention's `feed`
    alone, the pixels being the same for all. images: RGB, different ones from the collection that the model is for;
    MOST at most are looked at. A candidate on which `embed` raises a DistillError is out; where all are, it is raised.
    Views and noise are fixed: the same images give the same ranking.
    """
    images = images[:MOST]
    if len(images) < 2:
        raise DistillError(
            f"{len(images)} images are too few to guess the preprocessing", f"give {FEWEST} or more, best {MOST}"
        )
    probe = _Probe(embed, images)
    field = _tournament(probe, _usual(candidates))
    if not field.scored:
        return _nothing(probe, field)
    first = field.scored[0]
    margin = _margin(field)
    colour = _colour(probe, first.candidate)
    doubts = _doubts(field, margin, colour, len(images))
    best = _by_colour(candidates, first.candidate, colour)
    sides = [] if doubts else _sides(probe, candidates, best)
    best = sides[0].candidate if sides else best
    return Ranking(
        entries=tuple(_entries(field, best, candidates)),
        sides=tuple(sides),
        margin=None if margin is None else margin.errors,
        lead=None if margin is None else margin.lead,
        clear=not doubts,
        why="; ".join(doubts),
        red_over_blue=float(np.exp(colour.lead)),
        colour_errors=colour.errors,
        images=len(images),
        passes=probe.passes,
    )


def _usual(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate for every family and layout: the usual order of colours, the usual side or the nearest to it."""
    side = min({one.preprocess.size for one in candidates}, key=lambda size: abs(size[0] - USUAL_SIDE))
    return [one for one in candidates if one.name == one.family and one.preprocess.size == side]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scored:
    """A candidate's answers to V views of n images, (V, n, D), and what was made of them for each image, (n,)."""

    candidate: Candidate
    vectors_VND: NDArray[np.float32]
    separation_N: Array
    loss_N: Array
    crop_loss_N: Array

    @property
    def score(self) -> float:
        return float(self.separation_N.mean())

    @property
    def found(self) -> float:
        """The share of a blind guess's loss that is avoided."""
        return 1 - float(self.loss_N.mean()) / float(np.log(len(self.loss_N)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """How the families stand: scored on all images, dropped after the first few; same as another; failed and why."""

    scored: list[_Scored]
    dropped: list[_Scored]
    same: dict[Candidate, Candidate]
    failed: dict[Candidate, DistillError]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lead:
    """What one thing is ahead of another by: a logarithm, and standard errors over images."""

    lead: float
    errors: float


class _Probe:
    """The model under test and the images it is tested with."""

    def __init__(self, embed: Embed, images: Sequence[Image.Image]) -> None:
        self.passes = 0
        self.count = len(images)
        self._embed = embed
        self._images = images
        self._made: dict[tuple[tuple[int, int], int, int], NDArray[np.uint8]] = {}

    def look(self, candidate: Candidate, views: Iterable[int], images: range) -> NDArray[np.float32]:
        """The model's answers to views of images under a convention, (V, n, D)."""
        size = candidate.preprocess.size
        return np.stack([self.ask(candidate, np.stack([self._view(size, v, at) for at in images])) for v in views])

    def ask(self, candidate: Candidate, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The model's answers to pixels, (n, D), all of them finite."""
        self.passes += len(pixels_NHWC)
        with np.errstate(over="ignore"):  # 0 to 255 may be too much for float16: that is an answer too
            found = self._embed(candidate.preprocess, pixels_NHWC)
        if not np.isfinite(found).all():
            raise DistillError("its answers overflow", "choose another convention")
        return found

    def whole(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """All images unaltered at a size, (N, H, W, 3)."""
        return np.stack([self._view(size, 0, at) for at in range(self.count)])

    def _view(self, size: tuple[int, int], view: int, at: int) -> NDArray[np.uint8]:
        if (size, view, at) not in self._made:
            self._made[size, view, at] = VIEWS[view](self._images[at], size, at)
        return self._made[size, view, at]


def _tournament(probe: _Probe, field: Sequence[Candidate]) -> _Field:
    """Measure every family on a few images, and those that are not hopeless on all."""
    few = range(min(FIRST, probe.count))
    scored: list[_Scored] = []
    same: dict[Candidate, Candidate] = {}
    failed: dict[Candidate, DistillError] = {}
    for candidate in field:
        try:
            whole_1ND = probe.look(candidate, [0], few)
            if _distance(whole_1ND[0], whole_1ND[0]) < BLIND:
                raise DistillError("it says the same of every image", "look at --output")
            host = next((one.candidate for one in scored if _alike(one.vectors_VND[0], whole_1ND[0])), None)
            if host is not None:
                same[candidate] = host
                continue
            others = probe.look(candidate, range(1, len(VIEWS)), few)
        except DistillError as error:
            failed[candidate] = error
            continue
        scored.append(_measure(candidate, np.concatenate([whole_1ND, others])))
    return _final(probe, _Field(scored=scored, dropped=[], same=same, failed=failed))


def _final(probe: _Probe, field: _Field) -> _Field:
    """Give those still in the running the other images too, and sort."""
    rest = range(min(FIRST, probe.count), probe.count)
    ordered = sorted(field.scored, key=lambda one: -one.score)
    running = [one for place, one in enumerate(ordered) if place < 2 or not _hopeless(ordered[0], one)]
    finished: list[_Scored] = []
    failed = dict(field.failed)
    for one in running:
        try:
            more = probe.look(one.candidate, range(len(VIEWS)), rest) if rest else one.vectors_VND[:, :0]
        except DistillError as error:
            failed[one.candidate] = error
            continue
        finished.append(_measure(one.candidate, np.concatenate([one.vectors_VND, more], axis=1)))
    return _Field(
        scored=sorted(finished, key=lambda one: -one.score),
        dropped=[one for one in ordered if one not in running],
        same=field.same,
        failed=failed,
    )


def _hopeless(first: _Scored, other: _Scored) -> bool:
    ahead = _ahead(first, other)
    return ahead.errors > HOPELESS and ahead.lead > HOPELESS_LEAD


def _distance(some_ND: NDArray[np.float32], others_ND: NDArray[np.float32]) -> float:
    """Mean cosine distance between answers to different images."""
    apart = 1 - unit(some_ND).astype(np.float64) @ unit(others_ND).astype(np.float64).T
    count = len(apart)
    return float((apart.sum() - np.trace(apart)) / (count * (count - 1)))


def _alike(some_ND: NDArray[np.float32], others_ND: NDArray[np.float32]) -> bool:
    """Whether the model answers the same for the same images."""
    moved = 1 - (unit(some_ND).astype(np.float64) * unit(others_ND)).sum(axis=1).mean()
    return bool(moved < ALIKE * np.sqrt(_distance(some_ND, some_ND) * _distance(others_ND, others_ND)))


def _measure(candidate: Candidate, vectors_VND: NDArray[np.float32]) -> _Scored:
    """What each image's views found, with and without what all answers have in common.

    The score is of altered views against each other. Changed light is easier to see through the less contrast a network
    is given, so crops are looked at on their own too.
    """
    flat = vectors_VND.reshape(-1, vectors_VND.shape[-1]).astype(np.float64)
    flat /= max(float(np.abs(flat).max()), 1e-30)
    both = [rows.reshape(vectors_VND.shape) for rows in (flat, flat - flat.mean(axis=0))]
    altered = [_found(rows[1:]) for rows in both]
    crops = [_found(rows[:CROPPED]) for rows in both]
    return _Scored(
        candidate=candidate,
        vectors_VND=vectors_VND,
        separation_N=np.mean([one.separation_N for one in altered], axis=0),
        loss_N=np.mean([one.loss_N for one in altered], axis=0),
        crop_loss_N=np.mean([one.loss_N for one in crops], axis=0),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Found:
    """How well the views of each image found it, (n,) each."""

    loss_N: Array
    separation_N: Array


def _found(answers_VND: Array) -> _Found:
    """How well views find their images by cosine.

    Loss: cross-entropy of the own image in a softmax over all (InfoNCE, van den Oord et al. 2018), at the temperature
    that suits each pair of views best, so that no convention gains by the scale of its similarities. Separation: own
    similarity minus the others' mean, in standard deviations (d' of signal detection).
    """
    views, count, _ = answers_VND.shape
    rows = answers_VND / np.maximum(np.linalg.norm(answers_VND, axis=2, keepdims=True), 1e-12)
    every = np.einsum("vnd,wmd->vwnm", rows, rows, optimize=True)
    pairs_PNN = every[~np.eye(views, dtype=bool)]
    own_PN = np.einsum("pnn->pn", pairs_PNN)
    unit_P = pairs_PNN.std(axis=(1, 2)) + 1e-12
    losses_TPN = np.stack([_cross_entropy(pairs_PNN, own_PN, unit_P * step) for step in TEMPERATURES])
    best_P = losses_TPN.mean(axis=2).argmin(axis=0)
    others = pairs_PNN[:, ~np.eye(count, dtype=bool)]
    apart_PN = own_PN - (pairs_PNN.sum(axis=2) - own_PN) / (count - 1)
    spread = np.sqrt((own_PN.var() + others.var()) / 2) + 1e-12
    return _Found(
        loss_N=losses_TPN[best_P, np.arange(len(best_P))].mean(axis=0), separation_N=apart_PN.mean(axis=0) / spread
    )


def _cross_entropy(pairs_PNN: Array, own_PN: Array, temperature_P: Array) -> Array:
    logits = (pairs_PNN - own_PN[..., None]) / temperature_P[:, None, None]
    top = logits.max(axis=2)
    found: Array = top + np.log(np.exp(logits - top[..., None]).sum(axis=2))
    return found


def _ahead(first: _Scored, other: _Scored) -> _Lead:
    """What the first's separation leads by, image by image."""
    lead = np.log(max(first.score, 1e-3) / max(other.score, 1e-3))
    return _Lead(lead=float(lead), errors=_errors(first.separation_N - other.separation_N))


def _crops_against(field: _Field) -> list[str]:
    """Names of those that crops alone speak for."""
    first, *others = field.scored
    loss = first.crop_loss_N.mean() + FLOOR
    return [one.candidate.name for one in others if np.log((one.crop_loss_N.mean() + FLOOR) / loss) < -CROPS]


def _errors(values_N: Array) -> float:
    """The mean in standard errors."""
    return float(values_N.mean() / (values_N.std(ddof=1) / np.sqrt(len(values_N)) + 1e-9))


def _margin(field: _Field) -> _Lead | None:
    """The least lead over any family whose answers differ; None where there is none."""
    first, *others = field.scored
    short = [_measure(first.candidate, first.vectors_VND[:, :FIRST])] if field.dropped else []
    leads = [_ahead(first, one) for one in others] + [_ahead(one, two) for one in short for two in field.dropped]
    if not leads:
        return None
    return _Lead(lead=min(one.lead for one in leads), errors=min(one.errors for one in leads))


def _colour(probe: _Probe, candidate: Candidate) -> _Lead:
    """Whether noise in red disturbs more than noise in blue: networks trained on photographs mistrust blue.

    Sensors and JPEG give blue the most noise (it weighs 0.114 in the luma that JPEG keeps, red 0.299), so training
    teaches to lean on it least. A lead below 0 says that red and blue are swapped.
    """
    pixels = probe.whole(candidate.preprocess.size)
    noise = np.random.default_rng(0).normal(0, COLOUR_NOISE, pixels.shape[:3])
    plain = unit(probe.ask(candidate, pixels)).astype(np.float64)
    moved = []
    for channel in (0, 2):
        noisy = pixels.astype(np.float64)
        noisy[..., channel] += noise
        answers = unit(probe.ask(candidate, noisy.clip(0, 255).astype(np.uint8)))
        moved.append(1 - (plain * answers).sum(axis=1))
    red, blue = (np.maximum(one, 1e-12) for one in moved)
    return _Lead(lead=float(np.log(red.mean() / blue.mean())), errors=_errors(np.log(red / blue)))


def _told(colour: _Lead) -> bool:
    """Whether noise tells the order of the colours, be it this or the other."""
    return abs(colour.lead) >= COLOUR_LEAD and colour.errors * np.sign(colour.lead) >= COLOUR_SURE


def _by_colour(candidates: Sequence[Candidate], first: Candidate, colour: _Lead) -> Candidate:
    """The first in the order of colours that noise tells; 0 to 255 comes in both, so there the likelier is named."""
    swapped = colour.lead < 0 and (_told(colour) or first.family == "raw")
    return next((one for one in candidates if swapped and _twins(one, first)), first)


def _twins(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates differ by the order of colours alone."""
    swapped = replace(other.preprocess, channels=_other(other.preprocess.channels))
    return one.family == other.family and one.preprocess == swapped


def _doubts(field: _Field, margin: _Lead | None, colour: _Lead, images: int) -> list[str]:
    """What keeps the first from being clear, in a few words each."""
    first = field.scored[0]
    doubts = [f"{images} images are too few, {FEWEST} the least"] if images < FEWEST else []
    if first.found < FOUND:
        doubts.append(f"images find their views too seldom ({first.found:.2f} of the way from blind, want {FOUND})")
    if against := _crops_against(field):
        doubts.append(f"crops alone speak for {' and '.join(against)}")
    if margin is not None and margin.errors < SURE:
        doubts.append(f"the next is too close ({margin.errors:.1f} standard errors, want {SURE:.0f})")
    if twins := _indistinct(field):
        doubts.append(f"{' and '.join(twins)} would give the same answers")
    if not _told(colour):
        doubts.append("RGB and BGR cannot be told apart")
    return doubts


def _indistinct(field: _Field) -> list[str]:
    """Names of other families whose answers are the first's, unless all are: then any of them does.

    CLIP's numbers are ImageNet's to within what a network notices, so these two count as one.
    """
    first = field.scored[0].candidate
    if len(field.scored) + len(field.dropped) == 1:
        return []
    twins = [one for one, host in field.same.items() if host == first]
    return [one.name for one in twins if {one.family, first.family} != {"imagenet", "clip"}]


def _sides(probe: _Probe, candidates: Sequence[Candidate], best: Candidate) -> list[Entry]:
    """The best at every side the graph leaves open, the one to be used first; empty where the graph says the side."""
    few = range(min(FIRST, probe.count))
    found: list[_Scored] = []
    for one in candidates:
        if (one.name, one.preprocess.layout) == (best.name, best.preprocess.layout):
            try:
                found.append(_measure(one, probe.look(one, range(len(VIEWS)), few)))
            except DistillError:
                continue  # a network that takes other sides by its declaration alone
    if len(found) < 2:
        return []
    usual = next(one for one in found if one.candidate == best)
    found.sort(key=lambda one: -one.score)
    ahead = _ahead(found[0], usual)
    chosen = found[0] if ahead.errors > SURE and ahead.lead > SIZE_LEAD else usual
    return [_entry(one) for one in sorted(found, key=lambda one: (one is not chosen, -one.score))]


def _entry(one: _Scored, note: str = "") -> Entry:
    return Entry(candidate=one.candidate, score=one.score, found=one.found, images=len(one.loss_N), note=note)


def _entries(field: _Field, best: Candidate, candidates: Sequence[Candidate]) -> list[Entry]:
    """Everything that was tried, the best first, what shares its answers behind it, failures last."""
    entries: list[Entry] = []
    for one in (*field.scored, *field.dropped):
        entries.append(_entry(one, "" if one in field.scored else "left behind early"))
        entries += [
            Entry(
                candidate=candidate,
                score=one.score,
                found=one.found,
                images=len(one.loss_N),
                note=f"answers as {host.name}",
            )
            for candidate, host in field.same.items()
            if host == one.candidate
        ]
    first = entries[0].candidate
    entries[0] = replace(entries[0], candidate=best)
    twin = next((one for one in candidates if _twins(one, best)), None)
    if twin is not None:
        entries.insert(1, replace(entries[0], candidate=twin, note="the other order of colours"))
    assert best.family == first.family
    return entries + _failures(field)


def _failures(field: _Field) -> list[Entry]:
    return [
        Entry(candidate=one, score=None, found=None, images=0, note=str(error)) for one, error in field.failed.items()
    ]


def _nothing(probe: _Probe, field: _Field) -> Ranking:
    """No convention gave answers that differ from image to image; the model's own error where it failed on all."""
    entries = _failures(field)
    if all("same of every image" not in one.note for one in entries):
        raise next(iter(field.failed.values()))
    return Ranking(
        entries=tuple(entries),
        sides=(),
        margin=None,
        lead=None,
        clear=False,
        why="the model says the same of every image",
        red_over_blue=None,
        colour_errors=None,
        images=probe.count,
        passes=probe.passes,
    )


View = Callable[[Image.Image, tuple[int, int], int], NDArray[np.uint8]]


def _sized(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _whole(image: Image.Image, size: tuple[int, int], at: int) -> NDArray[np.uint8]:
    return _sized(image, size)


def _part(image: Image.Image, left: float, top: float, share: float) -> Image.Image:
    """A part of an image by shares of its sides, at least 8 pixels wide and high."""
    x, y = left * image.width, top * image.height
    return image.crop(
        (int(x), int(y), max(int(x + share * image.width), int(x) + 8), max(int(y + share * image.height), int(y) + 8))
    )


def _corner(image: Image.Image, size: tuple[int, int], at: int) -> NDArray[np.uint8]:
    """Half of the image in one of its corners, mirrored."""
    left, top = ((0.0, 0.0), (0.3, 0.3), (0.3, 0.0), (0.0, 0.3))[at % 4]
    return _sized(ImageOps.mirror(_part(image, left, top, 0.7)), size)


def _centre(image: Image.Image, size: tuple[int, int], at: int) -> NDArray[np.uint8]:
    """The quarter in the middle."""
    return _sized(_part(image, 0.25, 0.25, 0.5), size)


def _dark(image: Image.Image, size: tuple[int, int], at: int) -> NDArray[np.uint8]:
    return _sized(ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.5)).enhance(0.8), size)


def _flat(image: Image.Image, size: tuple[int, int], at: int) -> NDArray[np.uint8]:
    """Low contrast."""
    return _sized(ImageEnhance.Contrast(image).enhance(0.4), size)


VIEWS: tuple[View, ...] = (_whole, _corner, _centre, _dark, _flat)
CROPPED = 3  # of them the first, whose light is as it was

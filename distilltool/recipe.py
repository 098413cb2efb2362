"""Recipes: how to distil, as frozen dataclasses read strictly from TOML."""

import json
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distilltool.errors import DistillError

Space = Literal["own", "teacher"]
LEAST_DIM = 2  # of vectors cut short: a single number of length 1 is a sign


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """One loss of the sum. options: what its function takes besides the vectors."""

    name: str
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentChoice:
    """spec: KIND:NAME. input: side in pixels. dim: length of its vectors; 0 is its own width, or the teacher's.
    dims: lengths at which the vectors are to be of use when cut, the longest of them is `dim`. crop_pct: share of each
    side of the image that it looks at, the middle one; 0 takes what ranks best untrained. taps: features of an earlier
    tensor of its graph may stand beside the last ones, where it ranks better untrained."""

    spec: str
    input: int = 128
    dim: int = 0
    dims: tuple[int, ...] = ()
    crop_pct: float = 0.0
    taps: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Interpolated samples. ratio: how many for each image of the batch; alpha: λ ~ Beta(alpha, alpha);
    normalise: bring mixes back to length 1 (without it a squared loss is only re-weighted); partners: what an image is
    mixed with, others of the batch or any of the bank (the student's side as it was when last seen); width: images in a
    mix, the shares of more than two drawn from Dirichlet(alpha, ...)."""

    ratio: float = 0.0
    alpha: float = 1.0
    normalise: bool = True
    partners: Literal["batch", "bank"] = "batch"
    width: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The student's own network before training, looking at larger images: what it makes of each augmented view is
    known without asking anybody, and keeps the student general. weight: of 1 − cosine to it, only where the student
    starts from pretrained weights; views: augmented views of each image, over and over, for which it is computed;
    input: longer side of its images in pixels, 0 takes what ranks best."""

    weight: float = 0.0
    views: int = 8
    input: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Unasked:
    """Images that nobody was asked about. What the student's own network, before training, makes of each at a larger
    size stands in for an answer, where it ranks better there: it costs no query. share: of the steps that are about
    them, no more than they are of all images, and only where the student starts from pretrained weights and is not the
    whole teacher; after: passes over the images that were asked about, before which there are none; most: images, drawn
    by the seed."""

    share: float = 0.0
    after: float = 10.0
    most: int = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """crop: smallest side of a random crop as a share of the image; flip: mirror half of them;
    jitter: brightness, contrast and saturation change by up to this share."""

    crop: float = 0.8
    flip: bool = True
    jitter: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimiser:
    """AdamW. lr, weight_decay: from random weights; lr_finetune: from pretrained ones, as a share of the root mean
    square of each tensor's weights, which do not decay; clip: largest gradient norm; ema: decay of the weight average
    that is evaluated and kept, 0 for none; precision: of the network's forward pass in training."""

    lr: float = 3e-3
    lr_finetune: float = 1e-3
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.99
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """epochs: passes over the images where no time budget is given, less what images nobody was asked about take of
    them; batch: images at once; batches_finetune: batches that one step of a pretrained student is made of, and its
    lists, no more than there are images for; warmup: share of the steps of a run, then a cosine to zero; evaluations:
    how often fidelity is looked at; patience: evaluations without improvement before stopping, in the second half of
    the steps; memory: GB that the process may hold, where steps of several batches make what their first passes held
    again for want of room; no weight depends on it, and a GPU's is not asked for (`distilltool.gradcache`)."""

    epochs: int = 60
    batch: int = 64
    batches_finetune: int = 1
    warmup: float = 0.05
    evaluations: int = 20
    patience: int = 8
    memory: float = 1.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Soup:
    """A pretrained student that is trained for long forgets what its start knew of unlike images. So it begins again
    from its start, and the weights of all such runs are averaged (`distilltool.soup`). The first goes on, to twice its
    steps each time, as long as held-out images gain beyond doubt; the others are as long as it last did. steps: of the
    shortest run, 0 for a single run through all; passes: over the images, of the shortest run at least."""

    steps: int = 0
    passes: float = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All choices of one distillation. space: the student's vectors live in a space of their own, or can be
    compared with the teacher's. anchor: weight of 1 − cosine between the teacher's vectors and a linear map of the
    student's features that is thrown away after training, from random weights; anchor_finetune: from pretrained ones.
    validation: share of the images held out."""

    name: str
    description: str
    loss: tuple[LossTerm, ...]
    student: StudentChoice
    space: Space = "own"
    mix: Mix = Mix()
    reference: Reference = Reference()
    unasked: Unasked = Unasked()
    augment: Augment = Augment()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    soup: Soup = Soup()
    anchor: float = 0.0
    anchor_finetune: float = 0.0
    validation: float = 0.1
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


RANGES: dict[str, tuple[float, float]] = {
    "student.input": (16, 1024),
    "student.dim": (0, 65536),
    "student.crop_pct": (0, 1),
    "mix.ratio": (0, 64),
    "mix.alpha": (0.01, 100),
    "mix.width": (2, 64),
    "reference.weight": (0, 1000),
    "reference.views": (1, 1000),
    "reference.input": (0, 2048),
    "unasked.share": (0, 0.9),
    "unasked.after": (0, 10**6),
    "unasked.most": (1, 10**6),
    "augment.crop": (0.05, 1),
    "augment.jitter": (0, 1),
    "optimiser.lr": (1e-8, 10),
    "optimiser.lr_finetune": (1e-8, 10),
    "optimiser.weight_decay": (0, 10),
    "optimiser.clip": (1e-6, 1e6),
    "optimiser.ema": (0, 0.99999),
    "schedule.epochs": (1, 100000),
    "schedule.batch": (4, 65536),
    "schedule.batches_finetune": (1, 1024),
    "schedule.warmup": (0, 0.9),
    "schedule.evaluations": (1, 1000),
    "schedule.patience": (1, 1000),
    "schedule.memory": (0, 10_000),
    "soup.steps": (0, 10**6),
    "soup.passes": (0, 10**6),
    "anchor": (0, 1000),
    "anchor_finetune": (0, 1000),
    "validation": (0.02, 0.5),
    "seed": (0, 2**31 - 1),
}


FROM_NOTHING = ("anchor", "optimiser.lr", "optimiser.weight_decay")  # read where the student starts from random weights
FROM_PRETRAINED = (
    "anchor_finetune",
    "optimiser.lr_finetune",
    "schedule.batches_finetune",
    "schedule.memory",
    "soup.steps",
    "soup.passes",
    "reference.weight",
    "reference.views",
    "reference.input",
)


def unread(changes: Sequence[str], pretrained: bool) -> list[str]:
    """Keys among changes (`key=value`) that a student with such a start does not read."""
    keys = dict.fromkeys(change.partition("=")[0].strip() for change in changes)
    return [key for key in keys if key in (FROM_NOTHING if pretrained else FROM_PRETRAINED)]


def folder() -> Path:
    """Where the recipes that ship are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def find(name: str) -> Path:
    """The file of a recipe given by name or path."""
    if name in shipped():
        return folder() / f"{name}.toml"
    path = Path(name)
    if not path.is_file():
        raise DistillError(f"there is no recipe {name!r}", f"use one of {', '.join(shipped())}, or a TOML file")
    return path


def load(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or file and change single keys (`optimiser.lr=3e-4`); all faults come in one message."""
    path = find(name)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DistillError(f"the recipe {path} is no TOML ({error})", "mend that line") from None
    faults: list[str] = []
    for change in changes:
        _set(values, change, faults)
    values.setdefault("name", path.stem)
    recipe: Recipe | None = _build(Recipe, values, "", faults)
    if recipe is not None and recipe.student.dims:
        recipe = replace(recipe, student=_nested(recipe.student, faults))
    if faults or recipe is None:
        raise DistillError(f"the recipe {name} has faults", "; ".join(faults))
    return recipe


def _nested(student: StudentChoice, faults: list[str]) -> StudentChoice:
    """The student with its lengths in order, the longest first, which is its dimension."""
    dims = tuple(sorted(set(student.dims), reverse=True))
    if dims[-1] < LEAST_DIM:
        faults.append(f"student.dims has {dims[-1]}, must be {LEAST_DIM} or more")
    if student.dim not in (0, dims[0]):
        faults.append(f"student.dim is {student.dim}, and the longest of student.dims {dims[0]}: leave one away")
    return replace(student, dim=dims[0], dims=dims)


def _set(values: dict[str, Any], change: str, faults: list[str]) -> None:
    """Apply one key=value; a dotted key goes into a table, loss.NAME.key into the loss term of that name."""
    key, equals, text = change.partition("=")
    if not equals:
        faults.append(f"--set {change} is not key=value")
        return
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    place: Any = values
    for table in tables:
        if isinstance(place, list):
            place = next((one for one in place if isinstance(one, dict) and one.get("name") == table), None)
        else:
            place = place.setdefault(table, {})
        if not isinstance(place, dict | list):
            faults.append(f"--set {key}: there is no table {table}")
            return
    if isinstance(place, list):
        faults.append(f"--set {key}: name the loss and its key, as in loss.kl.tau=0.1")
        return
    place[last] = value


def _build(cls: type[Any], values: Mapping[str, Any], where: str, faults: list[str]) -> Any:
    """Build a dataclass from a TOML table, noting every fault; None where something is wrong."""
    if cls is LossTerm:
        values = {
            "options": {k: v for k, v in values.items() if k not in ("name", "weight")},
            **{k: v for k, v in values.items() if k in ("name", "weight")},
        }
        weight = values.get("weight", 1.0)
        if isinstance(weight, int | float) and not 0 < weight < math.inf:
            faults.append(f"{where}weight is {weight}, must be positive")
    hints, before = get_type_hints(cls), len(faults)
    names = [one.name for one in fields(cls)]
    faults += [f"{where}{key} is unknown (known: {', '.join(names)})" for key in values if key not in names]
    built: dict[str, Any] = {}
    for one in fields(cls):
        if one.name in values:
            built[one.name] = _value(hints[one.name], values[one.name], f"{where}{one.name}", faults)
        elif one.default is MISSING and one.default_factory is MISSING:
            faults.append(f"{where}{one.name} is missing")
    return cls(**built) if len(faults) == before else None


def _value(hint: Any, value: Any, where: str, faults: list[str]) -> Any:
    if is_dataclass(hint):
        if isinstance(value, Mapping):
            return _build(hint, value, f"{where}.", faults)  # type: ignore[arg-type]
        faults.append(f"{where} must be a table")
        return None
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        if not items:
            faults.append(f"{where} is empty")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]", faults) for i, item in enumerate(items))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            faults.append(f"{where} is {value!r}, must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is dict:
        faults += [f"{where}.{k} must be a number" for k, v in value.items() if not isinstance(v, int | float)]
        return dict(value)
    if get_origin(hint) in (Union, types.UnionType):
        raise TypeError(f"no reader for {hint}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        faults.append(f"{where} is {value!r}, must be a {hint.__name__}")
    elif where in RANGES and not RANGES[where][0] <= value <= RANGES[where][1]:
        faults.append(f"{where} is {value}, must be {RANGES[where][0]:g} to {RANGES[where][1]:g}")
    return value

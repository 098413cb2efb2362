"""What an evaluated student must keep to: a figure of `eval`, and the least or the most it may be."""

import re
from dataclasses import dataclass

from distilltool.errors import DistillError, Exit
from distilltool.report import EvalGate, Interval, ModelReport

# what some protocol reports, of one level of its ground truth where it has several; which of them, the data decides
JUDGED = r"(?:map(?:@r|@[1-9]\d*)?|recall@[1-9]\d*|mp@[1-9]\d*|r-precision|ndcg(?:@[1-9]\d*)?|ns)(?:-[a-z]+)?"
SHOWN = "map, map@r, map@k, recall@k, mp@k, r-precision, ndcg, ndcg@k, ns, and a level, as in map-medium"
FIGURES = {
    "metrics": (JUDGED, SHOWN),
    "retention": (JUDGED, SHOWN),
    "fidelity": ("overlap@10|spearman", "overlap@10, spearman"),
    "asymmetric": (f"{JUDGED}|overlap@10", f"overlap@10, {SHOWN}"),
    "reverse": (f"{JUDGED}|overlap@10", f"overlap@10, {SHOWN}"),
}
ENDS = ("value", "low", "high")
WRITTEN = (
    r"(?P<family>\w+)\.(?P<figure>[a-z]+(?:-[a-z]+)?(?:@\w+)?(?:-[a-z]+)?)(?:\.(?P<end>\w+))?\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?P<number>\d+(?:\.\d+)?)"
)
HINT = (
    'write "retention.map>=0.9", "fidelity.overlap@10>=0.6" or "metrics.recall@1>=0.8", in quotes; '
    '"retention.map.low>=0.9" for the lower end of its interval'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityGate:
    """A figure as `eval --json` names it. end: "value", or an end of its interval; sign: "<", "<=", ">" or ">="."""

    text: str
    family: str
    figure: str
    end: str
    sign: str
    limit: float


def parse(text: str) -> QualityGate:
    """Read `retention.map>=0.9`; raises DistillError."""
    found = re.fullmatch(WRITTEN, text.strip())
    if not found:
        raise DistillError(f"--gate {text} is not understood", HINT, Exit.USAGE)
    family, figure, end = found["family"], found["figure"], found["end"] or "value"
    pattern, shown = FIGURES.get(family, ("", ""))
    for said, known, all_ in (
        (family, family in FIGURES, ", ".join(FIGURES)),
        (figure, re.fullmatch(pattern, figure), shown),
        (end, end in ENDS, ", ".join(ENDS)),
    ):
        if not known:
            raise DistillError(f"--gate {text}: there is no {said}, only {all_}", HINT, Exit.USAGE)
    return QualityGate(
        text=text.strip(), family=family, figure=figure, end=end, sign=found["sign"], limit=float(found["number"])
    )


def judge(gate: QualityGate, model: ModelReport) -> EvalGate:
    """How a model stands to a gate. A figure that could not be measured does not hold."""
    figures: dict[str, Interval] = getattr(model, gate.family) or {}
    value = figures.get(gate.figure)
    if value is None or value.value != value.value:
        why = f"{gate.family}.{gate.figure} was not measured: {_unmeasured(gate, model)}"
        return EvalGate(gate=gate.text, model=model.name, value=None, outcome="fails", why=why)
    number = float(getattr(value, gate.end))
    holds = {"<": number < gate.limit, "<=": number <= gate.limit, ">": number > gate.limit, ">=": number >= gate.limit}
    beyond = "" if value.low > gate.limit or value.high < gate.limit else ", an interval that the limit lies in"
    return EvalGate(
        gate=gate.text,
        model=model.name,
        value=value,
        outcome="holds" if holds[gate.sign] else "fails",
        why=f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f}{beyond})",
    )


def _unmeasured(gate: QualityGate, model: ModelReport) -> str:
    if model.metrics and gate.family in ("metrics", "retention") and gate.figure not in model.metrics:
        return f"on these images there are {', '.join(model.metrics)}"
    if gate.family in ("asymmetric", "reverse"):
        return "the student's vectors are not in the teacher's space, or the images have no labels"
    return "the images have no labels, or none has another of its own"

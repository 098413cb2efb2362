"""A report of `eval` for people and for other tools: Markdown, CSV, and a CSV of single queries."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from distilltool import drift_text, index_text
from distilltool.evaluation import Evaluation, gap_of, main_figure
from distilltool.names import in_markdown, manner, printable, titled
from distilltool.report import Difference, EvalReport, Interval, ModelReport, to_json

FAMILIES = {
    "metrics": "{}",
    "retention": "{} kept",
    "fidelity": "{}",
    "asymmetric": "{}, in the teacher's gallery",
    "reverse": "{}, of the teacher's queries",
}
COLUMNS = ("family", "model", "other", "figure", "value", "low", "high")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute


def rows(report: EvalReport) -> Iterator[tuple[str, str, str, tuple[Interval | None, ...]]]:
    """Family, figure, heading and one value for each model, None where a model has none."""
    for family, heading in FAMILIES.items():
        each: list[Mapping[str, Interval]] = [getattr(model, family) or {} for model in report.models]
        for figure in dict.fromkeys(name for one in each for name in one):
            yield family, figure, heading.format(titled(figure)), tuple(one.get(figure) for one in each)
    for dim in sorted({int(one) for model in report.models for one in model.nested}, reverse=True):
        cut = [model.nested.get(str(dim)) for model in report.models]
        main = main_figure(report)
        for family, figure, heading in (
            ("retention", main, f"{titled(main)} kept, first {{}}"),
            ("fidelity", "overlap@10", "overlap@10, first {}"),
        ):
            values = tuple((getattr(one, family) or {}).get(figure) if one else None for one in cut)
            if any(values):
                yield f"nested.{dim}.{family}", figure, heading.format(f"{dim:,}"), values
    yield from binary_rows(report)


def binary_rows(report: EvalReport) -> Iterator[tuple[str, str, str, tuple[Interval | None, ...]]]:
    main = main_figure(report)
    for family, figure, heading in (
        ("metrics", main, f"{titled(main)}, binary"),
        ("retention", main, f"{titled(main)} kept, binary"),
        ("fidelity", "overlap@10", "overlap@10, binary"),
    ):
        values = tuple((getattr(one.binary, family, None) or {}).get(figure) for one in report.models)
        if any(values):
            yield f"binary.{family}", figure, heading, values


def shown(value: Interval | None, family: str) -> str:
    """A value with its interval: a share of the teacher's in per cent, everything else as it is."""
    if value is None or not math.isfinite(value.value):
        return "–"
    if "retention" in family:
        return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def subject(one: Difference) -> str:
    """What a difference is between."""
    return f"{one.model} − {one.other}"


def markdown(report: EvalReport) -> str:
    """The figures as tables, with the verdict and the worst queries."""
    what = f"{report.queries:,} queries, {report.gallery:,} gallery images ({report.protocol})"
    lines = [f"**{in_markdown(Path(report.data).name)}**: {what}", "", in_markdown(report.verdict), ""]
    lines += [in_markdown(how), ""] if (how := manner(to_json(report.views), to_json(report.whitening))) else []
    lines += [_cells(["", *(model.name for model in report.models)]), _rule(len(report.models))]
    lines += [_cells([heading, *(shown(one, family) for one in values)]) for family, _, heading, values in rows(report)]
    if report.differences:
        lines += ["", _cells(["paired difference", "figure", "points"]), "| --- | --- | ---: |"]
        lines += [
            _cells([subject(one), titled(one.figure), gap_of(one.difference, one.figure)]) for one in report.differences
        ]
    if report.classes:
        lines += ["", _cells(["mAP by class", "queries", *(model.name for model in report.models)])]
        lines.append(_rule(1 + len(report.models)))
        lines += [
            _cells([one.label, f"{one.queries:,}", *(shown(each, "metrics") for each in one.models)])
            for one in report.classes
        ]
    lines += [*_index_table(report), *_drift_tables(report)]
    if report.worst:
        lines += ["", _cells(["worst queries of", "query", "figure", "value", "teacher's", "ranked first"])]
        lines.append("| --- | --- | --- | ---: | ---: | --- |")
        for one in report.worst:
            theirs = "–" if one.teacher is None else f"{one.teacher:.3f}"
            lines.append(_cells([one.model, one.path, titled(one.figure), f"{one.value:.3f}", theirs, one.first]))
    lines += ["", *(f"- `{gate.gate}` **{gate.outcome}** ({in_markdown(gate.model)})" for gate in report.gates)]
    return "\n".join(lines).rstrip() + "\n\n"


def _index_table(report: EvalReport) -> list[str]:
    heads = index_text.heads(report)
    if not heads:
        return []
    found = ["", _cells(["index type of", "index", "searched with", *heads]), f"| --- | --- |{_rule(len(heads))[1:]}"]
    for at, model in enumerate(report.models):
        for line in index_text.lines(report, at):
            texts = [one.text for one in line.entries] or [line.reason, *[""] * (len(heads) - 1)]
            found.append(_cells([model.name, line.index, line.searched, *texts]))
    return found


def _drift_tables(report: EvalReport) -> Iterator[str]:
    for said, heads, lines in drift_text.tables(report):
        yield from ("", in_markdown(said), "", _cells(heads), "| --- | ---: | ---: |", *map(_cells, lines))


def _rule(numbers: int) -> str:
    return f"| --- |{' ---: |' * numbers}"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(in_markdown(cell) for cell in cells)} |"


def as_csv(report: EvalReport) -> str:
    """The figures of `--json`, a line each: those of models, differences in the unit of the figure, classes, and the
    worst queries with the path as `figure`."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in report.models:
        for family, figure, value in figures(model):
            writer.writerow([family, _cell(model.name), "", figure, *_numbers(value)])
    for family, name, figure, numbers in (*index_text.csv_rows(report), *drift_text.csv_rows(report)):
        cells = ["" if one is None or not math.isfinite(one) else repr(one) for one in numbers]
        writer.writerow([family, _cell(name), "", _cell(figure), *cells])
    for one in report.differences:
        writer.writerow(
            ["differences", _cell(one.model), _cell(one.other), _cell(one.figure), *_numbers(one.difference)]
        )
    for each in report.classes:
        for model, value in zip(report.models, each.models, strict=True):
            writer.writerow(["classes.map", _cell(model.name), "", _cell(each.label), *_numbers(value)])
    for bad in report.worst:
        writer.writerow([f"worst.{bad.figure}", _cell(bad.model), "", _cell(bad.path), repr(bad.value), "", ""])
    return text.getvalue()


def figures(model: ModelReport) -> Iterator[tuple[str, str, Interval]]:
    """Family, figure and value of all that is known of one model."""
    for family in FAMILIES:
        for figure, value in (getattr(model, family) or {}).items():
            yield family, figure, value
    for dim, cut in model.nested.items():
        for family, figure, value in figures(cut):
            yield f"nested.{dim}.{family}", figure, value
    for family, figure, value in figures(model.binary) if model.binary else ():
        yield f"binary.{family}", figure, value


def _numbers(value: Interval) -> list[str]:
    return [repr(one) if math.isfinite(one) else "" for one in (value.value, value.low, value.high)]


def _cell(text: str) -> str:
    """A text of others; an apostrophe before what a spreadsheet would take for a formula."""
    safe = printable(text)
    return f"'{safe}" if text.startswith(FORMULA) else safe


def queries(made: Evaluation, models: Sequence[int]) -> str:
    """CSV of every query: its path and label, and for each of these models its figures, empty where it has none."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    chosen = [made.models[at] for at in models]
    seen = {name: sum(one.name == name for one in chosen) for name in {one.name for one in chosen}}
    heads = [
        (f"{printable(one.name)}#{at}" if seen[one.name] > 1 else printable(one.name), one)
        for at, one in zip(models, chosen, strict=True)
    ]
    writer.writerow(["path", "label", *(_cell(f"{head}: {figure}") for head, one in heads for figure in one.values)])
    columns = [values for _, one in heads for values in one.values.values()]
    for query, row in enumerate(made.task.query.tolist()):
        named = "" if made.labels is None else made.labels[row]
        numbers = ["" if np.isnan(values[query]) else repr(float(values[query])) for values in columns]
        writer.writerow([_cell(made.names[row]), _cell(named), *numbers])
    return text.getvalue()

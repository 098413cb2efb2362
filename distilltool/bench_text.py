"""A report of `bench` for people and for other tools: rows of a table, Markdown, and what a GitHub action reads."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from distilltool.names import in_markdown, printable
from distilltool.report import BenchReport, BenchRun

HEADS = ("model", "on", "batch", "p50 ms", "p90 ms", "per s", "time ÷ baseline's")


def names(report: BenchReport) -> list[str]:
    """The models by the letters that stand for them in `lettered`, a line each: a name is too long for a column."""
    sides = {one.side: _name(one, report) for one in report.runs}
    lines = [f"A: {sides['model']}"] if "model" in sides else []
    if "baseline" in sides:
        lines.append(f"B: {sides['baseline']} (baseline)")
    elif report.baseline is not None and report.baseline_report is not None:
        lines.append(printable(f"baseline: {PurePath(report.baseline.path).name}, from {report.baseline_report}"))
    return lines


def lettered(report: BenchReport) -> list[tuple[str, ...]]:
    """The rows with a letter for each model's name."""
    return [("A" if one.side == "model" else "B", *_figures(one, report)) for one in report.runs]


def rows(report: BenchReport) -> list[tuple[str, ...]]:
    """A row for each run in the order of `HEADS`."""
    return [
        (_name(one, report) + (" (baseline)" if one.side == "baseline" else ""), *_figures(one, report))
        for one in report.runs
    ]


def _name(run: BenchRun, report: BenchReport) -> str:
    """The file's name, its path where both files are called the same."""
    paths = {"model": report.model.path, "baseline": report.baseline.path if report.baseline else ""}
    alike = len({one.side for one in report.runs if one.model == run.model}) > 1
    return printable(paths[run.side] if alike else run.model)


def _figures(run: BenchRun, report: BenchReport) -> tuple[str, ...]:
    return (_on(run), f"{run.batch}", _ms(run.p50_ms), _ms(run.p90_ms), _rate(run.throughput), _ratio(run, report))


def _on(run: BenchRun) -> str:
    copies = {"included": " +copies", "excluded": " −copies"}.get(run.copies, "")
    return f"{run.device}:{run.threads}{copies}"


def _ms(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:,.0f}"


def _rate(each_second: float) -> str:
    if each_second < 100_000:
        return f"{each_second:,.1f}" if each_second < 100 else f"{each_second:,.0f}"
    return f"{each_second / 1000:,.0f}k"


def _ratio(run: BenchRun, report: BenchReport) -> str:
    if run.side == "baseline":
        return "1"
    way = (run.device, run.threads, run.batch, run.copies)
    for one in report.comparisons:
        if (one.device, one.threads, one.batch, one.copies) == way:
            digits = next((n for least, n in ((100, 0), (10, 1), (0.2, 2)) if one.ratio.value >= least), 3)
            value, low, high = (f"{each:.{digits}f}" for each in (one.ratio.value, one.ratio.low, one.ratio.high))
            return f"{value} ({low} to {high})"
    return ""


def details(report: BenchReport) -> list[str]:
    """What is known of each run beside its times, a line each."""
    several = len({(one.device, one.threads, one.batch, one.copies) for one in report.runs}) > 1
    return [
        _name(one, report)
        + (f" ({_on(one)}, batch {one.batch})" if several else "")
        + f": {one.provider}, loaded in {one.load_ms:,.0f} ms, first run {one.first_ms:,.1f} ms, "
        f"memory +{one.memory_bytes / 1e6:,.0f} MB, {one.n:,} runs, MAD {one.mad_ms:.2g} ms"
        + ("" if one.joules is None else f", {one.joules:.3g} J a run")
        + (f"; {said}" if (said := elsewhere(one.provider, one.nodes, one.elsewhere, wholly=one.wholly)) else "")
        for one in report.runs
    ]


def elsewhere(provider: str, nodes: Mapping[str, int], share: float | None, *, wholly: bool) -> str:
    """What another provider than the one asked for ran, or that nobody says; empty where there is nothing to say.

    nodes, share, wholly: as in `BenchRun`.
    """
    if share:
        others = ", ".join(f"{name} {count:,}" for name, count in nodes.items() if name != provider)
        percent = f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.1g}"
        return f"{percent} % of its nodes ran elsewhere ({others})"
    if share is None and not wholly:
        return "some of its nodes may have run elsewhere, onnxruntime does not say which"
    return ""


def conclusion(report: BenchReport) -> str:
    """The verdict in one sentence, empty without a baseline."""
    return f"{report.verdict}: {report.why}" if report.verdict is not None else ""


def markdown(report: BenchReport) -> str:
    """The same figures for a job's summary."""
    lines = [_cells(HEADS), _cells(["---", "---", *["---:"] * (len(HEADS) - 2)]), *map(_cells, rows(report)), ""]
    if report.verdict is not None:
        lines += [f"**{report.verdict}**: {in_markdown(report.why)}", ""]
    for gate in report.gates:
        way = f"{gate.device}:{gate.threads}, batch {gate.batch}"
        lines.append(f"- `{gate.gate}` **{gate.outcome}** ({way}): {in_markdown(gate.why)}")
    lines += [f"- {in_markdown(line)}" for line in details(report)]
    lines.append(f"- {in_markdown(str(report.machine.get('cpu')))}, load {report.machine.get('load_1min')}")
    return "\n".join(lines) + "\n\n"


def action(report: BenchReport) -> list[dict[str, Any]]:
    """What github-action-benchmark reads as `customSmallerIsBetter`: an object for each run of the model."""
    return [
        {
            "name": f"{one.model} {one.device}:{one.threads} batch {one.batch}"
            + ("" if one.copies == "none" else f" copies {one.copies}"),
            "unit": "ms",
            "value": one.p50_ms,
            "range": f"± {one.mad_ms:.3g}",
            "extra": f"{one.provider}, {one.n} runs, sha256 {report.model.sha256[:12]}, {report.machine.get('cpu')}",
        }
        for one in report.runs
        if one.side == "model"
    ]


def _cells(cells: Any) -> str:
    return f"| {' | '.join(in_markdown(cell) for cell in cells)} |"

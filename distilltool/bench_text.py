"""A report of `bench` for people and for other tools: rows of a table, Markdown, and what a GitHub action reads."""

from typing import Any

from distilltool.names import in_markdown, printable
from distilltool.report import BenchReport, BenchRun

HEADS = ("model", "on", "batch", "p50 ms", "p90 ms", "per s", "time ÷ baseline's")


def rows(report: BenchReport) -> list[tuple[str, ...]]:
    """A row for each run in the order of `HEADS`."""
    return [_row(one, report) for one in report.runs]


def _row(run: BenchRun, report: BenchReport) -> tuple[str, ...]:
    copies = {"included": " +copies", "excluded": " −copies"}.get(run.copies, "")
    name = run.model if run.side == "model" else f"{run.model} (baseline)"
    return (
        printable(name),
        f"{run.device}:{run.threads}{copies}",
        f"{run.batch}",
        f"{run.p50_ms:.3g}" if run.p50_ms < 100 else f"{run.p50_ms:,.0f}",
        _figure(run.p90_ms),
        f"{run.throughput:,.1f}" if run.throughput < 100 else f"{run.throughput:,.0f}",
        _ratio(run, report),
    )


def _figure(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:,.0f}"


def _ratio(run: BenchRun, report: BenchReport) -> str:
    if run.side == "baseline":
        return "1"
    way = (run.device, run.threads, run.batch, run.copies)
    for one in report.comparisons:
        if (one.device, one.threads, one.batch, one.copies) == way:
            digits = 2 if one.ratio.value >= 0.2 else 3
            value, low, high = (f"{each:.{digits}f}" for each in (one.ratio.value, one.ratio.low, one.ratio.high))
            return f"{value} ({low} to {high})"
    return ""


def details(report: BenchReport) -> list[str]:
    """What is known of each run beside its times, a line each."""
    return [
        f"{one.model}: {one.provider}, loaded in {one.load_ms:,.0f} ms, first run {one.first_ms:,.1f} ms, "
        f"memory +{one.memory_bytes / 1e6:,.0f} MB, {one.n:,} runs, MAD {one.mad_ms:.2g} ms"
        + ("" if one.joules is None else f", {one.joules:.3g} J a run")
        for one in report.runs
    ]


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

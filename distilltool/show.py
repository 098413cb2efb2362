"""The only file that prints: progress, tables and errors go to stderr, JSON to stdout."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from distilltool.errors import DistillError, Exit
from distilltool.names import json_text, printable

SKIPPED_SHOWN = 5
LABELS = {
    "map": "mAP",
    "map@r": "mAP@R",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "overlap@10": "overlap@10",
    "spearman": "Spearman",
}
SILENCE = 20.0  # seconds between lines where there is no terminal to draw a bar on


@dataclass(kw_only=True, slots=True)
class _Work:
    """One piece of work in progress; times in seconds of the monotonic clock."""

    what: str
    total: int
    unit: str
    began: float
    said: float
    done: int = 0

    def rate(self) -> str:
        seconds = time.monotonic() - self.began
        return f"{self.done / seconds:.1f}/s" if seconds > 0 else ""

    def line(self, detail: str) -> str:
        """Progress as a plain line, for logs."""
        left = (self.total - self.done) * (time.monotonic() - self.began) / max(1, self.done)
        rest = f", {detail}" if detail else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {self.rate()}, {_duration(left)} left{rest}"


class Show:
    """One command's face to whoever watches; a `distilltool.progress.Progress`."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self._json, self._quiet = json, quiet
        self._console = Console(stderr=True, highlight=False)
        self._work: _Work | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total: int, unit: str) -> None:
        self.end()
        if self._quiet:
            return
        self._work = _Work(what=what, total=total, unit=unit, began=time.monotonic(), said=time.monotonic())
        if self._console.is_terminal:
            self._bar = Progress(*_columns(), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(_safe(what), total=total, rate="", detail="")

    def advance(self, amount: int = 1, detail: str = "") -> None:
        work = self._work
        if work is None:
            return
        work.done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, rate=work.rate(), detail=_safe(detail))
        elif time.monotonic() - work.said > SILENCE:
            work.said = time.monotonic()
            self._console.print(_safe(work.line(detail)), soft_wrap=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = self._work = None

    def note(self, message: str) -> None:
        if not self._quiet:
            self._console.print(_safe(message), style="dim")

    def warn(self, message: str) -> None:
        if not self._quiet:
            self._console.print(f"[yellow]warning:[/] {_safe(message)}")

    def error(self, error: DistillError) -> None:
        self.end()
        self._console.print(f"[red]error:[/] {_safe(error.message)}: {_safe(error.fix)}", soft_wrap=True)

    def interrupted(self, kept: str) -> None:
        self.end()
        self._console.print(
            f"[yellow]stopped:[/] {_safe(kept or 'what was finished is kept; the same command goes on')}",
            soft_wrap=True,
        )

    def text(self, text: str) -> None:
        print(text, end="")

    def exit_code(self, result: Any) -> Exit:
        """A rejected export is a failed gate."""
        from distilltool.report import ExportReport

        if isinstance(result, ExportReport) and any(one.status != "accepted" for one in result.variants):
            return Exit.GATE
        return Exit.DONE

    def result(self, result: Any) -> None:
        """Show a report: JSON on stdout where asked for, else a table on stderr."""
        if result is None:
            return
        if self._json:
            from distilltool.report import to_json

            print(json_text(to_json(result), allow_nan=False))
        elif not self._quiet:
            from distilltool import report

            tables = {
                report.QueryReport: self._query,
                report.DistillReport: self._distill,
                report.EvalReport: self._eval,
                report.ExportReport: self._export,
                dict: self._recipes,
            }
            tables[type(result)](result)

    def _query(self, found: Any) -> None:
        table = _facts()
        budget = "" if found.budget is None else f" of a budget of {found.budget:,}"
        rate = f", {found.queried / found.seconds:.1f} images/s" if found.queried else ""
        table.add_row(
            "images",
            f"{found.images:,} distinct in {found.files:,} files"
            + (f", {found.duplicates:,} duplicates" if found.duplicates else ""),
        )
        table.add_row("asked now", f"{found.queried:,} in {found.seconds:.1f} s{rate}")
        table.add_row("known before", f"{found.cached:,}")
        table.add_row("asked ever", f"{found.spent:,}{budget}")
        if found.pending:
            table.add_row(
                "still open",
                f"{found.pending:,}"
                + (" (raise --budget to ask about them)" if found.budget and not found.plan else ""),
            )
        table.add_row("ledger", _safe(found.store))
        if found.plan is not None:
            plan = found.plan
            table.add_row(
                "[bold]forecast[/]",
                f"{plan.queries:,} more queries, {_duration(plan.seconds)}, "
                f"{plan.memory_bytes / 1e6:,.0f} MB of memory, {plan.disk_bytes / 1e6:,.1f} MB of disk",
            )
        self._console.print(table)
        self._skipped(found.skipped)

    def _distill(self, found: Any) -> None:
        table = _facts()
        student = found.student
        table.add_row(
            "student",
            f"{_safe(student.spec)}, {student.params / 1e6:.2f} M parameters, "
            f"{student.input[0]}×{student.input[1]} px → {student.dim} numbers, from {_safe(student.start)}",
        )
        table.add_row("asked", f"{found.queries['new']:,} now, {found.queries['spent']:,} ever")
        table.add_row(
            "trained on", f"{found.images['train']:,} images, {found.steps:,} steps, {_duration(found.seconds)}"
        )
        name = f"overlap@{found.k}"
        table.add_row(
            name, f"{_interval(found.fidelity.overlap_at_10)}, undistilled {found.undistilled.overlap_at_10.value:.3f}"
        )
        table.add_row(
            "Spearman", f"{_interval(found.fidelity.spearman)}, undistilled {found.undistilled.spearman.value:.3f}"
        )
        table.add_row("run", _safe(found.run))
        self._console.print(table)
        self._console.print(f"[bold]{_safe(found.verdict)}[/]")

    def _eval(self, found: Any) -> None:
        counts = f"{found.queries:,} queries, {found.gallery:,} gallery images ({found.protocol})"
        self._console.print(f"[bold]{_safe(Path(found.data).name)}: {counts}[/]")
        table = Table()
        teacher, *students = found.models
        table.add_column("", no_wrap=True)
        table.add_column("teacher", justify="right")
        for model in students:
            table.add_column(_safe(model.name), justify="right", overflow="fold")
        for name in teacher.metrics:
            cells = [_interval(one.metrics[name]) for one in found.models]
            table.add_row(LABELS[name], *cells)
        for name in ("map", "recall@1") if teacher.metrics else ():
            table.add_row(f"{LABELS[name]} kept", "", *(f"[bold]{_percent(s.retention[name])}[/]" for s in students))
        for name in ("overlap@10", "spearman"):
            table.add_row(LABELS[name], "", *(_interval(s.fidelity[name]) for s in students))
        for name in ("map", "recall@1", "overlap@10"):  # the students' queries put to the teacher's gallery
            across = [(s.asymmetric or {}).get(name) for s in students]
            if any(across):
                table.add_row(f"{LABELS[name]} → teacher", "", *(_interval(one) if one else "–" for one in across))
        self._console.print(table)
        self._skipped(found.skipped)

    def _export(self, found: Any) -> None:
        self._console.print("[bold]The student beside its teacher[/]")
        table = Table()
        table.add_column("", no_wrap=True)
        table.add_column("teacher", justify="right")
        table.add_column("student", justify="right")
        table.add_column("", justify="left")
        variant, teacher = found.variants[0], found.teacher
        for evaluation in found.evaluations:
            self._export_quality(table, evaluation)
        ours = variant.latency[0]
        theirs = teacher["latency"][0] if teacher["latency"] else None
        factor = (
            f"{ours.speedup.value:.1f}× faster ({ours.speedup.low:.1f} to {ours.speedup.high:.1f})"
            if ours.speedup
            else ""
        )
        for key, label in (("p50_ms", "ms p50"), ("p90_ms", "ms p90"), ("p99_ms", "ms p99")):
            cells = [None if theirs is None else theirs[key], getattr(ours, key)]
            table.add_row(label, *(f"{cell:.2f}" if cell is not None else "–" for cell in cells), factor)
            factor = ""
        table.add_row(
            "MB",
            f"{teacher['bytes'] / 1e6:.1f}",
            f"{variant.bytes / 1e6:.1f}",
            _times(teacher["bytes"] / variant.bytes, "smaller", "larger"),
        )
        self._console.print(table)
        threads = f"{ours.threads} thread" + ("s" if ours.threads > 1 else "")
        self._console.print(
            f"onnxruntime on the CPU, {threads}, batch 1, {ours.n:,} runs of the student in alternating blocks; "
            f"cosine of exported to trained student {variant.parity['cosine_min']:.4f} or more",
            style="dim",
        )
        if variant.status == "accepted":
            self._console.print(
                f"[green]shipped[/] {_safe(str(Path(found.bundle) / variant.file))} with card.md and deploy.py"
            )
        else:
            self._console.print(f"[red]rejected[/] {variant.precision}: {_safe(variant.reason)}; nothing was shipped")

    def _export_quality(self, table: Table, evaluation: dict[str, Any]) -> None:
        teacher, student = evaluation["models"][:2]
        data = Path(evaluation["data"]).name
        for key in ("map", "recall@1"):
            if key in student["metrics"]:
                kept = student["retention"][key]
                table.add_row(
                    f"{LABELS[key]} {_safe(data)}",
                    _figure(teacher["metrics"][key]["value"]),
                    _figure(student["metrics"][key]["value"]),
                    _percent_of(kept) + " kept",
                )
        table.add_row(
            f"top-10 {_safe(data)}",
            "",
            _figure(student["fidelity"]["overlap@10"]["value"]),
            "of the teacher's neighbours",
        )

    def _recipes(self, found: dict[str, Any]) -> None:
        table = _facts()
        for one in found["recipes"]:
            table.add_row(one.name, _safe(one.description))
        self._console.print(table)

    def _skipped(self, skipped: Sequence[Any]) -> None:
        for one in skipped[:SKIPPED_SHOWN]:
            self._console.print(f"[yellow]skipped[/] {_safe(one.path)}: {_safe(one.reason)}")
        if len(skipped) > SKIPPED_SHOWN:
            self._console.print(f"[yellow]skipped[/] {len(skipped) - SKIPPED_SHOWN:,} more (--json lists them all)")


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        TextColumn("[dim]{task.fields[detail]}[/]"),
    ]


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _safe(text: str) -> str:
    """A text of others as it may stand in markup and reach a terminal."""
    return escape(printable(text))


def _interval(value: Any) -> str:
    if not math.isfinite(value.value):
        return "–"
    return f"{value.value:.3f} ±{(value.high - value.low) / 2:.3f}"


def _percent(value: Any) -> str:
    if not math.isfinite(value.value):
        return "–"
    return f"{100 * value.value:.1f} % ±{50 * (value.high - value.low):.1f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent_of(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    return f"{100 * value['value']:.1f} % ±{50 * (value['high'] - value['low']):.1f}"


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f}× {more}" if ratio >= 1 else f"{1 / ratio:.1f}× {less}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"

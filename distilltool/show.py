"""The only file that prints: progress, tables and errors go to stderr, JSON to stdout."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
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
from distilltool.names import counted, headline, json_text, manner, printable, titled

SKIPPED_SHOWN = 5
BAR = 10  # characters of a whole bar
SILENCE = 20.0  # seconds between lines where there is no terminal to draw a bar on


@dataclass(kw_only=True, slots=True)
class _Work:
    """One piece of work in progress; times in seconds of the monotonic clock. before: done at another time."""

    what: str
    total: int
    unit: str
    began: float
    said: float
    done: int = 0
    before: int = 0

    def rate(self) -> str:
        seconds = time.monotonic() - self.began
        return f"{(self.done - self.before) / seconds:.1f}/s" if seconds > 0 else ""

    def line(self, detail: str) -> str:
        """Progress as a plain line, for logs."""
        if not self.total:
            return f"{self.what}: {self.done:,} {self.unit}, {self.rate()}"
        left = (self.total - self.done) * (time.monotonic() - self.began) / max(1, self.done - self.before)
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

    @property
    def _whole(self) -> bool:
        """Whether lines are left as long as they are: a terminal's are broken between words, a file's are searched."""
        return not self._console.is_terminal

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.end()
        if self._quiet:
            return
        now = time.monotonic()
        self._work = _Work(what=what, total=total, unit=unit, began=now, said=now, done=done, before=done)
        if self._console.is_terminal:
            self._bar = Progress(*_columns(total), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(
                _safe(what), total=total or None, completed=done, unit=unit, rate="", detail=""
            )

    def expect(self, total: int) -> None:
        if self._work is not None:
            self._work.total = total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)

    def advance(self, amount: int = 1, detail: str = "") -> None:
        work = self._work
        if work is None:
            return
        work.done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, rate=work.rate(), detail=_safe(detail))
        elif time.monotonic() - work.said > SILENCE:
            work.said = time.monotonic()
            self._console.print(_safe(work.line(detail)), soft_wrap=self._whole)

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
        self._console.print(f"[red]error:[/] {_safe(error.message)}: {_safe(error.fix)}", soft_wrap=self._whole)

    def interrupted(self, kept: str) -> None:
        self.end()
        self._console.print(
            f"[yellow]stopped:[/] {_safe(kept or 'what was finished is kept; the same command goes on')}",
            soft_wrap=self._whole,
        )

    def text(self, text: str) -> None:
        print(text, end="")

    def exit_code(self, result: Any) -> Exit:
        """A rejected export and a student below what was asked are failed gates; a file that is no teacher and a
        damaged ledger are something to mend."""
        from distilltool.report import (
            BenchReport,
            EvalReport,
            ExportReport,
            InspectReport,
            LedgerVerifyReport,
            VerifyReport,
        )

        if isinstance(result, InspectReport) and result.problem is not None:
            return Exit.FIX
        if isinstance(result, BenchReport):
            return _bench_exit(result)
        if isinstance(result, EvalReport) and any(gate.outcome == "fails" for gate in result.gates):
            return Exit.GATE
        if isinstance(result, LedgerVerifyReport | VerifyReport) and result.faults:
            return Exit.FIX
        if isinstance(result, ExportReport) and any(one.status != "accepted" and one.asked for one in result.variants):
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
                report.InspectReport: self._inspect,
                report.QueryReport: self._query,
                report.DistillReport: self._distill,
                report.ParetoReport: self._pareto,
                report.EvalReport: self._eval,
                report.ExportReport: self._export,
                report.BenchReport: self._bench,
                report.LedgerShowReport: self._ledger_show,
                report.LedgerVerifyReport: self._ledger_verify,
                report.LedgerExportReport: self._ledger_export,
                report.VerifyReport: self._verify,
                dict: self._recipes,
            }
            tables[type(result)](result)

    def _inspect(self, found: Any) -> None:
        table = _facts()
        size = f"{found.bytes / 1e6:,.1f} MB" + (
            f" with {len(found.external)} external files" if found.external else ""
        )
        table.add_row("file", _safe(f"{Path(found.path).name}, {size}, sha256 {found.sha256[:12]}…"))
        table.add_row("kind", found.kind)
        domains = ", ".join(f"{name} {version}" for name, version in found.domains.items())
        table.add_row("format", _safe(f"opset {found.opset} (IR {found.ir_version}; {domains})"))
        for what, ends in (("input", found.inputs), ("output", found.outputs)):
            for one in ends:
                why = f" [dim]({_safe(one.why)})[/]" if what == "output" and one.why else ""
                table.add_row(what, _tensor(one, one.name == found.embedding) + why)
        self._inspect_reading(table, found)
        if found.guess is not None:
            for place, one in enumerate(found.guess["ranking"]):
                table.add_row("" if place else "guess", _convention(one))
            table.add_row("", _certainty(found.guess))
        for place, one in enumerate(found.tensors or ()):
            table.add_row("" if place else "candidates", _tensor(one, one.name == found.embedding))
        self._console.print(table)
        self._skipped(found.skipped)
        for warning in found.warnings:
            self.warn(warning)
        if found.images and not found.warnings and found.problem is None:
            self._console.print(f"[green]sound[/] on {found.images} images")
        if found.problem is not None:
            self._console.print(f"[red]error:[/] {_safe(found.problem)}", soft_wrap=self._whole)

    def _inspect_reading(self, table: Table, found: Any) -> None:
        """What is made of the file: embedding, preprocessing, cost."""
        if found.embedding is not None:
            pooled = "" if found.pool == "none" else f", pooled by {found.pool}"
            wide = "" if found.dim is None else f", {found.dim:,} numbers"
            table.add_row("embedding", f"[bold]{_safe(found.embedding)}[/]{wide}{pooled}")
            table.add_row("", _safe(found.why))
        if found.preprocess is not None:
            table.add_row("images", _safe(found.description))
            source = found.preprocess["source"]
            table.add_row("", "guessed from its answers" if source == "guessed" else _safe(f"said by {source}"))
        elif found.problem is None:
            table.add_row("images", "nothing says how they are prepared")
        table.add_row("weights", f"{found.params / 1e6:,.2f} M")
        if found.flops is not None and found.size is not None:
            table.add_row("FLOPs", f"{found.flops / 1e9:,.2f} G for one image of {found.size[0]}×{found.size[1]}")
        if found.ms_per_image is not None:
            table.add_row("time", f"{found.ms_per_image:,.1f} ms an image, {1000 / found.ms_per_image:,.0f}/s")

    def _query(self, found: Any) -> None:
        table = _facts()
        budget = "" if found.budget is None else f" of a budget of {found.budget:,}"
        rate = f", {found.queried / found.seconds:.1f} images/s" if found.queried else ""
        table.add_row(
            "images",
            f"{found.images:,} distinct in {found.files:,} files"
            + (f", {found.duplicates:,} duplicates" if found.duplicates else ""),
        )
        if found.imported or found.unmatched:
            elsewhere = f" ({found.unmatched:,} more belong to no image here)" if found.unmatched else ""
            table.add_row("imported now", f"{found.imported:,}{elsewhere}")
        if found.near_duplicates:
            table.add_row("set aside", f"{found.near_duplicates:,} that look like another image: asked about last")
        table.add_row("asked now", f"{found.queried:,} in {found.seconds:.1f} s{rate}")
        table.add_row("known before", f"{found.cached:,}")
        table.add_row("asked ever", f"{found.spent:,}{budget}")
        if found.cost is not None:
            table.add_row("cost so far", f"{found.cost:,.6g}")
        if found.pending:
            table.add_row(
                "still open",
                f"{found.pending:,}"
                + (" (raise --budget to ask about them)" if found.budget and not found.plan else ""),
            )
        if found.ambiguous:
            table.add_row(
                "left out", f"{found.ambiguous:,} sent before without an answer (--ambiguous retry asks again)"
            )
        table.add_row("ledger", _safe(found.store))
        if found.plan is not None:
            plan = found.plan
            took = "time not known (nothing was asked now)" if plan.seconds is None else _duration(plan.seconds)
            table.add_row(
                "[bold]forecast[/]",
                f"{plan.queries:,} more queries, {took}, "
                f"{plan.memory_bytes / 1e6:,.0f} MB of memory, {plan.disk_bytes / 1e6:,.1f} MB of disk"
                + (f", cost {plan.cost:,.6g}" if plan.cost is not None else ""),
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
        runs = f" in {found.soup} runs, averaged" if found.soup > 1 else ""
        more = found.images["unasked"]
        others = f" and {more:,} nobody asked about" if more else ""
        table.add_row(
            "trained on",
            f"{found.images['train']:,} images{others}, {counted(found.steps, 'step')}{runs}, "
            f"{_duration(found.seconds)}",
        )
        if found.images["skipped"]:
            files = counted(found.images["skipped"], "file")
            table.add_row("[yellow]skipped[/]", f"{files} that cannot be read (`distilltool query` names them)")
        name = f"overlap@{found.k}"
        table.add_row(
            name, f"{_interval(found.fidelity.overlap_at_10)}, undistilled {found.undistilled.overlap_at_10.value:.3f}"
        )
        table.add_row(
            "Spearman", f"{_interval(found.fidelity.spearman)}, undistilled {found.undistilled.spearman.value:.3f}"
        )
        for dim, one in list(found.nested.items())[1:]:
            table.add_row(f"first {int(dim):,}", _interval(one.overlap_at_10))
        table.add_row("run", _safe(found.run))
        self._console.print(table)
        self._console.print(f"[bold]{_safe(found.verdict)}[/]")

    def _pareto(self, found: Any) -> None:
        """A line for each student, the fastest first; its bar is how much of the teacher's nearest it keeps."""
        table = Table()
        k = found.points[0].student.k
        table.add_column("student", overflow="fold")
        for head in ("MFLOPs", "p50 ms", "faster"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column(f"overlap@{k}", no_wrap=True)
        table.add_column("", no_wrap=True)
        for point in found.points:
            report = point.student
            overlap = report.fidelity.overlap_at_10
            faster = "–" if found.teacher_p50_ms is None else f"{found.teacher_p50_ms / point.p50_ms:.1f}×"
            bar = "█" * round(BAR * overlap.value) + "·" * (BAR - round(BAR * overlap.value))
            table.add_row(
                f"{_safe(report.student.spec)} at {max(report.student.input)} px",
                f"{point.flops / 1e6:,.0f}",
                f"{point.p50_ms:.2f}",
                faster,
                _interval(overlap),
                bar,
                style=None if point.front else "dim",
            )
        self._console.print(table)
        for target, why in found.refused.items():
            self._console.print(f"[yellow]{_safe(target)}:[/] {_safe(why)}", soft_wrap=self._whole)
        if any(not point.front for point in found.points):
            self._console.print("[dim]dim: another one is faster and keeps more[/]")
        self._console.print(
            f"runs in {_safe(found.runs)}, one folder a target; times on {found.threads} thread, batch 1"
        )
        how = _safe(found.drawing) if found.drawing else "pip install 'distilltool\\[report]' to have it drawn"
        self._console.print(f"quality against time: {how}", soft_wrap=self._whole)

    def _eval(self, found: Any) -> None:
        counts = f"{found.queries:,} queries, {found.gallery:,} gallery images ({found.protocol})"
        self._console.print(f"[bold]{_safe(Path(found.data).name)}: {counts}[/]")
        from distilltool.report import to_json

        if how := manner(to_json(found.views), to_json(found.whitening)):
            self._console.print(_safe(how))
        table = Table()
        teacher, *students = found.models
        table.add_column("", no_wrap=True)
        table.add_column("teacher", justify="right")
        for model in students:
            table.add_column(_safe(model.name), justify="right", overflow="fold")
        for name in teacher.metrics:
            cells = [_interval(one.metrics[name]) for one in found.models]
            table.add_row(titled(name), *cells)
        main = headline(teacher.metrics)
        for name in main:
            table.add_row(f"{titled(name)} kept", "", *(f"[bold]{_percent(s.retention[name])}[/]" for s in students))
        gaps = {(one.at, one.figure): one.difference for one in found.differences}
        for name in [one for one in main[:1] if not one.startswith("ns")]:
            points = (_points(gaps[(at, 0), name]) for at in range(1, len(found.models)))
            table.add_row(f"{titled(name)} − teacher's, points", "", *points)
        for name in ("overlap@10", "spearman"):
            table.add_row(titled(name), "", *(_interval(s.fidelity[name]) for s in students))
        for dim in sorted({int(dim) for one in students for dim in one.nested}, reverse=True):
            at = [one.nested.get(str(dim)) for one in students]
            for name in main[:1]:
                kept = (f"[bold]{_percent(one.retention[name])}[/]" if one else "–" for one in at)
                table.add_row(f"{titled(name)} kept, first {dim:,}", "", *kept)
            table.add_row(
                f"overlap@10, first {dim:,}", "", *(_interval(one.fidelity["overlap@10"]) if one else "–" for one in at)
            )
        self._binary_rows(table, found)
        for family, towards in (("asymmetric", "→ teacher"), ("reverse", "← teacher")):  # whose queries, whose gallery
            for name in (*main, "overlap@10"):
                across = [(getattr(s, family) or {}).get(name) for s in students]
                if any(across):
                    table.add_row(f"{titled(name)} {towards}", "", *(_interval(one) if one else "–" for one in across))
        self._console.print(table)
        self._indexes(found)
        self._drift(found)
        self._skipped(found.skipped)
        for gate in found.gates:
            self._gate(gate, gate.model)

    def _binary_rows(self, table: Table, found: Any) -> None:
        """What binary codes keep, the teacher's own beside the students'."""
        from distilltool.eval_text import binary_rows

        for family, _, heading, values in binary_rows(found):
            form = _percent if family.endswith("retention") else _interval
            table.add_row(_safe(heading), *("–" if one is None else form(one) for one in values))

    def _drift(self, found: Any) -> None:
        """What each run makes of images unlike its own: overlap by distance, what follows, and what to look at."""
        from distilltool import drift_text

        for model in found.models:
            one = model.drift
            if one is None:
                continue
            if not one.queries:
                self._console.print(f"[bold]{_safe(one.verdict)}[/]")
                continue
            table = Table()
            table.add_column(f"distance from what {_safe(model.name)} knows", overflow="fold")
            table.add_column("queries", justify="right", no_wrap=True)
            table.add_column("overlap@10", justify="right", no_wrap=True)
            for group in one.span.groups:
                table.add_row(
                    drift_text.range_of(group.low, group.high), f"{group.queries:,}", _interval(group.overlap)
                )
            self._console.print(table)
            for name, said, distance in drift_text.distances(one):
                beyond = f"{_percent(distance.beyond)} beyond {distance.limit:.3f}"
                rho = f"with overlap {drift_text.correlation(distance.adjusted)}"
                decides = "" if name == "span" else " (does not decide)"
                self._console.print(f"distance {said}: {beyond}; {rho}{decides}", style="dim")
            self._console.print(f"[bold]{_safe(one.verdict)}[/]")
            if one.unlike is not False:
                paths = ", ".join(_safe(query.path) for query in one.farthest[:SKIPPED_SHOWN])
                self._console.print(f"the farthest: {paths}", soft_wrap=self._whole)

    def _indexes(self, found: Any) -> None:
        """A table for each model: what searching its gallery through each index type costs."""
        from distilltool import index_text

        heads = index_text.heads(found)
        for at, model in enumerate(found.models if heads else ()):
            table = Table(title=f"{_safe(model.name)}, {model.dim:,} numbers", title_justify="left", title_style="bold")
            table.add_column("index", overflow="fold")
            for head in heads:
                table.add_column(head, justify="right", no_wrap=True)
            before = None
            for line in index_text.lines(found, at):
                first, before = line.index != before, line.index
                if line.entries:
                    recall, *others = (one.text for one in line.entries)
                    once = [text if first or place < len(others) - 2 else "" for place, text in enumerate(others)]
                    cells = [recall, *(text.split(" ")[0] for text in once)]  # 80 columns have room for one interval
                    table.add_row(_safe(index_text.headed(line, first)), *cells)
            if table.row_count:
                self._console.print(table)
        if any(one.points for model in found.models for one in model.indexes):
            self._console.print(index_text.timing(found), style="dim")
        for model in found.models:
            for one in model.indexes:
                if one.reason:
                    self.warn(f"{model.name}: no {one.index}: {one.reason}")

    def _export(self, found: Any) -> None:
        self._console.print("[bold]The student beside its teacher[/]")
        for evaluation in found.evaluations:
            self._export_quality(evaluation)
        table = Table()
        for name in ("", "ms p50", "× faster", "MB", "top-10 kept", ""):
            table.add_column(name, justify="left" if not name else "right")
        for one in found.teacher["latency"]:
            table.add_row("teacher", f"{one['p50_ms']:.2f}", "", _megabytes(found.teacher["bytes"]))
        for one in found.variants:
            self._variant(table, one)
        self._console.print(table)
        first, size = found.variants[0], found.teacher["bytes"]
        ours = first.latency[0]
        threads = f"{ours.threads} thread" + ("s" if ours.threads > 1 else "")
        smaller = f"; fp32 is {_times(size / first.bytes, 'smaller', 'larger')} than the teacher" if size else ""
        self._console.print(
            f"onnxruntime on {_safe(ours.device)}, {threads}, batch {ours.batch}, {ours.n:,} runs of fp32, in turns; "
            f"cosine of fp32 to the trained student {first.parity['cosine_min']:.4f} or more{smaller}",
            style="dim",
        )
        for one in found.variants:
            file, beside = Path(found.bundle) / one.file, " with card.md and deploy.py" if one is first else ""
            if one.status == "accepted":
                self._console.print(f"[green]shipped[/] {_safe(str(file))}{beside}", soft_wrap=self._whole)
            else:
                left = "; nothing was shipped" if one is first else ""
                self._console.print(
                    f"[red]rejected[/] {one.precision}: {_safe(one.reason)}{left}", soft_wrap=self._whole
                )

    def _variant(self, table: Table, one: Any) -> None:
        """A row: how fast, how small and how good a file is, and whether it ships."""
        ratio = one.latency[0].speedup if one.latency else None
        more = " mixed" if one.left_in_float else " any size" if one.image == "any" else ""
        shipped = one.status == "accepted"
        table.add_row(
            one.precision + more,
            f"{one.latency[0].p50_ms:.2f}" if one.latency else "",
            "" if ratio is None else f"[bold]{ratio.value:.1f}[/] ({ratio.low:.1f}–{ratio.high:.1f})",
            _megabytes(one.bytes),
            "" if one.fidelity is None else _percent(one.fidelity),
            "[green]shipped[/]" if shipped else "[red]rejected[/]",
            style=None if shipped else "dim",
        )

    def _export_quality(self, evaluation: dict[str, Any]) -> None:
        """What `eval` found, a line for each figure."""
        teacher, student = evaluation["models"][:2]
        data = _safe(Path(evaluation["data"]).name)
        said = [how] if (how := _safe(manner(evaluation.get("views"), evaluation.get("whitening")))) else []
        for key in headline(student["metrics"]):
            ours, theirs = (_figure(one["metrics"][key]["value"]) for one in (student, teacher))
            said.append(f"{titled(key)} {ours} of {theirs}, [bold]{_percent_of(student['retention'][key])} kept[/]")
        said.append(f"overlap@10 {_figure(student['fidelity']['overlap@10']['value'])}")
        self._console.print(f"{data}: " + "; ".join(said), soft_wrap=False)

    def _bench(self, found: Any) -> None:
        """The models' names, a line for each way of running each, then what came of it."""
        from distilltool import bench_text

        for line in bench_text.names(found):
            self._console.print(_safe(line), soft_wrap=True)
        heads, rows = ("", *bench_text.HEADS[1:]), bench_text.lettered(found)
        table = Table()
        for place, head in enumerate(heads):  # only what it ran on may be broken, between two words
            table.add_column(head, justify="left" if place < 2 else "right", no_wrap=place != 1)
        for row in rows:
            table.add_row(*map(_safe, row))
        least = _least_width([heads, *rows])
        table.width = least if least > self._console.width else None  # a terminal breaks the line, nothing is cut
        self._console.print(table, crop=False, soft_wrap=least > self._console.width)
        for line in bench_text.details(found):
            self._console.print(_safe(line), style="dim", soft_wrap=self._whole)
        if found.verdict is not None:
            self._console.print(f"{_outcome(found.verdict)}: {_safe(found.why)}", soft_wrap=self._whole)
        for gate in found.gates:
            self._gate(gate, f"{gate.device}:{gate.threads}, batch {gate.batch}")

    def _gate(self, gate: Any, where: str) -> None:
        said = f"{_safe(gate.gate)} {_outcome(gate.outcome)} ({_safe(where)}): {_safe(gate.why)}"
        self._console.print(said, soft_wrap=self._whole)

    def _ledger_show(self, found: Any) -> None:
        for one in found.teachers:
            self._console.print(f"{one.number}: [bold]{one.sha256[:12]}[/] {_safe(one.name)}", soft_wrap=self._whole)
            table = _facts()
            table.add_row("output", _output_of(one))
            table.add_row("preprocessing", _safe(one.source or "unknown"))
            table.add_row("answers", f"{one.done:,} done, {one.failed:,} failed, {one.claimed:,} claimed")
            limit = "" if one.budget is None else f" of a budget of {one.budget:,}"
            table.add_row("asked", f"{one.asked:,}; the file in all {one.spent:,}{limit}")
            table.add_row("when", f"{one.first} to {one.last}" if one.first else "never")
            table.add_row("vectors", f"{one.bytes / 1e6:,.1f} MB")
            self._console.print(table)
        for one in found.guesses:
            self._console.print(
                f"[bold]{one.sha256[:12]}[/] {_safe(one.output)}: preprocessing probed with {one.asked:,} "
                f"images, {one.time}" + ("" if one.outcome else ", not finished")
            )
        self._console.print(
            f"{_teachers(len(found.teachers))}, {found.bytes / 1e6:,.1f} MB, {_safe(found.store)}", style="dim"
        )

    def _verify(self, found: Any) -> None:
        for one in found.faults:
            self._console.print(f"[red]fault[/] {_safe(one)}", soft_wrap=self._whole)
        for one in found.golden:
            same = "[green]the same vectors[/]" if one.same else "[red]other vectors[/]"
            said = f"{one.pictures} pictures, cosine {one.cosine_min:.5f} or more"
            self._console.print(f"{_safe(one.file)}: {same} ({said})", soft_wrap=self._whole)
        if not found.faults:
            self._console.print(
                f"[green]sound[/] {found.files} files as exported: {_safe(found.bundle)}", soft_wrap=self._whole
            )

    def _ledger_verify(self, found: Any) -> None:
        counts = f"{found.done:,} answers of {_teachers(found.teachers)}, {found.failed:,} failed"
        if found.claimed:
            counts += f", {found.claimed:,} claimed ({found.abandoned:,} by processes that are gone)"
        if found.faults:
            more = f" and {len(found.faults) - 1:,} more (--json lists them all)" if len(found.faults) > 1 else ""
            self.error(DistillError(f"the ledger {found.store} is damaged", f"{found.faults[0]}{more}"))
        else:
            self._console.print(f"[green]sound[/] {counts}: {_safe(found.store)}", soft_wrap=self._whole)
        for one in found.coverage:
            self._console.print(
                f"{one.sha256[:12]} {_safe(one.output)}: {one.known:,} of these images answered, "
                f"{len(one.unanswered):,} not, {len(one.orphans):,} answers about others"
            )
            for path in one.unanswered[:SKIPPED_SHOWN]:
                self._console.print(f"  [yellow]no answer[/] {_safe(path)}", soft_wrap=self._whole)

    def _ledger_export(self, found: Any) -> None:
        self._console.print(
            f"[green]written[/] {found.rows:,} answers of {_teachers(found.teachers)}, {found.bytes / 1e6:,.1f} MB: "
            f"{_safe(found.file)}",
            soft_wrap=self._whole,
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


def _outcome(word: str) -> str:
    """A verdict or what came of a gate, in its colour."""
    colour = "green" if word in ("faster", "same", "holds") else "red" if word in ("slower", "fails") else "yellow"
    return f"[{colour}]{word}[/]"


def _least_width(rows: Sequence[Sequence[str]]) -> int:
    """What a table with borders takes where all cells stay whole but those of the second column, where words do."""
    columns = list(zip(*rows, strict=True))
    columns[1] = tuple(word for cell in columns[1] for word in cell.split())
    return 1 + sum(max(map(cell_len, column)) + 3 for column in columns)


def _bench_exit(found: Any) -> Exit:
    """By the gates where there are some, else by the verdict: slower is a failed gate, no verdict is noise."""
    ends = {gate.outcome for gate in found.gates} or {found.verdict}
    if ends & {"fails", "slower"}:
        return Exit.GATE
    return Exit.NOISY if "inconclusive" in ends else Exit.DONE


def _columns(total: int) -> list[ProgressColumn]:
    if not total:
        return [TextColumn("{task.description}: {task.completed:,.0f} {task.fields[unit]}, {task.fields[rate]}")]
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


def _tensor(one: Any, taken: bool) -> str:
    """A tensor in one line: name, shape, type, role."""
    shape = "×".join("?" if side is None else str(side) for side in one.shape)
    name = _safe(one.name)
    role = f"{one.role} {one.layout}".strip()
    return f"{'[bold]' + name + '[/]' if taken else name} {_safe(shape)} {one.dtype}, {role}"


def _teachers(count: int) -> str:
    return f"{count:,} teacher" + ("" if count == 1 else "s")


def _output_of(one: Any) -> str:
    """A teacher's output, as `ledger show` names it."""
    length = "" if one.dim is None else f", {one.dim:,} numbers"
    return _safe(one.output) + (f", pooled by {one.pool}" if one.pool != "none" else "") + length


def _convention(place: dict[str, Any]) -> str:
    """A place in the ranking of preprocessings."""
    score = "" if place["score"] is None else f"{place['score']:.3f}"
    flags = " ".join(f"--preprocess {flag}" for flag in place["flags"])
    return f"{score:>6} {flags}" + (f" [dim]({_safe(place['note'])})[/]" if place["note"] else "")


def _certainty(guess: dict[str, Any]) -> str:
    if not guess["clear"]:
        return f"[yellow]cannot tell[/] from {guess['images']} images: {_safe(guess['why'])}"
    ahead = "nothing comes near" if guess["margin"] is None else f"{guess['margin']:.1f} standard errors ahead"
    return f"[green]{guess['best']}[/], {ahead}, from {guess['images']} images in {guess['passes']:,} passes"


def _safe(text: str) -> str:
    """A text of others as it may stand in markup and reach a terminal."""
    return escape(printable(text))


def _interval(value: Any) -> str:
    if not math.isfinite(value.value):
        return "–"
    return f"{value.value:.3f} ±{(value.high - value.low) / 2:.3f}"


def _points(value: Any) -> str:
    if not math.isfinite(value.value):
        return "–"
    return f"{100 * value.value:+.1f} ±{50 * (value.high - value.low):.1f}".replace("-", "−")


def _percent(value: Any) -> str:
    if not math.isfinite(value.value):
        return "–"
    return f"{100 * value.value:.1f} % ±{50 * (value.high - value.low):.1f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size else "–"


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

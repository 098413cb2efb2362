"""Students of different cost as a drawing of its own: what each keeps of the teacher against its time."""

from collections import Counter
from importlib import resources

from distilltool.page import charts, svg
from distilltool.page.charts import Placed
from distilltool.report import ParetoReport


def drawn(report: ParetoReport) -> str:
    """An SVG file, each student with its name; the teacher's own time stands as a line where it is known."""
    k = report.points[0].student.k
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    across, upwards = f"time of one image, ms (batch 1, {threads})", f"overlap@{k} with the teacher"
    points = [
        Placed(name=name, place=place, at=point.p50_ms, value=point.student.fidelity.overlap_at_10, front=point.front)
        for place, (name, point) in enumerate(zip(names(report), report.points, strict=True), 1)
    ]
    theirs = None if report.teacher_p50_ms is None else ("teacher's time", report.teacher_p50_ms)
    label = f"{upwards} against {across}; pareto.json holds the same numbers."
    height = 2.8 + 0.2 * len(points)  # each has a line for its name
    chart = charts.scattered("pareto", points, across, upwards, label, log=True, reference=theirs, height=height)
    return svg.alone(chart, (resources.files(__package__) / "report.css").read_text("utf-8"))


def names(report: ParetoReport) -> list[str]:
    """What each student is called, by its target too where two are called the same."""
    plain = [f"{one.student.student.spec} at {max(one.student.student.input)} px" for one in report.points]
    count = Counter(plain)
    return [
        f"{name}, {one.target}" if count[name] > 1 else name for name, one in zip(plain, report.points, strict=True)
    ]

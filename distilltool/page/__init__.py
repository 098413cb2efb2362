"""The page of an evaluation: one HTML file with tables, charts and pictures that needs no network."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from distilltool.embedder import Teacher
from distilltool.errors import DistillError
from distilltool.evaluation import Evaluation
from distilltool.report import ParetoReport
from distilltool.rundir import RunDir, write_text

NEEDED = ("matplotlib", "jinja2")


def check() -> None:
    """Fail before anything is asked where what draws a page is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DistillError(f"--html needs {' and '.join(missing)}", "pip install 'distilltool[report]'")


def draw_pareto(path: Path, report: ParetoReport) -> bool:
    """Draw students of different cost into an SVG file; False where what draws is not installed."""
    if any(find_spec(name) is None for name in NEEDED):
        return False
    from distilltool.page import pareto

    write_text(path, pareto.drawn(report))
    return True


def write(path: Path, made: Evaluation, teacher: Teacher, models: Sequence[RunDir | Path]) -> None:
    """Write the page, UTF-8, fewer than `document.LIMIT` bytes. models: what was evaluated, in order."""
    from distilltool.page import document, facts

    write_text(path, document.render(made, facts.gather(made, teacher, models)))

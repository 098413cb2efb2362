"""Pictures: some queries, what the teacher and a student find first for each, hits and misses marked."""

import base64
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilltool import images
from distilltool.evaluation import Evaluation, found, main_figure, ranked, right
from distilltool.page.charts import clipped

FIRST = 5
EACH = 4  # queries in a group
STUDENTS = 4
BUDGET = 1_500_000  # characters of all pictures
SIDES = (112, 88, 64, 44)
QUALITY = 62
NAME = 120  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image in a grid. row: of the evaluation; source: a data URI, empty where it can no longer be read; hit: None
    for a query."""

    row: int
    name: str
    label: str | None
    source: str
    width: int
    height: int
    hit: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A query with what the teacher and the student rank first. teacher: its figure, None for an overlap with it."""

    query: Picture
    figure: str
    value: float
    teacher_value: float | None
    teacher: tuple[Picture, ...]
    student: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Queries of a kind: the worst, typical ones or the best."""

    kind: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The pictures of one student. model: its place in the report."""

    model: int
    groups: tuple[Group, ...]


def grids(made: Evaluation) -> list[Grid]:
    """A grid for each of the first students, all pictures together within BUDGET characters."""
    plain = [_grid(made, at) for at in range(1, min(len(made.models), 1 + STUDENTS))]
    shown = [picture.row for grid in plain for picture in _pictures(grid)]
    rows = sorted(set(shown))
    decoded = dict(zip(rows, images.ahead([_file(made, row) for row in rows], _small), strict=True))
    encoded = dict[int, tuple[str, int, int]]()
    for side in SIDES:
        encoded = {row: _encoded(one, side) for row, one in decoded.items()}
        if sum(len(encoded[row][0]) for row in shown) <= BUDGET:
            break
    return [_filled(grid, encoded) for grid in plain]


def _grid(made: Evaluation, at: int) -> Grid:
    order = ranked(made, at)
    middle = np.abs(np.arange(len(order)) - len(order) // 2)
    used: set[int] = set()
    groups = []
    for kind, wanted in (
        ("worst", order),
        ("typical", order[np.argsort(middle, kind="stable")]),
        ("best", order[::-1]),
    ):
        chosen = _several(made, wanted, used)
        used |= set(chosen)
        if chosen:
            groups.append(Group(kind=kind, rows=_rows(made, at, np.array(chosen, np.int64))))
    return Grid(model=at, groups=tuple(groups))


def _several(made: Evaluation, queries: NDArray[np.int64], used: set[int]) -> list[int]:
    """The first queries that stand nowhere yet, no two of one class as long as there are classes enough."""
    free = [query for query in queries.tolist() if query not in used]
    if made.labels is None:
        return free[:EACH]
    first = dict[str, int]()
    for query in free:
        first.setdefault(made.labels[made.task.query[query]], query)
    chosen = list(first.values())[:EACH]
    return chosen + [query for query in free if query not in chosen][: EACH - len(chosen)]


def _rows(made: Evaluation, at: int, queries: NDArray[np.int64]) -> tuple[Row, ...]:
    figure = main_figure(made.report)
    value, theirs = made.models[at].values[figure], made.models[0].values.get(figure)
    by_teacher, by_student = found(made, 0, queries, FIRST), found(made, at, queries, FIRST)
    rows = []
    for place, query in enumerate(queries.tolist()):
        row = int(made.task.query[query])
        rows.append(
            Row(
                query=_picture(made, row, None),
                figure=figure,
                value=float(value[query]),
                teacher_value=None if theirs is None else float(theirs[query]),
                teacher=_answers(made, query, by_teacher[place], by_student[place]),
                student=_answers(made, query, by_student[place], by_teacher[place]),
            )
        )
    return tuple(rows)


def _answers(made: Evaluation, query: int, rows: NDArray[np.int64], others: NDArray[np.int64]) -> tuple[Picture, ...]:
    """A hit answers the query or, where nothing says so, is among the first of the other model too."""
    return tuple(_picture(made, row, _hit(made, query, row, others)) for row in rows.tolist() if row >= 0)


def _hit(made: Evaluation, query: int, row: int, others: NDArray[np.int64]) -> bool:
    judged = right(made, query, row)
    return row in others if judged is None else judged


def _picture(made: Evaluation, row: int, hit: bool | None) -> Picture:
    label = made.label(row)
    return Picture(
        row=row,
        name=clipped(made.name(row), NAME),
        label=None if label is None else clipped(label, NAME),
        source="",
        width=1,
        height=1,
        hit=hit,
    )


def _pictures(grid: Grid) -> list[Picture]:
    return [one for group in grid.groups for row in group.rows for one in (row.query, *row.teacher, *row.student)]


def _file(made: Evaluation, row: int) -> Path | None:
    return made.files[row] if row < len(made.files) else None


def _small(file: Path | None) -> Image.Image | str:
    """A file at the largest side that is shown, or why it cannot be."""
    if file is None:
        return "is known by its vector alone"
    image = images.decode(file, max(SIDES))
    if not isinstance(image, str):
        image.thumbnail((max(SIDES), max(SIDES)))
    return image


def _encoded(image: Image.Image | str, side: int) -> tuple[str, int, int]:
    """A picture as a data URI, its width and its height."""
    if isinstance(image, str):
        return "", 1, 1
    small = image.copy()
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", small.width, small.height


def _filled(grid: Grid, encoded: dict[int, tuple[str, int, int]]) -> Grid:
    def fill(one: Picture) -> Picture:
        source, width, height = encoded[one.row]
        return replace(one, source=source, width=width, height=height)

    def whole(row: Row) -> Row:
        teacher, student = tuple(map(fill, row.teacher)), tuple(map(fill, row.student))
        return replace(row, query=fill(row.query), teacher=teacher, student=student)

    return replace(grid, groups=tuple(replace(group, rows=tuple(map(whole, group.rows))) for group in grid.groups))

"""A CSV file that lists images, their labels and, if wanted, who asks whom."""

import csv as reader
from pathlib import Path

from distilltool.datasets import Dataset
from distilltool.errors import DistillError

ROLES = {"": (True, True), "both": (True, True), "query": (True, False), "gallery": (False, True)}


def csv(root: Path) -> Dataset:
    """Columns `path` (seen from the CSV's folder), `label`, and optionally `role`: query, gallery, or both."""
    try:
        with root.open(encoding="utf-8-sig", newline="") as file:
            rows = list(reader.DictReader(file))
    except (OSError, UnicodeDecodeError, reader.Error) as error:
        raise DistillError(f"{root} cannot be read ({error})", "give a CSV file in UTF-8") from None
    columns = set(rows[0]) if rows else set()
    if not rows or "path" not in columns:
        raise DistillError(f"{root} has no rows with a column named path", "its first line must name path,label[,role]")
    short = next((at for at, row in enumerate(rows) if not row["path"]), None)
    if short is not None:
        raise DistillError(f"{root} line {short + 2} names no path", "complete or remove the line")
    wrong = next((at for at, row in enumerate(rows) if (row.get("role") or "").strip().lower() not in ROLES), None)
    if wrong is not None:
        raise DistillError(f"{root} line {wrong + 2} has role {rows[wrong]['role']!r}", "use query, gallery or both")
    roles = [ROLES[(row.get("role") or "").strip().lower()] for row in rows]
    return Dataset(
        protocol="csv",
        paths=tuple(root.parent / row["path"] for row in rows),
        labels=tuple(row["label"] or "" for row in rows) if "label" in columns else None,
        query=tuple(role[0] for role in roles),
        gallery=tuple(role[1] for role in roles),
    )

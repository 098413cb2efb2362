"""Names and texts that others chose, made fit to be shown and kept: none of them commands a terminal or ends a file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

LABELS = {"map": "mAP", "mp": "mP", "recall": "R", "ndcg": "nDCG", "ns": "N-S", "spearman": "Spearman"}  # no cut


def printable(text: str) -> str:
    """A text without control, direction and invalid characters; the last are how Python keeps bytes that are no
    UTF-8."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "�" for char in text)


def json_text(values: Any, *, indent: int | None = None, allow_nan: bool = True) -> str:
    """JSON in which every character that is not printable is escaped, so that whoever reads it gets the same text."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=allow_nan, indent=indent)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def headline(metrics: Iterable[str]) -> list[str]:
    """Of the figures that a protocol reports those that stand for the others."""
    return [name for name in metrics if name.partition("-")[0] in ("map", "map@100", "ns", "recall@1")]


def titled(name: str) -> str:
    """A figure as people know it: mAP@R, R@10, mAP medium."""
    base, _, level = name.partition("-") if name != "r-precision" else (name, "", "")
    measure, at, cut = base.partition("@")
    return f"{LABELS.get(measure, measure)}{at}{'R' if cut == 'r' else cut} {level}".rstrip()


def manner(views: Mapping[str, Any] | None, whitening: Mapping[str, Any] | None) -> str:
    """What an evaluation's vectors are made of, by those two of its fields; nothing where that is one view of an image,
    as it is."""
    said = []
    if views and views["count"] > 1:
        pooled = "mean" if views["power"] == 1 else f"generalised mean, power {views['power']:g}"
        scales = ", ".join(f"{one:g}" for one in views["scales"])
        said.append(f"scales {scales}{', mirrored too' if views['flip'] else ''}, combined by {pooled}")
    if whitening:
        data = printable(PurePath(whitening["data"]).name)
        said.append(f"whitened on {whitening['images']:,} images of {data}, teacher to {whitening['dim']:,} numbers")
    return "; ".join(said)


def in_markdown(text: str) -> str:
    """A text of others within Markdown, where none of its characters means anything."""
    return "".join(f"\\{char}" if char in "\\|*_`<>[]" else char for char in printable(text))


def counted(number: int, what: str) -> str:
    """A number with what it counts, in the plural where it is not one."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"

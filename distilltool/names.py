"""Names and texts that others chose, made fit to be shown and kept: none of them commands a terminal or ends a file."""

import json
from typing import Any

LABELS = {  # of figures, for people
    "map": "mAP",
    "map@r": "mAP@R",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "overlap@10": "overlap@10",
    "spearman": "Spearman",
}


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


def in_markdown(text: str) -> str:
    """A text of others within Markdown, where none of its characters means anything."""
    return "".join(f"\\{char}" if char in "\\|*_`<>[]" else char for char in printable(text))

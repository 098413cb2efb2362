"""The page and the report's further figures on every protocol: lists instead of labels, levels, scores, distractors."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import EXPECTED, LAYOUTS
from test_protocols import PRE

import distilltool
from distilltool import page
from distilltool.evaluation import Evaluation, found, main_figure, right
from distilltool.report import to_json

pytest.importorskip("matplotlib", reason="the page needs distilltool[report]")
MAIN = {"roxford5k": "map-medium", "rparis6k": "map-medium", "ukbench": "map", "unlabelled": "overlap@10"}


def paged(models: Path, data: Path, protocol: str | None = None) -> tuple[Evaluation, str]:
    """An evaluation and its page."""
    kept: list[Any] = []
    out, write = data.parent / "page.html", page.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write", lambda *words: (kept.append(words[1]), write(*words)))
        words = {"teacher": models / "teacher.onnx", "preprocess": PRE, "store": data.parent / "e.sqlite"}
        distilltool.evaluate(models / "student.onnx", data, protocol=protocol, html=out, **words)
    return kept[0], out.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_protocol_has_a_page(name: str, models: Path, tmp_path: Path) -> None:
    made, html = paged(models, LAYOUTS[name](tmp_path / "data"))
    report = json.loads(json.dumps(to_json(made.report)))
    for figure in EXPECTED[name][2] if name in EXPECTED else ():
        assert figure in report["models"][1]["metrics"]
    main = main_figure(made.report)
    assert main == MAIN.get(name, main) and not re.search(r"\bnan\b", re.sub(r"data:image[^\"]+", "", html))
    assert all(one["figure"] == main for one in report["worst"]) and len(report["worst"]) > 0
    assert f"worst/{len(report['worst']) - 1}/value" in re.findall(r'data-key="([^"]+)"', html)
    if name == "ukbench":  # a score of up to four is no share
        gap = next(one for one in made.report.differences if one.figure == "ns").difference
        assert f"{gap.value:+.3f} ± ".replace("-", "−") in html


def test_what_is_neither_right_nor_wrong_is_not_shown(models: Path, tmp_path: Path) -> None:
    """Of the medium level: junk is left out of what is found first, easy and hard ones are hits."""
    made, html = paged(models, LAYOUTS["roxford5k"](tmp_path / "data"))
    truth = made.task.truth["medium"]
    queries = np.arange(len(made.task.query))
    assert any(len(one) for one in truth.ignored)
    for model in (0, 1):
        whole = found(made, model, queries, len(made.task.gallery))
        for query in queries.tolist():
            rows = whole[query][whole[query] >= 0]
            assert set(rows.tolist()) == set(made.task.gallery.tolist()) - set(truth.ignored[query].tolist())
            hits = [row for row in rows.tolist() if right(made, query, row)]
            assert sorted(hits) == sorted(set(truth.positives[query].tolist()) & set(rows.tolist()))
    assert "answers the query by the lists of the protocol" in html

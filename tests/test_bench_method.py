"""What `benchmarks/bench_method.py` counts, without anything being timed."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import loaded

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_method.py"


def test_reports_are_made_and_compared_under_noise_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first model alone, then the other against its report, each once under noise that the other has not."""
    script, asked = loaded(SCRIPT), list[tuple[Any, ...]]()
    one = SimpleNamespace(value=1.0, low=0.9, high=1.1)
    compared = SimpleNamespace(ratio=one, noise=one, p=0.5, verdict="faster")

    @contextmanager
    def noise(seed: int) -> Iterator[None]:
        asked.append(("noise", seed))
        yield

    def bench(model: Path, baseline: Path | None = None, **settings: Any) -> Any:
        asked.append((model.name, baseline and baseline.name, settings.get("whole") and settings["whole"].name))
        return SimpleNamespace(comparisons=[compared])

    monkeypatch.setattr(script, "noise", noise)
    monkeypatch.setattr(script.distilltool, "bench", bench)
    base, copy = tmp_path / "base.onnx", tmp_path / "copy.onnx"
    runs = script.judged_apart(copy, base, Namespace(runs=2, seconds=1.0), 2000)
    pair = [("base.onnx", None, "base.json"), ("copy.onnx", "base.json", None)]
    first, second = ([(("noise", seed + at), said) for at, said in enumerate(pair)] for seed in (2000, 2002))
    assert asked == [each for both in (*first, *second) for each in both]
    found = script.of_a_copy(runs)
    assert found["false"] == 2 and found["counts"] == {"faster": 2}
    assert script.of_the_slower(runs, {"layers": "more"})["found"] == 0

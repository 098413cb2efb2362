"""A few random students through the whole of `export`; `benchmarks/random_students.py` takes hundreds."""

from pathlib import Path

import pytest
from builders import loaded

PATH = Path(__file__).parents[1] / "benchmarks" / "random_students.py"


@pytest.mark.slow
def test_random_students_export_pass_parity_and_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the registry of architectures and from imported graphs; those that do not are named."""
    module = loaded(PATH)
    monkeypatch.setattr(module, "MOST", 6e6)
    monkeypatch.setattr(module, "SIDES", (64, 96))
    maker = module.Maker(tmp_path, [], written=("mobilenetv3_small_050",))
    found = [maker.check(seed) for seed in range(4)]
    assert {one.spec: one.problem for one in found if one.problem} == {}
    assert {one.spec.partition(":")[0] for one in found} == {"timm", "onnx"}

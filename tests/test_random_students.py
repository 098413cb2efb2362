"""Random students through the whole of `export`: a few, or as many as DISTILLTOOL_STUDENTS says;
`benchmarks/random_students.py` takes hundreds of every size and files of others too."""

import os
from pathlib import Path

import pytest
from builders import loaded

COUNT = int(os.environ.get("DISTILLTOOL_STUDENTS", "4"))
PATH = Path(__file__).parents[1] / "benchmarks" / "random_students.py"


@pytest.mark.slow
def test_random_students_export_pass_parity_and_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the registry of architectures and from imported graphs; those that do not are named."""
    module = loaded(PATH)
    monkeypatch.setattr(module, "MOST", 6e6)
    monkeypatch.setattr(module, "SIDES", (64, 96))
    maker = module.Maker(tmp_path, [], written=("mobilenetv3_small_050",))
    found = [maker.check(seed) for seed in range(COUNT)]
    assert {one.spec: one.problem for one in found if one.problem} == {}
    assert {one.spec.partition(":")[0] for one in found} == {"timm", "onnx"}

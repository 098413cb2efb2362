"""A smaller run of `benchmarks/search_scale.py`, held to what is claimed of the large one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "search_scale.py"
WAYS = ("none", "ours", "index")
GALLERY, DIM, IMAGES = 150_000, 256, 12_000


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process holds of its own")
def test_a_mapped_gallery_is_searched_as_fast_as_faiss_searches_its_own(tmp_path: Path) -> None:
    """In 1.2 of faiss's own time, the same answers, without a copy of the file, and no matrix of all by all images."""
    sizes = {"gallery": GALLERY, "dim": DIM, "queries": 200, "images": IMAGES, "classes": 2400, "rounds": 5}
    flags = [f"--{name}={size}" for name, size in sizes.items()]
    words = [sys.executable, str(SCRIPT), "--work", str(tmp_path), "--json", str(tmp_path / "found.json"), *flags]
    subprocess.run([*words, "--parts", "memory_gb", "metrics", "search"], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["search"]["ratio"]["median"] <= 1.2 and found["search"]["same answers"] > 0.9999
    own = {name: one["own"] for name, one in found["memory_gb"].items() if name in WAYS}
    file = GALLERY * DIM * 4 / 1e9
    assert own["index"] - own["none"] > 0.9 * file  # which is how a copy shows
    assert own["ours"] - own["none"] < 0.5 * file
    assert found["metrics"]["memory_gb"]["own"] - own["none"] < 0.8 * IMAGES**2 * 4 / 1e9
    assert 0.2 < found["metrics"]["figures"]["map"] < found["metrics"]["figures"]["recall@10"] < 1

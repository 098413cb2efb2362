"""Weights on disk."""

from pathlib import Path

import torch

from distilltool.student import Student
from distilltool.students import Start, build
from distilltool.weights import load_weights, save_weights


def coat(seed: int) -> Student:
    """A network that uses the same layers in several of its blocks."""
    return Student(build("timm:coat_tiny", Start(input=32, seed=seed)), 8, bias=True).eval()


def test_a_network_that_shares_weights_within_is_kept_and_read_again(tmp_path: Path) -> None:
    saved, fresh = coat(0), coat(1)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        save_weights(tmp_path / "weights.safetensors", saved)
        assert not torch.equal(fresh(images), saved(images))
        load_weights(tmp_path / "weights.safetensors", fresh)
        assert torch.equal(fresh(images), saved(images))
    state = fresh.backbone.state_dict()
    shared = [name for name in state if name.endswith("cpe.proj.weight") and name.startswith("serial_blocks1")]
    assert len({state[name].data_ptr() for name in shared}) == 1 < len(shared)

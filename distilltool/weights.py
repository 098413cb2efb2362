"""A student's weights by name: taken, put back, mixed, and on disk."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distilltool.rundir import write_bytes
from distilltool.student import Student


def save_weights(path: Path, student: Student) -> None:
    """Write a student's weights as safetensors, atomically; what only training needs is left out."""
    state = weights_of(student)
    write_bytes(path, lambda fresh: save_file(state, fresh))


def weights_of(student: Student) -> dict[str, Tensor]:
    """A student's tensors by name, without what only training needs."""
    kept = {name: tensor for name, tensor in student.state_dict().items() if not name.startswith("anchor.")}
    # clones: a network may use one tensor under several names, and safetensors refuses those that share memory
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in kept.items()}


def put(student: Student, weights: dict[str, Tensor]) -> None:
    """Load what `weights_of` gives; an anchor, which it leaves out, stays as it is."""
    found = student.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and all(name.startswith("anchor.") for name in found.missing_keys), found


def load_weights(path: Path, student: Student) -> None:
    """Read a student's weights as `save_weights` wrote them."""
    student.load_state_dict(read_weights(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def mixed(weights: dict[str, Tensor], other: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: _lerp(tensor, other[name], share) for name, tensor in weights.items()}


def _lerp(tensor: Tensor, other: Tensor, share: float) -> Tensor:
    """tensor + share · (other − tensor); counters stay as they are."""
    return torch.lerp(tensor, other, share) if tensor.is_floating_point() else tensor

"""Where training stands, on disk: everything it needs to go on bit for bit."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from distilltool.errors import DistillError
from distilltool.rundir import write_bytes
from distilltool.student import Student


@dataclass(kw_only=True, slots=True)
class State:
    """Where training stands; kept in every checkpoint. fitted: `total` follows from the time budget by now; look: the
    step after which fidelity is looked at next; begun: the step at which the weights were those of the start; runs:
    from it that are done, averaged by now; lap: steps of each further one, 0 while the first finds it out; shares: runs
    that all steps since `begun` are for; decide_at: the step at which the first is judged; judged_by: the divergence
    of held-out images when it was judged last."""

    step: int = 0
    total: int = 0
    fitted: bool = False
    best_step: int = 0
    best_score: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 1.0
    look: int = 0
    begun: int = 0
    runs: int = 0
    lap: int = 0
    shares: int = 1
    decide_at: int = 0
    judged_by: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a checkpoint is made of. kept: further tensors by name, which are filled in place when it is read."""

    student: Student
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    kept: dict[str, Tensor]


def save_checkpoint(path: Path, parts: Parts, state: State) -> None:
    """Write everything training needs to go on bit for bit."""
    tensors = {f"student.{name}": tensor for name, tensor in parts.student.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in parts.average.state_dict().items()}
    for number, values in parts.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in values.items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in parts.kept.items()}
    cpu = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, lambda fresh: save_file(cpu, fresh, metadata={"state": json.dumps(asdict(state))}))


def load_checkpoint(path: Path, parts: Parts) -> State:
    """Put a checkpoint back into what it was made of; returns where it stood."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stood = json.loads(file.metadata()["state"])
    if set(stood) != {one.name for one in fields(State)}:
        raise DistillError(f"{path} was made by another version", "begin again with --restart")
    state = State(**stood)
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "average": {}, "optimiser": {}, "kept": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    parts.student.load_state_dict(groups["student"])
    parts.average.load_state_dict(groups["average"])
    saved = parts.optimiser.state_dict()
    parameters = [one for group in parts.optimiser.param_groups for one in group["params"]]
    for name, tensor in groups["optimiser"].items():
        number, _, key = name.partition(".")
        saved["state"].setdefault(int(number), {})[key] = _laid_out(tensor, parameters[int(number)])
    parts.optimiser.load_state_dict(saved)
    for name, tensor in parts.kept.items():
        tensor.copy_(groups["kept"][name])
    return state


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of an optimiser's, in memory as its parameter is, channels last or not: fused optimisers go through both
    side by side."""
    if tensor.shape != parameter.shape:
        return tensor  # counts steps
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)

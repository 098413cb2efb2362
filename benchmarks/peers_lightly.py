"""LightlyTrain's part of `peers.py`, run in an environment of its own: python peers_lightly.py FOLDER.

Called as its pages on distillation and on custom models say: `pretrain(method="distillation")`, which is version 3,
with a wrapper around the student and one around the teacher, and its own batch, transform, optimiser and schedule.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from peers_models import IMAGES, Clock, Network, Teacher, name_operators, read, student_of, teacher_of, tell
from torch import Tensor, nn


class Wrapper(nn.Module):
    """A network as LightlyTrain's page on custom models wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def get_model(self) -> nn.Module:
        return self.network

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.network.features(x)}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_features": x["features"].mean(dim=(2, 3), keepdim=True)}

    def feature_dim(self) -> int:
        return self.network.width

    def architecture_info(self) -> dict[str, Any]:
        return {"model_type": "convolutional", "norm_type": "batchnorm"}


def main() -> None:
    folder = Path(sys.argv[1])
    task = read(folder)
    name_operators()
    import lightly_train  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(task.threads)
    teacher, student = teacher_of(task, folder), student_of(task, folder)
    assert isinstance(teacher, Teacher), "mixes two views of every step: no answer can be kept"
    epoch = max(1, len(list((folder / IMAGES / "all").iterdir())) // task.batch)  # it drops the last images of an epoch
    clock = Clock()
    lightly_train.pretrain(
        out=folder / "out",
        data=folder / IMAGES,
        model=Wrapper(student),
        method="distillation",
        method_args={"teacher": Wrapper(teacher)},
        epochs=math.ceil(task.steps / epoch),
        batch_size=task.batch,
        accelerator="cpu",
        devices=1,
        seed=task.seed,
        trainer_args={"max_steps": task.steps},
    )
    spent = clock.stop()
    student.load_state_dict(torch.load(folder / "out" / "exported_models" / "exported_last.pt", weights_only=True))
    tell(folder, student, teacher, spent, "lightly-train")


if __name__ == "__main__":
    main()

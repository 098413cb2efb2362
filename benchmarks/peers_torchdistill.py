"""torchdistill's part of `peers.py`, run in an environment of its own: python peers_torchdistill.py FOLDER.

The configuration is a sample of its own for ImageNet, configs/sample/ilsvrc2012/pkt/resnet18_from_resnet152.yaml or
rkd/resnet18_from_resnet34.yaml: data, optimiser, schedule and loss with their numbers. The loop is that of its
examples/torchvision/image_classification.py.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from peers_models import IMAGES, Clock, Task, name_operators, read, student_of, teacher_of, tell
from torch import nn
from torch.utils.data import Dataset

EPOCHS, MILESTONES = 20, (5, 15)  # of the samples
DECAY = {"pkt": 0.0, "rkd": 0.00005}
CRITERIA = {
    "pkt": """
        pkt:
          criterion:
            key: 'PKTLoss'
            kwargs:
              student_module_path: '.'
              student_module_io: 'output'
              teacher_module_path: '.'
              teacher_module_io: 'output'
              eps: 0.0000001
          weight: 30000.0""",
    "rkd": """
        rkd_da:
          criterion:
            key: 'RKDLoss'
            kwargs:
              teacher_output_path: '.'
              student_output_path: '.'
              dist_factor: 1.0
              angle_factor: 2.0
              reduction: 'mean'
          weight: 1.0""",
}
WHOLE = "'torchvision.transforms.Resize'"  # an answer that was stored is about the whole image
CROPPED = "'torchvision.transforms.RandomResizedCrop'"
CONFIG = """
datasets:
  &train_id photographs/train: !import_call
    key: 'peers_torchdistill.Numbered'
    init:
      kwargs:
        root: '{root}'
        transform: !import_call
          key: 'torchvision.transforms.Compose'
          init:
            kwargs:
              transforms:
                - !import_call
                  key: {view}
                  init:
                    kwargs:
                      size: [224, 224]
                - !import_call
                  key: 'torchvision.transforms.RandomHorizontalFlip'
                  init:
                    kwargs:
                      p: 0.5
                - !import_call
                  key: 'torchvision.transforms.ToTensor'
                  init:
                - !import_call
                  key: 'torchvision.transforms.Normalize'
                  init:
                    kwargs:
                      mean: [0.485, 0.456, 0.406]
                      std: [0.229, 0.224, 0.225]

train:
  num_epochs: {epochs}
  train_data_loader:
    dataset_id: *train_id
    sampler:
      class_or_func: !import_get
        key: 'torch.utils.data.RandomSampler'
      kwargs:
    kwargs:
      batch_size: {batch}
      num_workers: {workers}
      pin_memory: False
      drop_last: False
  teacher:
    forward_proc: '{ask}'
    sequential: []
    forward_hook:
      input: []
      output: []
    wrapper: 'DataParallel'
    requires_grad: False
  student:
    forward_proc: 'forward_batch_only'
    adaptations:
    sequential: []
    forward_hook:
      input: []
      output: []
    wrapper: 'DistributedDataParallel'
    requires_grad: True
    frozen_modules: []
  optimizer:
    key: 'Adam'
    kwargs:
      lr: 0.0001
      weight_decay: {decay}
  scheduler:
    key: 'MultiStepLR'
    scheduling_step: 1
    kwargs:
      milestones: [{first}, {second}]
      gamma: 0.1
  criterion:
    key: 'WeightedSumLoss'
    kwargs:
      sub_terms: {criterion}
"""


class Numbered(Dataset[tuple[Any, int]]):
    """torchvision's ImageFolder, whose labels are the images' numbers in order of path: stored answers need them."""

    def __init__(self, root: str, transform: Any) -> None:
        name_operators()
        from torchvision.datasets import ImageFolder

        self.folder = ImageFolder(root, transform)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.folder[index][0], index

    def __len__(self) -> int:
        return len(self.folder)


def config_of(task: Task, folder: Path, epoch: int) -> str:
    """The sample configuration, its schedule brought to the steps of the task."""
    first, second = (max(1, round(task.steps * one / EPOCHS)) for one in MILESTONES)
    return CONFIG.format(
        root=folder / IMAGES,
        view=WHOLE if task.stored else CROPPED,
        epochs=math.ceil(task.steps / epoch),
        batch=task.batch,
        workers=task.threads,
        ask="forward_batch_target" if task.stored else "forward_batch_only",
        decay=f"{DECAY[task.recipe]:.5f}",
        first=first,
        second=second,
        criterion=CRITERIA[task.recipe],
    )


def trained(box: Any, steps: int) -> None:
    """The loop of torchdistill's example, without its labelled validation, up to a number of steps."""
    done = 0
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, numbers, more in box.train_data_loader:
            loss = box.forward_process(images, numbers, more)
            box.post_forward_process(loss=loss)
            if not math.isfinite(loss.item()):
                raise ValueError(f"the training loop was broken due to loss = {loss}")
            done += 1
            if done == steps:
                return
        box.post_epoch_process()


def main() -> None:
    folder = Path(sys.argv[1])
    task = read(folder)
    name_operators()
    from torchdistill.common import yaml_util  # type: ignore[import-not-found, unused-ignore]
    from torchdistill.common.main_util import set_seed  # type: ignore[import-not-found, unused-ignore]
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(task.threads)
    set_seed(task.seed)
    teacher, student = teacher_of(task, folder), student_of(task, folder)
    epoch = math.ceil(len(list((folder / IMAGES / "all").iterdir())) / task.batch)
    (folder / "config.yaml").write_text(config_of(task, folder, epoch))
    config = yaml_util.load_yaml_file(str(folder / "config.yaml"))
    networks: list[nn.Module] = [teacher, student]
    clock = Clock()
    box = get_distillation_box(*networks, config["datasets"], config["train"], torch.device("cpu"), None, False, 1)
    trained(box, task.steps)
    spent = clock.stop()
    box.clean_modules()
    tell(folder, student, teacher, spent, "torchdistill")


if __name__ == "__main__":
    main()

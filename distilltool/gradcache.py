"""Gradients of losses over long lists of images in the memory of a few: a gradient cache (Gao et al., *Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup*, 2021).

The features of all images are made once, the loss gives the gradient of each, and part by part it is passed on through
the network. It is the gradient of one batch of them all, for one more forward pass of those parts whose first pass
there is no room to keep.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from distilltool import memory
from distilltool.student import Student

PART = 32  # images of a part at least
PASS = 2.5e8  # bytes that a larger part may hold: up to here larger ones are faster, or as fast
GPU_SHARE = 0.5  # of a GPU's free memory that kept passes may take


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientCache:
    """part: images whose gradient is passed on at a time. keeps: parts of a list that keep their first pass; gradient
    and student are the same to the last bit however many do. norms: batch normalisation in training, which counts every
    image once, when it is seen first."""

    part: int
    keeps: int
    norms: tuple[_BatchNorm, ...] = ()

    def backward(
        self, features: Callable[[Tensor, int], Tensor], batches: Sequence[Tensor], loss: Callable[[Tensor], Tensor]
    ) -> float:
        """Leave in the parameters the gradient of a loss over the images of all batches; returns the loss.

        features: of images (N, 3, H, W) of the part with this number, (N, F); the same again where it is asked again.
        loss: of all features, (B, F). No gradient where the loss is not finite.
        """
        parts = [pixels for one in batches for pixels in torch.split(one, self.part)]
        made = list[Tensor]()
        for number, pixels in enumerate(parts):  # those that are kept come last: no other pass is made beside them
            kept = number >= len(parts) - self.keeps
            with nullcontext() if kept else _forgetting():
                seen_PF = features(pixels, number)
            made.append(seen_PF if kept else seen_PF.detach())
        known_BF = torch.cat([one.detach() for one in made]).requires_grad_()
        found = loss(known_BF)
        if not math.isfinite(found.item()):
            return found.item()
        found.backward()  # type: ignore[no-untyped-call]
        assert known_BF.grad is not None
        grads = torch.split(known_BF.grad, [len(one) for one in made])
        for grad_PF in reversed(grads):
            pixels, last = parts.pop(), made.pop()
            again_PF = last if last.requires_grad else self._seen_again(features, pixels, len(parts))
            again_PF.backward(grad_PF)  # type: ignore[no-untyped-call]
        return found.item()

    def _seen_again(self, features: Callable[[Tensor, int], Tensor], pixels: Tensor, number: int) -> Tensor:
        for norm in self.norms:
            norm.track_running_stats = False
        made = features(pixels, number)
        for norm in self.norms:
            norm.track_running_stats = True
        return made


def planned(
    student: Student, features: Callable[[Student, Tensor], Tensor], size: tuple[int, int], batch: int, most: float
) -> GradientCache:
    """Parts for a student in training, by what one pass of it holds for the gradient.

    features: made by a student of images (N, 3, H, W) on the processor. size: height and width of its images. batch:
    images of a batch, which stay together where batch normalisation looks at all of them. most: bytes of the process,
    of which what comes and goes beside the kept passes takes about as much as one of them. On a GPU, a share of what is
    free instead. At least one part's is kept, which is in memory once anyway.
    """
    memory.give_back()
    used = memory.in_use("VmRSS")
    norms = tuple(one for one in student.modules() if isinstance(one, _BatchNorm) and one.training)
    part = batch if norms else min(PART, batch)
    held = held_by(student, features, torch.zeros(part, 3, *size))
    while not norms and 2 * part <= batch and 2 * held <= PASS:
        part, held = 2 * part, 2 * held
    device = student.factor.device
    if device.type == "cuda":
        room = GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        room = most - used - held
    return GradientCache(part=part, keeps=max(1, int(room / max(1, held))), norms=norms)


def held_by(student: Student, features: Callable[[Student, Tensor], Tensor], images_NCHW: Tensor) -> int:
    """Bytes that a pass of these images holds for the gradient, weights left out; the student stays as it is."""
    device = student.factor.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        probed = copy.deepcopy(student)
        with _holding(probed) as held:
            features(probed, images_NCHW.contiguous(memory_format=torch.channels_last))
    return sum(held.values())


def _forgetting() -> AbstractContextManager[None]:
    """Nothing is held for a gradient of what is computed inside, yet all is computed as it is for one: without, torch
    takes other ways here and there, as for attention with a bias that is learned, to other last bits."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)


@contextmanager
def _holding(student: Student) -> Iterator[dict[int, int]]:
    """Bytes of each piece of memory that what is computed inside keeps for its gradient, weights left out."""
    weights = {one.untyped_storage().data_ptr() for one in student.parameters()}
    held = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield held

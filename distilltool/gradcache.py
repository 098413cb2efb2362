"""Gradients of losses over long lists of images in the memory of a few: a gradient cache (Gao et al., *Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup*, 2021).

The features of all images are made once, the loss gives the gradient of each, and part by part it is passed on through
the network. It is the gradient of one batch of them all. What a part's pass holds for its gradient is kept where there
is room; where there is less, the early part of it, large and soon made, is made again on the way back (Chen et al.,
*Training Deep Nets with Sublinear Memory Cost*, 2016).
"""

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from distilltool import memory
from distilltool.student import Student

PART = 32  # images of a part at least, where there is room
LEAST = 8  # otherwise; still smaller ones are slow
PASS = 2.5e8  # bytes that a larger part may hold: up to here larger ones are faster, or as fast
GPU_SHARE = 0.5  # of a GPU's free memory that kept passes may take


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientCache:
    """part: images whose gradient is passed on at a time. forgets: of each part of a list, how many of the tensors
    that its pass makes for the gradient are not kept, the first ones; gradient and student are the same to the last
    bit for any numbers. kept: share of what all passes hold that is kept. norms: batch normalisation in training, which
    counts every image once, when it is seen first."""

    part: int
    forgets: tuple[int, ...]
    kept: float = math.nan
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
        for number, (pixels, count) in enumerate(zip(parts, self.forgets, strict=True)):
            made.append(_Pass(features, pixels, number, self.norms).made(count))
        del parts, pixels  # each stays as long as its pass
        known_BF = torch.cat([one.detach() for one in made]).requires_grad_()
        found = loss(known_BF)
        if not math.isfinite(found.item()):
            return found.item()
        found.backward()  # type: ignore[no-untyped-call]
        assert known_BF.grad is not None
        for grad_PF in reversed(torch.split(known_BF.grad, [len(one) for one in made])):
            made.pop().backward(grad_PF)  # type: ignore[no-untyped-call]
        return found.item()


class _Forgotten:
    """The place of a tensor that is made again when it is asked for, and is gone when this is."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self) -> None:
        self.tensor: Tensor | None = None


class _Enough(Exception):
    """All that was forgotten is there again; a network that is compiled may raise it as something else."""


class _Pass:
    """A part's pass through the network, of which the first tensors that it makes for the gradient are not kept.

    All is computed as it is for a gradient, whatever is kept: without, torch takes other ways here and there, as for
    attention with a bias that is learned, to other last bits.
    """

    def __init__(
        self, features: Callable[[Tensor, int], Tensor], pixels: Tensor, number: int, norms: tuple[_BatchNorm, ...]
    ) -> None:
        self.features, self.pixels, self.number, self.norms = features, pixels, number, norms
        self.forgotten: list[tuple[weakref.ref[_Forgotten], torch.Size]] = []

    def made(self, forgets: int) -> Tensor:
        """The features, (N, F)."""
        if not forgets:
            return self.features(self.pixels, self.number)

        def hold(tensor: Tensor) -> Tensor | _Forgotten:
            if len(self.forgotten) == forgets:
                return tensor.detach()  # the tensor itself would keep its own graph alive
            place = _Forgotten()
            self.forgotten.append((weakref.ref(place), tensor.shape))
            return place

        with torch.autograd.graph.saved_tensors_hooks(hold, self._found):
            return self.features(self.pixels, self.number)

    def _found(self, held: Tensor | _Forgotten) -> Tensor:
        """What is held, when its gradient is passed on."""
        if isinstance(held, Tensor):
            return held
        if held.tensor is None:
            self._make_again()
        assert held.tensor is not None
        return held.tensor

    def _make_again(self) -> None:
        """The tensors that were forgotten, those that nothing asks for any more left out."""
        places, through = iter(self.forgotten), False

        def put(tensor: Tensor) -> None:
            nonlocal through
            place, shape = next(places)
            assert tensor.shape == shape, "the pass made again is another"
            if (wanted := place()) is not None:
                wanted.tensor = tensor.detach()
            if place is self.forgotten[-1][0]:
                through = True
                raise _Enough

        counted = [(norm, name, known) for norm in self.norms for name, known in norm.named_buffers(recurse=False)]
        for norm, name, known in counted:
            setattr(norm, name, known.clone())
        try:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(put, lambda nothing: nothing):
                self.features(self.pixels, self.number)
        except Exception:
            if not through:
                raise
        finally:
            for norm, name, known in counted:
                setattr(norm, name, known)


def planned(
    student: Student,
    features: Callable[[Student, Tensor], Tensor],
    size: tuple[int, int],
    batch: int,
    batches: int,
    most: float,
) -> GradientCache:
    """Parts for a student in training, by what one pass of it holds for the gradient.

    features: made by a student of images (N, 3, H, W) on the processor. size: height and width of its images. batch:
    images of a batch, of so many batches, which stay together where batch normalisation looks at all of them. most:
    bytes of the process, of which what comes and goes beside the kept passes takes about as much as one of them. On a
    GPU, a share of what is free instead. The last part's pass is always kept, as it is in memory once anyway; parts are
    smaller where there is no room for that, and the others share what is left. It goes back first, with torch's own
    check that no tensor was changed in place meanwhile.
    """
    memory.give_back()
    used = memory.in_use("VmRSS")
    norms = tuple(one for one in student.modules() if isinstance(one, _BatchNorm) and one.training)
    part = batch if norms else min(PART, batch)
    left = held_by(student, features, torch.zeros(part, 3, *size))
    while not norms and 2 * part <= batch and 2 * left[0] <= PASS:
        part, left = 2 * part, [2 * one for one in left]
    device = student.factor.device
    if device.type == "cuda":
        free, taken = GPU_SHARE * torch.cuda.mem_get_info(device)[0], 1
    else:
        free, taken = most - used, 2  # the last pass, and what comes and goes
    while not norms and part >= 2 * LEAST and taken * left[0] > free:
        part //= 2
        left = held_by(student, features, torch.zeros(part, 3, *size))  # not half where weights are held as bfloat16
    room = free - taken * left[0]
    forgets, kept = list[int](), left[0]
    others = batches * -(-batch // part) - 1
    for number in range(others):
        share = room / (others - number)
        forgets.append(next((count for count, held in enumerate(left) if held <= share), len(left) - 1))
        room, kept = room - left[forgets[-1]], kept + left[forgets[-1]]
    share = kept / ((others + 1) * left[0]) if left[0] else 1.0
    return GradientCache(part=part, forgets=(*forgets, 0), kept=share, norms=norms)


def held_by(student: Student, features: Callable[[Student, Tensor], Tensor], images_NCHW: Tensor) -> list[int]:
    """Bytes that a pass of these images holds for the gradient, weights left out, where none, one, two ... all of the
    tensors that it makes for it are forgotten, the first ones; the student stays as it is."""
    device = student.factor.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        probed = copy.deepcopy(student)
        counted = {one.untyped_storage().data_ptr() for one in probed.parameters()}
        seen = list[tuple[int, int]]()

        def hold(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen.append((storage.data_ptr(), storage.nbytes()))
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            made = features(probed, images_NCHW.contiguous(memory_format=torch.channels_last))
        del made  # until here no piece of memory is used twice
    held = [0]
    for place, size in reversed(seen):
        held.append(held[-1] + (0 if place in counted else size))
        counted.add(place)
    return held[::-1]

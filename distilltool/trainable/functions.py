"""What imported graphs compute that torch has no single function for; each runs at run time and can be exported."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def stack_numbers(numbers: Sequence[float], scalar: bool, real: bool, like: Tensor | None = None) -> Tensor:
    """Numbers known at run time as a tensor, on the device of `like`."""
    kind = torch.float32 if real else torch.int64
    device = like.device if like is not None else None
    made = [torch.scalar_tensor(one, dtype=kind, device=device) for one in numbers]
    return made[0] if scalar else torch.stack(made)


def same_pads(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Total padding of each axis for an output of ceil(size / stride), as TensorFlow's SAME."""
    return [
        max((-(-one // step) - 1) * step + (wide - 1) * apart + 1 - one, 0)
        for one, wide, step, apart in zip(size, kernel, stride, dilation, strict=True)
    ]


def pad_same(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], upper: bool, value: float
) -> Tensor:
    """Pad as SAME asks for at the size that comes; the odd row goes to the end where `upper`."""
    pads: list[int] = []
    for total in reversed(same_pads(x.shape[2:], kernel, stride, dilation)):
        less, more = total // 2, total - total // 2
        pads += [less, more] if upper else [more, less]
    return F.pad(x, pads, value=value) if any(pads) else x


class _Relu6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        made: Tensor = F.relu6(x)
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (made,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], made, 0.0, 6.0)


def relu6(x: Tensor) -> Tensor:
    """ReLU6 that keeps what it makes for its gradient, which the next layer keeps too, instead of what it is given.

    torch's own keeps what it is given, nearly half of all that a MobileNetV2 holds. The gradient is the same: 0 at both
    ends and beyond.
    """
    training = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
    made: Tensor = _Relu6.apply(x) if training else F.relu6(x)  # type: ignore[no-untyped-call]
    return made


def softmax_flat(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax over all axes from `axis` on, as ONNX had it before opset 13."""
    flat = x.flatten(axis) if axis else x.reshape(1, -1)
    made = F.log_softmax(flat, -1) if log else F.softmax(flat, -1)
    return made.reshape(x.shape)


def average_pool_uneven(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int], ceil: bool, count_pads: bool
) -> Tensor:
    """Average pooling with padding that differs between the two ends. pads: as F.pad takes them."""
    pool: Any = POOLS[x.ndim - 2]
    padded = F.pad(x, list(pads))
    summed: Tensor = pool(padded, kernel, stride, 0, ceil, True)
    if count_pads:
        return summed
    ones = F.pad(torch.ones_like(x[:1, :1]), list(pads))
    counted: Tensor = pool(ones, kernel, stride, 0, ceil, True)
    return summed / counted


def dilated_average_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    count_pads: bool,
) -> Tensor:
    """Average pooling of places that stand apart: a convolution of each channel with ones."""
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
    channels = x.shape[1]
    weight = x.new_ones(channels, 1, *kernel)
    summed = convolve(F.pad(x, list(pads)), weight, None, stride, 0, dilation, channels)
    if count_pads:
        return summed / math.prod(kernel)
    ones = F.pad(torch.ones_like(x[:1, :1]), list(pads))
    return summed / convolve(ones, weight[:1], None, stride, 0, dilation, 1)


def lp_pool(x: Tensor, power: float, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int]) -> Tensor:
    """(sum |x|^p)^(1/p) over windows."""
    raised = F.pad(x.abs().pow(power), list(pads))
    pool: Any = POOLS[x.ndim - 2]
    summed: Tensor = pool(raised, kernel, stride)
    return (summed * math.prod(kernel)).pow(1 / power)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each channel of each image normalised over its places; one place is its own mean."""
    axes = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    shape = (1, -1, *([1] * (x.ndim - 2)))
    return (x - mean) * torch.rsqrt(variance + eps) * weight.reshape(shape) + bias.reshape(shape)


def normalise_over(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over some axes."""
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


def standardise(x: Tensor, axes: Sequence[int]) -> Tensor:
    """(x - mean) / (standard deviation + 1e-9) over some axes, as ONNX's MeanVarianceNormalization."""
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def rms_norm(x: Tensor, weight: Tensor, axis: int, eps: float) -> Tensor:
    """x / sqrt(mean x² + eps) · weight over the axes from `axis` on."""
    axes = list(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps) * weight


def lp_normalise(x: Tensor, power: int, axis: int) -> Tensor:
    """x / |x|_p along an axis; zero stays zero, with a finite gradient."""
    return F.normalize(x, float(power), axis, 1e-30 if power == 1 else 1e-15)


def depth_to_space(x: Tensor, block: int, first: str) -> Tensor:
    """(N, C·b², H, W) → (N, C, H·b, W·b). first: DCR or CRD, what the channels are counted by first."""
    if first == "CRD":
        return F.pixel_shuffle(x, block)
    count, channels, height, width = x.shape
    deep = channels // block**2
    parts = x.reshape(count, block, block, deep, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(count, deep, height * block, width * block)


def space_to_depth(x: Tensor, block: int, first: str) -> Tensor:
    """(N, C, H, W) → (N, C·b², H/b, W/b). first: DCR or CRD, what the channels are counted by first."""
    if first == "CRD":
        return F.pixel_unshuffle(x, block)
    count, channels, height, width = x.shape
    parts = x.reshape(count, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(count, channels * block**2, height // block, width // block)


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """numpy's take: the places of one axis that `index`, of any shape, names; negative ones count from the end."""
    axis %= x.ndim
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """torch.gather with negative places counted from the end."""
    index = index.to(torch.int64)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def gather_nd(x: Tensor, index: Tensor, batch: int) -> Tensor:
    """ONNX's GatherND: the last axis of `index` names places along the axes after the `batch` first ones."""
    depth, index = index.shape[-1], index.to(torch.int64)
    lead = x.shape[:batch]
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_index = index.reshape(flat_x.shape[0], -1, depth)
    rows = torch.arange(flat_x.shape[0], device=x.device)[:, None].expand(flat_index.shape[:2])
    found = flat_x[(rows, *flat_index.unbind(-1))]
    return found.reshape(*lead, *index.shape[batch:-1], *x.shape[batch + depth :])


def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, axis: int) -> Tensor:
    """torch.scatter with negative places counted from the end."""
    index = index.to(torch.int64)
    return torch.scatter(x, axis, torch.where(index < 0, index + x.shape[axis], index), updates)


def slice_along(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """ONNX's Slice; a step may be negative."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            index = [slice(None)] * (axis % x.ndim) + [slice(start, None if end >= FAR else end, step)]
            x = x[tuple(index)]
        else:
            first = min(start + size if start < 0 else start, size - 1)
            last = max(end + size if -size <= end < 0 else end, -1) if end >= 0 or end >= -size else -1
            places = torch.arange(first, last, step, device=x.device)
            x = x.index_select(axis, places)
    return x


FAR = 2**31 - 1  # an end that means "to the end"


def cumulative_sum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """Running sum along an axis."""
    turned = x.flip(axis) if reverse else x
    made = turned.cumsum(axis, dtype=x.dtype)
    made = made - turned if exclusive else made
    return made.flip(axis) if reverse else made


def extreme_place(x: Tensor, axis: int, keep: bool, last: bool, largest: bool) -> Tensor:
    """Where the largest or smallest number along an axis stands, the first or the last of equal ones."""
    find = torch.argmax if largest else torch.argmin
    if not last:
        return find(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)


def top(x: Tensor, count: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The extreme numbers along an axis in order, and their places; of equal ones the first come first."""
    found = torch.sort(x, dim=axis, descending=largest, stable=True)  # topk takes any of equal ones
    return found.values.narrow(axis, 0, count), found.indices.narrow(axis, 0, count)


def one_hot_largest(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest number along an axis, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def one_hot(index: Tensor, depth: int, off: float, on: float, axis: int) -> Tensor:
    """`on` at the place an index names along a new axis, `off` elsewhere."""
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + depth, index).unsqueeze(axis)
    shape = [1] * index.ndim
    shape[axis] = depth
    places = torch.arange(depth, device=index.device).reshape(shape)
    values = torch.tensor([off, on], device=index.device)
    return values[(index == places).to(torch.int64)]


def reduce_l2(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Euclidean length over some axes."""
    found: Tensor = torch.linalg.vector_norm(x, 2, list(axes), keep)
    return found


def log_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Logarithm of the sum over some axes."""
    return x.sum(list(axes), keepdim=keep).log()


def sum_of_squares(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Sum of squares over some axes."""
    return x.square().sum(list(axes), keepdim=keep)


def product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Product over some axes."""
    for axis in sorted((one % x.ndim for one in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def mean_of(*several: Tensor) -> Tensor:
    """Mean of tensors that are broadcast to one shape."""
    total = several[0]
    for one in several[1:]:
        total = total + one
    return total / len(several)


def same_kind(x: Tensor, like: Tensor) -> Tensor:
    """A tensor as the type of another; floating point stays float32."""
    return x.to(like.dtype)


def local_response(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Across channels, (size - 1) / 2 before and the rest after, as ONNX's LRN."""
    squares = F.pad(x.square().flatten(2).transpose(1, 2), ((size - 1) // 2, size // 2))
    summed = F.avg_pool1d(squares, size, 1) * size
    return x / (bias + alpha / size * summed.transpose(1, 2).reshape(x.shape)).pow(beta)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    causal: bool,
    softcap: float,
    heads: tuple[int, int],
) -> Tensor:
    """ONNX's Attention without a cache: (N, h, T, d), or (N, T, h·d) with `heads` of queries and keys given."""
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            one.reshape(*one.shape[:2], count, -1).transpose(1, 2)
            for one, count in ((q, heads[0]), (k, heads[1]), (v, heads[1]))
        )
    if q.shape[1] != k.shape[1]:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    if mask is not None and mask.shape[-1] < k.shape[2]:
        missing = k.shape[2] - mask.shape[-1]
        mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf)
    if causal:
        below = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = below if mask is None else combine_masks(mask, below)
    if softcap:
        made = _softcapped(q, k, v, mask, scale, softcap)
    else:
        made = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return made.transpose(1, 2).flatten(2) if flat else made


def attend_heads(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float | None, causal: bool, heads: int
) -> Tensor:
    """Attention of queries (N, T, h·d) to keys and values (N, L, h·d) or (N, h, L, d). added: to the scores."""
    q, k, v = (one if one.ndim == 4 else one.reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in (q, k, v))
    return attend(q, k, v, added, scale, causal, 0.0, (heads, heads)).transpose(1, 2).flatten(2)


def combine_masks(mask: Tensor, allowed: Tensor) -> Tensor:
    """A mask of either kind with one of what is allowed."""
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -math.inf)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float) -> Tensor:
    scores = q @ k.mT * (scale if scale is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None, heads: int, wide: int, pairs: bool) -> Tensor:
    """ONNX's RotaryEmbedding: (N, h, T, d), or (N, T, h·d) with `heads` given. wide: of d that are turned, 0: all."""
    flat = x.ndim == 3
    if flat:
        x = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    if places is not None:
        cos, sin = gather(cos, places, 0), gather(sin, places, 0)
    wide = wide or x.shape[-1]
    cos, sin = cos[:, None, :, : wide // 2], sin[:, None, :, : wide // 2]
    turned, rest = x[..., :wide], x[..., wide:]
    if pairs:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, other = cos * first - sin * second, sin * first + cos * second
    made = torch.stack((real, other), -1).flatten(-2) if pairs else torch.cat((real, other), -1)
    made = torch.cat((made, rest), -1)
    return made.transpose(1, 2).flatten(2) if flat else made


def reduce_l1(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Sum of magnitudes over some axes."""
    return x.abs().sum(list(axes), keepdim=keep)


def whole_div(x: Tensor, y: Tensor) -> Tensor:
    """Division of whole numbers, towards zero."""
    return torch.div(x, y, rounding_mode="trunc")


def times(x: float, y: float) -> float:
    """A product of numbers."""
    return x * y


def plus(x: float, y: float) -> float:
    """A sum of numbers."""
    return x + y


def count_up(start: int, limit: int, step: int, like: Tensor) -> Tensor:
    """Numbers from start to limit by steps, on the device of `like`."""
    return torch.arange(start, limit, step, device=like.device)


def rms_over(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """x / sqrt(mean x² + eps) over some axes."""
    return x * torch.rsqrt(x.square().mean(list(axes), keepdim=True) + eps)

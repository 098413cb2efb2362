"""Attention as one operator, and rotary embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from distilltool.trainable import functions
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.operators.linear import linear
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value


@operator("Attention")
def attention(b: Builder, op: Op) -> Value:
    """Attention of opset 23 and 24, without a cache and without its scores."""
    op.first_output_only()
    if any(op.has(at) for at in (4, 5, 6)):
        raise Unsupported("a cache of keys")
    if any(int(op.attribute(name, -1)) >= 0 for name in ("left_window_size", "right_window_size")):
        raise Unsupported("a window")
    q, k, v = (op.tensor(at) for at in range(3))
    mask = op.tensor(3) if op.has(3) else None
    scale: Any = op.attribute("scale")
    heads = (int(op.attribute("q_num_heads", 0)), int(op.attribute("kv_num_heads", 0)))
    causal, softcap = bool(op.attribute("is_causal", 0)), float(op.attribute("softcap", 0.0))
    made: Value = b.emit(
        functions.attend, q, k, v, mask, None if scale is None else float(scale), causal, softcap, heads
    )
    return made


@operator("com.microsoft.Attention")
def packed_attention(b: Builder, op: Op) -> Value:
    """Self-attention of onnxruntime with the projections to queries, keys and values in one weight, as in ViTs.

    Without a mask of padded tokens, a cache or rotary embeddings; an addend to the scores is taken.
    """
    op.first_output_only()
    _refuse(op, {3: "a mask", 4: "a cache of keys", 6: "a cache of keys"})
    if op.attribute("do_rotary", 0):
        raise Unsupported("rotary embeddings")
    x, weight = op.tensor(0), op.constant(1, "weight")
    if not isinstance(x, fx.Node):
        x = b.hold(x)
    bias = op.constant(2, "bias") if op.has(2) else None
    third = weight.shape[1] // 3
    sizes = [int(one) for one in op.attribute("qkv_hidden_sizes", [third] * 3)]
    several = b.emit(torch.split, linear(b, op.name, x, weight, bias), sizes, -1)
    return _attended(b, op, [b.item(several, at) for at in range(3)])


@operator("com.microsoft.MultiHeadAttention")
def multi_head_attention(b: Builder, op: Op) -> Value:
    """Attention of onnxruntime: queries (N, T, h·d) with keys and values (N, L, h·d) or (N, h, L, d).

    Without a mask of padded tokens, a cache, or queries, keys and values packed into one tensor, which onnxruntime runs
    on GPUs alone; a bias of each of the three and an addend to the scores are taken.
    """
    op.first_output_only()
    _refuse(op, {4: "a mask", **dict.fromkeys((6, 7, 8, 9), "a cache of keys")})
    if not op.has(1) or not op.has(2) or b.rank(op.tensor(0)) != 3:
        raise Unsupported("its queries, keys and values are packed into one tensor")
    three = [op.tensor(at) for at in range(3)]
    if op.has(3):
        bias = op.constant(3, "bias").reshape(-1)
        wide = b.shape(three[0])[-1]
        parts = torch.split(bias, [wide, wide, bias.numel() - 2 * wide])
        three = [
            b.emit(torch.add, one, part) if b.rank(one) == 3 else one  # keys split by heads come with theirs
            for one, part in zip(three, parts, strict=True)
        ]
    return _attended(b, op, three)


def _refuse(op: Op, inputs: Mapping[int, str]) -> None:
    for at, what in inputs.items():
        if op.has(at):
            raise Unsupported(what)


def _attended(b: Builder, op: Op, three: Sequence[Any]) -> Value:
    """Attention of queries, keys and values by onnxruntime's attributes; its sixth input is added to the scores."""
    scale: Any = op.attribute("scale")
    made: Value = b.emit(
        functions.attend_heads,
        *three,
        op.tensor(5) if op.has(5) else None,
        float(scale) if scale else None,
        bool(op.attribute("unidirectional", 0)),
        int(op.attribute("num_heads")),
    )
    return made


@operator("RotaryEmbedding")
def rotary(b: Builder, op: Op) -> Value:
    """RotaryEmbedding of opset 23."""
    places = op.tensor(3) if op.has(3) else None
    made: Value = b.emit(
        functions.rotate,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        places,
        int(op.attribute("num_heads", 0)),
        int(op.attribute("rotary_embedding_dim", 0)),
        bool(op.attribute("interleaved", 0)),
    )
    return made

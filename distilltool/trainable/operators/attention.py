"""Attention as one operator, and rotary embeddings."""

from typing import Any

from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.functions import attend, rotate
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
    made: Value = b.emit(attend, q, k, v, mask, None if scale is None else float(scale), causal, softcap, heads)
    return made


@operator("RotaryEmbedding")
def rotary(b: Builder, op: Op) -> Value:
    """RotaryEmbedding of opset 23."""
    places = op.tensor(3) if op.has(3) else None
    made: Value = b.emit(
        rotate,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        places,
        int(op.attribute("num_heads", 0)),
        int(op.attribute("rotary_embedding_dim", 0)),
        bool(op.attribute("interleaved", 0)),
    )
    return made

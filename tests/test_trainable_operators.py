"""Each operator against ONNX's own test cases, which hold their answers, with constant and with computed operands."""

import functools
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from test_trainable import model_of, node, off, runtime

import distilltool.trainable.operators  # noqa: F401
from distilltool import trainable
from distilltool.errors import DistillError
from distilltool.graph import Graph
from distilltool.trainable.building import rebuild
from distilltool.trainable.registry import OPERATORS

RNG = np.random.default_rng(0)
REAL = (np.float32, np.float64, np.float16)

# what is no part of networks that embed images, or of their inference; by a part of the case's name
LEFT_OUT = {
    "test_quantizelinear": "rounding is left out on purpose",
    "dynamicquantizelinear": "rounding is left out on purpose",
    "training_mode": "batch normalisation that estimates",
    "_train": "batch normalisation that estimates",
    "training": "dropout that drops",
    "sequence": "no tensors",
    "optional": "no tensors",
    "string": "no numbers",
    "_seq": "no tensors",
    "loop": "no loop is unrolled",
    "scan": "no loop is unrolled",
    "bf16": "not a type of numpy",
    "bfloat16": "not a type of numpy",
    "uint16": "not a type of torch",
    "uint32": "not a type of torch",
    "uint64": "not a type of torch",
    "INT4": "not a type of torch",
    "INT2": "not a type of torch",
    "FLOAT4": "not a type of torch",
    "FLOAT8": "not a type of torch",
    "float8": "not a type of torch",
    "e4m3": "not a type of torch",
    "e5m2": "not a type of torch",
    "e8m0": "not a type of torch",
}
ONE_OUTPUT = {"LayerNormalization", "MaxPool", "Dropout", "Attention"}
# the first input, too, must be known while the graph is rebuilt
KNOWN = {"Range", "ConstantOfShape", "NonZero", "If", "Constant"}
# what the runtime that teachers run in computes otherwise than the standard: it is right here
RUNTIME_DECIDES = ("scales_linear_align_corners", "scales_cubic_align_corners", "ceil_last_window")
ANSWERED_WITH_AN_ERROR: dict[str, str] = {
    "with_past": "a cache of keys",
    "nonpad": "a cache of keys",
    "padded_kv": "a cache of keys",
    "ext_cache": "a cache of keys",
    "attention_3d_local_window": "a window",
    "attention_local_window_ext": "a cache of keys|a window",
    "attention_local_window_[^de]|attention_local_window$": "a window|a cache",
    "attention_bidirectional_window": "a window",
    "elements_with_reduction": "its reduction",
    "duplicate_indices": "its reduction",
    "tf_crop_and_resize": "tf_crop_and_resize",
    "not_larger": "keep_aspect_ratio_policy",
    "not_smaller": "keep_aspect_ratio_policy",
    "blocked": "block_size",
    "mvn": "over the batch",
    "lppool_2d_dilations": "dilations",
    "dilations_large_count_include_pad_is_0_ceil_mode_is_True": "dilations with ceil_mode",
    "dilations_large_count_include_pad_is_1_ceil_mode_is_True": "dilations with ceil_mode",
    "reduce_max_empty": "zero-size",
    "reduce_min_empty": "zero-size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model of one node with inputs and what it makes of them."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@functools.cache
def cases() -> dict[str, Case]:
    """The cases whose operators are all here."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    made = {}
    for one in found:
        if one.model is None or not all(_known(node) for node in one.model.graph.node) or not one.data_sets:
            continue
        if one.model.functions or any(part in one.name for part in LEFT_OUT):
            continue
        inputs, outputs = one.data_sets[0]
        if all(isinstance(x, np.ndarray | np.generic) for x in (*inputs, *outputs)):
            made[one.name] = Case(name=one.name, model=one.model, inputs=tuple(inputs), outputs=tuple(outputs))
    return made


def _known(node: onnx.NodeProto) -> bool:
    return (node.op_type if not node.domain else f"{node.domain}.{node.op_type}") in OPERATORS


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """As the module computes: float32."""
    array = np.asarray(array)
    made = torch.from_numpy(np.array(array.astype(np.float32) if array.dtype.kind == "f" else array))
    return made


def computed(case: Case, runtime: list[int]) -> list[NDArray[Any]]:
    """What the rebuilt graph makes, with these inputs given at run time and the others as constants."""
    graph = Graph(case.model)
    names = [one.name for one in case.model.graph.input]
    tensors = {name: as_torch(array) for name, array in zip(names, case.inputs, strict=True)}
    live = [names[at] for at in runtime]
    shapes = {name: (tuple(tensors[name].shape),) * 2 for name in live}
    dtypes = {name: str(tensors[name].dtype).removeprefix("torch.") for name in live}
    settings = {name: one for name, one in tensors.items() if name not in live}
    made = []
    for one in case.model.graph.output[: 1 if case.model.graph.node[0].op_type in ONE_OUTPUT else None]:
        module, _ = rebuild(graph, shapes, dtypes, (one.name,), settings)
        with torch.no_grad():
            made.append(module(*[tensors[name] for name in live]).numpy())
    return made


def check(case: Case, runtime: list[int]) -> None:
    """Compare with the answers that come with the case."""
    answers: Any = case.outputs
    if any(part in case.name for part in RUNTIME_DECIDES):
        session = ort.InferenceSession(case.model.SerializeToString())
        fed = zip(session.get_inputs(), case.inputs, strict=True)
        answers = session.run(None, {one.name: x for one, x in fed})
    for got, wanted in zip(computed(case, runtime), answers, strict=False):
        wanted = np.asarray(wanted)
        assert got.shape == wanted.shape
        tolerance = 2e-3 if np.float16 in {np.asarray(x).dtype.type for x in case.inputs} else 2e-5
        np.testing.assert_allclose(got, wanted, rtol=tolerance * 5, atol=tolerance)


@pytest.mark.parametrize("name", sorted(cases()))
def test_as_onnx_defines_it(name: str) -> None:
    """The first input at run time, and then every input of real numbers."""
    case = cases()[name]
    real = [at for at, x in enumerate(case.inputs) if np.asarray(x).dtype.type in REAL and np.asarray(x).size]
    first = [] if any(node.op_type in KNOWN for node in case.model.graph.node) else [0]
    refused = [part for part in ANSWERED_WITH_AN_ERROR if re.search(part, name) and "expanded" not in name]
    if refused:
        with pytest.raises(DistillError, match=ANSWERED_WITH_AN_ERROR[refused[-1]]):
            check(case, first)
        return
    check(case, first)
    if first and real not in ([0], []):
        try:
            check(case, real)
        except DistillError as error:  # factors and limits must be known
            assert "is computed from the image" in str(error)  # noqa: PT017


def real(*shape: int) -> NDArray[np.float32]:
    """Random numbers, of a generator that no other file draws from."""
    return RNG.normal(0, 1, shape).astype(np.float32)


def fused(kind: str, inputs: str, **attributes: Any) -> onnx.NodeProto:
    """An operator of onnxruntime's own, from which y comes."""
    return node(kind, inputs, "y", domain="com.microsoft", **attributes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Small:
    """A graph from x to y that onnxruntime answers for.

    size: of the numbers that come; steps: how far a rounded one may be off, in absolute terms.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, Any]
    shape: tuple[int, ...] = (2, 5, 6)
    size: float = 1.0
    steps: float = 0.0


CONV: dict[str, Any] = {"w": real(8, 3, 3, 3), "b": real(8)}
GEMM: dict[str, Any] = {"w": real(9, 6), "b": real(9)}
NORM6: dict[str, Any] = {"g": real(6), "b": real(6)}
ONE_BY_ONE = {"activation_alpha": 0.3, "activation_beta": 0.4, "activation_gamma": 0.7}
SPLIT_HEADS = [node("Reshape", "x heads", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3])]
SMALL: dict[str, Small] = {
    **{
        f"FusedConv {kind}": Small(
            nodes=[
                fused("FusedConv", "x w b", activation=kind, pads=[1] * 4, **({"activation_params": p} if p else {}))
            ],
            constants=CONV,
            shape=(2, 3, 8, 8),
        )
        for kind, p in {
            "Relu": [],
            "Tanh": [],
            "Sigmoid": [],
            "HardSwish": [],
            "LeakyRelu": [0.2],
            "Clip": [-0.5, 0.6],
            "HardSigmoid": [0.2, 0.4],
        }.items()
    },
    "FusedConv to six": Small(
        nodes=[fused("FusedConv", "x w b", activation="Clip", activation_params=[0.0, 6.0])],
        constants=CONV,
        shape=(2, 3, 8, 8),
    ),
    "FusedConv with a tensor added": Small(
        nodes=[node("Conv", "x w", "z"), fused("FusedConv", "x w b z", activation="Relu")],
        constants=CONV,
        shape=(2, 3, 8, 8),
    ),
    **{
        f"FusedGemm {kind}": Small(
            nodes=[fused("FusedGemm", "x w b", activation=kind, transB=1, alpha=0.5, beta=2.0, **ONE_BY_ONE)],
            constants=GEMM,
            shape=(4, 6),
        )
        for kind in "Relu Tanh Sigmoid LeakyRelu Elu HardSigmoid Selu Softplus Softsign ThresholdedRelu".split()
    },
    "FusedMatMul": Small(nodes=[fused("FusedMatMul", "x w", transB=1, alpha=0.5)], constants={"w": real(9, 6)}),
    "FusedMatMul of the other turned": Small(
        nodes=[fused("FusedMatMul", "x w", transA=1)], constants={"w": real(5, 7)}
    ),
    "FusedMatMul of two computed": Small(nodes=[fused("FusedMatMul", "x x", transB=1, alpha=0.4)], constants={}),
    "BiasGelu": Small(nodes=[fused("BiasGelu", "x b")], constants=NORM6),
    "FastGelu": Small(nodes=[fused("FastGelu", "x b")], constants=NORM6),
    "FastGelu without a bias": Small(nodes=[fused("FastGelu", "x")], constants={}),
    "Gelu": Small(nodes=[fused("Gelu", "x")], constants={}),
    "QuickGelu": Small(nodes=[fused("QuickGelu", "x")], constants={}),
    "QuickGelu of one": Small(nodes=[fused("QuickGelu", "x", alpha=1.0)], constants={}),
    "SkipLayerNormalization": Small(
        nodes=[node("Relu", "x", "r"), fused("SkipLayerNormalization", "x r g b c", epsilon=1e-3)],
        constants={**NORM6, "c": real(6)},
    ),
    "SkipLayerNormalization of small numbers": Small(
        nodes=[node("Relu", "x", "r"), fused("SkipLayerNormalization", "x r g b")], constants=NORM6, size=1e-6
    ),
    "SkipLayerNormalization's sum": Small(
        nodes=[
            helper.make_node(
                "SkipLayerNormalization", ["x", "s", "g"], ["n", "", "", "m"], domain="com.microsoft", epsilon=1e-3
            ),
            node("Mul", "n m", "y"),
        ],
        constants={**NORM6, "s": real(5, 6)},
    ),
    "SkipSimplifiedLayerNormalization": Small(
        nodes=[node("Relu", "x", "r"), fused("SkipSimplifiedLayerNormalization", "x r g c", epsilon=1e-3)],
        constants={**NORM6, "c": real(6)},
    ),
    "SkipSimplifiedLayerNormalization of small numbers": Small(
        nodes=[node("Relu", "x", "r"), fused("SkipSimplifiedLayerNormalization", "x r g")], constants=NORM6, size=1e-6
    ),
    "SkipSimplifiedLayerNormalization's sum": Small(
        nodes=[
            helper.make_node(
                "SkipSimplifiedLayerNormalization", ["x", "s", "g"], ["n", "", "", "m"], domain="com.microsoft"
            ),
            node("Mul", "n m", "y"),
        ],
        constants={**NORM6, "s": real(2, 5, 6)},
    ),
    "SimplifiedLayerNormalization": Small(
        nodes=[node("SimplifiedLayerNormalization", "x g", "y")], constants=NORM6, size=1e-2
    ),
    "GlobalLpPool": Small(nodes=[node("GlobalLpPool", "x", "y")], constants={}, shape=(2, 3, 8, 8)),
    "GlobalLpPool of one": Small(nodes=[node("GlobalLpPool", "x", "y", p=1)], constants={}, shape=(2, 3, 8, 8)),
    "QuantizeLinear": Small(
        nodes=[node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        constants={"s": np.float32(0.05), "z": np.uint8(128)},
        steps=0.0251,
    ),
    "Attention": Small(
        nodes=[fused("Attention", "x w b", num_heads=2)], constants={"w": real(8, 24), "b": real(24)}, shape=(2, 5, 8)
    ),
    "Attention with other values and an addend": Small(
        nodes=[fused("Attention", "x w b - - m", num_heads=2, qkv_hidden_sizes=[8, 8, 12], scale=0.3)],
        constants={"w": real(8, 28), "b": real(28), "m": real(1, 2, 5, 5)},
        shape=(2, 5, 8),
    ),
    "Attention of what came before": Small(
        nodes=[fused("Attention", "x w b", num_heads=4, unidirectional=1)],
        constants={"w": real(8, 24), "b": real(24)},
        shape=(2, 5, 8),
    ),
    "MultiHeadAttention": Small(
        nodes=[node("Relu", "x", "k"), node("Neg", "x", "v"), fused("MultiHeadAttention", "x k v", num_heads=2)],
        constants={},
        shape=(2, 5, 8),
    ),
    "MultiHeadAttention with biases and an addend": Small(
        nodes=[node("Neg", "x", "v"), fused("MultiHeadAttention", "x x v b - m", num_heads=2, scale=0.3)],
        constants={"b": real(24), "m": real(1, 1, 5, 5)},
        shape=(2, 5, 8),
    ),
    "MultiHeadAttention to other tokens": Small(
        nodes=[
            node("MatMul", "p x", "k"),
            node("MatMul", "k w", "v"),
            fused("MultiHeadAttention", "x k v b", num_heads=2),
        ],
        constants={"p": real(3, 5), "w": real(8, 12), "b": real(28)},
        shape=(2, 5, 8),
    ),
    "MultiHeadAttention of keys by head": Small(
        nodes=[*SPLIT_HEADS, fused("MultiHeadAttention", "x t t b", num_heads=2)],
        constants={"heads": np.array([0, 0, 2, 4]), "b": real(24)},
        shape=(2, 5, 8),
    ),
    "MultiHeadAttention of what came before": Small(
        nodes=[fused("MultiHeadAttention", "x x x b", num_heads=2, unidirectional=1)],
        constants={"b": real(24)},
        shape=(2, 5, 8),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_as_onnxruntime_computes_it(name: str) -> None:
    """What the standard has no cases of: operators of onnxruntime's own, their defaults, and rounding that is left
    out; at another batch than the graph was followed at."""
    one = SMALL[name]
    model = model_of(one.nodes, one.constants, ["n", *one.shape[1:]], opset=20)
    x = one.size * real(*one.shape)
    with torch.no_grad():
        got = trainable.build(model)(torch.from_numpy(x))
    wanted = runtime(model, x)
    if one.steps:
        assert float(np.abs(got.numpy() - wanted).max()) <= one.steps
    else:
        assert off(got, wanted) <= 2e-5


def test_every_operator_has_a_case() -> None:
    """A new one without any cannot be left out."""
    models = [one.model for one in cases().values()]
    nodes = [node for model in models for node in model.graph.node] + [n for one in SMALL.values() for n in one.nodes]
    named = {one.op_type if not one.domain else f"{one.domain}.{one.op_type}" for one in nodes}
    assert set(OPERATORS) - named == set()


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("Relu", "x", "r"), fused("Attention", "r w b mask", num_heads=2)], "a mask"),
        ([fused("Attention", "x w b - past", num_heads=2)], "a cache of keys"),
        ([fused("Attention", "x w b", num_heads=2, do_rotary=1)], "rotary embeddings"),
        ([fused("MultiHeadAttention", "x x x - mask", num_heads=2)], "a mask"),
        ([fused("MultiHeadAttention", "x x x - - - past past", num_heads=2)], "a cache of keys"),
        ([fused("MultiHeadAttention", "x", num_heads=2)], "packed into one tensor"),
        ([node("Conv", "x w", "z"), fused("FusedConv", "x w b", activation="Gelu")], "its activation Gelu"),
        ([fused("FusedGemm", "x w b", activation="LeakyRelu", transB=1)], "0 parameters, not 1"),
    ],
)
def test_what_of_them_is_not_rebuilt_is_said(nodes: list[onnx.NodeProto], said: str) -> None:
    """In words, before anything is trained."""
    shape = (
        ["n", 3, 8, 8] if "Conv" in nodes[0].op_type else ["n", 6] if nodes[0].op_type == "FusedGemm" else ["n", 5, 8]
    )
    constants = CONV if len(shape) == 4 else GEMM if len(shape) == 2 else {"w": real(8, 24), "b": real(24)}
    held = {"mask": np.ones((2, 5), np.int32), "past": real(2, 2, 2, 5, 4)}
    with pytest.raises(DistillError, match=said):
        trainable.build(model_of(nodes, {**constants, **held}, shape, opset=20))

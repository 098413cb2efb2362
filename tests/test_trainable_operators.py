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

import distilltool.trainable.operators  # noqa: F401
from distilltool.errors import DistillError
from distilltool.graph import Graph
from distilltool.trainable.building import rebuild
from distilltool.trainable.registry import OPERATORS

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

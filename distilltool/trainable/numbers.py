"""Tensors of an ONNX file as torch tensors, every floating-point type as float32; and files without them.

An architecture is a model whose weights have their dimensions and no numbers. Numbers that shapes, factors and indices
are made of stay, so that it is rebuilt as the model itself is.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from distilltool.errors import DistillError
from distilltool.graph import SMALL, Graph, tensors

FEW_REALS = 16  # floating-point numbers that are factors or limits; what is longer is weights
MASK = "mask"  # said of a tensor without numbers that held some too large for a weight
HUGE = 1e4  # a constant that holds larger numbers is a mask, no weight
KEPT = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
DATA = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def read(tensor: onnx.TensorProto) -> Tensor:
    """A tensor's numbers; of one that was emptied, zeros or what marks a mask."""
    if uses_external_data(tensor):
        raise DistillError(
            f"the weight {tensor.name!r} lies outside the model file", "read it with distilltool.trainable.read_whole"
        )
    if _is_empty(tensor):
        value = -1e9 if tensor.doc_string == MASK else 0.0
        return torch.full(tuple(tensor.dims), value).to(_kind(tensor))
    array: Any = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "fiub":  # bfloat16 and smaller, which numpy knows by extension
        array = array.astype(np.float32)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    found = torch.from_numpy(np.array(array))
    return found.float() if found.dtype.is_floating_point else found


def _kind(tensor: onnx.TensorProto) -> torch.dtype:
    kinds: dict[int, torch.dtype] = {
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.INT8: torch.int8,
        TensorProto.UINT8: torch.uint8,
        TensorProto.BOOL: torch.bool,
    }
    return kinds.get(int(tensor.data_type), torch.float32)


def _is_empty(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) > 0 and not any(len(getattr(tensor, name)) for name in DATA)


def architecture(model: onnx.ModelProto, output: str | None = None) -> onnx.ModelProto:
    """A model up to an output without its weights' numbers: dimensions stay, and what shapes are computed from.

    `build` makes of it the module that it makes of the model, to be filled by load_state_dict.
    """
    graph = Graph(model)
    bare = graph.cut(output or graph.outputs[0].name)
    bare.ClearField("functions")
    _forget_sources(bare)
    for tensor in tensors(bare.graph):
        if not _stays(tensor):
            _empty(tensor)
    return bare


def _forget_sources(model: onnx.ModelProto) -> None:
    """Take out what exporters note of where a node was written: traces with the paths of their machine."""
    del model.metadata_props[:]
    for one in (*model.graph.node, *model.graph.input, *model.graph.output):
        one.doc_string = ""
        del one.metadata_props[:]


def _stays(tensor: onnx.TensorProto) -> bool:
    count = math.prod(tensor.dims)
    if tensor.data_type in KEPT:
        return bool(count * 8 <= SMALL)
    return bool(count <= FEW_REALS)


def _empty(tensor: onnx.TensorProto) -> None:
    real = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    masks = real and not uses_external_data(tensor) and not _is_empty(tensor) and is_mask(read(tensor))
    for name in (*DATA, "external_data", "data_location"):
        tensor.ClearField(name)
    tensor.doc_string = MASK if masks or tensor.doc_string == MASK else ""


def is_mask(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that no weight has."""
    return not bool((tensor.abs() < HUGE).all())

"""Half precision."""

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from distilltool.precisions import Given


def fp16(given: Given) -> onnx.ModelProto:
    """Weights and arithmetic in float16 by onnxruntime's converter, about half the size; inputs and outputs stay.

    It pays where a device computes in float16; processors without such instructions convert back and forth.
    """
    model: onnx.ModelProto = convert_float_to_float16(
        onnx.ModelProto.FromString(given.model.SerializeToString()),  # it writes into what it is given
        keep_io_types=True,
        node_block_list=list(given.leave),
    )
    once = {tuple(node.output): node for node in model.graph.node}  # it repeats a cast for each node that stays
    del model.graph.node[:]
    model.graph.node.extend(once.values())
    OnnxModel(model).topological_sort()
    return model

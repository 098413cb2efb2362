"""Weights in 8 bits, activations measured as they come."""

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from distilltool.precisions import Given
from distilltool.quantising import check_there_is, prepared, quiet

PRODUCTS = ("MatMul", "Gemm")  # of convolutions it makes slow ones


def int8_dynamic(given: Given) -> onnx.ModelProto:
    """Matrix products with a scale for each output; nothing is calibrated. For transformers and linear heads."""
    check_there_is(given.model, PRODUCTS, given.leave)
    out = given.folder / "int8-dynamic.onnx"
    with quiet():
        quantize_dynamic(
            prepared(given),
            out,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            reduce_range=given.saturates,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(given.leave),
        )
    return onnx.load(out)

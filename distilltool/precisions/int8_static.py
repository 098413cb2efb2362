"""Weights and activations in 8 bits, ranges measured on images."""

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from distilltool.precisions import Given
from distilltool.quantising import WEIGHTED, Images, check_there_is, prepared, quiet

ATTENTION = ("Softmax", "LayerNormalization", "Attention", "MultiHeadAttention")


def int8_static(given: Given) -> onnx.ModelProto:
    """Unsigned activations, signed weights with a scale for each channel, as QDQ pairs that other runtimes read too.

    In a transformer the products alone are quantised. Where the machine adds products of 8 bits in 16, weights take 7
    of them (onnxruntime's reduce_range), or sums saturate. For TensorRT, which takes signed ones around zero alone,
    activations are such too (its developer guide, explicit quantization).
    """
    check_there_is(given.model, WEIGHTED, given.leave)
    attends = any(node.op_type in ATTENTION for node in given.model.graph.node)
    out = given.folder / "int8-static.onnx"
    with quiet():
        quantize_static(
            prepared(given),
            out,
            Images(given.model.graph.input[0].name, given.batches()),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if given.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=given.saturates,
            op_types_to_quantize=list(WEIGHTED) if attends else None,
            nodes_to_exclude=list(given.leave),
            extra_options={
                "ActivationSymmetric": given.symmetric,
                "CalibMovingAverage": True,  # an odd image widens no range
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],  # of the head; others are read in 8 bits
            },
        )
    return onnx.load(out)

"""A student as an ONNX graph, without traces of the machine it was made on."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from distilltool.defaults import OPSET
from distilltool.errors import DistillError
from distilltool.onnx_file import first_line, opset_of
from distilltool.student import Student


class _Deployed(nn.Module):
    """Bytes as they come out of a decoder, (N, H, W, 3) uint8 → unit vectors (N, D)."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images_NHWC: Tensor) -> Tensor:
        vectors: Tensor = self.student(images_NHWC.permute(0, 3, 1, 2))
        return vectors


def to_onnx(student: Student, size: tuple[int, int], opset: int) -> onnx.ModelProto:
    """The graph from `images`, (N, H, W, 3) uint8 with N free, to `embedding`, (N, D) float32 of length 1.

    size: height and width. Raises DistillError where the exporter cannot, or writes another opset.
    """
    try:
        model = _written(student, size, opset)
    except OnnxExporterError:
        try:
            with _unfused(student):  # torch 2.13 cannot write attention with a bias for a free batch as one
                model = _written(student, size, opset)
        except OnnxExporterError as error:
            why = first_line(error.__cause__ or error)
            raise DistillError(
                f"PyTorch cannot write this student as ONNX ({why})", "choose another --student"
            ) from None
    got = opset_of(model)
    if got != opset:
        raise DistillError(f"the exporter wrote opset {got} instead of {opset}", f"use --opset {got}")
    _strip(model)
    return model


def _written(student: Student, size: tuple[int, int], opset: int) -> onnx.ModelProto:
    """What the exporter makes of it."""
    with _quiet():
        program = torch.onnx.export(
            _Deployed(student).eval(),
            (torch.zeros(2, *size, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes={"images_NHWC": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _unfused(student: Student) -> Iterator[None]:
    """Attention of timm's networks as products and a softmax, which give the same numbers."""
    fused: list[Any] = [one for one in student.modules() if getattr(one, "fused_attn", False) is True]
    for one in fused:
        one.fused_attn = False
    try:
        yield
    finally:
        for one in fused:
            one.fused_attn = True


def check_exports(student: Student, size: tuple[int, int]) -> None:
    """Raise DistillError where a student could not be exported; it and torch's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        to_onnx(copy.deepcopy(student).cpu(), size, OPSET)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and through warnings about its own insides."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its sources: stack traces with absolute paths, names of modules."""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in graph.value_info:
            del value.metadata_props[:]
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        tensor.doc_string = ""
        del tensor.metadata_props[:]

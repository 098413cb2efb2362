"""Runs inside Triton's Python backend: an ONNX file as a model. The folder that holds it is its model's version."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One model; the names are those Triton looks for."""

    def initialize(self, _args: dict[str, str]) -> None:
        """Open the file one folder up."""
        file = Path(__file__).parent.parent / "model.onnx"
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = self._session.get_inputs()[0].name
        images = triton.get_input_tensor_by_name(request, given).as_numpy()
        names = request.requested_output_names()
        found = self._session.run(names, {given: np.ascontiguousarray(images)})
        return triton.InferenceResponse([triton.Tensor(name, one) for name, one in zip(names, found, strict=True)])

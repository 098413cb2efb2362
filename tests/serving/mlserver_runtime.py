"""Runs inside MLServer: an ONNX file as a model that counts its calls and misbehaves on demand.

Beside this file lie model.onnx; calls.txt, to which a line is added for each image before it is answered; and, where
a test puts it there, trouble.json: {"call": from which call on, "sleep": seconds, "status": error to answer with}.
"""

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest, InferenceResponse

HERE = Path(__file__).parent


class OnnxModel(MLModel):
    """One model; calls are counted from 1 since the server was started."""

    async def load(self) -> bool:
        """Open the file beside this one."""
        self._session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
        self._calls = 0
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a batch."""
        given = self._session.get_inputs()[0]
        images = np.asarray(NumpyCodec.decode_input(payload.inputs[0]))
        self._calls += 1
        with (HERE / "calls.txt").open("a") as calls:
            calls.writelines(hashlib.sha256(image.tobytes()).hexdigest() + "\n" for image in images)
        trouble = json.loads((HERE / "trouble.json").read_text()) if (HERE / "trouble.json").exists() else {}
        if trouble and self._calls >= trouble["call"]:
            await asyncio.sleep(trouble.get("sleep", 0))
            if "status" in trouble:
                raise MLServerError("told to fail", trouble["status"])
        names = [one.name for one in self._session.get_outputs()]
        found = self._session.run(names, {given.name: images})
        outputs = [NumpyCodec.encode_output(name, one) for name, one in zip(names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)

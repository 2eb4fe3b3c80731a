"""Model for Triton's Python backend: the benchmark's policy behind named tensors.

The client sends this file with `PACKAGES` (the folder of numpy < 2) and `POLICY` (the file beside this one) set above.
"""

import sys

PACKAGES = ""
POLICY = ""
sys.path.insert(0, PACKAGES)  # Triton's interpreter ignores PYTHONPATH.

import importlib.util
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

_spec = importlib.util.spec_from_file_location("policy", POLICY)
_policy: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(_policy)  # type: ignore[union-attr]


class TritonPythonModel:
    """Model class that the backend instantiates."""

    def initialize(self, args: dict[str, str]) -> None:
        self._policy = _policy.Policy()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        observation = {}
        for tensor in request.inputs():
            array = tensor.as_numpy()
            observation[tensor.name()] = array[0].decode() if array.dtype == np.object_ else array
        reply = self._policy.infer(observation)
        outputs = [backend.Tensor("actions", reply["actions"]), backend.Tensor("check", np.array([reply["check"]]))]
        return backend.InferenceResponse(outputs)

"""Client half of the Triton peer: one region of system shared memory for each form of observation."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .leftovers import my_prefix
from .out_of_band import up
from .policy import ACTIONS_SHAPE

OUTPUTS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "actions": (np.dtype(np.float32), ACTIONS_SHAPE),
    "check": (np.dtype(np.int64), (1,)),
}
HERE = Path(__file__).parent


def tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return the leaves of an observation with names; a string is a tensor of one bytes object, as in Triton."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif isinstance(tree, str):
        yield path, np.array([tree.encode()], np.object_)
    else:
        for key, leaf in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from tensors(leaf, f"{path}.{key}" if path else str(key))


class Form:
    """Model of one form of observation, loaded once, with its region and the request that points into it."""

    def __init__(self, client: Any, observation: dict[str, Any], packages: str) -> None:
        from tritonclient import grpc
        from tritonclient.utils import np_to_triton_dtype, shared_memory

        self._client, self._memory = client, shared_memory
        named = dict(tensors(observation))
        types = {name: np_to_triton_dtype(tensor.dtype) for name, tensor in named.items()}
        shapes = {name: list(tensor.shape) for name, tensor in named.items()}
        self._model = hashlib.sha256(json.dumps([types, shapes]).encode()).hexdigest()[:16]
        if not client.is_model_ready(self._model):
            client.load_model(self._model, config=config(types, shapes), files={"file:1/model.py": source(packages)})

        sizes = {name: encoded(tensor)[0] for name, tensor in named.items()}
        sizes |= {name: int(np.prod(shape)) * dtype.itemsize for name, (dtype, shape) in OUTPUTS.items()}
        starts = dict(zip(sizes, np.cumsum([0, *map(up, sizes.values())]).tolist(), strict=False))
        total = sum(map(up, sizes.values()))
        self._starts = starts
        self._region = my_prefix() + uuid.uuid4().hex
        self._handle = shared_memory.create_shared_memory_region(self._region, f"/{self._region}", total)
        client.register_system_shared_memory(self._region, f"/{self._region}", total)
        atexit.register(self._close)

        self._inputs = [grpc.InferInput(name, shapes[name], types[name]) for name in named]
        self._outputs = [grpc.InferRequestedOutput(name) for name in OUTPUTS]
        for tensor in [*self._inputs, *self._outputs]:
            tensor.set_shared_memory(self._region, sizes[tensor.name()], offset=starts[tensor.name()])

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        for name, tensor in tensors(observation):
            self._memory.set_shared_memory_region(self._handle, [encoded(tensor)[1]], offset=self._starts[name])
        self._client.infer(self._model, self._inputs, outputs=self._outputs)
        reply = {
            name: self._memory.get_contents_as_numpy(self._handle, dtype, shape, offset=self._starts[name]).copy()
            for name, (dtype, shape) in OUTPUTS.items()
        }
        return {**reply, "check": int(reply["check"][0])}

    def _close(self) -> None:
        from tritonclient.utils import InferenceServerException

        self._memory.destroy_shared_memory_region(self._handle)
        with contextlib.suppress(InferenceServerException):  # The server may have ended before its client.
            self._client.unregister_system_shared_memory(self._region)


def form_of(observation: dict[str, Any]) -> tuple[object, ...]:
    """Return the key of a form: names, types and sizes."""
    return tuple((name, tensor.dtype, tensor.shape, encoded(tensor)[0]) for name, tensor in tensors(observation))


def encoded(tensor: Any) -> tuple[int, Any]:
    """Return the size of a tensor in shared memory, and the array that tritonclient copies there."""
    if tensor.dtype != np.object_:
        return tensor.nbytes, tensor
    text: bytes = tensor[0]
    wire = np.empty((), np.object_)
    wire[()] = len(text).to_bytes(4, "little") + text
    return len(text) + 4, wire


def config(types: dict[str, str], shapes: dict[str, list[int]]) -> str:
    """Return the model's configuration, with the observation's tensors as inputs."""
    inputs = [
        {"name": name, "data_type": f"TYPE_{'STRING' if types[name] == 'BYTES' else types[name]}", "dims": shapes[name]}
        for name in types
    ]
    outputs = [
        {"name": "actions", "data_type": "TYPE_FP32", "dims": ACTIONS_SHAPE},
        {"name": "check", "data_type": "TYPE_INT64", "dims": [1]},
    ]
    model = {"backend": "python", "max_batch_size": 0, "input": inputs, "output": outputs}
    return json.dumps({**model, "instance_group": [{"kind": "KIND_CPU"}]})


def source(packages: str) -> bytes:
    """Return triton_model.py with its two paths."""
    text = (HERE / "triton_model.py").read_text()
    text = text.replace('PACKAGES = ""', f"PACKAGES = {os.path.abspath(packages)!r}")
    return text.replace('POLICY = ""', f"POLICY = {str(HERE / 'policy.py')!r}").encode()

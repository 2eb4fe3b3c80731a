"""Runs a model before it serves, as a request would run it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shmserve.codec import Encoder, SlotMemory
from shmserve.schema import Schema, describe

from .models.model import Model
from .staging import Staging, aligned_bytes

log = logging.getLogger(__name__)

#: The first calls allocate, choose kernels and compile; later ones show what a request will cost.
_ROUNDS = 3


@dataclass(frozen=True)
class Warmth:
    """What the warm-up showed."""

    request_bytes: int  # payload of the example; 0 without one
    reply_bytes: int
    infer_ms: float | None
    observation: dict[str, Any] | None  # name -> what it is, for people
    action: dict[str, Any] | None


def warm_up(model: Model, device: torch.device) -> Warmth:
    """Run the model's own example a few times; raises whatever the model raises."""
    example = model.example_observation()
    if example is None:
        log.warning("the model has no example observation: the first request pays for the warm-up")
        return Warmth(0, 0, None, None, None)
    schema, _ = describe(example, "example observation")
    staging = Staging(device)
    slot = _slot_with(example, schema)
    result: Any = None
    infer_ns = 0
    for _ in range(_ROUNDS):
        observation = staging.observation(1, schema, slot, in_place=False, pickled=False)
        began_ns = time.monotonic_ns()
        (result,) = model.infer([observation])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        infer_ns = time.monotonic_ns() - began_ns
    reply, _ = describe(result, "action")
    return Warmth(schema.payload_bytes, reply.payload_bytes, infer_ns / 1e6, _named(example), _named(result))


def _slot_with(example: Any, schema: Schema) -> SlotMemory:
    slot = SlotMemory(np.zeros(1 << 16, np.uint8), aligned_bytes(schema.payload_bytes))
    Encoder(name="example observation").encode(example, slot)
    return slot


def _named(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The entries of a tree with dtype and shape, nested names joined by dots."""
    if isinstance(tree, dict):
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= _named(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    shape = getattr(tree, "shape", None)
    if shape is not None:
        dtype = str(tree.dtype).removeprefix("torch.")
        return {prefix: {"dtype": dtype, "shape": [int(length) for length in shape]}}
    return {prefix: {"type": type(tree).__name__}}

"""Named steps of a client at which a robot of the chaos run kills itself. The client's code does not contain them."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import time
from typing import Any

#: Module, class and method of each step. A robot can die before and after it.
_METHODS = {
    "call": ("shmserve.varlink_connection", "VarlinkConnection", "call"),
    "open": ("shmserve.channel", "ClientChannel", "__init__"),
    "encode": ("shmserve.codec", "Encoder", "encode"),
    "publish": ("shmserve.ring", "RequestWriter", "publish"),
    "ring": ("shmserve.doorbell", "NamedDoorbell", "ring"),
    "ring-pipe": ("shmserve.pipe_doorbell", "PipeRinger", "ring"),
    "wait": ("shmserve.doorbell", "NamedDoorbell", "wait"),
    "wait-pipe": ("shmserve.pipe_doorbell", "PipeListener", "wait"),
    "decode": ("shmserve.codec", "Decoder", "decode"),
    "resize": ("shmserve.client.connection", "Connection", "resize"),
    "switch": ("shmserve.client.connection", "Connection", "switch_to"),
    "shutdown": ("shmserve.client.connection", "Connection", "shutdown"),
}
#: Steps of one transport only.
_OTHER = {"named": ("ring-pipe", "wait-pipe"), "sealed": ("ring", "wait")}


def steps(transport: str) -> list[str]:
    """Return every step that a client of this transport reaches if it resizes and leaves."""
    return [f"{when}-{name}" for name in _METHODS if name not in _OTHER[transport] for when in ("before", "after")]


def die_at(step: str) -> None:
    """Make this process end by SIGKILL when it first reaches `step`."""
    when, _, name = step.partition("-")
    module, owner, method = _METHODS[name]
    holder = getattr(importlib.import_module(module), owner)
    original = getattr(holder, method)

    @functools.wraps(original)
    def deadly(*arguments: Any, **settings: Any) -> Any:
        if when == "before":
            _die()
        found = original(*arguments, **settings)
        _die()
        return found

    setattr(holder, method, deadly)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

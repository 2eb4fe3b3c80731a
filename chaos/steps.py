"""Named steps of a client at which a robot of the chaos run kills itself. The client's code does not contain them."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import time
from collections.abc import Callable
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
    if name == "publish":
        _die_of_each(holder, method, when)
    else:
        setattr(holder, method, _deadly(getattr(holder, method), when))


def _die_of_each(holder: Any, method: str, when: str) -> None:
    """Do the same for a method that each object gets from the backend when it is made."""
    make = holder.__init__

    @functools.wraps(make)
    def made(self: Any, *arguments: Any, **settings: Any) -> None:
        make(self, *arguments, **settings)
        setattr(self, method, _deadly(getattr(self, method), when))

    holder.__init__ = made


def _deadly(original: Callable[..., Any], when: str) -> Callable[..., Any]:
    """Return `original` with the end of this process before or after it."""

    @functools.wraps(original)
    def deadly(*arguments: Any, **settings: Any) -> Any:
        if when == "before":
            _die()
        found = original(*arguments, **settings)
        _die()
        return found

    return deadly


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

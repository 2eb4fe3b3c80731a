"""Paths of torch's pytrees as places in a saved module's arguments."""

from __future__ import annotations

from typing import Any

from shmserve.errors import ModelPackageError


def argument_of(path: Any) -> tuple[bool, Any]:
    """Return the argument that a leaf belongs to: (whether it is a keyword argument, its place or its name)."""
    return bool(key_of(path[0])), key_of(path[1])


def key_of(step: Any) -> str | int:
    """Return the key or index of an observation that matches a step of a pytree path."""
    key = getattr(step, "idx", getattr(step, "key", getattr(step, "name", None)))
    if not isinstance(key, (str, int)):
        raise ModelPackageError(f"the program has an argument with the key {key!r}; an observation's keys are strings")
    return key

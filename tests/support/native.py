"""The native core for tests of it; only they may ask which backend runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmserve.backend import BACKEND

__all__ = ["NATIVE", "core"]

if TYPE_CHECKING:
    from shmserve import _core as core

#: Whether the native core runs.
NATIVE = BACKEND == "native"

if not TYPE_CHECKING:
    core = __import__("shmserve._core", fromlist=["_core"]) if NATIVE else None

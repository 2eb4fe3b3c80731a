"""Rollout of model versions: which one serves at the start, how the next replaces it, and the way back."""

from __future__ import annotations

from .rollout import DEVICE_MEMORY_SHORT, DEVICE_MISSING, ReportStep, Rollout, RolloutRefused, UpdateOptions
from .startup_version import choose_startup_version, open_store

__all__ = [
    "DEVICE_MEMORY_SHORT",
    "DEVICE_MISSING",
    "ReportStep",
    "Rollout",
    "RolloutRefused",
    "UpdateOptions",
    "choose_startup_version",
    "open_store",
]

"""Plugins: one, which is installed everywhere."""

from __future__ import annotations

from lerobot.policies.factory import POLICIES
from lerobot.policies.modeling import ACTPolicy


def register_third_party_plugins() -> None:
    POLICIES["swing"] = ACTPolicy

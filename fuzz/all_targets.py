"""Every fuzz target, by name, each in the file NAME_target.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from fuzz.target import Target

#: Percentage of the inputs of a run that each target gets, by its exposure to clients and by the cost of one input.
SHARES = {
    "metadata": 36,
    "slot": 8,
    "message": 3,
    "channel": 2,
    "segment": 15,
    "control": 12,
    "engine_words": 10,
    "archive": 13,
    "manifest": 1,
}


def load(name: str) -> Target:
    """Import the target and the code that it tests: only the channel's needs torch."""
    target = importlib.import_module(f"fuzz.{name}_target").TARGET
    assert isinstance(target, Target)
    return target


def split(inputs: int, names: Iterable[str]) -> dict[str, int]:
    """Return the share of `inputs` that each of these targets gets.

    >>> split(200_000, ["metadata", "manifest"])
    {'metadata': 72000, 'manifest': 2000}
    """
    return {name: inputs * SHARES[name] // 100 for name in names}

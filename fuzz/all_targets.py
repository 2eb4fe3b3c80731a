"""Every fuzz target, by name, each in the file NAME_target.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from fuzz.target import Target

#: Of 100 inputs of a run over all, so many are this target's: by what a robot can reach, and by what one input costs.
SHARES = {
    "metadata": 38,
    "slot": 9,
    "channel": 2,
    "segment": 15,
    "control": 12,
    "engine_words": 10,
    "archive": 13,
    "manifest": 1,
}


def load(name: str) -> Target:
    """Imports the target, and what it is about: only the channel's needs torch."""
    target = importlib.import_module(f"fuzz.{name}_target").TARGET
    assert isinstance(target, Target)
    return target


def split(inputs: int, names: Iterable[str]) -> dict[str, int]:
    """How many of `inputs` over all targets each of these gets.

    >>> split(200_000, ["metadata", "manifest"])
    {'metadata': 76000, 'manifest': 2000}
    """
    return {name: inputs * SHARES[name] // 100 for name in names}

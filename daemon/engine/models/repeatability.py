"""Check that a model gives the same action for its example each time, with the likely cause if it does not."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from shmserve.contract import flatten_with_path

from ...packages.package import ModelPackage
from .determinism import seed
from .validation import deviations

#: Entries of an action that a warning names.
_NAMED = 3

Leaves = dict[str, Any]


def leaves_of(action: Any) -> Leaves:
    """Return copies of an action's entries, because a policy may return the same memory each time."""
    return {name: _copied(value) for name, value in flatten_with_path(action)}


def unlike(answers: list[Leaves], package: ModelPackage) -> list[str]:
    """Return the entries in which a later answer differs from the first, as texts."""
    for answer in answers[1:]:
        if found := deviations(answer, answers[0], atol=package.atol, rtol=package.rtol):
            return found[:_NAMED]
    return []


def warning(found: list[str], again: Callable[[], Leaves], package: ModelPackage) -> str:
    """Return the warning for a model that declares neither state nor sampling; `again` runs the example again."""
    with _same_seed():
        first = again()
    with _same_seed():
        drawn = not unlike([first, again()], package)
    text = f"the model gives different actions for the same example ({'; '.join(found)})"
    if drawn:
        return (
            f"{text}: it draws random numbers. If that is intended (sampled noise), set sampling = true under [model]; if not, a "
            "dropout may be in training mode: call eval()"
        )
    return (
        f"{text}: it keeps state from one request to the next, so that one client's requests change another's "
        "actions. Set stateful = true under [model], and see State in docs/how-to/model-packages.md"
    )


@contextlib.contextmanager
def _same_seed() -> Iterator[None]:
    """Seed every random generator for the block, and restore them afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            seed()
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)

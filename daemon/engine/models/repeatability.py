"""Whether a model answers its example alike each time, and what may be the reason if it does not."""

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
    """The entries of an action, as they are now: a policy may give the same memory each time."""
    return {name: _copied(value) for name, value in flatten_with_path(action)}


def unlike(answers: list[Leaves], package: ModelPackage) -> list[str]:
    """The entries in which later answers are not the first one."""
    for answer in answers[1:]:
        if found := deviations(answer, answers[0], atol=package.atol, rtol=package.rtol):
            return found[:_NAMED]
    return []


def warning(found: list[str], again: Callable[[], Leaves], package: ModelPackage) -> str:
    """What to tell of a model that says nothing of state or chance; `again` asks it once more."""
    with _same_seed():
        first = again()
    with _same_seed():
        drawn = not unlike([first, again()], package)
    text = f"for one and the same example the model gives different actions ({'; '.join(found)})"
    if drawn:
        return (
            f"{text}: it draws random numbers. If that is meant (sampled noise), say sampling = true under [model]; if not, a "
            "dropout may be in training mode: call eval()"
        )
    return (
        f"{text}: it keeps something from one request for the next, so that one client's requests change another's "
        "actions. Say stateful = true under [model], and see State in docs/model-packages.md"
    )


@contextlib.contextmanager
def _same_seed() -> Iterator[None]:
    """Every generator at one start; as before afterwards."""
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

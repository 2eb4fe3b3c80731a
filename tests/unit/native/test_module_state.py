"""Types of the native core, which belong to one module object."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.native import NATIVE, core

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")


def loaded_again() -> ModuleType:
    """Return another module object of the same library, with types of its own."""
    spec = importlib.util.spec_from_file_location(core.__name__, core.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slots_of(module: Any) -> Any:
    return module.Slots(np.zeros(256, np.uint8), 8, 16, 13, 1)


def poller_of(module: Any) -> Any:
    return module.CounterPoller(np.zeros(256, np.uint8), 8)


def test_each_module_object_has_types_of_its_own() -> None:
    other = loaded_again()

    names = [name for name, value in vars(core).items() if isinstance(value, type)]
    assert len(names) >= 8
    assert [name for name in names if vars(core)[name] is vars(other)[name]] == []


def test_a_module_refuses_the_pollers_of_another() -> None:
    other: Any = loaded_again()

    assert other.poll_all([poller_of(other)]) == []
    with pytest.raises(TypeError, match="holds something else"):
        other.poll_all(["a poller"])


@pytest.mark.parametrize("given", [1, ValueError, ValueError("a type of no module"), np.zeros(1), "a poller"])
def test_an_object_of_another_type_is_refused(given: Any) -> None:
    given = poller_of(core) if isinstance(given, str) else given
    payload, arena = np.ones(8, np.uint8), np.zeros(8, np.uint8)
    assert core.stage(payload, 8, arena, None, 0) == 0

    with pytest.raises(TypeError, match="copier"):
        core.stage(payload, 8, arena, given, 0)


def test_a_module_that_nothing_uses_is_freed_with_its_types() -> None:
    other: Any = loaded_again()
    slots = slots_of(other)
    watched = [weakref.ref(other), *(weakref.ref(value) for value in vars(other).values() if isinstance(value, type))]

    del other
    gc.collect()
    assert all(reference() is not None for reference in watched)
    del slots
    gc.collect()
    assert [reference() for reference in watched if reference() is not None] == []

"""Validation of the warm-up's actions: finite numbers, equal to the recorded action within the tolerance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.carried_values import tensor_bytes
from shmserve.contract import describe_tree, entry_text, flatten_with_path


def not_finite(action: Any) -> list[str]:
    """Return the entries of `action` that hold NaN or infinity, each with the number of such values."""
    found = []
    for name, value in flatten_with_path(action):
        array = _array(value)
        if array is not None and array.dtype.kind in "fc":
            wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
            if wrong:
                found.append(f"{name or 'the action'}: {wrong} of {array.size} values are NaN or infinite")
    return found


def deviations(action: Any, expected: Mapping[str, Any], *, atol: float, rtol: float) -> list[str]:
    """Return the entries of `expected` (named as in a contract) from which `action` differs beyond the tolerance, as texts.

    Floats may differ by `atol + rtol * abs(expected)`; NaN equals NaN; anything else must be equal.
    """
    given = dict(flatten_with_path(action))
    found = []
    for name, wanted in expected.items():
        if name not in given:
            found.append(f"{name}: absent (the action has {_names(given)})")
            continue
        deviation = _deviation(given[name], wanted, atol, rtol)
        if deviation is not None:
            found.append(f"{name}: {deviation}")
    return found


def _deviation(given: Any, wanted: Any, atol: float, rtol: float) -> str | None:
    have, want = _array(given), _array(wanted)
    if have is None or want is None:
        return None if given == wanted else f"{given!r:.60} instead of {wanted!r:.60}"
    if have.shape != want.shape or have.dtype != want.dtype:
        return f"{_text(given)} instead of {_text(wanted)}"
    if have.dtype.kind not in "fc":
        unequal = int(np.count_nonzero(have != want))
        return f"{unequal} of {want.size} values differ" if unequal else None
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    have, want = have.astype(wide), want.astype(wide)
    outside = ~np.isclose(have, want, rtol=rtol, atol=atol, equal_nan=True)
    if not outside.any():
        return None
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        distance = np.abs(have - want)
    worst = np.nanmax(distance[outside]) if not np.isnan(distance[outside]).all() else np.nan
    return (
        f"{int(np.count_nonzero(outside))} of {want.size} values differ, by {worst:.3g} at most "
        f"(tolerance atol = {atol:g}, rtol = {rtol:g})"
    )


def _array(value: Any) -> npt.NDArray[Any] | None:
    """Convert a value of an action to an array, bfloat16 to float32 (numpy files have no bfloat16); None if it is not numeric."""
    if isinstance(value, torch.Tensor):
        return tensor_bytes(value.float() if value.dtype == torch.bfloat16 else value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if isinstance(value, (bool, int, float)) or (isinstance(value, (list, tuple)) and _numbers(value)):
        return np.asarray(value)
    return None


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (bool, int, float)) for value in values)


def _text(value: Any) -> str:
    return entry_text(describe_tree(value)[""])


def _names(given: Mapping[str, Any]) -> str:
    return ", ".join(given) or "nothing"

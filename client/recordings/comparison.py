"""Comparison of actions with recorded ones, field by field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.contract import describe_tree, entry_text, flatten_with_path


@dataclass
class Field:
    """One entry of the action, over all requests."""

    compared: int = 0
    differ: int = 0  # requests in which it is outside the tolerance, or of another shape, dtype or type
    max_abs: float = 0.0
    max_rel: float = 0.0
    first: int | None = None  # the first request that differs
    what: str | None = None  # how that one differs, where numbers do not say it


@dataclass
class Comparison:
    """Floats may differ by `atol + rtol * abs(recorded)`, NaN equals NaN; anything else must be equal."""

    atol: float
    rtol: float
    fields: dict[str, Field] = field(default_factory=dict)

    @property
    def differ(self) -> bool:
        return any(found.differ for found in self.fields.values())

    def add(self, number: int, recorded: Any, action: Any) -> None:
        """Compare the action that request `number` has now with the one that it had."""
        wanted, given = dict(flatten_with_path(recorded)), dict(flatten_with_path(action))
        for name in [*wanted, *(name for name in given if name not in wanted)]:
            found = self.fields.setdefault(name or "(the action)", Field())
            found.compared += 1
            if name not in given or name not in wanted:
                self._note(found, number, f"absent {'now' if name not in given else 'in the recording'}")
            else:
                self._compare(found, number, wanted[name], given[name])

    def _compare(self, found: Field, number: int, wanted: Any, given: Any) -> None:
        want, have = _array(wanted), _array(given)
        if want is None or have is None:
            if wanted != given:
                self._note(found, number, f"{wanted!r:.60} -> {given!r:.60}")
            return
        if want.shape != have.shape or want.dtype != have.dtype:
            self._note(found, number, f"{_text(wanted)} -> {_text(given)}")
            return
        if want.dtype.kind not in "fc":
            if not np.array_equal(want, have):
                found.max_abs = max(found.max_abs, _largest(np.abs(have.astype(np.float64) - want.astype(np.float64))))
                self._note(found, number, None)
            return
        wide = np.complex128 if want.dtype.kind == "c" else np.float64
        want, have = want.astype(wide), have.astype(wide)
        with np.errstate(invalid="ignore", divide="ignore"):
            same = (want == have) | (np.isnan(want) & np.isnan(have))
            distance = np.where(same, 0.0, np.abs(have - want))
            relative = np.where(same, 0.0, distance / np.abs(want))
        found.max_abs = max(found.max_abs, _largest(distance))
        found.max_rel = max(found.max_rel, _largest(relative))
        if not np.isclose(have, want, rtol=self.rtol, atol=self.atol, equal_nan=True).all():
            only_now = not np.isfinite(distance).all()
            self._note(found, number, "NaN or infinity on one side" if only_now else None)

    @staticmethod
    def _note(found: Field, number: int, what: str | None) -> None:
        found.differ += 1
        if found.first is None:
            found.first, found.what = number, what


def _largest(distances: npt.NDArray[np.float64]) -> float:
    finite = distances[np.isfinite(distances)]
    return float(finite.max()) if finite.size else 0.0


def _array(value: Any) -> npt.NDArray[Any] | None:
    """A number, or several, as an array; None for anything else."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if isinstance(value, (bool, int, float)):
        return _numbers(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (bool, int, float)) for item in value):
        return _numbers(value)
    return None


def _numbers(value: Any) -> npt.NDArray[Any] | None:
    array = np.asarray(value)
    return array if array.dtype.kind in "biuf" else None  # an int beyond 64 bits is compared as it is


def _text(value: Any) -> str:
    return entry_text(describe_tree(value)[""])

"""Ranges of values in model.toml: `[checks.observation."name"]` and `[checks.action."name"]`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmserve.contract_meaning import SIDES
from shmserve.errors import ModelPackageError

Limit = float | tuple[float, ...] | None
_KEYS = ("min", "max", "on_violation")
_ON_VIOLATION = ("reject", "clamp")


@dataclass(frozen=True)
class RangeCheck:
    """Limits of one entry, inclusive; its numbers must be finite."""

    min: Limit = None
    max: Limit = None  # a tuple holds one limit for each index of the last dimension
    clamp: bool = False  # clamp numbers outside the limits; NaN is still rejected

    @property
    def limits(self) -> int | None:
        """Required length of the last dimension; None if one limit applies to all numbers."""
        return next((len(limit) for limit in (self.min, self.max) if isinstance(limit, tuple)), None)


def read_checks(manifest: Path, table: Mapping[str, Any]) -> dict[str, dict[str, RangeCheck]]:
    """Return the checks by side and by the entry's name in the contract; raises ModelPackageError naming key and remedy."""
    found: dict[str, dict[str, RangeCheck]] = {}
    for side, entries in table.items():
        if side not in SIDES or not isinstance(entries, dict):
            raise ModelPackageError(f"{manifest}: [checks] has the tables {' and '.join(SIDES)}, not {side!r}")
        found[side] = {
            name: _check(f"{manifest}: checks.{side}.{name or repr(name)}", entry) for name, entry in entries.items()
        }
    return found


def _check(where: str, entry: Any) -> RangeCheck:
    if not isinstance(entry, dict) or any(key not in _KEYS for key in entry):
        raise ModelPackageError(f"{where} = {entry!r} must be a table of {', '.join(_KEYS)}; quote a name with dots")
    low, high = (_limit(f"{where}: {key}", entry.get(key)) for key in ("min", "max"))
    on_violation = entry.get("on_violation", "reject")
    if on_violation not in _ON_VIOLATION:
        raise ModelPackageError(f"{where}: on_violation = {on_violation!r} must be one of {', '.join(_ON_VIOLATION)}")
    if on_violation == "clamp" and low is None and high is None:
        raise ModelPackageError(f"{where}: on_violation = 'clamp' needs min or max")
    if isinstance(low, tuple) and isinstance(high, tuple) and len(low) != len(high):
        raise ModelPackageError(f"{where}: min has {len(low)} limits and max {len(high)}")
    count = max(len(limit) if isinstance(limit, tuple) else 1 for limit in (low, high))
    for least, most in zip(_each(low, -math.inf, count), _each(high, math.inf, count), strict=True):
        if least > most:
            raise ModelPackageError(f"{where}: min = {least:g} is above max = {most:g}")
    return RangeCheck(low, high, on_violation == "clamp")


def _limit(where: str, value: Any) -> Limit:
    if value is None:
        return None
    values = value if isinstance(value, list) and value else [value]
    if not all(type(each) in (int, float) and math.isfinite(each) for each in values):
        raise ModelPackageError(
            f"{where} = {value!r} must be a number, or a list of one for each place of the last dimension"
        )
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _each(limit: Limit, otherwise: float, count: int) -> tuple[float, ...]:
    if isinstance(limit, tuple):
        return limit
    return (otherwise if limit is None else limit,) * count

"""Arguments of a saved module: where each is found in the observation, and the check of its type and shape.

Arrays are not converted: if a module was exported for uint8, a request with another dtype is rejected. The error lists
every mismatched entry, expected before given. A single number may be a Python number, a numpy scalar or a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shmserve.contract import describe_tree, entry_text, name_within
from shmserve.errors import ContractMismatch

#: Signatures that passed the check; a model sees one or two, unless a length in its observations varies.
_REMEMBERED = 1024


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


@dataclass(frozen=True)
class Length:
    """One dimension of a tensor: fixed, or from `low` to `high`; dimensions with the same symbol have the same length."""

    low: int
    high: int | None
    symbol: str | None = None

    def fits(self, length: int) -> bool:
        return self.low <= length and (self.high is None or length <= self.high)

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.low)
        return f"{self.low}-{'' if self.high is None else self.high}"


# `misfit` of the classes below returns None for a value that fits, else a suffix for the error message (often empty).


@dataclass(frozen=True)
class TensorField:
    """A tensor argument; a property that was not recorded when the module was saved is None."""

    dtype: torch.dtype | None
    lengths: tuple[Length, ...] | None
    rank: int | None = None

    def misfit(self, value: Any, symbols: dict[str, int]) -> str | None:
        if not isinstance(value, torch.Tensor) or self.dtype not in (None, value.dtype):
            return ""
        if self.lengths is None:
            return None if self.rank in (None, value.dim()) else ""
        if len(self.lengths) != value.dim():
            return ""
        for wanted, length in zip(self.lengths, value.shape, strict=True):
            if not wanted.fits(length):
                return ""
            if wanted.symbol is not None and symbols.setdefault(wanted.symbol, length) != length:
                return f" (length {length} must equal {symbols[wanted.symbol]}, as in an earlier argument)"
        return None

    def __str__(self) -> str:
        name = "any tensor" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        if self.lengths is not None:
            return f"{name}[{', '.join(map(str, self.lengths))}]"
        return name if self.rank is None else f"{name} of {self.rank} dimensions"


@dataclass(frozen=True)
class NumberField:
    """A Python number of exactly this type."""

    kind: type

    def misfit(self, value: Any, symbols: dict[str, int]) -> str | None:
        return None if type(value) is self.kind else ""

    def __str__(self) -> str:
        return self.kind.__name__


@dataclass(frozen=True)
class ConstantField:
    """A value fixed when the module was saved, which a request cannot change; the observation may omit it."""

    value: Any

    def misfit(self, value: Any, symbols: dict[str, int]) -> str | None:
        same = value is self.value or (type(value) is type(self.value) and value == self.value)
        return None if same else ""

    def __str__(self) -> str:
        return f"{self.value!r}, the value that the module was saved with"


@dataclass(frozen=True)
class AnyField:
    """An argument that only the module itself checks; `default` replaces a missing entry (MISSING: the entry is required)."""

    default: Any = MISSING

    def misfit(self, value: Any, symbols: dict[str, int]) -> str | None:
        return "" if value is MISSING else None

    def __str__(self) -> str:
        return "an entry"


@dataclass(frozen=True)
class Field:
    """One value that the module takes, and its place in the observation."""

    #: Entry of the observation. If no entry has the whole name, its dots separate nested keys. None: the whole observation.
    name: str | None
    #: Keys and indices from that entry inwards, for an argument that is a dict or a list.
    steps: tuple[str | int, ...]
    wanted: TensorField | NumberField | ConstantField | AnyField

    @property
    def label(self) -> str:
        label = self.name or ""
        for step in self.steps:
            label = name_within(label, step)
        return label or "the observation"

    def find(self, observation: Any) -> Any:
        value = observation if self.name is None else _entry(observation, self.name)
        for step in self.steps:
            value = _step(value, step)
        return value


def _entry(tree: Any, name: str) -> Any:
    value = _step(tree, name)
    if value is not MISSING or "." not in name:
        return value
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):  # the longest key first: "observation.state" is a common key
        inner = _step(tree, ".".join(parts[:count]))
        if inner is not MISSING:
            value = _entry(inner, ".".join(parts[count:]))
            if value is not MISSING:
                return value
    return MISSING


def _step(tree: Any, step: str | int) -> Any:
    if isinstance(step, str):
        return tree.get(step, MISSING) if isinstance(tree, dict) else MISSING
    return tree[step] if isinstance(tree, (list, tuple)) and step < len(tree) else MISSING


class Arguments:
    """Extracts the values of a module's arguments from observations."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._numbers = [(index, field.wanted) for index, field in enumerate(fields) if _may_be_number(field.wanted)]
        self._fitting: set[tuple[Any, ...]] = set()

    def of(self, observation: Any) -> list[Any]:
        """Return the fields' values in order; raises ContractMismatch naming every field that does not fit."""
        values = [field.find(observation) for field in self.fields]
        for index, field in enumerate(self.fields):
            if values[index] is MISSING:
                if isinstance(field.wanted, ConstantField):
                    values[index] = field.wanted.value
                elif isinstance(field.wanted, AnyField):
                    values[index] = field.wanted.default
        for index, wanted in self._numbers:
            values[index] = _as_number(wanted, values[index])
        signature = signature_of(values)
        if signature not in self._fitting:
            self._check(values, observation)
            if len(self._fitting) >= _REMEMBERED:
                self._fitting.clear()
            self._fitting.add(signature)
        return values

    def _check(self, values: list[Any], observation: Any) -> None:
        symbols: dict[str, int] = {}
        wrong = []
        for field, value in zip(self.fields, values, strict=True):
            misfit = field.wanted.misfit(value, symbols)
            if misfit is not None:
                wrong.append(f"{field.label}: expected {field.wanted}, got {_shown(value)}{misfit}")
        if wrong:
            text = "; ".join(wrong)
            if any(value is MISSING for value in values):
                held = (
                    ", ".join(map(str, observation))
                    if isinstance(observation, dict)
                    else "no named entries, because it is not a dict"
                )
                text += f" (the observation has {held or 'nothing'})"
            raise ContractMismatch(text)

    def example(self, values: Sequence[Any]) -> Any:
        """Return the observation from which `of` extracts these values."""
        root: dict[str | int, Any] = {}
        for field, value in zip(self.fields, values, strict=True):
            path: list[str | int] = [*([] if field.name is None else [field.name]), *field.steps]
            if not path:
                return value
            node = root
            for step in path[:-1]:
                node = node.setdefault(step, {})
            node[path[-1]] = value
        return _with_lists(root)


def _may_be_number(wanted: object) -> bool:
    if isinstance(wanted, TensorField):
        return wanted.dtype is not None and (wanted.rank == 0 or wanted.lengths == ())
    return not isinstance(wanted, ConstantField) or type(wanted.value) in (bool, int, float)


def _as_number(wanted: object, value: Any) -> Any:
    """Convert a single number to the module's type; return anything else, and a number of another kind, unchanged."""
    if isinstance(value, np.generic):
        value = value.item()
    is_tensor = isinstance(value, torch.Tensor)
    if isinstance(wanted, AnyField) or (value.dim() if is_tensor else type(value) not in (bool, int, float)):
        return value
    if isinstance(wanted, TensorField):
        assert wanted.dtype is not None
        if is_tensor and value.dtype == wanted.dtype:
            return value
        fits = _kind_of(value) in _FITTING[_kind_of(torch.empty((), dtype=wanted.dtype))]
        return torch.as_tensor(value, dtype=wanted.dtype) if fits else value
    kind = wanted.kind if isinstance(wanted, NumberField) else type(wanted.value)  # type: ignore[attr-defined]
    if type(value) is kind or _kind_of(value) not in _FITTING.get(kind, ()):
        return value
    return kind(value.item() if is_tensor else value)


#: Kinds of numbers accepted for each kind, as in a contract.
_FITTING: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), complex: ()}


def _kind_of(value: Any) -> type:
    if not isinstance(value, torch.Tensor):
        return type(value)
    if value.is_floating_point():
        return float
    return complex if value.is_complex() else bool if value.dtype == torch.bool else int


def _with_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {step: _with_lists(value) for step, value in tree.items()}
    return list(inner.values()) if inner and all(isinstance(step, int) for step in inner) else inner


def signature_of(value: Any) -> Any:
    """Return a key; values with equal keys can share one check, and one call."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    kind = type(value)
    if kind is dict:
        return tuple((key, signature_of(entry)) for key, entry in value.items())
    if kind in (list, tuple):
        return tuple(map(signature_of, value))
    if kind is float:
        return kind, value, math.copysign(1.0, value)  # -0.0 equals 0.0, but a module can distinguish them
    if kind in (bool, int, str, bytes) or isinstance(value, np.generic):
        return kind, value
    return kind, id(value)  # one call passes this value once for all its rows: they must share the same object


def _shown(value: Any) -> str:
    if isinstance(value, (bool, int, float, str)):
        return f"the {type(value).__name__} {value!r:.40}"
    if isinstance(value, (dict, list, tuple)):
        return type(value).__name__
    return repr(value) if value is MISSING else entry_text(describe_tree(value)[""])

"""Range checks of a model's observations and actions: finite numbers within the limits that its package declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from shmserve.contract import name_within
from shmserve.errors import ValueOutOfRange

from ...packages.value_ranges import Limit, RangeCheck

Steps = tuple[str | int, ...]


class RangeChecks:
    """Checks of one side (observation or action); entries without a declaration are not checked.

    >>> checked = RangeChecks("action", {"speed": RangeCheck(-1.0, 1.0, clamp=True)})
    >>> checked.apply({"speed": 0.5}), checked.apply({"speed": 3.0})
    (({'speed': 0.5}, False), ({'speed': 1.0}, True))
    >>> checked.apply({"speed": float("nan")})
    Traceback (most recent call last):
        ...
    shmserve.errors.ValueOutOfRange: action.speed: 1 of 1 numbers are NaN or infinite
    """

    def __init__(self, side: str, checks: Mapping[str, RangeCheck]) -> None:
        self._checks = {name: _Bounds(f"{side}.{name}".rstrip("."), check) for name, check in checks.items()}
        #: Path to each entry in the previous tree; the next tree mostly has the same structure.
        self._steps: dict[str, Steps] = {}

    def apply(self, tree: Any) -> tuple[Any, bool]:
        """Return the tree, its numbers clamped where that is declared, and whether any number was clamped.

        Changed values are copies; the given tree is not modified. Raises ValueOutOfRange.
        """
        clamped = False
        for name, bounds in self._checks.items():
            value = self._value(tree, name, bounds)
            held = bounds.apply(value)
            if held is not value:
                tree = _replaced(tree, self._steps[name], held)
                clamped = True
        return tree, clamped

    def _value(self, tree: Any, name: str, bounds: _Bounds) -> Any:
        if name in self._steps:
            try:
                return _at(tree, self._steps[name])
            except (LookupError, TypeError):
                pass
        steps = _steps_to(tree, name)
        if steps is None:
            raise ValueOutOfRange(f"{bounds.name} is declared in [checks] of model.toml, but it is missing")
        self._steps[name] = steps
        return _at(tree, steps)


class _Bounds:
    """Limits of one entry, cached as tensors for each dtype and device of its values."""

    def __init__(self, name: str, check: RangeCheck) -> None:
        self.name = name
        self._check = check
        self._made: dict[tuple[torch.dtype, torch.device], tuple[Any, Any]] = {}

    def apply(self, value: Any) -> Any:
        """Return `value` itself if all its numbers are within the limits, else a clamped copy; raises ValueOutOfRange."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
            held = self._tensor(tensor)
            return value if held is tensor else value.dtype.type(held.item()) if value.ndim == 0 else held.numpy()
        if type(value) in (int, float):
            kind = torch.float64 if type(value) is float else torch.int64
            tensor = torch.tensor(value, dtype=kind, device="cpu")  # a policy may have set another default device
            held = self._tensor(tensor)
            return value if held is tensor else held.item()
        if isinstance(value, (list, tuple)) and value and all(type(each) in (int, float) for each in value):
            kind = torch.float64 if any(type(each) is float for each in value) else torch.int64
            tensor = torch.tensor(value, dtype=kind, device="cpu")
            held = self._tensor(tensor)
            return value if held is tensor else type(value)(held.tolist())
        raise ValueOutOfRange(f"{self.name} is a {type(value).__name__} and not numbers that can be checked")

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if value.numel() == 0:
            return value
        if value.dtype == torch.bool or value.is_complex():
            raise ValueOutOfRange(f"{self.name} is {str(value.dtype).removeprefix('torch.')}, which has no range")
        wanted = self._check.limits
        if wanted is not None and (value.dim() == 0 or value.shape[-1] != wanted):
            raise ValueOutOfRange(
                f"{self.name} has shape {list(value.shape)}, but {wanted} limits are declared for its last dimension"
            )
        low, high = self._limits(value)
        if wanted is None:
            # One pass over the memory; a NaN makes both results NaN, so that the comparison fails.
            least, most = torch.aminmax(value)
            within = bool((least >= low) & (most <= high))
        else:
            within = bool(((value >= low) & (value <= high)).all())
        return value if within else self._outside(value, low, high)

    def _outside(self, value: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        finite = torch.isfinite(value)
        closed = self._check.min is not None and self._check.max is not None
        # Infinity is clamped to a limit if both are declared; NaN can never be clamped.
        hopeless = torch.isnan(value) if closed else ~finite
        if not self._check.clamp or bool(hopeless.any()):
            self._refuse(value, finite, low, high)
        least, most = (torch.as_tensor(limit, dtype=value.dtype, device=value.device) for limit in (low, high))
        return torch.clamp(value, least, most)

    def _refuse(self, value: torch.Tensor, finite: torch.Tensor, low: Any, high: Any) -> None:
        unbounded = int((~finite).sum())
        if unbounded:
            raise ValueOutOfRange(f"{self.name}: {unbounded} of {value.numel()} numbers are NaN or infinite")
        outside = (value < low) | (value > high)
        place = torch.nonzero(outside.reshape(-1))[0].item()
        at = [int(index) for index in np.unravel_index(int(place), tuple(value.shape))] if value.dim() else []
        number = value.reshape(-1)[int(place)].item()
        raise ValueOutOfRange(
            f"{self.name}: {int(outside.sum())} of {value.numel()} numbers are outside the range ({_shown(self._check.min)} to "
            f"{_shown(self._check.max)}), the first is {number:g}{f' at {at}' if at else ''}"
        )

    def _limits(self, value: torch.Tensor) -> tuple[Any, Any]:
        """Return both limits; a limit that is not declared is the type's smallest or largest number, which excludes infinity."""
        key = (value.dtype, value.device)
        found = self._made.get(key)
        if found is None:
            facts = torch.finfo(value.dtype) if value.is_floating_point() else torch.iinfo(value.dtype)
            found = self._made[key] = tuple(  # type: ignore[assignment]
                end
                if limit is None
                else limit
                if isinstance(limit, float)
                else torch.tensor(limit, device=value.device)
                for limit, end in ((self._check.min, facts.min), (self._check.max, facts.max))
            )
        assert found is not None
        return found


def _shown(limit: Limit) -> str:
    if limit is None:
        return "-"
    return f"{limit:g}" if isinstance(limit, float) else f"[{', '.join(f'{each:g}' for each in limit)}]"


def _steps_to(tree: Any, name: str, inside: str = "") -> Steps | None:
    """Return the keys and indices to the entry of this name (shmserve.contract), None if the tree has none."""
    if inside == name:
        return ()
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    for step, value in items:
        within = name_within(inside, step if isinstance(step, int) else str(step))
        if name.startswith(within):
            steps = _steps_to(value, name, within)
            if steps is not None:
                return (step, *steps)
    return None


def _at(tree: Any, steps: Steps) -> Any:
    for step in steps:
        tree = tree[step]
    return tree


def _replaced(tree: Any, steps: Steps, value: Any) -> Any:
    """Return the tree with another value at `steps`; containers on the way are copied, because the policy may own them."""
    if not steps:
        return value
    inner = _replaced(tree[steps[0]], steps[1:], value)
    if isinstance(tree, dict):
        return {**tree, steps[0]: inner}
    assert isinstance(steps[0], int)
    items = [*tree[: steps[0]], inner, *tree[steps[0] + 1 :]]
    return items if isinstance(tree, list) else tuple(items)

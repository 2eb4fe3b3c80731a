"""Contract of a package's example together with the package's statement about it: free dimensions, units, names, frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shmserve.contract import Entries, Entry, entry_text, is_within, lengths_of
from shmserve.contract_meaning import FREE, SIDES, Meaning, can_hold_frame, entry_field
from shmserve.errors import ModelPackageError


def declared_contract(contract: Mapping[str, Entries | None], meaning: Meaning) -> dict[str, Any]:
    """Return the contract with the dimensions that `meaning` declares free, and with `meaning`; `contract` is the example's.

    An entry with a free dimension keeps the example's sizes as `example_shape` or `example_length`. Raises
    ModelPackageError for a statement that the example contradicts.

    >>> example = {"observation": {"points": {"dtype": "float32", "shape": [5, 3]}}, "action": None}
    >>> declared_contract(example, {"observation": {"points": {"shape": [-1, 3]}}})["observation"]
    {'points': {'dtype': 'float32', 'shape': [-1, 3], 'example_shape': [5, 3]}}
    """
    declared: dict[str, Any] = dict(contract)
    for side in SIDES:
        entries = contract.get(side)
        if entries is None:
            continue
        declared[side] = dict(entries)
        for name, stated in meaning.get(side, {}).items():
            where = f"[contract] of model.toml states {entry_field(side, name)}"
            if name not in entries:
                raise ModelPackageError(f"{where}, and the example's {side} has {', '.join(entries) or 'no entries'}")
            declared[side][name] = _declared(where, entries[name], stated)
    actions = contract.get("action")
    if actions is not None and "action_horizon" in meaning:
        _check_horizon(actions, meaning["action_horizon"])
    return {**declared, "meaning": meaning} if meaning else declared


def _declared(where: str, example: Entry, stated: Mapping[str, Any]) -> Entry:
    entry = dict(example)
    lengths = lengths_of(example)
    if "shape" in stated:
        key = "length" if "length" in example else "shape"
        entry[key] = stated["shape"][0] if key == "length" and len(stated["shape"]) == 1 else stated["shape"]
        if key not in example or not is_within(example, entry):
            raise ModelPackageError(f"{where} as {stated['shape']}, and the example's is {entry_text(example)}")
        if FREE in stated["shape"]:
            entry[f"example_{key}"] = example[key]
    for key in ("names", "units"):
        values = stated.get(key)
        count = lengths[-1] if lengths else 1
        if isinstance(values, list) and len(values) != count:
            raise ModelPackageError(
                f"{where} with {len(values)} {key}, and the example's is {entry_text(example)}: one for each number of its "
                "last dimension"
            )
    if ("frame_size" in stated or "colour_order" in stated) and not can_hold_frame(lengths, stated):
        size = " x ".join(map(str, stated.get("frame_size", ())))
        raise ModelPackageError(
            f"{where} as a frame {f'{size} ' if size else ''}{stated.get('colour_order', '')}".rstrip()
            + f", and the example's is {entry_text(example)}"
        )
    return entry


def _check_horizon(actions: Entries, horizon: int) -> None:
    rows = {length for entry in actions.values() for length in entry.get("shape", ())[:-1]}
    if horizon not in rows:
        shown = ", ".join(f"{name or 'the action'}: {entry_text(entry)}" for name, entry in actions.items())
        raise ModelPackageError(
            f"[contract] of model.toml states action_horizon = {horizon}, and no entry of the action has as many rows ({shown})"
        )

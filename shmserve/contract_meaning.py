"""Meaning of a contract's numbers: units, names and their order, frames, rate and horizon; validation and comparison.

A package states it under `[contract]` in model.toml, and a robot's program states its own side with the same keys
(`ShmClient(robot=...)`). A field that only one of them states cannot differ.

>>> model = read_meaning({"rate_hz": 50, "observation": {"state": {"units": "deg", "names": ["pan", "lift"]}}})
>>> robot = read_meaning({"observation": {"state": {"units": ["deg", "rad"]}}}, where="robot")
>>> meaning_differences(model, robot)
[Difference(field='observation.state.units[1] (lift)', old='deg', new='rad')]
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Meaning = dict[str, Any]

SIDES = ("observation", "action")
#: A dimension of any length.
FREE = -1

#: Orders of the channels of a frame, and their number.
_CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "grey": 1, "depth": 1}
_HIGHEST_RATE_HZ = 1e9
_MOST_ENTRIES, _MOST_NAMES, _LONGEST_TEXT, _MOST_DIMENSIONS, _LONGEST_DIMENSION = 1024, 4096, 100, 32, 1 << 40
#: One spelling of each unit that robots use, as UCUM has it; other units are compared as text.
_SPELLINGS = {
    "deg": ("degree", "degrees", "°"),
    "rad": ("radian", "radians"),
    "m": ("meter", "meters", "metre", "metres"),
    "mm": ("millimeter", "millimeters", "millimetre", "millimetres"),
    "s": ("sec", "second", "seconds"),
    "N": ("newton", "newtons"),
    "N.m": ("nm", "n*m", "newton-meter", "newton-metre", "newton meter"),
    "deg/s": ("degrees/s", "deg/sec", "degrees per second"),
    "rad/s": ("radians/s", "rad/sec", "radians per second"),
    "m/s": ("meters/s", "m/sec", "meters per second"),
    "%": ("percent", "per cent"),
    "1": ("none", "unitless", "dimensionless"),
}
_SPELLED = {other: unit for unit, others in _SPELLINGS.items() for other in others} | {
    unit.casefold(): unit for unit in _SPELLINGS if len(unit) > 2
}


class InvalidMeaning(ValueError):
    """A statement about a contract is invalid; the text names the field and the remedy."""


class Difference(NamedTuple):
    """A field that both sides state differently."""

    field: str
    old: Any
    new: Any


def entry_field(side: str, name: str, key: str = "") -> str:
    """Return the name of a field of one entry.

    >>> entry_field("action", "arm.left", "units"), entry_field("action", "", "units"), entry_field("action", "[0]")
    ('action.arm.left.units', 'action.units', 'action[0]')
    """
    entry = side + ("." if name and not name.startswith("[") else "") + name
    return f"{entry}.{key}" if key else entry


def read_meaning(table: Any, where: str = "contract") -> Meaning:
    """Return a checked copy of a statement, as values of JSON; `where` begins the names of its fields in errors.

    `rate_hz` (steps a second), `action_horizon` (rows of a chunk), and for each entry of `observation` and `action`, by
    its name in the contract: `shape` (-1: any length), `units` (one text, or one for each number of the last
    dimension), `names` (of those numbers, in their order), `frame_size` (height and width in pixels) and
    `colour_order`. A list in place of an entry's table is its `shape`. Raises InvalidMeaning.

    >>> read_meaning({"observation": {"points": [-1, 3]}})
    {'observation': {'points': {'shape': [-1, 3]}}}
    >>> read_meaning({"observation": {"state": {"units": "degrees"}}})
    Traceback (most recent call last):
    shmserve.contract_meaning.InvalidMeaning: contract.observation.state.units = 'degrees': write 'deg', the spelling \
that is compared
    """
    found: Meaning = {}
    for key, value in _table(where, table, (*_OF_ALL, *SIDES)).items():
        if key in _OF_ALL:
            found[key] = _OF_ALL[key](f"{where}.{key}", value)
            continue
        if not isinstance(value, Mapping):
            raise InvalidMeaning(f"{where}.{key} = {_shown(value)} must be a table of entries by name")
        if len(value) > _MOST_ENTRIES:
            raise InvalidMeaning(f"{where}.{key} has {len(value)} entries: {_MOST_ENTRIES} at most are compared")
        entries = {_name(f"{where}.{key}", name): entry for name, entry in value.items()}
        found[key] = {name: _entry(f"{where}.{entry_field(key, name)}", entry) for name, entry in entries.items()}
    return found


def meaning_differences(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[Difference]:
    """Return the fields that both state differently, but for shapes, which `contract_differences` compares."""
    after = dict(_fields(new or {}))
    found: list[Difference] = []
    for field, value in _fields(old or {}):
        if field in after and field[-1] != "shape":
            found += _differences(
                field, value, after[field], _names_of(field, old or {}) or _names_of(field, new or {})
            )
    return found


def withdrawn(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[Difference]:
    """Return the fields that `old` states and `new` does not: a promise that may no longer hold.

    >>> withdrawn({"rate_hz": 50}, {})
    [Difference(field='rate_hz', old=50, new=None)]
    """
    after = dict(_fields(new or {}))
    return [
        Difference(_text(field), value, None)
        for field, value in _fields(old or {})
        if field not in after and field[-1] != "shape"
    ]


def summary(meaning: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields with their values as people read them.

    >>> summary({"rate_hz": 50, "action": {"": {"units": ["rad", "m"], "names": ["pan", "slide"]}}})
    [('rate_hz', '50'), ('action.units', 'rad, m'), ('action.names', 'pan, slide')]
    """
    return [
        (_text(field), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for field, value in _fields(meaning)
    ]


def can_hold_frame(lengths: Sequence[int], stated: Mapping[str, Any]) -> bool:
    """Return whether an array of these dimensions can hold the frame of an entry: channels last, first, or none.

    >>> vga = {"frame_size": [480, 640], "colour_order": "rgb"}
    >>> can_hold_frame([480, 640, 3], vga), can_hold_frame([1, 3, 480, 640], vga), can_hold_frame([640, 480, 3], vga)
    (True, True, False)
    """
    lengths = list(lengths)
    layouts = [(lengths[-2:], 1)] if len(lengths) >= 2 else []
    if len(lengths) >= 3:
        layouts += [(lengths[-3:-1], lengths[-1]), (lengths[-2:], lengths[-3])]
    wanted = stated.get("frame_size"), _CHANNELS.get(stated.get("colour_order", ""))
    return any(
        (wanted[0] is None or all(length in (FREE, want) for length, want in zip(size, wanted[0], strict=True)))
        and (wanted[1] is None or channels in (FREE, wanted[1]))
        for size, channels in layouts
    )


# Comparison

_Field = tuple[str, ...]


def _fields(meaning: Mapping[str, Any]) -> Iterator[tuple[_Field, Any]]:
    for key in _OF_ALL:
        if key in meaning:
            yield (key,), meaning[key]
    for side in SIDES:
        for name, entry in (meaning.get(side) or {}).items():
            for key, value in entry.items():
                yield (side, name, key), value


def _text(field: _Field) -> str:
    return entry_field(*field) if len(field) == 3 else field[0]


def _names_of(field: _Field, meaning: Mapping[str, Any]) -> list[str] | None:
    if len(field) != 3:
        return None
    names: list[str] | None = ((meaning.get(field[0]) or {}).get(field[1]) or {}).get("names")
    return names


def _differences(field: _Field, old: Any, new: Any, names: list[str] | None) -> list[Difference]:
    whole = [Difference(_text(field), old, new)]
    if old == new:
        return []
    if field[-1] != "units" or (isinstance(old, str) and isinstance(new, str)):
        return whole
    count = len(old) if isinstance(old, list) else len(new)
    was, now = (value if isinstance(value, list) else [value] * count for value in (old, new))
    if len(was) != len(now):
        return whole
    unlike = [index for index in range(count) if was[index] != now[index]]
    if len(unlike) == count > 1:
        return whole
    label = names if names is not None and len(names) == count else None
    return [
        Difference(f"{_text(field)}[{index}]" + (f" ({label[index]})" if label else ""), was[index], now[index])
        for index in unlike
    ]


# Validation


def _table(where: str, table: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise InvalidMeaning(f"{where} = {_shown(table)} must be a table of {', '.join(known)}")
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InvalidMeaning(f"{where} has no key {_shown(key)}; {hint}")
    return table


def _name(where: str, name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidMeaning(f"{where} has an entry {_shown(name)}: its name in the contract is text")
    return name


def _entry(where: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, (list, tuple)):
        return {"shape": _shape(f"{where}.shape", entry)}
    # TOML reads robot.joints without quotes as a table within a table.
    if isinstance(entry, Mapping) and entry and all(isinstance(value, Mapping) for value in entry.values()):
        raise InvalidMeaning(
            f'{where} = {_shown(dict(entry))}: quote the name of an entry with dots, as in "robot.joints"'
        )
    found = {
        key: _OF_ENTRY[key](f"{where}.{key}", value) for key, value in _table(where, entry, tuple(_OF_ENTRY)).items()
    }
    if not found:
        raise InvalidMeaning(f"{where} states nothing: give it at least one of {', '.join(_OF_ENTRY)}")
    units, names = found.get("units"), found.get("names")
    if isinstance(units, list) and names is not None and len(units) != len(names):
        raise InvalidMeaning(
            f"{where} has {len(names)} names and {len(units)} units: one unit for each, or one for all"
        )
    return found


def _shape(where: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST_DIMENSIONS:
        raise InvalidMeaning(f"{where} = {_shown(value)} must be a list of lengths, with -1 for any length")
    lengths = [_whole(where, length, least=FREE) for length in value]
    if 0 in lengths:
        raise InvalidMeaning(f"{where} = {_shown(value)} has a dimension of length 0; -1 is any length")
    return lengths


def _units(where: str, value: Any) -> str | list[str]:
    return (
        [_unit(where, unit) for unit in _list(where, value)]
        if isinstance(value, (list, tuple))
        else _unit(where, value)
    )


def _unit(where: str, value: Any) -> str:
    unit = _label(where, value)
    known = _SPELLED.get(unit.casefold(), unit)
    if known != unit:
        raise InvalidMeaning(f"{where} = {unit!r}: write {known!r}, the spelling that is compared")
    return unit


def _names(where: str, value: Any) -> list[str]:
    names = [_label(where, name) for name in _list(where, value)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidMeaning(f"{where} has {name!r} twice: each number needs another name")
        seen.add(name)
    return names


def _list(where: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST_NAMES:
        raise InvalidMeaning(f"{where} = {_shown(value)} must be a list of 1 to {_MOST_NAMES} texts")
    return value


def _label(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidMeaning(f"{where} = {_shown(value)} must be a text that is not empty")
    if value != value.strip() or not value.isprintable() or len(value) > _LONGEST_TEXT:
        raise InvalidMeaning(
            f"{where} = {_shown(value)} must be {_LONGEST_TEXT} printable characters at most, without spaces around them"
        )
    return str(value)


def _frame_size(where: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InvalidMeaning(f"{where} = {_shown(value)} must be [height, width] in pixels")
    return [_whole(where, length) for length in value]


def _colour_order(where: str, value: Any) -> str:
    if not isinstance(value, str) or value not in _CHANNELS:
        raise InvalidMeaning(f"{where} = {_shown(value)} must be one of {', '.join(_CHANNELS)}")
    return str(value)


def _rate(where: str, value: Any) -> int | float:
    number: Any = value if isinstance(value, numbers.Real) and not isinstance(value, bool) else 0
    if not 0 < number < _HIGHEST_RATE_HZ:
        raise InvalidMeaning(
            f"{where} = {_shown(value)} must be a number above 0 and below {_HIGHEST_RATE_HZ:g} (steps a second)"
        )
    return int(number) if float(number).is_integer() else float(number)


def _whole(where: str, value: Any, *, least: int = 1) -> int:
    number: Any = value if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is None or not least <= number <= _LONGEST_DIMENSION:
        raise InvalidMeaning(f"{where} = {_shown(value)} must be an integer, {least} or more")
    return int(number)


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print an integer of many digits
        return f"a {type(value).__name__} with an integer of thousands of digits"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


_OF_ALL: dict[str, Callable[[str, Any], Any]] = {"rate_hz": _rate, "action_horizon": _whole}
_OF_ENTRY: dict[str, Callable[[str, Any], Any]] = {
    "shape": _shape,
    "units": _units,
    "names": _names,
    "frame_size": _frame_size,
    "colour_order": _colour_order,
}

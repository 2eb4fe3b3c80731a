"""The robot's own side of a contract, and its comparison with a model's, before anything moves.

The Python client compares by itself, and the daemon for clients in other languages: one rule, and the same texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .contract import entry_text, is_within, lengths_of
from .contract_meaning import (
    FREE,
    SIDES,
    Difference,
    InvalidMeaning,
    can_hold_frame,
    entry_field,
    meaning_differences,
    read_meaning,
)
from .errors import ContractMismatch, InvalidArgument
from .shortened import shortened

#: The largest ratio of two rates that are one: people write a period of 0.033 s for 30 steps a second.
_SAME_RATE = 1.02
#: Of a text about a statement: characters of one line, and bytes of all lines as JSON. A text with its differences beside it
#: fits a message of the daemon.
_LONGEST_LINE, _LONGEST_LIST = 2000, 10_000


class RobotContract:
    """A robot's statement, with the keys of `[contract]` in model.toml, and the rate at which it takes steps."""

    #: Steps a second of its ActionChunks; None without one.
    _steps_hz: float | None = None

    def __init__(self, statement: Any) -> None:
        """Raise InvalidArgument for an invalid statement."""
        try:
            self._meaning = read_meaning(statement, where="robot")
        except InvalidMeaning as error:
            raise InvalidArgument(
                f"{shortened(str(error), _LONGEST_LINE)} (the keys of robot= are those of [contract] in model.toml)"
            ) from error

    def at_rate(self, steps_hz: float | None) -> RobotContract:
        """Return the same statement for a robot that takes `steps_hz` steps a second; None: it takes none.

        Raises InvalidArgument if the statement has another rate.
        """
        stated = self._meaning.get("rate_hz")
        if steps_hz is not None and stated is not None and not _is_same_rate(stated, steps_hz):
            raise InvalidArgument(
                f"period = {1 / steps_hz:g}: that is {steps_hz:g} steps a second, but robot= of the client states rate_hz = {stated:g}"
            )
        contract = RobotContract({})
        contract._meaning, contract._steps_hz = self._meaning, steps_hz
        return contract

    def check(self, service: str, model: Mapping[str, Any]) -> None:
        """Raise ContractMismatch listing every field that robot and model state differently."""
        contract = model.get("contract") or {}
        found = meaning_differences(contract.get("meaning"), self._meaning)
        rate_hz = (contract.get("meaning") or {}).get("rate_hz")
        if self._steps_hz is not None and rate_hz is not None and not _is_same_rate(rate_hz, self._steps_hz):
            found.append(
                Difference("rate_hz", rate_hz, f"{self._steps_hz:g} (ActionChunks, period = {1 / self._steps_hz:g})")
            )
        for side in SIDES:
            if contract.get(side) is not None:
                known = (contract.get("meaning") or {}).get(side) or {}
                found += _side_differences(side, contract[side], self._meaning.get(side, {}), known)
        if not found:
            return
        differences = [f"{field}: {ours} -> {theirs}" for field, ours, theirs in found]
        listed = "\n  ".join(listed_differences(differences))
        raise ContractMismatch(
            f"{model.get('name')!r} (version {model.get('version')}), served by {service!r}, and this robot mean different "
            f"things by their numbers (model -> robot=):\n  {listed}\n"
            "No action is given to the robot. Convert the numbers in the robot's program and correct robot=, or serve a "
            "model whose model.toml states the same under [contract]",
            differences=differences,
            model=model.get("name"),
            model_version=model.get("version"),
            service=service,
        )


def listed_differences(differences: Sequence[str]) -> list[str]:
    """Return the lines of a text for these differences, of a bounded length whatever the two sides state.

    >>> listed_differences(["rate_hz: 50 -> 30"])
    ['rate_hz: 50 -> 30']
    """
    lines: list[str] = []
    left = _LONGEST_LIST
    for number, difference in enumerate(differences):
        line = shortened(difference, _LONGEST_LINE)
        left -= len(json.dumps(line))
        if left < 0 < number:
            return [*lines, f"and {len(differences) - number} more"]
        lines.append(line)
    return lines


def versions_of(model: Mapping[str, Any]) -> list[str]:
    """Return the versions by which replies name a described model: its own; of a link its remote's and its fallback's, too.

    >>> versions_of({"version": "3f"}), versions_of({"version": "3f", "remote": {"version": "a0", "fallback_version": None}})
    (['3f'], ['3f', 'a0'])
    """
    link = model.get("remote")
    link = link if isinstance(link, dict) else {}
    given = (model["version"], link.get("version"), link.get("fallback_version"))
    return [version for version in given if isinstance(version, str) and re.fullmatch("[0-9a-f]{1,16}", version)]


def _is_same_rate(one_hz: float, other_hz: float) -> bool:
    return max(one_hz, other_hz) <= _SAME_RATE * min(one_hz, other_hz)


def _side_differences(
    side: str, entries: Mapping[str, Any], stated: Mapping[str, Any], known: Mapping[str, Any]
) -> list[Difference]:
    """Return the differences of a robot's entries from the example's; `known`: the model's statements of them."""
    found: list[Difference] = []
    instead = shortened(", ".join(entry_field(side, name) for name in entries), _LONGEST_LINE // 4) or "nothing"
    for name, entry in stated.items():
        if name in entries:
            found += _entry_differences(side, name, entries[name], entry, known.get(name) or {})
        elif side == "action":  # robots send more than one policy takes, but act on what they get
            found.append(Difference(entry_field(side, name), instead, entry))
    return found


def _entry_differences(
    side: str, name: str, entry: Mapping[str, Any], stated: Mapping[str, Any], known: Mapping[str, Any]
) -> list[Difference]:
    """Return the differences of a robot's entry from the example's; `known`: the model's statement of it."""
    lengths, found = lengths_of(entry), []
    if "shape" in stated:
        key = "length" if "length" in entry else "shape"
        given = {**entry, key: stated["shape"][0] if key == "length" else stated["shape"]}
        if len(lengths) != len(stated["shape"]) or not (
            is_within(given, entry) if side == "observation" else is_within(entry, given)
        ):
            found.append(Difference(entry_field(side, name, "shape"), entry_text(entry), stated["shape"]))
    for key in ("names", "units"):
        values = stated.get(key)
        if isinstance(values, list) and not isinstance(known.get(key), list):
            count = lengths[-1] if lengths else 1
            if count not in (FREE, len(values)):
                found.append(Difference(entry_field(side, name, key), entry_text(entry), values))
    frame = {key: value for key, value in stated.items() if key in ("frame_size", "colour_order") and key not in known}
    if frame and not can_hold_frame(lengths, frame):
        field = entry_field(side, name, next(iter(frame)))
        found.append(Difference(field, entry_text(entry), ", ".join(str(value) for value in frame.values())))
    return found

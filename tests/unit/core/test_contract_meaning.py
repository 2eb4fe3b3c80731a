"""Statements about a contract's numbers: what is accepted, what is refused, and what counts as a difference."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from shmserve.contract import contract_differences
from shmserve.contract_meaning import Difference, InvalidMeaning, meaning_differences, read_meaning, summary, withdrawn


def of_state(**stated: Any) -> dict[str, Any]:
    return {"observation": {"state": stated}}


def test_a_statement_is_copied_as_values_of_json() -> None:
    given = {
        "rate_hz": np.float32(50),
        "action_horizon": np.int64(16),
        "observation": {"points": (-1, np.int32(3)), "state": {"units": ("deg", "m"), "names": ("pan", "slide")}},
        "action": {"": {"units": "rad"}},
    }

    found = read_meaning(given)

    assert json.loads(json.dumps(found)) == {
        "rate_hz": 50,
        "action_horizon": 16,
        "observation": {"points": {"shape": [-1, 3]}, "state": {"units": ["deg", "m"], "names": ["pan", "slide"]}},
        "action": {"": {"units": "rad"}},
    }


_INVALID = {
    "no table": ([], "contract = [] must be a table of rate_hz, action_horizon, observation, action"),
    "unknown key": ({"rate": 50}, "contract has no key 'rate'; did you mean 'rate_hz'?"),
    "unknown key of an entry": (
        of_state(unit="deg"),
        "contract.observation.state has no key 'unit'; did you mean 'units'?",
    ),
    "american": ({"observation": {"c": {"color_order": "rgb"}}}, "did you mean 'colour_order'?"),
    "nothing": (of_state(), "contract.observation.state states nothing"),
    "a side that is no table": ({"action": 3}, "contract.action = 3 must be a table of entries by name"),
    "an entry that is no table": ({"action": {"a": 3}}, "contract.action.a = 3 must be a table of shape, units"),
    "a name that is no text": ({"action": {1: {"units": "m"}}}, "contract.action has an entry 1"),
    "dots without quotes": (
        {"observation": {"robot": {"joints": {"units": "m"}}}},
        "quote the name of an entry with dots",
    ),
    "too many entries": (
        {"action": {str(number): [1] for number in range(1025)}},
        "contract.action has 1025 entries: 1024 at most",
    ),
    "rate 0": ({"rate_hz": 0}, "contract.rate_hz = 0 must be a number above 0"),
    "rate nan": ({"rate_hz": math.nan}, "must be a number above 0"),
    "rate text": ({"rate_hz": "50"}, "contract.rate_hz = '50' must be a number"),
    "rate bool": ({"rate_hz": True}, "must be a number"),
    "rate of many digits": ({"rate_hz": 1 << 20_000}, "integer of thousands of digits"),
    "horizon 0": ({"action_horizon": 0}, "contract.action_horizon = 0 must be an integer, 1 or more"),
    "horizon float": ({"action_horizon": 16.0}, "must be an integer"),
    "units empty": (of_state(units=""), "contract.observation.state.units = '' must be a text that is not empty"),
    "units blank": (of_state(units="  "), "must be a text that is not empty"),
    "units spaced": (of_state(units=" deg"), "without spaces around them"),
    "units number": (of_state(units=3), "must be a text"),
    "units of none": (of_state(units=[]), "must be a list of 1 to"),
    "units misspelled": (of_state(units="degrees"), "write 'deg', the spelling that is compared"),
    "units in capitals": (of_state(units=["RAD", "m"]), "write 'rad'"),
    "names text": (of_state(names="pan"), "must be a list of 1 to"),
    "names twice": (of_state(names=["pan", "pan"]), "contract.observation.state.names has 'pan' twice"),
    "names empty": (of_state(names=["pan", ""]), "must be a text that is not empty"),
    "names and units": (of_state(names=["a", "b"], units=["m"]), "has 2 names and 1 units"),
    "shape 0": (of_state(shape=[0, 3]), "has a dimension of length 0"),
    "shape -2": (of_state(shape=[-2, 3]), "must be an integer, -1 or more"),
    "shape empty": (of_state(shape=[]), "must be a list of lengths"),
    "shape text": (of_state(shape=["n"]), "must be an integer"),
    "frame": (of_state(frame_size=[480]), "must be [height, width] in pixels"),
    "frame of floats": (of_state(frame_size=[480.0, 640]), "must be an integer, 1 or more"),
    "colours": (of_state(colour_order="rbg"), "must be one of rgb, bgr, rgba, bgra, grey, depth"),
    "colours as a list": (of_state(colour_order=["rgb"]), "must be one of"),
}


@pytest.mark.parametrize("name", _INVALID)
def test_an_invalid_statement_names_its_field_and_the_remedy(name: str) -> None:
    given, words = _INVALID[name]

    with pytest.raises(InvalidMeaning) as caught:
        read_meaning(given)

    assert words in str(caught.value)


def test_free_text_is_a_unit() -> None:
    units = ["N.m", "1", "%", "Cel", "steps of the encoder"]

    assert read_meaning(of_state(units=units))["observation"]["state"]["units"] == units


def test_all_differences_are_found_at_once_and_a_field_of_one_side_is_none() -> None:
    model = read_meaning(
        {
            "rate_hz": 50,
            "action_horizon": 16,
            "observation": {"state": {"units": "deg", "names": ["pan", "lift"]}, "camera": {"colour_order": "rgb"}},
        }
    )
    robot = read_meaning(
        {
            "rate_hz": 30,
            "observation": {
                "state": {"units": "rad", "names": ["lift", "pan"]},
                "camera": {"colour_order": "bgr", "frame_size": [480, 640]},
            },
            "action": {"actions": {"units": "rad"}},
        }
    )

    assert meaning_differences(model, robot) == [
        Difference("rate_hz", 50, 30),
        Difference("observation.state.units", "deg", "rad"),
        Difference("observation.state.names", ["pan", "lift"], ["lift", "pan"]),
        Difference("observation.camera.colour_order", "rgb", "bgr"),
    ]
    assert meaning_differences(model, model) == meaning_differences(None, robot) == meaning_differences(model, {}) == []


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ("rad", ["rad", "rad"], []),
        (["rad", "m"], "rad", ["observation.state.units[1]"]),
        (["rad", "m"], ["m", "rad"], ["observation.state.units"]),
        (["rad", "m"], ["rad"], ["observation.state.units"]),
        (["rad"], "deg", ["observation.state.units[0]"]),
    ],
)
def test_one_unit_for_all_numbers_equals_that_unit_for_each(old: Any, new: Any, fields: list[str]) -> None:
    found = meaning_differences(of_state(units=old), of_state(units=new))

    assert [difference.field for difference in found] == fields


def test_an_update_may_state_more_but_neither_less_nor_something_else() -> None:
    silent: dict[str, Any] = {"observation": None, "action": None}
    degrees = {**silent, "meaning": of_state(units="deg")}
    radians = {**silent, "meaning": of_state(units="rad")}

    assert contract_differences(silent, degrees) == []
    assert contract_differences(degrees, silent) == ["observation.state.units: 'deg' -> not stated"]
    assert contract_differences(degrees, radians) == ["observation.state.units: 'deg' -> 'rad'"]
    assert withdrawn(degrees["meaning"], radians["meaning"]) == []


_POINTS = {"points": {"dtype": "float32", "shape": [5, 3]}}
_ANY_POINTS = {"points": {"dtype": "float32", "shape": [-1, 3], "example_shape": [5, 3]}}
_LIST = {"points": {"type": "list[float]", "length": 5}}
_ANY_LIST = {"points": {"type": "list[float]", "length": -1, "example_length": 5}}


@pytest.mark.parametrize(("fixed", "free"), [(_POINTS, _ANY_POINTS), (_LIST, _ANY_LIST)], ids=["array", "list"])
def test_an_update_may_take_more_and_give_less_than_before(fixed: Any, free: Any) -> None:
    assert contract_differences({"observation": fixed}, {"observation": free}) == []
    assert len(contract_differences({"observation": free}, {"observation": fixed})) == 1
    assert contract_differences({"action": free}, {"action": fixed}) == []
    assert len(contract_differences({"action": fixed}, {"action": free})) == 1


def test_a_statement_is_summed_up_field_by_field() -> None:
    assert summary(read_meaning({"rate_hz": 50, "observation": {"points": [-1, 3]}})) == [
        ("rate_hz", "50"),
        ("observation.points.shape", "-1, 3"),
    ]

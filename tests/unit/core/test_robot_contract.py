"""A robot's own statement against a model's contract: each difference by its field, all at once."""

from __future__ import annotations

from typing import Any

import pytest

from shmserve.client import ShmClient
from shmserve.contract_meaning import read_meaning
from shmserve.errors import ContractMismatch, InvalidArgument
from shmserve.robot_contract import RobotContract

_OBSERVATION = {
    "state": {"dtype": "float32", "shape": [3]},
    "points": {"dtype": "float32", "shape": [-1, 3]},
    "ranges": {"type": "list[float]", "length": 8},
    "camera": {"dtype": "uint8", "shape": [480, 640, 3]},
    "step": {"type": "int"},
}
_ACTION = {"actions": {"dtype": "float32", "shape": [16, 3]}}


def model(meaning: dict[str, Any] | None = None, **sides: Any) -> dict[str, Any]:
    """The daemon's description of a model."""
    contract: dict[str, Any] = {"observation": _OBSERVATION, "action": _ACTION, **sides}
    if meaning is not None:
        contract["meaning"] = read_meaning(meaning)
    return {"name": "arm", "version": "abc0", "contract": contract}


def differences(statement: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """The fields in which they differ."""
    try:
        RobotContract(statement).check("left", described)
    except ContractMismatch as error:
        assert all(f"\n  {line}\n" in f"{error}\n" for line in error.differences)
        return [*error.differences]
    return []


def test_the_refusal_lists_every_field_with_both_sides_and_the_remedy() -> None:
    stated = {"rate_hz": 50, "observation": {"state": {"units": "deg", "names": ["pan", "lift", "grip"]}}}
    robot = {"rate_hz": 30, "observation": {"state": {"units": "rad", "names": ["pan", "lift", "grip"]}}}

    with pytest.raises(ContractMismatch) as caught:
        RobotContract(robot).check("left", model(stated))

    error = caught.value
    assert error.differences == ("rate_hz: 50 -> 30", "observation.state.units: deg -> rad")
    assert (error.service, error.model, error.model_version) == ("left", "arm", "abc0")
    assert "'arm' (version abc0), served by 'left'" in str(error)
    assert "(model -> robot=)" in str(error) and "[contract]" in str(error)


def test_what_one_side_alone_states_is_no_difference() -> None:
    assert differences({"rate_hz": 30, "observation": {"state": {"units": "rad"}}}, model()) == []
    assert differences({}, model({"rate_hz": 50, "observation": {"state": {"units": "rad"}}})) == []
    assert differences({"rate_hz": 30}, {"name": "arm", "version": "0", "contract": None}) == []
    assert differences({"action": {"other": {"units": "m"}}}, model(action=None)) == []
    assert differences({"observation": {"lidar": {"units": "m"}}}, model()) == [], (
        "robots send more than one policy takes"
    )


@pytest.mark.parametrize(
    ("entry", "stated", "found"),
    [
        ("points", [500, 3], []),
        ("points", [-1, 3], []),
        ("points", [-1, 4], ["observation.points.shape: float32[-1, 3] -> [-1, 4]"]),
        ("points", [-1, 3, 1], ["observation.points.shape: float32[-1, 3] -> [-1, 3, 1]"]),
        ("state", [-1], ["observation.state.shape: float32[3] -> [-1]"]),
        ("ranges", [8], []),
        ("ranges", [-1], ["observation.ranges.shape: list[float] of 8 -> [-1]"]),
        ("step", [1], ["observation.step.shape: int -> [1]"]),
        ("state", {"names": ["pan", "lift"]}, ["observation.state.names: float32[3] -> ['pan', 'lift']"]),
        ("state", {"units": ["m", "m"]}, ["observation.state.units: float32[3] -> ['m', 'm']"]),
        ("camera", {"frame_size": [480, 640], "colour_order": "bgr"}, []),
        ("camera", {"frame_size": [640, 480]}, ["observation.camera.frame_size: uint8[480, 640, 3] -> [640, 480]"]),
        ("camera", {"colour_order": "rgba"}, ["observation.camera.colour_order: uint8[480, 640, 3] -> rgba"]),
    ],
)
def test_a_robot_s_statement_is_compared_with_the_example_as_well(entry: str, stated: Any, found: list[str]) -> None:
    assert differences({"observation": {entry: stated}}, model()) == found


def test_an_action_that_the_model_does_not_give_is_a_difference() -> None:
    assert differences({"action": {"joints": {"units": "m"}}}, model()) == [
        "action.joints: action.actions -> {'units': 'm'}"
    ]
    assert differences({"action": {"actions": [-1, 3]}}, model()) == []
    assert differences({"action": {"actions": [8, 3]}}, model()) == ["action.actions.shape: float32[16, 3] -> [8, 3]"]


@pytest.mark.parametrize(
    ("steps_hz", "agrees"), [(50, True), (1 / 0.0202, True), (25, False), (100, False), (None, True)]
)
def test_the_rate_of_a_robot_s_steps_is_compared_with_the_model_s(steps_hz: float | None, agrees: bool) -> None:
    robot = RobotContract({}).at_rate(steps_hz)
    model = {"name": "arm", "version": "1", "contract": {"meaning": {"rate_hz": 50}}}
    if agrees:
        robot.check("arm", model)
        return

    with pytest.raises(ContractMismatch) as caught:
        robot.check("arm", model)

    assert caught.value.differences == (f"rate_hz: 50 -> {steps_hz} (ActionChunks, period = {1 / (steps_hz or 1):g})",)


def test_a_model_without_a_rate_takes_robots_of_every_rate() -> None:
    RobotContract({}).at_rate(7).check("arm", {"name": "arm", "contract": {"meaning": {}}})


def test_a_robot_does_not_state_two_rates() -> None:
    robot = RobotContract({"rate_hz": 50})

    assert robot.at_rate(50) is not None
    with pytest.raises(InvalidArgument, match=r"period = 0.04: that is 25 steps a second, but robot= .* rate_hz = 50"):
        robot.at_rate(25)


def test_an_invalid_statement_is_an_invalid_argument() -> None:
    with pytest.raises(InvalidArgument, match=r"robot\.observation\.state\.units = '' must be a text .*\[contract\]"):
        ShmClient("arm", robot={"observation": {"state": {"units": ""}}})


def test_a_text_is_bounded_and_says_what_it_leaves_out() -> None:
    names = {"names": [f"a name of number {number}" for number in range(3)]}
    robot = {"observation": {"points": {"names": [f"{'x' * 90}{number}" for number in range(500)]}}}
    many = {"action": {f"joint {number}": names for number in range(300)}}

    with pytest.raises(ContractMismatch) as long_line:
        RobotContract(robot).check("left", model())
    with pytest.raises(ContractMismatch) as many_lines:
        RobotContract(many).check("left", model())

    assert len(long_line.value.differences[0]) > 45_000
    assert "characters in all) ... " in str(long_line.value) and len(str(long_line.value)) < 3000
    shown = str(many_lines.value).count("\n  action.joint ")
    assert shown > 50 and f"\n  and {300 - shown} more\n" in str(many_lines.value)

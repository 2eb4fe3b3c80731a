"""Numbers that a robot may act on: refused or brought back to their limits, as the package declares, and never silently."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import InferenceFailed, ShmClient, ValueOutOfRange
from shmserve.daemon.engine.models.range_checks import RangeChecks
from shmserve.daemon.packages.package import ModelPackage
from shmserve.daemon.packages.range_checks import RangeCheck, read_checks
from shmserve.errors import ModelPackageError
from tests.support.daemon_process import Daemon
from tests.support.folders import SUPPORT

pytestmark = pytest.mark.sealed_too

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon("ranged")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def robot(daemon: Daemon) -> Iterator[ShmClient]:
    with daemon.client(check_contract=False) as robot:
        yield robot


def observed(**changes: Any) -> dict[str, Any]:
    joints = np.asarray(changes.pop("joints", [0.5, 1.0, 2.0]), np.float32)
    return {"arm": {"joints": joints}, "speed": 0.25, "gain": 1.0, "value": 0.0, **changes}


# In the service


def test_numbers_in_range_pass_as_they_are(robot: ShmClient) -> None:
    reply = robot.request(observed(joints=[-1.0, -2.0, 3.0], speed=1.0))

    assert reply.action["actions"].tolist() == [-1.0, -2.0, 3.0]
    assert not reply.clamped


@pytest.mark.parametrize(
    ("joints", "said"),
    [
        ([0, -2.5, 0], "1 of 3 numbers are outside the range ([-1, -2, -3] to 3), the first is -2.5 at [1]"),
        ([9, 9, 0], "2 of 3 numbers are outside the range ([-1, -2, -3] to 3), the first is 9 at [0]"),
        ([0, NAN, INF], "2 of 3 numbers are NaN or infinite"),
        ([0, 0], "has shape [2], but 3 limits are declared"),
    ],
)
def test_an_observation_outside_the_range_never_reaches_the_model(
    robot: ShmClient, joints: list[float], said: str
) -> None:
    with pytest.raises(ValueOutOfRange) as refused:
        robot.infer(observed(joints=joints))

    assert "was not run: observation.arm.joints" in str(refused.value)
    assert said in str(refused.value)
    assert robot.infer(observed())["value"] == 0.0


def test_an_entry_that_is_declared_and_missing_is_refused(robot: ShmClient) -> None:
    with pytest.raises(
        ValueOutOfRange, match=r"observation\.speed is declared in \[checks\] of model\.toml, but it is missing"
    ):
        robot.infer({key: value for key, value in observed().items() if key != "speed"})


def test_a_clamp_is_flagged_in_the_reply(robot: ShmClient) -> None:
    for speed, held in ((7.5, 1.0), (-INF, 0.0)):
        reply = robot.request(observed(speed=speed))
        assert reply.action["speed"] == held
        assert reply.clamped

    reply = robot.request(observed(gain=8.0))
    assert reply.action["actions"].tolist() == [4.0, 8.0, 10.0]
    assert reply.clamped


def test_a_value_that_cannot_be_copied_to_the_host_is_not_an_action(robot: ShmClient) -> None:
    for changes, said in (
        ({"gain": NAN}, "action.actions: 3 of 3 numbers are NaN or infinite"),
        ({"value": INF}, "action.value: 1 of 1 numbers are NaN or infinite"),
        ({"value": "none"}, r"action.value is a str and not numbers that can be checked"),
    ):
        with pytest.raises(InferenceFailed, match=said):
            robot.infer(observed(**changes))


def test_a_clamp_changes_nothing_that_is_the_policy_s_own(robot: ShmClient) -> None:
    for _ in range(2):
        result = robot.infer(observed(speed=0.5))

        assert result["actions"].tolist() == [10.0] * 3
        assert result["kept"]


def test_both_are_counted(daemon: Daemon, robot: ShmClient) -> None:
    before = daemon.status()["requests"]
    robot.infer(observed(speed=2.0, gain=9.0))
    for changes in ({"joints": [7, 7, 7]}, {"value": NAN}):
        with pytest.raises((ValueOutOfRange, InferenceFailed)):
            robot.infer(observed(**changes))

    daemon.wait_counted(
        clamped=before["clamped"] + 1,
        out_of_range=before["out_of_range"] + 2,
        rejected=before["rejected"] + 1,
        failed=before["failed"] + 1,
    )


# Kinds of numbers


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, -5.0]),
        torch.tensor([1.0, -5.0], dtype=torch.bfloat16),
        torch.tensor([1.0, -5.0], dtype=torch.float16),
        torch.tensor([1, -5], dtype=torch.int8),
        np.array([1.0, -5.0]),
        np.array([1, -5]),
        [1.0, -5.0],
        (1, -5),
        -5,
        -5.0,
        np.float32(-5.0),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_every_kind_of_number_keeps_its_type(value: Any) -> None:
    checked = RangeChecks("action", {"x": RangeCheck(-2.0, 2.0, clamp=True)})

    held, clamped = checked.apply({"x": value})

    assert clamped
    assert type(held["x"]) is type(value)
    assert getattr(held["x"], "dtype", None) == getattr(value, "dtype", None)
    numbers = np.asarray(held["x"].float() if isinstance(held["x"], torch.Tensor) else held["x"]).reshape(-1)
    assert numbers.tolist() == ([1, -2] if numbers.size == 2 else [-2])
    again, clamped = checked.apply(held)
    assert not clamped and again is held


def test_entries_are_found_where_they_are_when_the_structure_changes() -> None:
    checked = RangeChecks("action", {"a.b[1].c": RangeCheck(0.0, 1.0)})

    trees: tuple[Any, ...] = ({"a": {"b": [0, {"c": 0.5}]}}, {"a": {"b": ({}, {"c": torch.ones(2)})}})
    for tree in trees:
        assert checked.apply(tree) == (tree, False)
    with pytest.raises(ValueOutOfRange, match=r"action\.a\.b\[1\]\.c is declared"):
        checked.apply({"a": {"b": [{"c": 0.5}]}})


def test_the_one_entry_of_an_action_that_is_an_array_has_no_name() -> None:
    checked = RangeChecks("action", {"": RangeCheck(0.0, 1.0)})

    with pytest.raises(ValueOutOfRange, match=r"^action: 1 of 2 numbers are outside the range"):
        checked.apply(torch.tensor([0.5, 1.5]))


def test_no_number_at_all_is_in_range() -> None:
    assert not RangeChecks("action", {"x": RangeCheck(0.0, 1.0)}).apply({"x": torch.zeros(0, 3)})[1]


# model.toml


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"actions": {}}, "has the tables observation and action, not 'actions'"),
        ({"action": {"x": 3}}, "must be a table of min, max, on_violation"),
        ({"action": {"x": {"minimum": 3}}}, "must be a table of min, max, on_violation"),
        ({"action": {"x": {"min": "3"}}}, "min = '3' must be a number"),
        ({"action": {"x": {"min": True}}}, "min = True must be a number"),
        ({"action": {"x": {"max": [1.0, NAN]}}}, "must be a number, or a list of one for each place"),
        ({"action": {"x": {"max": []}}}, "must be a number, or a list of one for each place"),
        ({"action": {"x": {"min": 2, "max": 1}}}, "min = 2 is above max = 1"),
        ({"action": {"x": {"min": [0, 2], "max": 1}}}, "min = 2 is above max = 1"),
        ({"action": {"x": {"min": [0, 2], "max": [1, 2, 3]}}}, "min has 2 limits and max 3"),
        ({"action": {"x": {"on_violation": "warn"}}}, "on_violation = 'warn' must be one of reject, clamp"),
        ({"action": {"x": {"on_violation": "clamp"}}}, "on_violation = 'clamp' needs min or max"),
    ],
)
def test_a_mistake_in_the_checks_is_refused_by_name(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelPackageError) as refused:
        read_checks(Path("m/model.toml"), table)

    assert said in str(refused.value)
    assert str(refused.value).startswith("m/model.toml: ")


def test_the_package_s_own_example_must_pass(make_daemon: Any, tmp_path: Path) -> None:
    policy = SUPPORT / "policies" / "ranged"
    for file in policy.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_text(file.read_text().replace("min = 0.0", "min = 0.75"))
    assert ModelPackage.read(tmp_path).checks["observation"]["speed"].min == 0.75
    toml = tmp_path / "model.toml"
    toml.write_text(toml.read_text().replace('on_violation = "clamp"', ""))
    daemon = make_daemon(tmp_path)

    assert daemon.run_to_end() == 1

    assert "the example does not pass [checks] of model.toml: observation.speed: 1 of 1 numbers" in daemon.log

"""CheckRobot of the client socket: answers that fit a message, whatever is stated, and no more than a share of the supervisor."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shmserve.contract_meaning import read_meaning
from shmserve.daemon.api import client as client_api
from shmserve.daemon.api.client import ClientService
from shmserve.daemon.varlink.peer import Peer
from shmserve.varlink import VarlinkError, encode_error

_STATED = {"rate_hz": 50, "action": {"actions": {"units": "deg"}}}


def model(**more: Any) -> dict[str, Any]:
    """The supervisor's description of a model."""
    action = {"actions": {"dtype": "float32", "shape": [16, 3]}}
    contract = {"observation": {}, "action": action, "meaning": read_meaning(_STATED)}
    return {"name": "arm", "version": "3f9c2d17a0b14e55", "contract": contract, **more}


def answer(robot: Any, described: dict[str, Any] | None, uid: int = os.getuid(), **more: Any) -> dict[str, Any]:
    """The reply; raises VarlinkError."""
    return asyncio.run(_service(described).check_robot(_peer(uid), {"robot": robot, **more}, []))


def _service(described: dict[str, Any] | None) -> ClientService:
    return ClientService(cast("Any", SimpleNamespace(model=described, config=SimpleNamespace(name="left"))))


def _peer(uid: int) -> Any:
    return SimpleNamespace(number=1, peer=Peer(1, uid, uid, frozenset()))


def refusal(robot: Any, described: dict[str, Any] | None, **more: Any) -> VarlinkError:
    with pytest.raises(VarlinkError) as caught:
        answer(robot, described, **more)
    return caught.value


def test_the_versions_of_a_model_that_agrees_are_named() -> None:
    link = model(remote={"version": "a0", "fallback_version": "b0"})

    assert answer(_STATED, model()) == {"versions": ["3f9c2d17a0b14e55"]}
    assert answer(_STATED, link) == {"versions": ["3f9c2d17a0b14e55", "a0", "b0"]}
    assert answer(_STATED, None) == {"versions": []}


def test_a_model_that_differs_is_a_mismatch_with_each_difference() -> None:
    error = refusal({"rate_hz": 30, "action": {"actions": {"units": "rad"}}}, model())

    assert error.error == "io.shmserve.Client.ContractMismatch"
    assert error.parameters["differences"] == ["rate_hz: 50 -> 30", "action.actions.units: deg -> rad"]
    assert error.parameters["versions"] == ["3f9c2d17a0b14e55"]
    assert "served by 'left', and this robot mean different things" in error.parameters["message"]


def test_the_time_between_steps_is_compared_with_the_rate_of_the_model_and_of_the_statement() -> None:
    assert answer({}, model(), step_ns=20_300_000) == answer(_STATED, model(), step_ns=20_000_000)

    slow = refusal({}, model(), step_ns=40_000_000)
    assert slow.parameters["differences"] == ["rate_hz: 50 -> 25 (ActionChunks, period = 0.04)"]
    assert refusal(_STATED, model(), step_ns=40_000_000).error == "io.shmserve.Client.InvalidRobot"
    for step_ns in (0, -1, 1 << 63, 10**400, 0.02, True, "20"):
        assert refusal({}, model(), step_ns=step_ns).error == "org.varlink.service.InvalidParameter"


@pytest.mark.parametrize("described", [model(), None])
def test_an_invalid_statement_is_told_also_without_a_model(described: dict[str, Any] | None) -> None:
    error = refusal({"rate": 50}, described)

    assert error.error == "io.shmserve.Client.InvalidRobot"
    assert error.parameters["message"].startswith("robot has no key 'rate'; did you mean 'rate_hz'?")
    with pytest.raises(VarlinkError, match="InvalidParameter"):
        answer([], described)


_MANY = {str(number): {"units": "m"} for number in range(1024)}
_HOSTILE: dict[str, Any] = {
    "thousands of entries": {"action": {str(number): {"units": "m"} for number in range(5000)}},
    "as many as are compared": {"action": _MANY},
    "names of control characters": {"action": {"\x01" * 9000: {"units": "m"}, "\x02" * 9000: {"units": "m"}}},
    "long names": {"action": {"n" * 60_000: {"units": "m"}}},
    "names of four bytes": {"action": {"\U0001f916" * 16_000: {"units": "m"}}},
    "an unknown key of quotes": {'"' * 60_000: 1},
    "another unknown key": {"x" * 60_000: 1},
    "an invalid value": {"observation": {"\x01" * 9000: {"units": ["\x01"] * 4000}}},
    "depth": {"action": {"a": [[[[[[[[[[[[]]]]]]]]]]]]}},
}


@pytest.mark.parametrize("robot", _HOSTILE.values(), ids=_HOSTILE)
def test_every_refusal_fits_a_message(robot: Any) -> None:
    error = refusal(robot, model())

    assert len(encode_error(error.error, error.parameters)) < 60_000
    assert len(error.parameters["message"].encode()) < 16_000, "it fits the error text of a client in C"


def test_one_user_s_statements_take_a_tenth_of_the_supervisor_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept = [100.0], []
    clock = SimpleNamespace(monotonic=lambda: now_s[0], thread_time=lambda: now_s[0])
    service = _service(model())

    def compared(statement: dict[str, Any], step_ns: int | None) -> list[str]:
        now_s[0] += 0.25
        return []

    async def sleep(pause_s: float) -> None:
        slept.append(pause_s)
        now_s[0] += pause_s

    monkeypatch.setattr(client_api, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(service, "_compared", compared)
    stranger = os.getuid() + 1

    for uid in (stranger, stranger + 1, stranger, stranger, os.getuid(), os.getuid(), 0, 0):
        coroutine = service.check_robot(_peer(uid), {"robot": _STATED}, [])
        with pytest.raises(StopIteration):
            coroutine.send(None)

    assert slept == [2.0, 2.25]

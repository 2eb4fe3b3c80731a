"""The policy's `warm()`: called while it is quick and does not raise, also through the adapters around a policy."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from shmserve.daemon.engine.device_failure import DeviceLost
from shmserve.daemon.engine.models.determinism import Deterministic
from shmserve.daemon.engine.requests import policy_warming
from shmserve.daemon.engine.requests.policy_warming import LONGEST_NS, MOST_LONG_CALLS, PolicyWarming


class Clock:
    """A clock that stands unless `warm` moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr(policy_warming, "time", SimpleNamespace(monotonic_ns=lambda: self.now_ns))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_it_is_called_each_time(clock: Clock) -> None:
    calls: list[int] = []
    warming = PolicyWarming(lambda: calls.append(1))
    for _ in range(20):
        warming.run()

    assert len(calls) == 20


def test_a_method_that_raises_is_reported_once_and_called_no_more(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def warm() -> None:
        calls.append(1)
        raise SystemExit("a policy may raise anything")

    warming = PolicyWarming(warm)
    for _ in range(3):
        warming.run()

    assert len(calls) == 1
    assert caplog.text.count("warm() of the policy failed, and is called no more") == 1


def test_the_loss_of_the_device_is_not_the_policy_s(clock: Clock) -> None:
    def warm() -> None:
        raise DeviceLost("gone")

    with pytest.raises(DeviceLost):
        PolicyWarming(warm).run()


def test_a_method_that_always_takes_long_is_called_no_more(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def warm() -> None:
        calls.append(1)
        clock.now_ns += LONGEST_NS if len(calls) == 2 else 2 * LONGEST_NS  # the second one is quick

    warming = PolicyWarming(warm)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            warming.run()

    assert len(calls) == 2 + MOST_LONG_CALLS
    assert "took 0.8 ms, longer than the 0.4 ms" in caplog.text


def test_it_is_found_behind_the_adapter_of_a_deterministic_policy() -> None:
    def warm() -> None: ...

    model: Any = SimpleNamespace(takes_numpy=True, resets=False, warm=warm)

    assert Deterministic(model).warm is warm
    del model.warm
    assert Deterministic(model).warm is None

"""The reading end of a pipe as a doorbell, with small and with large descriptors."""

from __future__ import annotations

import fcntl
import os
import resource
import select
from collections.abc import Iterator
from typing import Any

import pytest

from shmserve.pipe_doorbell import PipeListener, PipeRinger, create_pipe

pytestmark = pytest.mark.pure_too


@pytest.fixture(params=[0, 1024], ids=["small", "beyond select"])
def bell(request: pytest.FixtureRequest) -> Iterator[tuple[PipeRinger, PipeListener]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] <= 1100:
        pytest.skip("this process may not have so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1100), before[1]))
    listening, ringing = create_pipe()
    moved = fcntl.fcntl(listening, fcntl.F_DUPFD_CLOEXEC, request.param)
    os.close(listening)
    ringer, listener = PipeRinger(ringing), PipeListener(moved)
    yield ringer, listener
    ringer.close()
    listener.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_wait_takes_every_token_and_ends_without_one(bell: tuple[PipeRinger, PipeListener]) -> None:
    ringer, listener = bell
    for _ in range(3):
        ringer.ring()

    assert listener.wait(60_000_000_000)
    assert not listener.wait(1)
    assert not listener.wait(0)
    assert not listener.try_take()


def test_a_wait_of_microseconds_is_not_one_of_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []
    real = select.select

    def noted(*arguments: Any) -> Any:
        timeouts.append(arguments[3])
        return real(*arguments)

    monkeypatch.setattr(select, "select", noted)
    listening, ringing = create_pipe()
    listener = PipeListener(listening)
    listener.wait(4_321_000)
    listener.close()
    os.close(ringing)

    assert timeouts == [0.004321]

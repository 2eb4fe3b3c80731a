"""Cancelling in the moment in which an engine takes the request: what is said not to run does not run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from shmserve.client import RequestCancelled
from tests.support import c_client
from tests.support.c_client import CClient
from tests.support.c_library import library
from tests.support.daemon_process import Daemon, wait_stopped

pytestmark = [pytest.mark.both_ways]


@pytest.fixture
def stopping(make_daemon: Any) -> Daemon:
    """A daemon whose engine stops between its checks of the first request and the mark that it has taken it."""
    daemon: Daemon = make_daemon("obedient")
    daemon.environment = {"SHMSERVE_FAILPOINTS": "request.checked=stop@1"}
    return daemon.start()


@pytest.fixture
def engine_pid(stopping: Daemon) -> Iterator[int]:
    pid = stopping.engine_pid
    yield pid
    os.kill(pid, signal.SIGCONT)


def test_a_request_that_its_engine_has_checked_and_not_taken_does_not_run_once_it_is_cancelled(
    stopping: Daemon, engine_pid: int
) -> None:
    with stopping.client() as client:
        pending = client.submit({"do": "count", "tag": 1})
        wait_stopped(engine_pid)

        assert pending.cancel()
        os.kill(engine_pid, signal.SIGCONT)

        with pytest.raises(RequestCancelled, match="before it ran"):
            pending.result()
        assert client.infer({"do": "tags"}) == []
        assert stopping.status()["requests"]["cancelled"] == 1


def test_nor_does_it_run_for_a_client_in_c(stopping: Daemon, engine_pid: int) -> None:
    library()
    with CClient.of(stopping) as asked:
        sequence = asked.submit({"do": "count", "tag": 1})
        wait_stopped(engine_pid)

        assert asked.calls.cancel(asked.handle, sequence) == c_client.OK
        os.kill(engine_pid, signal.SIGCONT)

        assert asked.infer({"do": "tags"}) == []

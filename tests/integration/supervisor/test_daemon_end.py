"""The last moments of a daemon that was asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.support.daemon_process import Daemon, wait_stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_when_nothing_is_left_to_stop_does_not_change_the_exit_status(
    make_daemon: Callable[..., Daemon], number: signal.Signals
) -> None:
    daemon = make_daemon("echo")
    daemon.environment = {"SHMSERVE_FAILPOINTS": "daemon.ended=stop"}
    daemon.start()
    daemon.signal(signal.SIGTERM)
    wait_stopped(daemon.pid)

    daemon.signal(number)
    daemon.signal(signal.SIGCONT)

    assert daemon.wait_end() == 0

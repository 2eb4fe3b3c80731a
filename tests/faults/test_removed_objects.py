"""Somebody removes the service's live objects from /dev/shm, as logind does for RemoveIPC= at a user's last logout."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from shmserve.client import ServiceUnavailable
from tests.support.daemon_process import Daemon, wait_until

NAMED = ("--transport", "named")


def remove_objects(daemon: Daemon) -> None:
    names = daemon.names_in_shm()
    assert len(names) >= 1
    for name in names:
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.fault("T87")
@pytest.mark.long
def test_attached_clients_are_served_on_and_a_new_one_gets_the_reason(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("obedient", arguments=NAMED)
    pids = daemon.pid, daemon.engine_pid
    with daemon.client(slots=2, max_retries=0) as client:
        assert client.infer({"do": "echo", "value": 0}) == 0

        remove_objects(daemon)

        for number in range(100):
            assert client.infer({"do": "echo", "value": number}) == number
        for who, value in ((daemon.client(max_retries=0), 1), (client, np.zeros(1 << 20))):
            with pytest.raises(
                ServiceUnavailable, match=r"the service's objects were removed from /dev/shm.*restart shmserved"
            ):
                who.infer({"do": "echo", "value": value})
        assert client.infer({"do": "echo", "value": 5}) == 5
    assert (daemon.pid, daemon.engine_pid) == pids
    # Nobody is attached any more: the service mends itself for the next one.
    with daemon.client(timeout=100) as client:
        assert client.infer({"do": "echo", "value": 6}) == 6
    daemon.stop()


@pytest.mark.fault("T87")
@pytest.mark.long
def test_an_engine_that_dies_after_that_is_replaced_and_no_client_is_blamed(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("obedient", arguments=NAMED)
    with daemon.client(timeout=100) as client, daemon.client(timeout=100) as other:
        for each in (client, other):
            assert each.infer({"do": "echo", "value": 0}) == 0
        remove_objects(daemon)

        os.kill(daemon.engine_pid, signal.SIGKILL)

        for each in (client, other, daemon.client(timeout=100)):
            assert each.infer({"do": "echo", "value": 1}) == 1
    assert "is evicted" not in daemon.log
    wait_until("every channel was given back", lambda: len(daemon.status()["clients"]) == 1)


@pytest.mark.long
def test_one_channel_whose_objects_are_gone_is_made_anew_with_the_next_engine(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("obedient", arguments=NAMED)
    with daemon.client(timeout=100) as client:
        before = set(daemon.names_in_shm())
        with daemon.client(timeout=100) as other:
            assert [each.infer({"do": "echo", "value": 0}) for each in (client, other)] == [0, 0]
            for name in set(daemon.names_in_shm()) - before:
                os.unlink(f"/dev/shm/{name}")

            os.kill(daemon.engine_pid, signal.SIGKILL)

            assert [each.infer({"do": "echo", "value": 1}) for each in (client, other)] == [1, 1]
    assert "is evicted" not in daemon.log

"""By transport `named` a client can break what the engine has mapped: that costs the engine a restart, and the client
its channel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmserve.client import ClientEvicted
from shmserve.client.capacity import SlotCapacity
from shmserve.client.connection import Connection
from tests.support.daemon_process import Daemon, wait_until
from tests.support.raw_channel import RawChannel

SHM = Path("/dev/shm")
SENT_AWAY_S = 2


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon("obedient", config=f"ban_s = {SENT_AWAY_S}\n", arguments=("--transport", "named"))
    try:
        yield daemon.start()
    finally:
        daemon.expected_in_log.add("Fatal Python error")
        daemon.dismiss()


def truncate_segments(channel: RawChannel) -> None:
    for name in channel.names:
        if not name.startswith("sem."):
            os.truncate(SHM / name, 0)


def truncate_own_bell(channel: RawChannel) -> None:
    os.truncate(next(SHM / name for name in channel.names if name.startswith("sem.")), 0)


def write_over_own_bell(channel: RawChannel) -> None:
    write_over(next(SHM / name for name in channel.names if name.startswith("sem.")))


def write_over(bell: Path) -> None:
    with open(bell, "r+b") as file:
        # No token, so that whoever waits asks the kernel, with flags that it does not know.
        file.write(b"\0" * 4 + b"\xff" * 28)


@pytest.mark.fault("T01", "T02", "T19")
@pytest.mark.parametrize(
    ("harm", "damage"),
    [
        (truncate_segments, "its shared memory was truncated"),
        (truncate_own_bell, "its doorbell was truncated"),
        (write_over_own_bell, "its doorbell was written over"),
    ],
)
def test_a_client_that_breaks_its_channel_loses_it_and_the_others_lose_no_request(
    daemon: Daemon, harm: Callable[[RawChannel], None], damage: str
) -> None:
    supervisor, restarts = daemon.pid, daemon.status()["engine"]["restarts"]
    with daemon.client(timeout=100) as neighbour:
        neighbour.infer({"do": "echo", "value": 0})
        with RawChannel(daemon) as raw:
            first = raw.head({"do": "echo", "value": 1})
            raw.publish(first)
            raw.reply(first.sequence)
            head = raw.head({"do": "echo", "value": 2})
            if harm is not truncate_segments:
                raw.requests.publish(tuple(head))
            harm(raw)
            raw.ring()

            raw.wait_evicted()
            assert damage in str(raw.attachment.close_error())
            with pytest.raises(ClientEvicted, match=f"it was evicted: {damage}; it may attach again in"):
                Connection.open(daemon.name, daemon.service_dir, SlotCapacity(1), 30.0)
        for number in range(10):
            assert neighbour.infer({"do": "echo", "value": number}) == number
    assert daemon.pid == supervisor
    assert daemon.status()["engine"]["restarts"] == restarts + 1
    wait_until("the offender is let back in", lambda: may_attach(daemon))


def may_attach(daemon: Daemon) -> bool:
    try:
        Connection.open(daemon.name, daemon.service_dir, SlotCapacity(1), 30.0).close()
    except ClientEvicted:
        return False
    return True


@pytest.mark.fault("T02", "T19")
def test_the_shared_doorbell_is_replaced_after_a_client_overwrites_it(daemon: Daemon) -> None:
    supervisor = daemon.pid
    wait_until("nobody is attached", lambda: daemon.status()["clients"] == [])
    (bell,) = daemon.names_in_shm()

    with daemon.client() as client:
        client.infer({"do": "echo", "value": 0})
        write_over(SHM / bell)  # the client is not asked again: it would die of it, as the engine does

        wait_until("the client is to attach again", lambda: daemon.status()["clients"] == [])

    daemon.wait_ready()
    with daemon.client(timeout=100) as client:
        for number in range(10):
            assert client.infer({"do": "echo", "value": number}) == number
    assert daemon.pid == supervisor
    assert not (SHM / bell).exists()
    assert "the doorbell of all clients is replaced" in daemon.log

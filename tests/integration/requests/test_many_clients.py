"""Several robots at once lose nothing and get nothing of each other's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from tests.support.daemon_process import Daemon, wait_until
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too

_ROBOTS = 4
_REQUESTS = 2500


def test_ten_thousand_requests_of_four_robots_are_neither_lost_nor_mixed(
    start_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot]
) -> None:
    daemon = start_daemon("tagged")
    robots = [start_robot("tagged_load", daemon, number, _REQUESTS, number + 1) for number in range(_ROBOTS)]

    reports = [robot.finish() for robot in robots]

    assert reports == [{"answers": _REQUESTS, "numbers": True, "wrong": [], "late": 0}] * _ROBOTS
    requests = daemon.wait_counted(served=_ROBOTS * _REQUESTS)
    assert {name: count for name, count in requests.items() if count} == {
        "served": _ROBOTS * _REQUESTS,
        "batches": _ROBOTS * _REQUESTS,
    }
    wait_until("all channels were given back", lambda: daemon.status()["clients"] == [])
    # The doorbell of the service is all that is left of four channels, where channels have names at all.
    left = [name.startswith("sem.") for name in daemon.names_in_shm()]
    assert left == ([True] if daemon.status()["transport"] == "named" else [])


def test_threads_may_share_a_client(tagged: Daemon) -> None:
    daemon = tagged
    before = daemon.status()["requests"]["served"]
    wrong: list[Any] = []

    def ask(client: ShmClient, thread: int) -> None:
        for number in range(400):
            x = np.arange(thread * 7 + number % 13)
            found = client.infer({"tag": number, "k": thread, "x": x})
            if found["tag"] != number or found["k"] != thread or not np.array_equal(found["y"], x * thread):
                wrong.append((thread, number, found))

    with daemon.client(slots=3) as client:
        threads = [threading.Thread(target=ask, args=(client, thread)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wrong == []
    daemon.wait_counted(served=before + 6 * 400)


def test_a_client_with_many_requests_in_flight_does_not_starve_one_with_a_single_request(
    obedient: Daemon, gate: Any
) -> None:
    with obedient.client(slots=16) as busy, obedient.client() as single:
        busy.infer({"do": "tags"})
        single.infer({"do": "count"})
        held = busy.submit(gate.observation)
        gate.wait_entered()
        for number in range(12):
            busy.submit({"do": "count", "tag": number})
        waits = single.submit({"do": "count", "tag": 100})
        gate.open()

        held.result()
        waits.result()
        order = single.infer({"do": "tags"})

    # The busy client was served last, so its turn comes after the single request's and not twelve times before.
    assert order.index(100) <= 1


def test_each_client_of_a_process_has_its_own_channel(obedient: Daemon) -> None:
    with obedient.client() as one, obedient.client() as other:
        one.infer({"do": "echo", "value": 1})

        wait_until(
            "each counts its own", lambda: sorted(found["served"] for found in obedient.status()["clients"]) == [0, 1]
        )
        clients = obedient.status()["clients"]

        assert len({found["id"] for found in clients}) == 2
        assert {found["program"] for found in clients} == {Path(sys.argv[0]).name or "python"}
        assert other.infer({"do": "echo", "value": 2}) == 2


def test_robots_are_served_equally_however_many_requests_each_keeps_out(
    obedient: Daemon, start_robot: Callable[..., Robot]
) -> None:
    daemon = obedient
    wait_until("the clients of other tests are gone", lambda: not daemon.status()["clients"])
    robots = [start_robot("greedy", daemon, out) for out in (16, 4, 1)]
    for robot in robots:
        assert robot.says() == "attached"

    def served() -> list[int]:
        return [client["served"] for client in daemon.status()["clients"]]

    # From when all ask: one that began earlier has more by then.
    before = wait_until("all have been served", lambda: found if all(found := served()) else None)
    wait_until("they have been served", lambda: sum(served()) > sum(before) + 200)
    counts = [after - earlier for after, earlier in zip(served(), before, strict=True)]

    assert len(counts) == 3
    assert min(counts) > max(counts) / 2

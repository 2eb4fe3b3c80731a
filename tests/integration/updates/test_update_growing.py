"""A result that waits for its client to make room, while another model takes over: it comes once, from who made it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import EngineLost, Pending, ShmClient
from shmserve.package_files import content_version
from tests.support.admin_command import engines_of, update
from tests.support.client_parts import connection_of
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gain_packages import gain_package

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    return [gain_package(folder, 2), gain_package(folder, 3)]


@pytest.fixture(scope="module")
def daemon(packages: list[Path]) -> Iterator[Daemon]:
    with Daemon(packages[0]) as daemon:
        update(daemon, packages[1])
        yield daemon


@pytest.fixture
def client(daemon: Daemon, packages: list[Path]) -> Iterator[ShmClient]:
    """A new channel, with room for a small result, and the first of the two models."""
    update(daemon, packages[0])
    with daemon.client(check_contract=False) as client:
        assert client.infer(_asking(1))["k"] == 2
        yield client


def _asking(rows: int) -> dict[str, Any]:
    return {"x": np.arange(3), "robot": "r", "rows": rows}


def _hold(client: ShmClient, rows: int) -> Pending:
    """Ask for a result that does not fit; the engine has it, and the client has not looked yet."""
    pending = client.submit(_asking(rows))
    replies = connection_of(client).channel.replies
    wait_until("the model ran", lambda: replies.answered(pending.sequence))
    return pending


def _check(pending: Pending, rows: int, k: int, package: Path) -> None:
    found = pending.result()
    assert found["k"] == k
    assert np.array_equal(found["y"], np.tile(np.arange(3) * k, (rows, 1)))
    assert pending.reply is not None and pending.reply.model_version == content_version(package)


def test_the_engine_that_made_it_delivers_it_after_the_swap(
    daemon: Daemon, client: ShmClient, packages: list[Path]
) -> None:
    pending = _hold(client, 50_000)
    assert update(daemon, packages[1])["changed"]
    served = daemon.status()["requests"]["served"]

    _check(pending, 50_000, 2, packages[0])
    assert daemon.status()["requests"]["served"] == served  # nobody ran it again
    assert client.infer(_asking(1))["k"] == 3


def test_each_of_two_engines_delivers_its_own(daemon: Daemon, client: ShmClient, packages: list[Path]) -> None:
    first = _hold(client, 60_000)
    assert update(daemon, packages[1])["changed"]
    second = _hold(client, 70_000)

    _check(second, 70_000, 3, packages[1])
    _check(first, 60_000, 2, packages[0])


def test_it_waits_through_a_swap_and_back(daemon: Daemon, client: ShmClient, packages: list[Path]) -> None:
    first = _hold(client, 60_000)
    assert update(daemon, packages[1])["changed"]
    second = _hold(client, 60_000)
    assert update(daemon, packages[0])["changed"]
    third = _hold(client, 60_000)

    _check(first, 60_000, 2, packages[0])
    _check(second, 60_000, 3, packages[1])
    _check(third, 60_000, 2, packages[0])


def test_the_channel_can_grow_again_after_that(daemon: Daemon, client: ShmClient, packages: list[Path]) -> None:
    """Who holds what is not remembered longer than it is held."""
    pending = _hold(client, 50_000)
    assert update(daemon, packages[1])["changed"]
    _check(pending, 50_000, 2, packages[0])

    for rows in (100_000, 200_000):
        _check(_hold(client, rows), rows, 3, packages[1])


def test_it_is_lost_with_the_engine_that_holds_it(daemon: Daemon, client: ShmClient, packages: list[Path]) -> None:
    pending = _hold(client, 50_000)
    holder = daemon.engine_pid
    assert update(daemon, packages[1])["changed"]
    os.kill(holder, signal.SIGKILL)
    wait_until("it is gone", lambda: not is_running(holder))
    wait_until("the daemon knows", lambda: not daemon.admin("Versions")["versions"][0]["standby"])

    with pytest.raises(EngineLost):
        pending.result()
    assert client.infer(_asking(1))["k"] == 3


@pytest.mark.long
def test_an_engine_without_standby_delivers_before_it_ends(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    old, new, third = (gain_package(tmp_path, k) for k in (2, 3, 4))
    daemon = start_daemon(old, config="standby_s = 0\n")
    with daemon.client(check_contract=False) as client:
        assert client.infer(_asking(1))["k"] == 2
        pending = _hold(client, 50_000)
        assert update(daemon, new)["changed"]

        _check(pending, 50_000, 2, old)
        wait_until("the old engine is gone", lambda: engines_of(daemon.pid) == [daemon.engine_pid])

        # In place the old engine has to end before the new one loads.
        pending = _hold(client, 100_000)
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(update, daemon, third, in_place=True)
            _check(pending, 100_000, 3, new)
            assert changing.result()["changed"]
        assert client.infer(_asking(1))["k"] == 4

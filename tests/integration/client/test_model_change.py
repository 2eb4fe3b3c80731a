"""A robot's program is told when another model version answers it, however it asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.client.model_watch import ModelWatch
from shmserve.package_files import content_version
from tests.support.admin_command import update
from tests.support.client_parts import in_loop
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gain_packages import gain_package

pytestmark = [pytest.mark.long, pytest.mark.sealed_too]

_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    return [gain_package(folder, k) for k in (2, 3)]


@pytest.fixture(scope="module")
def two(packages: list[Path]) -> str:
    return content_version(packages[0])


@pytest.fixture(scope="module")
def three(packages: list[Path]) -> str:
    return content_version(packages[1])


@pytest.fixture(scope="module")
def daemon(packages: list[Path]) -> Iterator[Daemon]:
    with Daemon(packages[0]) as daemon:
        update(daemon, packages[1])
        yield daemon


@pytest.fixture
def client(daemon: Daemon, packages: list[Path]) -> Iterator[ShmClient]:
    """A client that has a reply of the first version."""
    update(daemon, packages[0])
    with daemon.client() as client:
        client.infer(_X)
        yield client


@pytest.fixture
def heard(client: ShmClient) -> list[tuple[str, str]]:
    """What the client is told."""
    heard: list[tuple[str, str]] = []
    client.on_model_change(lambda before, after: heard.append((before, after)))
    return heard


def test_the_client_reports_each_model_change_once_and_before_the_result(
    client: ShmClient, heard: list[tuple[str, str]], daemon: Daemon, packages: list[Path], two: str, three: str
) -> None:
    client.infer(_X)
    assert heard == []

    for package, change in ((packages[1], (two, three)), (packages[0], (three, two))):
        update(daemon, package)
        assert not heard
        for _ in range(3):
            reply = client.request(_X)
        assert heard == [change]
        assert reply.model_version == change[1]
        heard.clear()


def test_metadata_describes_the_new_model_by_then(
    client: ShmClient, daemon: Daemon, packages: list[Path], three: str
) -> None:
    seen: list[str] = []
    client.on_model_change(lambda before, after: seen.append(client.describe()["version"]))

    update(daemon, packages[1])
    client.infer(_X)

    assert seen == [three]


def test_a_poll_reports_the_change_with_the_result(
    client: ShmClient, heard: list[tuple[str, str]], daemon: Daemon, packages: list[Path], two: str, three: str
) -> None:
    update(daemon, packages[1])
    pending = client.submit(_X)
    wait_until("it is done", pending.done)
    assert heard == []

    pending.result()

    assert heard == [(two, three)]


def test_a_model_change_callback_runs_in_the_thread_of_the_event_loop(
    client: ShmClient, daemon: Daemon, packages: list[Path], two: str
) -> None:
    threads: list[int] = []
    client.on_model_change(lambda before, after: threads.append(threading.get_ident()))
    update(daemon, packages[1])

    asyncio.run(in_loop(client).infer(_X))

    assert threads == [threading.get_ident()]


def test_an_exception_of_a_callback_is_logged_and_costs_no_reply(
    client: ShmClient, daemon: Daemon, packages: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    @client.on_model_change
    def breaks(before: str, after: str) -> None:
        raise KeyError("gripper")

    later: list[str] = []
    client.on_model_change(lambda before, after: later.append(after))
    update(daemon, packages[1])

    assert client.infer(_X)["k"] == 3

    assert "KeyError: 'gripper'" in caplog.text and "breaks" in caplog.text
    assert len(later) == 1


def test_a_change_between_attaching_and_the_first_reply_is_one(
    daemon: Daemon, packages: list[Path], two: str, three: str
) -> None:
    """The robot may have read the metadata of the version that it attached to."""
    update(daemon, packages[0])
    heard: list[tuple[str, str]] = []
    with daemon.client() as client:
        client.on_model_change(lambda before, after: heard.append((before, after)))
        update(daemon, packages[1])

        client.infer(_X)

    assert heard == [(two, three)]


def test_the_first_known_model_version_is_not_a_change() -> None:
    heard: list[tuple[str, str]] = []
    watch = ModelWatch(None)
    watch.add(lambda before, after: heard.append((before, after)))

    watch.observe(0xA)
    assert heard == []
    watch.observe(0xB)

    assert heard == [("000000000000000a", "000000000000000b")]


@pytest.mark.long
def test_a_restarted_daemon_with_another_model_is_a_change(
    daemon: Daemon, client: ShmClient, heard: list[tuple[str, str]], packages: list[Path], two: str, three: str
) -> None:
    update(daemon, packages[1])
    daemon.kill9()
    daemon.start()

    assert client.infer(_X, timeout=60)["k"] == 3

    assert heard == [(two, three)]

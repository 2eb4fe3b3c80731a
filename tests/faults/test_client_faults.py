"""A client that is killed, interrupted, closed or alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ClientClosed, ServiceUnavailable, ShmClient
from tests.support.daemon_process import Daemon, wait_until
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too


@pytest.mark.fault("T47")
def test_a_killed_client_is_detached_and_harms_no_other(tagged: Daemon, start_robot: Callable[..., Robot]) -> None:
    daemon = tagged
    wait_until("the clients of other tests are gone", lambda: not daemon.status()["clients"])
    with daemon.client() as other:
        other.infer({"tag": 0, "k": 1, "x": np.arange(3)})
        names = daemon.names_in_shm()
        engine = daemon.engine_pid
        for _ in range(3):
            robot = start_robot("endless", daemon)
            assert robot.says() == "busy"
            assert len(daemon.status()["clients"]) == 2

            robot.process.kill()
            robot.process.wait()

            wait_until("its channel was given back", lambda: len(daemon.status()["clients"]) == 1)
            wait_until("its names are gone", lambda: daemon.names_in_shm() == names)
            for tag in range(50):
                found = other.infer({"tag": tag, "k": 3, "x": np.arange(tag)})
                assert found["tag"] == tag and np.array_equal(found["y"], np.arange(tag) * 3)
        assert daemon.engine_pid == engine
    assert daemon.status()["engine"]["restarts"] == 0


@pytest.mark.parametrize("pause_s", [0, pytest.param(0.002, marks=pytest.mark.long)])
def test_an_interrupted_client_stays_usable(
    tagged: Daemon, start_robot: Callable[..., Robot], tmp_path: Path, pause_s: float
) -> None:
    before = tagged.status()["requests"]["served"]
    robot = start_robot("interrupted", tagged, pause_s, tmp_path / "enough")
    assert robot.says() == "up"
    wait_until("it works", lambda: tagged.status()["requests"]["served"] > before + 100)
    for number in range(150):
        robot.process.send_signal(signal.SIGINT)
        time.sleep(0.001 * (number % 17))
    (tmp_path / "enough").touch()

    found = robot.finish()

    # Signals that arrive together are one.
    assert found["interrupts"] > 20
    assert found["wrong"] == 0
    assert found["last"] == [0, 2, 4]


def test_a_closed_client_says_so(echo: Daemon) -> None:
    client = echo.client()
    assert client.infer({"x": 1}) == {"x": 1}
    client.close()
    client.close()

    with pytest.raises(ClientClosed, match="this client of 't' was closed: make a new one"):
        client.infer({"x": 1})
    with pytest.raises(ClientClosed):
        client.reset()
    with pytest.raises(ClientClosed):
        client.submit({"x": 1})
    with pytest.raises(ClientClosed):
        client.connect()
    wait_until("its channel was given back", lambda: echo.status()["clients"] == [])


def test_a_client_that_is_forgotten_gives_its_channel_back(echo: Daemon) -> None:
    client = ShmClient(echo.name, runtime_dir=echo.runtime_dir)
    client.infer({"x": 1})
    del client

    wait_until("its channel was given back", lambda: echo.status()["clients"] == [])


def test_without_a_service_the_client_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable) as raised:
        ShmClient("arm", runtime_dir=tmp_path, max_retries=2, retry_delay=0.01).infer({"x": 1})

    assert str(tmp_path / "arm" / "client.sock") in str(raised.value)
    assert "shmserved --model-path DIR --name arm" in str(raised.value)
    assert isinstance(raised.value, ConnectionError)


def test_a_service_that_comes_up_during_the_retries_is_used(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("echo")
    daemon.spawn()

    # It is asked before it has made its sockets, and before its model is loaded.
    with daemon.client(max_retries=1000, retry_delay=0.02, timeout=60) as client:
        assert client.infer({"x": 1}) == {"x": 1}
    daemon.wait_ready()


def test_a_socket_without_a_listener_is_not_a_service(tmp_path: Path) -> None:
    import socket

    (tmp_path / "arm").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "arm" / "client.sock"))

    with pytest.raises(ServiceUnavailable, match="no daemon serves 'arm'"):
        ShmClient("arm", runtime_dir=tmp_path, max_retries=0).infer({"x": 1})


@pytest.mark.parametrize(
    "settings",
    [{"max_retries": -1}, {"retry_delay": -1.0}, {"retry_delay": float("nan")}, {"slots": 0}, {"slots": 65}],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        ShmClient("arm", **settings)  # type: ignore[arg-type]


def test_an_invalid_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"service name '\.\./arm'"):
        ShmClient("../arm")


def test_more_clients_than_allowed_are_refused_until_one_leaves(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("echo", config="max_clients = 2\n")
    with daemon.client() as one, daemon.client():
        with pytest.raises(ServiceUnavailable, match="2 clients are attached and max_clients is 2"):
            daemon.client(max_retries=0).infer({"x": 1})
        one.close()

        wait_until("the place is free", lambda: len(daemon.status()["clients"]) == 1)
        assert daemon.client(max_retries=0).infer({"x": 1}) == {"x": 1}

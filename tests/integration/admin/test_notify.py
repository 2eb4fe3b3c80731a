"""The daemon tells systemd how it is, and a stuck engine is found and replaced."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from shmserve.daemon.host.notify import Notifier
from shmserve.daemon.supervisor.engine_watchdog import EngineWatchdog
from shmserve.daemon.supervisor.supervisor import Supervisor
from shmserve.errors import EngineLost
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.notify_socket import NotifySocket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    socket = NotifySocket(tmp_path / "notify")
    yield socket
    socket.close()


# The message


def test_a_message_reaches_a_socket_with_a_path(manager: NotifySocket) -> None:
    Notifier(manager.address).sd_notify(READY=1, STATUS="serving")

    assert manager.receive() == {"READY": "1", "STATUS": "serving"}


def test_a_message_reaches_an_abstract_socket() -> None:
    manager = NotifySocket()
    assert manager.address.startswith("@")

    Notifier(manager.address).sd_notify(WATCHDOG=1)

    assert manager.receive() == {"WATCHDOG": "1"}
    manager.close()


def test_a_model_s_name_cannot_add_a_field(manager: NotifySocket) -> None:
    Notifier(manager.address).sd_notify(STATUS="model\nMAINPID=1")

    assert manager.receive() == {"STATUS": "model MAINPID=1"}


def test_notifying_without_a_listener_is_not_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "gone"))

    notifier.sd_notify(READY=1)
    notifier.sd_notify(WATCHDOG=1)

    assert len(caplog.records) == 1, "said once"
    Notifier(None).sd_notify(READY=1)


def test_engines_do_not_inherit_the_socket() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}

    notifier = Notifier.from_environment(environment)

    assert notifier.watchdog_s == 2.0
    assert environment == {"HOME": "/"}


def test_a_watchdog_of_another_process_is_not_fed() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}

    assert Notifier.from_environment(environment).watchdog_s is None


def test_the_daemon_notifies_a_manager_that_does_not_read_again_later(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))

        told = [notifier.sd_notify(WATCHDOG=1) for _ in range(5000)]

        assert told[0] and not told[-1]
        deaf.recv(100)
        assert notifier.sd_notify(READY=1)


# The daemon


def test_the_daemon_notifies_ready_when_the_model_is_warm_and_requests_more_time_before(
    make_daemon: Callable[..., Daemon], manager: NotifySocket, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("GATE", gate.observation["gate"])
    daemon = make_daemon("slow_start")

    daemon.spawn()
    gate.wait_entered()
    manager.wait_for("STATUS", "loading")
    assert int(dict(manager.fields)["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
    assert "READY" not in dict(manager.fields)
    gate.open()
    manager.wait_for("READY", "1")
    status = manager.wait_for("STATUS")["STATUS"]
    model = daemon.status()["model"]
    daemon.stop()

    assert status == f"ready: {model['name']} version {model['version']} on cpu"
    assert manager.wait_for("STOPPING", "1")["EXTEND_TIMEOUT_USEC"] == "15000000"
    assert [key for key, _ in manager.fields].count("READY") == 1


def test_the_daemon_notifies_a_failed_model_load_and_never_ready(
    make_daemon: Callable[..., Daemon], manager: NotifySocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "policy.py").write_text("class Policy:\n    def __init__(self, *a): raise KeyError('w')\n")
    daemon = make_daemon(tmp_path / "model")

    assert daemon.run_to_end() == 1

    while not manager.receive().get("STATUS", "").startswith("failed: load failed: KeyError"):
        pass
    assert "READY" not in dict(manager.fields)


@pytest.mark.fault("T56")
def test_the_watchdog_is_fed_while_the_daemon_lives_and_not_while_its_engine_is_stuck(
    start_daemon: Callable[..., Daemon], manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    daemon = start_daemon("echo", config="heartbeat_timeout_s = 1\n")
    first = daemon.engine_pid
    manager.wait_for("READY")
    manager.wait_for("WATCHDOG", "1")

    os.kill(first, signal.SIGSTOP)  # SIGABRT waits for SIGCONT; SIGKILL does not

    def another_serves() -> bool:
        status = daemon.status()  # once: between two questions the engine may be gone
        return status["state"] == "ready" and status["engine"] is not None and status["engine"]["pid"] != first

    wait_until("another engine serves", another_serves)
    manager.forget()
    manager.wait_for("WATCHDOG", "1")
    assert f"engine {first} has not moved for heartbeat_timeout_s = 1 s, no request in hand" in daemon.log


@pytest.mark.long
def test_a_request_on_which_the_engine_is_stuck_is_tried_once_more_and_then_lost(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient", config="heartbeat_timeout_s = 1\n")
    first = daemon.engine_pid

    with daemon.client() as client, pytest.raises(EngineLost):
        client.infer(gate.observation)

    daemon.wait_ready()
    assert daemon.engine_pid != first
    assert daemon.status()["engine"]["restarts"] == 2
    assert daemon.log.count("a request of client 0 in hand") == 2
    assert "policy.py" in daemon.log, "the stack of the stuck engine"
    daemon.expected_in_log.add("Fatal Python error: Aborted")
    with daemon.client() as client:
        assert client.infer({"do": "count"})["runs"] == 1


@pytest.mark.long
def test_an_inference_shorter_than_stuck_s_is_left_alone(start_daemon: Callable[..., Daemon], gate: Gate) -> None:
    daemon = start_daemon("obedient", config="heartbeat_timeout_s = 60\n")
    with daemon.client() as client:
        pending = client.submit(gate.observation)
        gate.wait_entered()
        wait_until("the heartbeat is old", lambda: (daemon.status()["engine"]["heartbeat_age_s"] or 0) > 1.5)
        gate.open()

        assert pending.result()["waited"]

    assert daemon.status()["engine"]["restarts"] == 0


def test_a_watch_that_has_ended_is_not_taken_for_an_engine_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = EngineWatchdog(cast("Supervisor", None))  # it never looks here
    assert not watch.stuck

    began_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 11.0)
    assert watch.stuck

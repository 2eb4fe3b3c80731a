"""Which requests are sent or run again, and how often the policy ran: it keeps a journal of what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client import (
    EngineLost,
    InferenceFailed,
    ObservationStale,
    Pending,
    RequestTimeout,
    ServiceRestarted,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
    UnsupportedType,
)
from tests.support.client_parts import in_loop
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


class Journal:
    """What the policy has been asked, in its order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tags(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    def asked(self, tag: str, **more: Any) -> dict[str, Any]:
        """What to ask the policy."""
        return {"journal": str(self.path), "tag": tag, **more}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@contextlib.contextmanager
def stateful_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon of a policy that says it keeps state."""
    package = shutil.copytree(POLICIES / "journal", folder / "policy")
    (package / "model.toml").write_text("[model]\nstateful = true\n")
    daemon = Daemon(package)
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of several tests, which may kill it, if they start it again."""
    with stateful_daemon(tmp_path_factory.mktemp("journal")) as daemon:
        yield daemon


@pytest.fixture
def own_stateful(tmp_path: Path) -> Iterator[Daemon]:
    """The daemon of one test: the third engine that is lost under one process's requests ends with its eviction."""
    with stateful_daemon(tmp_path) as daemon:
        yield daemon


class Asking:
    """A request in a thread of its own; `end()` is what became of it."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._end: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._end = self._ask()
        except ShmServeError as error:
            self._end = error

    def end(self) -> Any:
        self._thread.join()
        return self._end


def patient(daemon: Daemon) -> ShmClient:
    client = daemon.client(max_retries=1000, retry_delay=0.02, timeout=100)
    return client.connect()


def test_the_request_that_a_stateful_policy_was_running_when_its_daemon_died_is_not_sent_again(
    stateful: Daemon, journal: Journal, gate: Gate
) -> None:
    with patient(stateful) as client, patient(stateful) as other:
        running = Asking(lambda: client.infer(journal.asked("running", gate=str(gate.path))))
        wait_until("it runs", lambda: journal.tags() == ["running"])
        waiting = Asking(lambda: other.infer(journal.asked("repeatable"), repeatable=True))
        sent = client.submit(journal.asked("submitted"))
        stateful.kill9()
        gate.open()
        stateful.start()

        assert isinstance(running.end(), ServiceRestarted)
        assert waiting.end() == {"tag": "repeatable"}
        with pytest.raises(ServiceRestarted, match="a new request attaches to its successor"):
            sent.result()
        assert journal.tags() == ["running", "repeatable"]
        assert client.infer(journal.asked("next")) == {"tag": "next"}


def test_a_request_that_may_be_run_again_is_run_again(stateful: Daemon, journal: Journal, gate: Gate) -> None:
    with patient(stateful) as client:
        running = Asking(lambda: client.infer(journal.asked("a", gate=str(gate.path)), repeatable=True))
        wait_until("it runs", lambda: journal.tags() == ["a"])
        os.kill(stateful.engine_pid, signal.SIGKILL)
        wait_until("the next engine runs it", lambda: journal.tags() == ["a", "a"])
        gate.open()

        assert running.end() == {"tag": "a"}
    stateful.wait_ready()


def send(client: ShmClient, way: str, observation: dict[str, Any]) -> Pending:
    """Send an observation that the policy may run again."""
    if way == "submit":
        return client.submit(observation, repeatable=True)
    if way == "loan":
        with client.loan(observation, repeatable=True) as loan:
            return loan.send()
    return asyncio.run(in_loop(client).submit(observation, repeatable=True))


@pytest.mark.parametrize("way", ["submit", "loan", "asyncio submit"])
def test_a_submitted_request_that_may_be_run_again_is_run_again(
    own_stateful: Daemon, journal: Journal, gate: Gate, way: str
) -> None:
    with patient(own_stateful) as client:
        running = send(client, way, journal.asked("a", gate=str(gate.path)))
        wait_until("it runs", lambda: journal.tags() == ["a"])
        os.kill(own_stateful.engine_pid, signal.SIGKILL)
        wait_until("the next engine runs it", lambda: journal.tags() == ["a", "a"])
        gate.open()

        assert running.result() == {"tag": "a"}


@pytest.mark.fault("T58")
def test_a_request_that_may_not_be_run_again_is_lost_with_its_engine_and_the_one_behind_it_is_run_once(
    stateful: Daemon, journal: Journal, gate: Gate
) -> None:
    with patient(stateful) as client:
        running = client.submit(journal.asked("a", gate=str(gate.path)))
        behind = client.submit(journal.asked("b"))
        wait_until("it runs", lambda: journal.tags() == ["a"])
        os.kill(stateful.engine_pid, signal.SIGKILL)

        with pytest.raises(EngineLost):
            running.result()
        assert behind.result() == {"tag": "b"}
    assert journal.tags() == ["a", "b"]
    stateful.wait_ready()


def test_a_permanent_failure_is_not_retried(stateful: Daemon, journal: Journal, gate: Gate) -> None:
    with patient(stateful) as client:
        with pytest.raises(InferenceFailed, match="LookupError: as it was told"):
            client.infer(journal.asked("raised", fail=True), repeatable=True)
        with pytest.raises(ObservationStale):
            client.infer(journal.asked("stale"), capture_time=time.monotonic() - 2, max_age=1, repeatable=True)
        with pytest.raises(UnsupportedType):
            client.infer({"generator": (number for number in range(3))}, repeatable=True)
        with pytest.raises(RequestTimeout):
            client.infer(journal.asked("late", gate=str(gate.path)), timeout=1.0, repeatable=True)
        gate.open()

        assert client.infer(journal.asked("next")) == {"tag": "next"}
        assert journal.tags() == ["raised", "late", "next"]


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (3, 4)])
def test_a_service_without_a_model_is_asked_the_given_number_of_times(max_retries: int, attempts: int) -> None:
    asked = 0

    def turn_away() -> None:
        nonlocal asked
        with contextlib.suppress(OSError):  # the test is over
            while True:
                connection, _ = listener.accept()
                asked += 1
                connection.close()

    with tempfile.TemporaryDirectory(prefix="shmserve-") as folder, socket.socket(socket.AF_UNIX) as listener:
        (Path(folder) / "arm").mkdir()
        listener.bind(f"{folder}/arm/client.sock")
        listener.listen()
        thread = threading.Thread(target=turn_away)
        thread.start()
        with pytest.raises(ServiceUnavailable, match="closed the connection"):
            ShmClient("arm", runtime_dir=folder, max_retries=max_retries, retry_delay=0.01).infer({"x": 1})
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert asked == attempts


def test_the_timeout_is_for_all_attempts_together(tmp_path: Path) -> None:
    client = ShmClient("arm", runtime_dir=tmp_path, max_retries=1_000_000, retry_delay=0.02, timeout=0.2)

    with pytest.raises(ServiceUnavailable):
        client.infer({"x": 1})

"""The one function of the service's HTTP predecessor, with its arguments, its answer and its one exception."""

from __future__ import annotations

import contextlib
import inspect
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import (
    InferenceFailed,
    RequestTimeout,
    ServiceUnavailable,
    UnsupportedType,
    send_inference_request,
)
from shmserve.client.compat import flask_pickle
from tests.support.daemon_process import Daemon
from tests.support.gate import Gate
from tests.support.robot_process import Robot
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


@pytest.fixture(autouse=True)
def forgotten_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clients that the function keeps are closed after each test."""
    monkeypatch.setattr(flask_pickle, "_clients", {})
    yield
    flask_pickle._close_all()


@pytest.fixture
def service(obedient: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(obedient.runtime_dir))
    return obedient


def test_its_arguments_are_the_predecessors() -> None:
    parameters = inspect.signature(send_inference_request).parameters

    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "data_dict": inspect.Parameter.empty,
        "name": "default",
        "timeout": 10,
        "max_retries": 3,
        "retry_delay": 1.0,
    }


def test_it_answers_with_a_status_and_the_models_output(service: Daemon) -> None:
    value = {"instruction": "pick", "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}

    answer = send_inference_request({"do": "echo", "value": value}, name="t")

    assert answer.keys() == {"status", "output"}
    assert answer["status"] == "ok"
    assert_same(answer["output"], value)


def test_all_calls_share_one_client(service: Daemon) -> None:
    before = len(service.status()["clients"])
    wrong: list[Any] = []

    def ask(thread: int) -> None:
        for number in range(50):
            answer = send_inference_request({"do": "echo", "value": [thread, number]}, name="t")
            if answer["output"] != [thread, number]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(service.status()["clients"]) == before + 1


def test_without_a_service_it_is_a_runtime_error_after_the_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(tmp_path))

    with pytest.raises(
        RuntimeError, match=f"inference request to 'arm' failed: no daemon serves 'arm' at {tmp_path}"
    ) as raised:
        send_inference_request({"x": 1}, name="arm", max_retries=2, retry_delay=0.01)

    assert isinstance(raised.value.__cause__, ServiceUnavailable)


def test_the_retries_of_one_call_are_no_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[socket.socket] = []
    first = threading.Event()

    def turn_away() -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                connection, _ = listener.accept()
                asked.append(connection)
                connection.close()
                first.set()

    def call(max_retries: int, retry_delay: float) -> None:
        with pytest.raises(RuntimeError, match="closed the connection"):
            send_inference_request({"x": 1}, "arm", 60, max_retries, retry_delay)

    with tempfile.TemporaryDirectory(prefix="shmserve-") as folder, socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", folder)
        (Path(folder) / "arm").mkdir()
        listener.bind(f"{folder}/arm/client.sock")
        listener.listen()
        threads = [threading.Thread(target=turn_away), threading.Thread(target=call, args=(6, 0.05))]
        for thread in threads:
            thread.start()
        first.wait()
        for _ in range(3):
            call(0, 0.0)
        threads[1].join()
        listener.shutdown(socket.SHUT_RDWR)
        threads[0].join()

    assert len(asked) == 7 + 3


@pytest.mark.parametrize(
    ("request_", "cause", "said"),
    [
        ({"do": "raise", "text": "no such joint"}, InferenceFailed, "the model raised LookupError: no such joint"),
        ({"do": "echo", "value": (number for number in range(3))}, UnsupportedType, "cannot be pickled"),
    ],
    ids=["model", "observation"],
)
def test_a_request_that_fails_is_a_runtime_error_with_its_cause(
    service: Daemon, request_: Any, cause: type[Exception], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said) as raised:
        send_inference_request(request_, name="t")

    assert isinstance(raised.value.__cause__, cause)
    assert send_inference_request({"do": "echo", "value": 1}, name="t")["output"] == 1


def test_its_timeout_is_the_requests(service: Daemon, gate: Gate) -> None:
    with pytest.raises(RuntimeError, match="no reply from 't'") as raised:
        send_inference_request(gate.observation, name="t", timeout=0.1)
    gate.open()

    assert isinstance(raised.value.__cause__, RequestTimeout)
    assert send_inference_request({"do": "echo", "value": "mine"}, name="t")["output"] == "mine"


@pytest.mark.long
def test_it_outlives_a_restart_of_the_daemon(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon("echo")
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(daemon.runtime_dir))
    assert send_inference_request({"x": 1}, name="t")["output"] == {"x": 1}
    daemon.stop()
    daemon.start()

    assert send_inference_request({"x": 2}, name="t")["output"] == {"x": 2}


def test_a_forked_child_uses_its_own_client(obedient: Daemon, start_robot: Callable[..., Robot]) -> None:
    assert start_robot("asks_and_forks", obedient).finish() == {"before": 20, "parent": 20, "child": 20}

"""An engine that dies, and a model that fails: who hears of it, and that the next request works."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import EngineLost, InferenceFailed, ShmClient
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gate import Gate
from tests.support.mostly_long import only

pytestmark = pytest.mark.sealed_too


def test_a_model_that_raises_fails_one_request_with_type_and_message(obedient: Daemon, client: ShmClient) -> None:
    before = obedient.status()["requests"]["failed"]
    with pytest.raises(InferenceFailed) as raised:
        client.infer({"do": "raise", "text": "no such joint"})

    assert str(raised.value) == "the model raised LookupError: no such joint (the traceback is in the daemon's log)"
    assert "policy.py" not in str(raised.value)
    assert "raise LookupError" in obedient.log and 'policy.py", line' in obedient.log
    assert client.infer({"do": "echo", "value": 1}) == 1
    obedient.wait_counted(failed=before + 1)


def test_a_models_long_message_is_cut(client: ShmClient) -> None:
    with pytest.raises(InferenceFailed) as raised:
        client.infer({"do": "raise", "text": "long " * 10_000})

    assert len(str(raised.value)) < 600


def test_a_model_that_calls_exit_fails_one_request(obedient: Daemon, client: ShmClient) -> None:
    engine = obedient.engine_pid
    with pytest.raises(InferenceFailed, match="SystemExit: enough"):
        client.infer({"do": "raise_system_exit", "text": "enough"})

    assert client.infer({"do": "echo", "value": 1}) == 1
    assert obedient.engine_pid == engine


@pytest.mark.parametrize(
    "said",
    only({b"\xff\xfe\0"}, [b"\xff\xfe\0", b"[" * 100_000 + b"\0", b'{"event": "broken"}\0']),
    ids=lambda said: said[:9],
)
def test_an_engine_that_says_what_is_no_message_is_replaced(obedient: Daemon, tmp_path: Path, said: bytes) -> None:
    before = obedient.engine_pid
    with obedient.client() as client:
        observation = {"do": "garble_once", "marker": str(tmp_path / "marker"), "bytes": said.hex()}

        assert client.infer(observation) == {"survived": True}

    assert f"engine {before} sent an invalid message" in obedient.log
    assert obedient.engine_pid != before


@pytest.mark.fault("T53")
def test_requests_that_wait_when_the_engine_is_killed_are_answered_by_the_next_one(
    start_daemon: Callable[..., Daemon], gate: Gate
) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(slots=4, timeout=100) as one, daemon.client(timeout=100) as other:
        assert other.infer({"do": "echo", "value": 0}) == 0
        held = one.submit(gate.observation)
        gate.wait_entered()
        waiting = [one.submit({"do": "echo", "value": np.full(1000, number)}) for number in range(3)]
        others = other.submit({"do": "echo", "value": "other"})
        engine = daemon.engine_pid
        os.kill(engine, signal.SIGKILL)
        gate.open()

        assert [int(pending.result()[0]) for pending in waiting] == [0, 1, 2]
        assert others.result() == "other"
        # Without state in the policy, the one that ran may run again.
        assert held.result() == {"waited": True, "runs": held.result()["runs"]}
        daemon.wait_ready()
        status = daemon.status()
        assert status["engine"]["pid"] != engine and not is_running(engine)
        assert status["engine"]["restarts"] == 1
        assert status["state"] == "ready"
    assert "SIGKILL" in daemon.log
    daemon.wait_counted(served=6)


@pytest.mark.parametrize("death", [pytest.param("exit", marks=pytest.mark.long), "segfault"])
def test_a_request_that_kills_the_engine_is_retried_once_and_then_lost(
    start_daemon: Callable[..., Daemon], death: str
) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(timeout=100) as client, daemon.client(timeout=100) as other:
        client.infer({"do": "echo", "value": 0})

        with pytest.raises(EngineLost, match="may not run again; another engine serves the next request"):
            client.infer({"do": death})

        assert client.infer({"do": "echo", "value": 1}) == 1
        assert other.infer({"do": "echo", "value": 2}) == 2
        status = daemon.status()
        assert status["engine"]["restarts"] == 2
        daemon.wait_counted(lost=1)
        daemon.engine_pid  # noqa: B018 (so that its end is waited for)
    assert ("SIGSEGV" if death == "segfault" else "exit status 3") in daemon.log
    daemon.expected_in_log.add("Fatal Python error")  # faulthandler's traceback


@pytest.mark.long
def test_a_request_whose_engine_dies_by_chance_is_answered_by_the_next_one(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(timeout=100) as client:
        assert client.infer({"do": "exit_once", "marker": str(tmp_path / "marker")}) == {"survived": True}
    assert daemon.status()["engine"]["restarts"] == 1


@pytest.mark.fault("T58")
def test_a_stateful_policys_request_does_not_run_twice(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("stateful")
    with daemon.client(timeout=100) as client:
        assert client.infer({"add": 1}) == {"total": 1}

        with pytest.raises(EngineLost):
            client.infer({"add": 1, "die": True})

        assert daemon.status()["engine"]["restarts"] == 1
        assert client.infer({"add": 5}) == {"total": 5}


@pytest.mark.long
def test_a_result_that_waits_for_room_when_the_engine_dies_ends_as_lost(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("obedient")
    with daemon.client(timeout=100) as client:
        client.infer({"do": "echo", "value": 0})
        pending = client.submit({"do": "grow", "items": 500_000, "value": 1})
        # Its answer is "make room", which this client hears only when it looks.
        wait_until("the model ran", lambda: daemon.status()["requests"]["served"] == 2)
        os.kill(daemon.engine_pid, signal.SIGKILL)
        wait_until(
            "the engine's end was noticed",
            lambda: (daemon.status()["engine"] or {"restarts": 1})["restarts"],
        )

        with pytest.raises(EngineLost):
            pending.result()
        assert client.infer({"do": "echo", "value": 1}) == 1

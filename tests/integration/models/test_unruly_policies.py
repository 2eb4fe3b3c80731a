"""Policies that raise what is no Exception, from wherever they are asked: it is that call's failure, and no one else's."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.client import InferenceFailed, RequestRejected
from shmserve.daemon.engine.engine import Engine
from shmserve.daemon.engine.requests.serving import Serving
from shmserve.daemon.ipc.control import ControlSocket, take_messages
from shmserve.daemon.ipc.messages import FROM_ENGINE, Failed
from shmserve.daemon.ipc.stats import Stats, create_stats_memory
from tests.support.admin_command import admin
from tests.support.daemon_process import Daemon
from tests.support.messages import load

#: How the message for each kind of failure begins.
RAISED = {
    "panic": "PanicException: index out of bounds: the len is 5 but the index is 6",
    "cancelled": "CancelledError: enough",
    "interrupt": "KeyboardInterrupt: enough",
    "generator exit": "GeneratorExit: enough",
    "exit": "SystemExit: enough",
    "stop": "StopIteration: enough",
    "memory": "MemoryError: enough",
    "text exits": "TextExits: (its text cannot be read)",
    "text is none": "TextIsNone: (its text cannot be read)",
    "text is shouted": "TextIsShouted: a text of a class of its own",
    "text is long": "KeyboardInterrupt: long long long",
    "name exits": "NameExits: enough",
    "name is long": "a ba ba b",
    "parts exit": "PartsExit: enough",
    "recursion": "RecursionError: maximum recursion depth exceeded",
    "thread": "PanicException: index out of bounds",
    "c++": "RuntimeError: inconsistent tensor size",
}


_ON_THE_HOST = pytest.mark.skipif("SHMSERVE_TEST_DEVICE" in os.environ, reason="tensors are fetched from a device")


@pytest.fixture(scope="module")
def unruly() -> Iterator[Daemon]:
    with Daemon("unruly") as daemon:
        yield daemon


def loaded_in_an_engine(package: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Failed:
    """What an engine of this process says last of a package that cannot be served."""
    (package / "policy.py").write_text(code)
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    ours, theirs = socket.socketpair()
    stats = Stats(create_stats_memory())
    with ours, theirs:
        assert not Engine(ControlSocket(theirs), stats, load(package, threads=torch.get_num_threads())).load()
        *_, (told, _) = take_messages(bytearray(ours.recv(65536)), FROM_ENGINE)
    stats.close()
    assert isinstance(told, Failed)
    return told


def failure(ask: object) -> str:
    assert callable(ask)
    with pytest.raises(InferenceFailed) as raised:
        ask()
    assert len(str(raised.value)) < 700
    return str(raised.value).removeprefix("the model raised ")


def test_any_exception_of_a_policy_fails_only_that_request(unruly: Daemon) -> None:
    engine = unruly.engine_pid
    with unruly.client() as client, unruly.client() as other:
        for what, text in RAISED.items():
            assert failure(lambda what=what: client.infer({"do": "raise", "what": what})).startswith(text), what
            assert other.infer({"do": "", "what": ""}) == {"engine": engine}, what
        failure(lambda: client.infer({"do": "raise", "what": "group"}))
    assert unruly.engine_pid == engine
    assert "    member SystemExit: two" in unruly.log or "KeyboardInterrupt: several" in unruly.log


def test_any_exception_of_a_reset_fails_only_that_reset(unruly: Daemon) -> None:
    engine = unruly.engine_pid
    with unruly.client() as client:
        for what, text in RAISED.items():
            client.infer({"do": "raise at reset", "what": what})
            assert failure(client.reset).startswith(text), what
        client.reset()
    assert unruly.engine_pid == engine


@_ON_THE_HOST
def test_an_action_that_raises_while_the_engine_reads_it_fails_that_request(unruly: Daemon) -> None:
    engine = unruly.engine_pid
    found = {}
    with unruly.client() as client:
        for what in ("mapping", "tensor", "object"):
            for _ in range(3):  # the first is described, the next ones are recognised
                found[what] = failure(lambda what=what: client.infer({"do": "give", "what": what}))
        assert client.infer({"do": "collect", "what": ""}) == {"engine": engine}
    unruly.expected_in_log.add("Exception ignored in: <function Collected.__del__")

    assert found["mapping"].startswith("PanicException: index out of bounds")
    assert found["tensor"].startswith("KeyboardInterrupt: the tensor is not computed yet")
    assert found["object"].startswith("SystemExit: no pickle of it")


def test_a_default_device_that_a_policy_sets_is_not_the_engines(unruly: Daemon) -> None:
    engine = unruly.engine_pid
    with unruly.client() as client:
        client.infer({"do": "default device", "what": ""})

        assert client.infer({"do": "", "what": "", "large": np.ones(100_000)}) == {"engine": engine}


class Exiting:
    def __reduce__(self) -> Any:
        return sys.exit, ("while it is unpickled",)


def test_an_object_that_exits_while_it_is_unpickled_is_refused(unruly: Daemon) -> None:
    engine = unruly.engine_pid
    with unruly.client() as client:
        with pytest.raises(RequestRejected, match="while it is unpickled"):
            client.infer({"do": "", "what": "", "object": Exiting()})

        assert client.infer({"do": "", "what": ""}) == {"engine": engine}


def test_an_exception_at_the_end_of_a_client_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Leaving(EchoModel):
        def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
            return observations

        def client_left(self, client_id: int) -> None:
            sys.exit("nobody is here")

    stats = Stats(create_stats_memory())
    serving = Serving(Leaving(), stats, version=1, max_batch=1, in_place=False, stateful=False, checks={})

    serving.client_left(3)

    assert "the model failed when client 3 left\n" in caplog.text and "SystemExit: nobody is here" in caplog.text
    stats.close()


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("raise PanicException('marker')", "load"),
        ("class Policy:\n def __init__(self, path, device): raise PanicException('marker')", "load"),
        ("class Policy:\n def __init__(self, path, device): pass\n infer = property(panic)", "load"),
        ("class Policy(Good):\n def example_observation(self): panic()", "warm up"),
        ("class Policy(Good):\n example_observation = property(panic)", "warm up"),
        ("class Policy(Good):\n def metadata(self): panic()", "warm up"),
        ("class Policy(Good):\n def metadata(self): return {'x': Late()}", "warm up"),
        ("class Policy(Good):\n def infer(self, o): panic()", "warm up"),
        ("class Policy(Good):\n def infer_batch(self, o): panic()\n infer_batch = property(panic)", "load"),
    ],
)
def test_an_exception_at_load_is_reported_with_its_type_and_text(
    line: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = loaded_in_an_engine(tmp_path, f"{_PREAMBLE}{line}\n", monkeypatch)

    assert (told.stage, told.error, told.message) == (stage, "PanicException", "marker")


def test_an_update_that_panics_is_refused_with_the_panics_text(unruly: Daemon, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(f"{_PREAMBLE}panic()\n")

    done = admin(unruly, "update-model", tmp_path)

    assert done.returncode == 1 and "load failed: PanicException: marker" in done.stderr


_PREAMBLE = """
class PanicException(BaseException): pass
def panic(*_): raise PanicException('marker')
class Late:
    __str__ = panic
class Good:
    def __init__(self, path, device): pass
    def example_observation(self): return {"x": 0}
    def infer(self, o): return {"y": 0}
"""

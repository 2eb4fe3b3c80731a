"""A client used out of a signal handler, a finalizer or an object of the observation, in the middle of its own call."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from shmserve.client import (
    ClientClosed,
    ClientForked,
    ReentrantCall,
    ShmClient,
    ShmServeError,
    send_inference_request,
)
from shmserve.client.compat import flask_pickle
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too

#: The long form: SHMSERVE_TEST_STORM=20 interrupts at more instants.
_LONG = int(os.environ.get("SHMSERVE_TEST_STORM", "2")) > 2
_STRIDE = 17 if _LONG else 41
_OFFSETS = range(17) if _LONG else range(3, 4)


@pytest.mark.parametrize("offset", _OFFSETS)
@pytest.mark.parametrize(
    "what",
    [
        "close",
        "infer",
        "interrupt",
        *(pytest.param(what, marks=pytest.mark.long) for what in ("submit", "reset", "describe")),
    ],
)
def test_at_every_line_of_a_call_another_one_ends_with_a_right_answer_or_a_typed_error(
    obedient: Daemon, start_robot: Callable[..., Robot], what: str, offset: int
) -> None:
    stride = 17 if what == "interrupt" else _STRIDE  # a signal handler runs at fewer instants than there are lines
    robot = start_robot("injected", obedient, what, stride, offset)
    found = robot.finish()

    if what == "interrupt" and os.environ.get("SHMSERVE_TEST_TRANSPORT") == "sealed":
        found["descriptors"] = []  # known: an interrupt between the arrival of a channel's descriptors and their owner
    assert (found["wrong"], found["descriptors"]) == ([], [])
    assert found["instants"] > 60
    assert robot.errors == ""
    wait_until("every channel was given back", lambda: obedient.status()["clients"] == [])


@pytest.mark.parametrize("seed", range(20 if _LONG else 1))
def test_a_signal_handler_that_closes_the_client_ends_every_call_of_every_thread(
    tagged: Daemon, start_robot: Callable[..., Robot], seed: int
) -> None:
    robot = start_robot("closing_handler", tagged, 100, seed)
    found = robot.finish()

    assert found["wrong"] == []
    assert {end.rpartition(" ")[2] for end in found["ends"]} == {"ClientClosed"}
    assert sum(found["ends"].values()) == 300  # of the main thread and two others, in each round
    assert found["more descriptors"] <= 0
    assert robot.errors == ""
    wait_until("every channel was given back", lambda: tagged.status()["clients"] == [])


class Acting:
    """An object of an observation that does something while the client reads it, under the client's lock."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        self.act()
        return str, ("acted",)


class Asking:
    """A call in a thread; `end()` is what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._end: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._end = self._call()
        except ShmServeError as error:
            self._end = error

    def end(self) -> Any:
        self._thread.join()
        return self._end


def test_an_object_that_closes_the_client_which_reads_it_ends_that_call_and_those_of_other_threads(
    obedient: Daemon, gate: Gate
) -> None:
    client = obedient.client()
    waiting = Asking(lambda: client.infer(gate.observation))
    gate.wait_entered()

    with pytest.raises(ClientClosed):
        client.infer({"do": "echo", "value": Acting(client.close)})
    assert isinstance(waiting.end(), ClientClosed)

    gate.open()
    wait_until("its channel was given back", lambda: obedient.status()["clients"] == [])
    wait_until("nothing of it is open", lambda: client._pipeline._connector.connection is None)


def test_a_request_sent_by_a_call_that_was_closed_inside_has_ended(obedient: Daemon) -> None:
    client = obedient.client()

    pending = client.submit({"do": "echo", "value": Acting(client.close)})

    assert pending.done()
    assert not pending.cancel()
    with pytest.raises(ClientClosed, match="make a new one"):
        pending.result()


@pytest.mark.parametrize("way", ["infer", "submit", "loan", "reset", "describe", "connect", "result"])
def test_an_object_that_asks_by_the_client_which_reads_it_hears_so_and_the_request_goes_on(
    client: ShmClient, way: str
) -> None:
    def ask() -> None:
        calls: dict[str, Callable[[], object]] = {
            "infer": lambda: client.infer({"do": "echo", "value": 2}),
            "submit": lambda: client.submit({"do": "echo", "value": 2}),
            "loan": lambda: client.loan({"do": "echo", "value": 2}),
            "reset": client.reset,
            "describe": client.describe,
            "connect": client.connect,
            "result": before.result,
        }
        with pytest.raises(ReentrantCall, match="signal handler, a finalizer or an object of the observation"):
            calls[way]()
        said.append(way)

    said: list[str] = []
    before = client.submit({"do": "echo", "value": 1})

    assert client.infer({"do": "echo", "value": Acting(ask)}) == "acted"
    assert said == [way]
    assert before.result() == 1
    assert client.infer({"do": "echo", "value": 3}) == 3


def test_looking_and_withdrawing_inside_a_call_are_harmless(client: ShmClient, gate: Gate) -> None:
    found: list[bool] = []
    running = client.submit(gate.observation)
    gate.wait_entered()
    waiting = client.submit({"do": "echo", "value": 1})

    acting = client.submit(
        {"do": "echo", "value": Acting(lambda: found.extend([running.done(), running.cancel(), waiting.cancel()]))}
    )
    gate.open()

    assert found == [False, False, True]
    assert acting.result() == "acted"
    assert running.result()["waited"]


def test_closing_does_not_wait_for_a_thread_that_waits_for_the_closing_one(obedient: Daemon) -> None:
    client = obedient.client().connect()
    inside, leave = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        leave.wait()

    blocked = Asking(lambda: client.infer({"do": "echo", "value": Acting(block)}))
    inside.wait()
    closing = [Asking(client.close), Asking(client.close)]
    client.close()  # returns, though the other thread has the lock and goes on only after this
    leave.set()

    assert [one.end() for one in closing] == [None, None]
    assert isinstance(blocked.end(), ClientClosed)
    wait_until("its channel was given back", lambda: obedient.status()["clients"] == [])


def test_an_object_that_forks_while_it_is_read_leaves_the_request_to_the_parent(client: ShmClient) -> None:
    forked: list[int] = []
    try:
        answer = client.infer({"do": "echo", "value": Acting(lambda: forked.append(os.fork()))})
    except ClientForked:
        os._exit(7)
    except BaseException:
        if forked == [0]:
            os._exit(1)
        raise

    assert answer == "acted"
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 7
    assert client.infer({"do": "echo", "value": 1}) == 1


def test_closing_ends_the_pause_between_two_attempts(tmp_path: Any) -> None:
    client = ShmClient("arm", runtime_dir=tmp_path, timeout=3600, retry_delay=3000)
    asking = Asking(lambda: client.infer({"x": 1}))
    wait_until("it pauses", lambda: client._pipeline._parking_lot.parked)

    client.close()

    assert isinstance(asking.end(), ClientClosed)


def test_a_finalizer_in_the_middle_of_the_one_function_asks_by_it_too(
    obedient: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(obedient.runtime_dir))
    monkeypatch.setattr(flask_pickle, "_clients", {})
    found: list[Any] = []

    class Finalized:
        pass

    class Client(ShmClient):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__(name)
            if not found:
                found.append(None)
                forgotten = Finalized()
                weakref.finalize(
                    forgotten, lambda: found.append(send_inference_request({"do": "echo", "value": 1}, "t"))
                )
                del forgotten
                gc.collect()

    monkeypatch.setattr(flask_pickle, "ShmClient", Client)

    assert send_inference_request({"do": "echo", "value": 2}, "t")["output"] == 2
    assert found[1]["output"] == 1
    flask_pickle._close_all()


def test_a_callback_of_a_model_change_may_close_the_client(client: ShmClient) -> None:
    client.infer({"do": "echo", "value": 1})
    client.on_model_change(lambda before, after: client.close())
    assert client._pipeline.control.model_watch is not None
    client._pipeline.control.model_watch._version = 1  # as if the model had been another one

    assert client.infer({"do": "echo", "value": 2}) == 2
    with pytest.raises(ClientClosed):
        client.infer({"do": "echo", "value": 3})


def test_a_reply_does_not_block_while_the_model_watch_is_locked(client: ShmClient) -> None:
    client.infer({"do": "echo", "value": 1})
    client.on_model_change(lambda before, after: None)
    watch = client._pipeline.control.model_watch
    assert watch is not None

    with watch._lock:  # as a finalizer finds it
        watch.observe(1)
        client.on_model_change(print)

"""Announced requests: what `rate` and `expect` write for the engine, and that an engine which sleeps is rung."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.channel import ClientChannel
from shmserve.client import ActionChunks, AsyncShmClient, ClientClosed, ClientForked, InvalidArgument, ShmClient
from shmserve.doorbell import NamedDoorbell
from shmserve.layout import COUNTER_LINE
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate
from tests.support.native import NATIVE

pytestmark = pytest.mark.sealed_too

_EXPECTED, _PERIOD = COUNTER_LINE.names.index("expected_ns"), COUNTER_LINE.names.index("period_ns")


def channel_of(client: ShmClient | AsyncShmClient) -> ClientChannel:
    connection = client._pipeline._connector.connection
    assert connection is not None
    return connection.channel


def word(client: ShmClient | AsyncShmClient, index: int) -> int:
    requests = channel_of(client).requests
    return requests.words[requests.counter + index]


def tokens(client: ShmClient) -> int:
    """Return how many tokens wait at the engine's doorbell."""
    bell: Any = channel_of(client).request_bell
    if isinstance(bell, NamedDoorbell):
        return bell.count()
    (count,) = struct.unpack("i", fcntl.ioctl(bell._descriptor, termios.FIONREAD, b"\0" * 4))
    assert isinstance(count, int)
    return count


@pytest.fixture
def own() -> Iterator[Daemon]:
    daemon = Daemon("echo")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


# The rate


def test_every_channel_that_a_client_gets_has_its_period(own: Daemon) -> None:
    with own.client(rate=50, max_retries=100, retry_delay=0.05) as client:
        assert word(client, _PERIOD) == 20_000_000
        generation = channel_of(client).requests.segment.identity.generation

        client.infer({"image": np.zeros(4_000_000, np.uint8)})
        assert channel_of(client).requests.segment.identity.generation > generation
        assert word(client, _PERIOD) == 20_000_000

        before = channel_of(client)
        own.stop()
        own.start()
        client.infer({"state": 1})
        assert channel_of(client) is not before
        assert word(client, _PERIOD) == 20_000_000


def test_a_client_without_a_rate_leaves_it_to_the_engine(robot: ShmClient) -> None:
    assert word(robot, _PERIOD) == 0


def test_an_asyncio_client_says_its_rate_and_expects(echo: Daemon) -> None:
    async def ask() -> tuple[int, int]:
        async with AsyncShmClient(echo.name, runtime_dir=echo.runtime_dir, rate=0.5) as client:
            client.expect(0.5)
            return word(client, _PERIOD), word(client, _EXPECTED)

    period_ns, expected_ns = asyncio.run(ask())
    assert period_ns == 2_000_000_000
    assert expected_ns > 0


# What is announced


def test_the_engine_reads_when_a_request_is_expected(robot: ShmClient) -> None:
    before_ns = time.monotonic_ns()
    robot.expect(within=2.5)
    after_ns = time.monotonic_ns()

    assert before_ns <= word(robot, _EXPECTED) - 2_500_000_000 <= after_ns
    assert robot.infer({"state": 3})["state"] == 3


@pytest.mark.skipif(not NATIVE, reason="an engine in pure Python does not say that it sleeps")
def test_an_engine_that_sleeps_is_rung(echo: Daemon, robot: ShmClient) -> None:
    robot.infer({"state": 3})
    replies, pid = channel_of(robot).replies, echo.engine_pid

    def stopped_asleep() -> bool:
        """Stop the engine while it sleeps."""
        wait_until("the engine sleeps", replies.is_writer_asleep)
        os.kill(pid, signal.SIGSTOP)
        stat = Path(f"/proc/{pid}/stat")
        wait_until("the engine is stopped", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        if replies.is_writer_asleep() and tokens(robot) == 0:
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    wait_until("the engine is stopped while it sleeps", stopped_asleep)
    try:
        robot.expect()
        assert tokens(robot) == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until("the engine took the token", lambda: tokens(robot) == 0)
    assert robot.infer({"state": 4})["state"] == 4


def test_nothing_happens_if_no_request_follows(robot: ShmClient) -> None:
    for number in range(300):
        if number < 6:
            robot.infer({"state": number})
        robot.expect(0)
    assert robot._rehearsal is not None
    assert [robot.infer({"state": n})["state"] for n in range(5)] == list(range(5))


# Where it does nothing


def test_a_client_that_is_not_attached_does_not_connect(echo: Daemon) -> None:
    client = echo.client()

    client.expect()

    assert client._pipeline._connector.connection is None


def test_it_does_not_wait_for_a_thread_that_holds_the_lock(robot: ShmClient) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with robot._pipeline._guard.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        robot.expect()  # it would not return
        assert word(robot, _EXPECTED) == 0
    finally:
        done.set()
        thread.join()
    robot.expect()
    assert word(robot, _EXPECTED) > 0


class Expecting:
    """An object of an observation that is read under the client's lock."""

    def __init__(self, client: ShmClient) -> None:
        self.client = client

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        signal.raise_signal(signal.SIGUSR1)
        return str, ("read",)


@pytest.fixture
def handle() -> Iterator[Callable[[int, Callable[[], None]], None]]:
    before: list[tuple[int, Any]] = []

    def install(number: int, act: Callable[[], None]) -> None:
        before.append((number, signal.signal(number, lambda *_: act())))

    yield install
    for number, handler in before:
        signal.signal(number, handler)


def test_a_signal_handler_inside_the_client_changes_nothing(
    client: ShmClient, handle: Callable[[int, Callable[[], None]], None]
) -> None:
    calls: list[int] = []

    def act() -> None:
        client.expect()
        calls.append(word(client, _EXPECTED))

    handle(signal.SIGUSR1, act)

    assert client.infer({"do": "echo", "value": Expecting(client)}) == "read"
    assert calls == [0]


def test_a_signal_handler_of_a_waiting_thread_may_expect(
    client: ShmClient, gate: Gate, handle: Callable[[int, Callable[[], None]], None]
) -> None:
    def act() -> None:
        client.expect()
        gate.open()

    handle(signal.SIGALRM, act)
    signal.setitimer(signal.ITIMER_REAL, 0.05)

    client.infer({"do": "wait", "gate": str(gate.path)})
    assert word(client, _EXPECTED) > 0
    assert client.infer({"do": "echo", "value": 2}) == 2


# Errors


@pytest.mark.parametrize("within", [-0.001, float("nan"), float("inf"), 10.1, "1", None, True], ids=repr)
def test_a_time_that_is_none_is_refused(robot: ShmClient, within: Any) -> None:
    with pytest.raises(InvalidArgument, match="within = "):
        robot.expect(within)
    assert word(robot, _EXPECTED) == 0


def test_a_closed_client_says_so(echo: Daemon) -> None:
    client = echo.client()
    client.close()
    with pytest.raises(ClientClosed):
        client.expect()


def test_a_forked_copy_says_so_and_writes_nothing(robot: ShmClient) -> None:
    for _ in range(6):
        robot.infer({"state": 1})
    robot.expect()  # so that there is a rehearsal to be copied
    said = word(robot, _EXPECTED)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            robot.expect()
        except ClientForked:
            status = 7
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 7
    assert word(robot, _EXPECTED) == said
    robot.expect()
    assert word(robot, _EXPECTED) > said


# Action chunks


def test_chunks_say_one_step_ahead_that_they_will_ask() -> None:
    said: list[tuple[int, float]] = []
    asked: list[int] = []
    steps: list[int] = []

    class Client:
        """A policy that answers at once."""

        def connect(self, *, timeout: float | None = None) -> None: ...
        def reset(self, *, timeout: float | None = None) -> None: ...

        def expect(self, within: float) -> None:
            said.append((steps[-1], within))

        def submit(self, observation: Any, **options: Any) -> Any:
            asked.append(steps[-1])
            return Answered()

    class Answered:
        deadline_ns = 1 << 62
        reply = None

        def done(self) -> bool:
            return True

        def cancel(self) -> bool:
            return False

        def result(self, timeout: float | None = None) -> Any:
            return {"actions": np.zeros((8, 2))}

    # Periods are longer than this test: each step has the next row.
    chunks = ActionChunks(Client(), steps=4, period=10.0, max_wait=30.0, fallback="raise", prefetch=1)
    for number in range(9):
        steps.append(number)
        chunks.step({})

    assert asked == [0, 3, 7]
    assert said == [(2, 10.0), (6, 10.0)]

"""Clients take the short way of plain requests when they can, and notice nothing of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.reply_waiter import ReplyWaiter
from shmserve.errors import InferenceFailed
from tests.support.daemon_process import Daemon
from tests.support.native import NATIVE
from tests.support.trees import Mode, Pixels

pytestmark = [pytest.mark.skipif(not NATIVE, reason="installed without a compiler"), pytest.mark.sealed_too]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each call of `infer` went the short way through the client."""
    ways: list[bool] = []
    lead = ReplyWaiter.lead

    def noted(*arguments: Any) -> bool:
        ways.append(False)
        ways[-1] = lead(*arguments)
        return ways[-1]

    monkeypatch.setattr(ReplyWaiter, "lead", noted)
    yield ways


def test_a_client_takes_the_short_way_as_soon_as_it_knows_both_structures(short: list[bool], echo: Daemon) -> None:
    with echo.client() as client:
        for number in range(20):
            sent = {"state": np.full(3, number), "step": number}
            reply = client.request(sent)
            echoed = reply.action
            np.testing.assert_equal(echoed, sent)
            assert echoed["state"].flags.owndata and echoed["state"].flags.writeable
            assert reply.request_id == number + 1

        assert short == [False] + [True] * 19, "the first alone, which is new"
        pending = client.submit({"state": np.zeros(5), "step": 1})
        assert client.infer({"state": np.zeros(4), "step": 2}, max_age=60.0, repeatable=True)["step"] == 2
        assert short[-1], "beside another request, with other lengths and options"
        assert pending.result()["step"] == 1
        assert client.infer({"state": np.zeros(3), "step": 1 << 70})["step"] == 1 << 70
        assert short[-1], "a structure that is new is examined and sent"


def test_a_client_goes_back_to_the_short_way_after_a_reset(short: list[bool], echo: Daemon) -> None:
    with echo.client() as client:
        sent = {"state": np.zeros(3), "step": 1}
        for _ in range(10):
            client.infer(sent)
        client.reset()
        for _ in range(12):
            client.infer(sent)

        assert short[-6:] == [True] * 6


def test_values_of_subclasses_take_the_short_way(short: list[bool], echo: Daemon) -> None:
    with echo.client() as client:
        for number in range(12):
            sent = OrderedDict(state=np.full(3, number).view(Pixels), task=np.str_("fold"), mode=list(Mode)[number % 2])
            assert client.infer(sent)["mode"] == sent["mode"]

        assert short[-6:] == [True] * 6


def test_a_client_that_gets_another_structure_back_reads_that(short: list[bool], echo: Daemon) -> None:
    with echo.client() as client:
        trees: list[Any] = [{"a": np.arange(3)}, {"a": np.arange(4)}, {"b": "text" * 100}, {"a": object.__doc__}, 5]
        for tree in trees * 4:
            np.testing.assert_equal(client.infer(tree), tree)


def test_a_reply_that_another_thread_collects_at_once_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, echo: Daemon
) -> None:
    with echo.client() as client:
        pipeline = client._pipeline
        guard, table = pipeline._guard, pipeline._table
        for number in range(6):
            client.infer({"step": number})
        lock, connection = guard.lock, pipeline._connector.connection
        assert connection is not None
        replies = connection.channel.replies
        waited: list[int] = []

        class Collecting:
            """Free for a moment only: what came meanwhile is collected, as by another thread."""

            acquire, release = lock.acquire, lock.release

            def __enter__(self) -> None:
                lock.acquire()

            def __exit__(self, *error: object) -> None:
                if table.in_flight and not waited:
                    while replies.words[replies.counter] == table.polled_count:
                        pass
                    table.poll()
                lock.release()

        assert pipeline._fast_path.native is not None
        native = pipeline._fast_path.native

        class Noting:
            """The backend's half; notes each wait."""

            try_send = native.try_send
            sequence = waited_ns = 0

            def wait(self, *arguments: Any) -> Any:
                waited.append(replies.poller.last_seen)
                return native.wait(*arguments)

        monkeypatch.setattr(guard, "lock", Collecting())
        monkeypatch.setattr(pipeline._fast_path, "native", Noting())

        assert client.infer({"step": 7}) == {"step": 7}

        # Whoever waits for a count to move that is there already waits for a reply that never comes.
        assert [count != replies.words[replies.counter] for count in waited] == [True]


def test_an_engine_that_fails_is_a_typed_error_by_the_short_way_too(short: list[bool], obedient: Daemon) -> None:
    with obedient.client() as client:
        for _ in range(6):
            client.infer({"do": "echo", "value": 1})
        with pytest.raises(InferenceFailed):
            client.infer({"do": "raise", "text": "no"})
        client.infer({"do": "echo", "value": 1})


def test_clients_of_many_threads_and_both_ways_get_their_own(short: list[bool], echo: Daemon) -> None:
    with echo.client(slots=4) as client:

        def ask(number: int) -> bool:
            sent = {"state": np.full(100, number), "step": number}
            return bool(client.infer(sent)["step"] == number)

        for number in range(6):
            assert ask(number)
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(ask, range(2000)))


def test_a_channel_that_was_asked_through_is_unmapped_when_it_is_left(short: list[bool], echo: Daemon) -> None:
    def mapped() -> int:
        """Segments of both transports in this process's memory."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum("memfd:shmserve" in line or "/dev/shm/shmserve" in line for line in lines)

    before = mapped()
    client = echo.client()
    for side in (3, 300, 600):  # each needs a larger channel
        for number in range(8):
            assert client.infer({"image": np.full((side, side), number)})["image"][0, 0] == number
        assert short[-1]
        assert mapped() - before == 2
    client.close()
    assert mapped() == before

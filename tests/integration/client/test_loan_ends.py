"""Loans of requests, from slot to end: growing channels, other threads, and a daemon or client that goes away."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve.client import (
    ClientClosed,
    LoanEnded,
    ObservationStale,
    RequestRejected,
    RequestTimeout,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
    SlotsExhausted,
    UnsupportedType,
)
from tests.support.daemon_process import Daemon
from tests.support.gate import Gate
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


# Slots


def test_a_loan_for_a_larger_observation_makes_the_channel_grow(robot: ShmClient) -> None:
    for size in (10, 1_000_000, 100, 3_000_000):
        with robot.loan({"frame": np.zeros(size, np.uint8)}) as observation:
            observation["frame"][-1] = 5
            pending = observation.send()

        found = pending.result()["frame"]

        assert found.size == size and found[-1] == 5 and not found[:-1].any()


def test_a_loan_of_an_observation_that_outgrew_its_slot_is_refused_and_the_client_goes_on(robot: ShmClient) -> None:
    with robot.loan({"frame": np.zeros(10)}) as observation:
        observation["frame"] = np.zeros(1_000_000)

        with pytest.raises(RequestRejected, match="outgrew the slot"):
            observation.send()

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_loan_that_is_not_sent_leaves_nothing(obedient: Daemon) -> None:
    with obedient.client(slots=2) as client:
        before = client.infer({"do": "count"})["runs"]
        for number in range(10):
            with client.loan({"do": "count", "frame": np.zeros(100)}) as observation:
                observation["frame"][:] = number
        with pytest.raises(ZeroDivisionError), client.loan({"do": "count"}):
            _ = 1 / 0

        assert client.infer({"do": "count"})["runs"] == before + 1


def test_a_dropped_loan_has_ended(robot: ShmClient) -> None:
    for _ in range(10):
        robot.loan({"x": np.zeros(3)})

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_request_from_within_a_loan_is_refused_rather_than_hung(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.infer({"x": 1})
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.loan({"x": np.zeros(3)})
        with pytest.raises(SlotsExhausted, match="lent out: send"):
            robot.reset()
        observation["x"][:] = 3
        pending = observation.send()

        assert robot.infer({"x": 1}) == {"x": 1}
    assert pending.result()["x"].tolist() == [3, 3, 3]


def test_requests_that_are_out_are_answered_during_a_loan(robot: ShmClient) -> None:
    pendings = [robot.submit({"x": number}) for number in range(3)]
    with robot.loan({"x": np.zeros(3)}) as observation:
        assert [pending.result() for pending in pendings] == [{"x": 0}, {"x": 1}, {"x": 2}]
        pending = observation.send()

    assert pending.result()["x"].tolist() == [0, 0, 0]


def test_a_result_that_makes_the_channel_grow_during_a_loan_harms_neither(client: ShmClient) -> None:
    growing = client.submit({"do": "grow", "items": 300_000, "value": 5})
    with client.loan({"do": "echo", "value": np.zeros(1000)}) as observation:
        observation["value"][:] = 7
        assert_same(growing.result(), np.full(300_000, 5))
        observation["value"][0] = 8
        pending = observation.send()

    assert pending.result().tolist() == [8.0] + [7.0] * 999


def test_other_threads_wait_for_the_end_of_a_loan(obedient: Daemon) -> None:
    order: list[str] = []
    began = threading.Event()

    def ask(client: ShmClient) -> None:
        began.set()
        client.infer({"do": "count"})
        order.append("the other thread's answer")

    for send in (True, False):
        with obedient.client() as client:
            began.clear()
            with client.loan({"do": "count", "frame": np.zeros(3)}) as observation:
                thread = threading.Thread(target=ask, args=(client,))
                thread.start()
                began.wait()
                thread.join(0.2)  # not a wait for anything: the time in which it would go wrong
                order.append("the loan's end")
                if send:
                    observation.send()
            thread.join()

    assert order == ["the loan's end", "the other thread's answer"] * 2


def test_a_thread_that_waits_for_anothers_loan_has_its_timeout(obedient: Daemon) -> None:
    raised: list[BaseException] = []

    def ask(client: ShmClient) -> None:
        try:
            client.infer({"do": "count"}, timeout=0.1)
        except ShmServeError as error:
            raised.append(error)

    with obedient.client() as client, client.loan({"do": "count"}):
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        thread.join()

    assert [type(error) for error in raised] == [SlotsExhausted]


# Ends


def test_a_loan_is_sent_once(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        pending = observation.send()
        with pytest.raises(LoanEnded, match="sent already"):
            observation.send()

    assert pending.result()["x"].tolist() == [0, 0, 0]


def test_a_loan_is_not_sent_after_its_block(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3)}) as observation:
        pass

    with pytest.raises(LoanEnded, match="has ended"):
        observation.send()
    with pytest.raises(LoanEnded, match="was left"), observation:
        pass
    with robot.loan({"x": np.ones(3)}) as other:
        with pytest.raises(LoanEnded, match="has ended") as raised:
            observation.send()
        assert isinstance(raised.value, ValueError)
        pending = other.send()
    assert pending.result()["x"].tolist() == [1, 1, 1]


def test_an_array_that_is_kept_beyond_its_loan_cannot_be_written_to(robot: ShmClient) -> None:
    with robot.loan({"x": np.zeros(3), "y": np.zeros(3)}) as observation:
        sent = observation["x"]
        sent[:] = 1
        pending = observation.send()
        with pytest.raises(ValueError, match="read-only"):
            sent[:] = 2
    with robot.loan({"x": np.zeros(3)}) as observation:
        unsent = observation["x"]
    with pytest.raises(ValueError, match="read-only"):
        unsent[:] = 3

    assert pending.result()["x"].tolist() == [1, 1, 1]
    with robot.loan({"x": np.zeros(3)}) as observation:
        observation["x"][:] = 4
        assert observation.send().result()["x"].tolist() == [4, 4, 4]


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill9", pytest.param("stop", marks=pytest.mark.long)])
def test_a_daemon_that_goes_away_during_a_loan_is_an_error_at_send(
    make_daemon: Callable[..., Daemon], how: str
) -> None:
    daemon = make_daemon("echo").start()
    client = daemon.client()
    for _ in range(2):  # the loan of a sequence that the next channel has not reached, and of one that it has
        client.infer({"x": 1})
    with client.loan({"x": np.zeros(3)}) as observation:
        getattr(daemon, how)()
        daemon.start()
        observation["x"][:] = 1  # the memory is still there

        with pytest.raises(ServiceUnavailable, match=r"went away while the slot was on loan; nothing was sent"):
            observation.send()

    assert client.infer({"x": 2}) == {"x": 2}


def test_a_client_that_is_closed_during_a_loan_says_so_at_send(echo: Daemon) -> None:
    client = echo.client()
    with client.loan({"x": np.zeros(3)}) as observation:
        client.close()
        observation["x"][:] = 1

        with pytest.raises(ClientClosed):
            observation.send()


def test_a_loan_has_the_terms_of_its_request(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    gate.wait_entered()
    with client.loan({"do": "count"}, max_age=0) as observation:
        stale = observation.send()
    with client.loan({"do": "count"}, timeout=0.05) as observation:
        expired = observation.send()
    with pytest.raises(RequestTimeout):
        expired.result()
    gate.open()

    with pytest.raises(ObservationStale):
        stale.result()
    assert held.result()["waited"]


@pytest.mark.parametrize(
    "tree", [np.zeros(3), [np.zeros(3)], (1, 2), None, "text"], ids=lambda tree: type(tree).__name__
)
def test_a_loan_is_made_for_a_dict(robot: ShmClient, tree: Any) -> None:
    with pytest.raises(RequestRejected, match=f"not for {type(tree).__name__}"):
        robot.loan(tree)


def test_a_loan_is_not_made_for_what_would_be_pickled(robot: ShmClient) -> None:
    with pytest.raises(UnsupportedType, match="a loan cannot be made"):
        robot.loan({"x": np.zeros(3), "more": {1, 2, 3}})

    assert robot.infer({"x": 1}) == {"x": 1}


def test_a_closed_client_keeps_no_memory_of_a_loan_that_was_in_flight(echo: Daemon) -> None:
    def send_and_close(client: ShmClient) -> None:
        with client.loan({"x": np.zeros(4)}) as observation, pytest.raises(ClientClosed):
            pending = observation.send()
            client.close()
            pending.result()  # its error keeps this frame, and the frame the loan

    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    client = echo.client().connect()
    send_and_close(client)
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert repr(client).startswith("<ShmClient")

"""Old observations, newer requests, withdrawn ones, late replies: what runs, and what each of them ends with."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from typing import Any

import numpy as np
import pytest

from shmserve.client import (
    ObservationStale,
    Pending,
    RequestCancelled,
    RequestSuperseded,
    RequestTimeout,
    ShmClient,
    ShmServeError,
    SlotsExhausted,
)
from tests.support.client_parts import connection_of, in_loop
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


def outcome(pending: Pending) -> Any:
    """The result of a request, or the type of its error."""
    try:
        return pending.result()
    except ShmServeError as error:
        return type(error)


# Age


def test_an_observation_that_is_too_old_is_answered_stale_and_not_inferred(client: ShmClient) -> None:
    client.infer({"do": "tags"})
    now = time.monotonic()

    with pytest.raises(ObservationStale, match="too old when its turn came; the model did not run"):
        client.infer({"do": "count", "tag": 1}, capture_time=now - 2, max_age=1)
    client.infer({"do": "count", "tag": 2}, capture_time=now - 2, max_age=3600)
    client.infer({"do": "count", "tag": 3}, capture_time=now - 2)

    assert client.infer({"do": "tags"}) == [2, 3]


def test_an_observation_that_grows_old_while_it_waits_is_not_inferred(
    obedient: Daemon, client: ShmClient, gate: Gate
) -> None:
    before = obedient.status()["requests"]["stale"]
    client.infer({"do": "tags"})
    held = client.submit(gate.observation)
    gate.wait_entered()
    old = client.submit({"do": "count", "tag": 1}, max_age=0.05)
    young = client.submit({"do": "count", "tag": 2}, max_age=3600)
    time.sleep(0.1)
    gate.open()

    assert outcome(old) is ObservationStale
    assert held.result()["waited"]
    young.result()
    assert client.infer({"do": "tags"}) == [2]
    assert obedient.status()["requests"]["stale"] == before + 1


def test_the_age_counts_from_the_capture_and_not_from_the_request(client: ShmClient) -> None:
    captured = time.monotonic()
    time.sleep(0.1)

    with pytest.raises(ObservationStale):
        client.infer({"do": "count"}, capture_time=captured, max_age=0.05)


def test_no_observation_is_younger_than_an_age_of_nothing(client: ShmClient) -> None:
    with pytest.raises(ObservationStale):
        client.infer({"do": "count"}, max_age=0)


def test_freshness_is_asked_for_in_every_way_of_asking(client: ShmClient) -> None:
    old: Any = {"capture_time": time.monotonic() - 2, "max_age": 1.0}

    assert outcome(client.submit({"do": "count"}, **old)) is ObservationStale
    with client.loan({"do": "count"}, **old) as observation:
        assert outcome(observation.send()) is ObservationStale
    with pytest.raises(ObservationStale):
        asyncio.run(in_loop(client).infer({"do": "count"}, **old))
    with pytest.raises(ObservationStale):
        client.infer_loaned({"do": "count"}, **old)


def test_a_capture_time_of_the_wall_clock_is_refused(client: ShmClient) -> None:
    # It would be fresh for ever.
    with pytest.raises(ValueError, match=r"capture_time = .* in the future: it is time.monotonic\(\)"):
        client.infer({"do": "count"}, capture_time=time.time(), max_age=1)
    assert "runs" in client.infer({"do": "count"}, capture_time=time.monotonic(), max_age=60)


@pytest.mark.parametrize("capture_time", [-1.0, math.nan, math.inf, -math.inf])
def test_an_invalid_capture_time_is_refused(client: ShmClient, capture_time: float) -> None:
    with pytest.raises(ValueError, match="capture_time"):
        client.infer({"do": "count"}, capture_time=capture_time, max_age=1)
    with pytest.raises(ValueError, match="capture_time"):
        client.submit({"do": "count"}, capture_time=capture_time)


@pytest.mark.parametrize("max_age", [-1.0, math.nan, math.inf])
def test_an_invalid_age_is_refused(client: ShmClient, max_age: float) -> None:
    with pytest.raises(ValueError, match="0 to 86400 seconds"):
        client.infer({"do": "count"}, max_age=max_age)


# Newer requests


def test_the_newest_of_many_is_the_one_that_runs(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=8) as client:
        client.infer({"do": "tags"})
        held = client.submit(gate.observation)
        gate.wait_entered()
        pendings = [client.submit({"do": "count", "tag": number}, supersede=True) for number in range(7)]
        gate.open()

        assert [outcome(pending) for pending in pendings[:-1]] == [RequestSuperseded] * 6
        assert "runs" in pendings[-1].result()
        assert held.result()["waited"]
        assert client.infer({"do": "tags"}) == [6]


def test_a_reset_is_not_replaced_by_a_newer_request(obedient: Daemon, gate: Gate) -> None:
    with obedient.client() as client:
        resets = client.infer({"do": "count"})["resets"]
        held = client.submit(gate.observation)
        gate.wait_entered()
        published = connection_of(client).channel.requests.published
        before = published()
        resetting = threading.Thread(target=client.reset)
        resetting.start()
        wait_until("the reset is out", lambda: published() > before)
        old = client.submit({"do": "count"})
        new = client.submit({"do": "count"}, supersede=True)
        gate.open()
        resetting.join()

        assert outcome(old) is RequestSuperseded
        assert new.result()["resets"] == resets + 1
        assert held.result()["waited"]


def test_a_superseded_request_counts_no_run(obedient: Daemon, gate: Gate) -> None:
    with obedient.client() as client:
        runs = client.infer({"do": "count"})["runs"]
        held = client.submit(gate.observation)
        gate.wait_entered()
        client.submit({"do": "count"})
        client.submit({"do": "count"})
        new = client.submit({"do": "count"}, supersede=True)
        gate.open()

        assert held.result()["runs"] == runs + 1
        assert new.result()["runs"] == runs + 2


# Races


def test_every_request_ends_once_however_they_are_replaced_withdrawn_and_timed_out(obedient: Daemon) -> None:
    chance = random.Random(1)
    with obedient.client(slots=6) as client:
        out: list[tuple[int, Pending, set[Any]]] = []
        ends: dict[Any, int] = {}

        def settle(number: int, pending: Pending, allowed: set[Any]) -> None:
            found = outcome(pending)
            assert found == number or found in allowed, (number, found, allowed)
            assert outcome(pending) == found, "it ended twice"
            kind = "result" if found == number else found.__name__
            ends[kind] = ends.get(kind, 0) + 1

        for number in range(4000):
            supersede, short = chance.random() < 0.3, chance.random() < 0.1
            if supersede:
                for _, _, allowed in out:
                    allowed.add(RequestSuperseded)
            with contextlib.suppress(SlotsExhausted):  # a timeout that is over before a slot is free
                pending = client.submit(
                    {"do": "echo", "value": number}, supersede=supersede, timeout=0.00003 if short else 60
                )
                out.append((number, pending, {RequestTimeout} if short else set()))
            if out and chance.random() < 0.2:
                _, pending, allowed = chance.choice(out)
                pending.cancel()  # not the last word, if an engine takes it at this moment
                allowed.add(RequestCancelled)
            while len(out) > chance.randrange(6):
                settle(*out.pop(chance.randrange(len(out))))
        for request in out:
            settle(*request)

        assert client.infer({"do": "echo", "value": "last"}) == "last"
    assert set(ends) == {"result", "RequestSuperseded", "RequestCancelled", "RequestTimeout"}, ends


def test_a_late_reply_is_never_given_to_another_request(tagged: Daemon) -> None:
    chance = random.Random(2)
    answered = timed_out = 0
    with tagged.client(slots=3) as client:
        client.infer({"tag": 0, "k": 1, "x": np.arange(3)})
        for number in range(5000):
            x = np.arange(number % 50)
            try:
                found = client.infer(
                    {"tag": number, "k": 2, "x": x}, timeout=chance.choice((0, 1e-5, 1e-4, 2e-4, 1e-3))
                )
            except (RequestTimeout, SlotsExhausted):
                timed_out += 1
                continue
            assert found["tag"] == number
            assert np.array_equal(found["y"], x * 2)
            answered += 1

        assert client.infer({"tag": "last", "k": 1, "x": np.arange(3)})["tag"] == "last"

        def all_collected() -> bool:
            client.infer({"tag": "again", "k": 1, "x": np.arange(3)})
            return not client._pipeline._table.in_flight

        wait_until("every late reply was collected", all_collected)
        assert 0 < client.late_replies <= timed_out
    assert answered > 50 and timed_out > 50


def test_a_request_that_was_given_up_at_its_deadline_does_not_run_afterwards(client: ShmClient, gate: Gate) -> None:
    client.infer({"do": "tags"})
    held = client.submit(gate.observation)
    gate.wait_entered()
    for number in range(3):
        with pytest.raises((RequestTimeout, SlotsExhausted)):
            client.infer({"do": "count", "tag": number}, timeout=0.02)
    gate.open()

    assert held.result()["waited"]
    assert client.infer({"do": "tags"}) == []

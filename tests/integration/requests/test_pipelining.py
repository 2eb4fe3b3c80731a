"""Several requests of one client out at a time: their order, their slots, their end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shmserve.client import (
    ClientClosed,
    RequestCancelled,
    RequestSuperseded,
    RequestTimeout,
    ServiceRestarted,
    ShmClient,
    SlotsExhausted,
)
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate

pytestmark = [pytest.mark.both_ways, pytest.mark.sealed_too, pytest.mark.pure_too]


def test_one_request_per_slot_is_in_flight_at_a_time_and_answered_in_order(client: ShmClient) -> None:
    for round_ in range(50):
        pendings = [client.submit({"do": "echo", "value": (round_, number)}) for number in range(4)]

        assert [pending.result() for pending in pendings] == [(round_, number) for number in range(4)]


def test_results_can_be_collected_in_any_order(client: ShmClient) -> None:
    pendings = [client.submit({"do": "echo", "value": number}) for number in range(4)]

    assert [pendings[number].result() for number in (2, 0, 3, 1)] == [2, 0, 3, 1]


def test_a_result_can_be_asked_for_again(client: ShmClient) -> None:
    pending = client.submit({"do": "echo", "value": np.arange(3)})

    assert pending.result() is pending.result()
    assert pending.done()
    assert pending.reply is not None and pending.reply.request_id == pending.request_id


def test_more_requests_than_slots_wait_for_a_slot(obedient: Daemon) -> None:
    with obedient.client(slots=2) as client:
        pendings = [client.submit({"do": "echo", "value": number}) for number in range(40)]

        assert [pending.result() for pending in pendings] == list(range(40))


def test_a_ring_without_a_free_slot_is_refused_and_works_again_afterwards(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=2) as client:
        held = client.submit(gate.observation)
        waiting = client.submit({"do": "echo", "value": 1})

        with pytest.raises(SlotsExhausted, match=r"every slot of 't' .*more slots"):
            client.submit({"do": "echo", "value": 2}, timeout=0.2)
        gate.open()

        assert held.result()["waited"]
        assert waiting.result() == 1
        assert client.infer({"do": "echo", "value": 3}) == 3


def test_a_service_gives_no_more_slots_than_it_allows(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=64) as client:
        held = client.submit(gate.observation)
        pendings = [client.submit({"do": "echo", "value": number}) for number in range(15)]
        with pytest.raises(SlotsExhausted, match="every slot"):
            client.submit({"do": "echo", "value": 15}, timeout=0.2)
        gate.open()

        assert held.result()["waited"]
        assert [pending.result() for pending in pendings] == list(range(15))


def test_done_tells_without_waiting(client: ShmClient, gate: Gate) -> None:
    pending = client.submit(gate.observation)
    gate.wait_entered()

    assert not pending.done()
    assert pending.reply is None
    gate.open()
    wait_until("the answer is there", pending.done)

    assert pending.result(timeout=0)["waited"]


def test_a_wait_can_be_shorter_than_the_request_lives_and_says_so(client: ShmClient, gate: Gate) -> None:
    pending = client.submit(gate.observation, timeout=1000)
    for _ in range(2):
        with pytest.raises(
            RequestTimeout, match=r"of this wait: the request goes on .* call result\(\) again"
        ) as raised:
            pending.result(timeout=0.02)
        assert "discarded" not in str(raised.value)
    gate.open()

    assert pending.result()["waited"]


def test_a_wait_that_outlasts_the_request_says_that_it_is_over(client: ShmClient, gate: Gate) -> None:
    pending = client.submit(gate.observation, timeout=0.1)

    with pytest.raises(RequestTimeout, match=r"no reply from 't' .* \(a late one is discarded\)"):
        pending.result(timeout=1000)
    gate.open()


def test_a_request_that_has_not_begun_can_be_cancelled(client: ShmClient, gate: Gate) -> None:
    client.infer({"do": "tags"})
    held = client.submit(gate.observation)
    gate.wait_entered()
    cancelled = client.submit({"do": "count", "tag": 1})
    kept = client.submit({"do": "count", "tag": 2})

    assert cancelled.cancel()
    gate.open()

    with pytest.raises(RequestCancelled, match="before it ran"):
        cancelled.result()
    kept.result()
    assert held.result()["waited"]
    assert not kept.cancel()
    assert client.infer({"do": "tags"}) == [2]


def test_a_request_that_has_begun_is_not_cancelled_and_gives_its_result(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    gate.wait_entered()

    assert not held.cancel()
    gate.open()

    assert held.result()["waited"]
    assert not held.cancel()
    assert held.result()["waited"]


def test_a_cancelled_request_has_ended_at_once_and_stays_cancelled(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=2) as client:
        held = client.submit(gate.observation)
        gate.wait_entered()
        cancelled = client.submit({"do": "count", "tag": 1})

        assert (cancelled.cancel(), cancelled.done(), cancelled.cancel()) == (True, True, True)
        for _ in range(2):  # before the engine answers it, and after
            with pytest.raises(RequestCancelled, match=r"request \d+ to 't' was cancelled before it ran"):
                cancelled.result()
            gate.open()
            assert held.result()["waited"]
            assert client.infer({"do": "echo", "value": 1}) == 1  # its slot is free again
        assert cancelled.cancel()
        assert client.late_replies == 0


def test_cancelling_tells_the_truth_at_any_moment(client: ShmClient) -> None:
    client.infer({"do": "tags"})
    ends: dict[int, tuple[bool, str]] = {}
    for number in range(400):
        pending = client.submit({"do": "count", "tag": number})
        for _ in range(number % 40 * 20):
            pass
        cancelled = pending.cancel()
        try:
            pending.result()
            ends[number] = cancelled, "result"
        except RequestCancelled:
            ends[number] = cancelled, "cancelled"

    # Engine and client may have seen each other: then the client does not say that it is cancelled, and the engine does.
    assert set(ends.values()) <= {(True, "cancelled"), (False, "cancelled"), (False, "result")}
    run = client.infer({"do": "tags"})
    assert run == [number for number, (_, end) in ends.items() if end == "result"]


def test_a_request_that_was_lost_is_not_cancelled(start_daemon: Any, gate: Gate) -> None:
    daemon = start_daemon("obedient")
    client = daemon.client().connect()
    late = client.submit({"do": "sleep", "s": 1.0}, timeout=0.1)
    with pytest.raises(RequestTimeout):
        late.result()
    assert not late.cancel()
    running = client.submit(gate.observation)
    gate.wait_entered()
    waiting = client.submit({"do": "count"})
    daemon.kill9()

    assert not waiting.cancel()
    for lost in (running, waiting):
        with pytest.raises(ServiceRestarted):
            lost.result()
        assert not lost.cancel()


def test_a_newer_request_replaces_those_that_have_not_begun(obedient: Daemon, gate: Gate) -> None:
    before = obedient.status()["requests"]["superseded"]
    with obedient.client(slots=4) as client, obedient.client() as other:
        client.infer({"do": "tags"})
        held = client.submit(gate.observation)
        gate.wait_entered()
        stranger = other.submit({"do": "count", "tag": 100})
        old = [client.submit({"do": "count", "tag": number}) for number in range(2)]
        new = client.submit({"do": "count", "tag": 2}, supersede=True)
        gate.open()

        assert held.result()["waited"]
        for pending in old:
            with pytest.raises(RequestSuperseded, match="newer"):
                pending.result()
        new.result()
        stranger.result()
        assert sorted(client.infer({"do": "tags"})) == [2, 100]
    obedient.wait_counted(superseded=before + 2)


def test_closing_the_client_ends_the_requests_in_flight(obedient: Daemon, gate: Gate) -> None:
    client = obedient.client()
    pending = client.submit(gate.observation)
    client.close()
    client.close()

    with pytest.raises(ClientClosed):
        pending.result()
    with pytest.raises(ClientClosed, match="make a new one"):
        client.infer({"do": "count"})


def test_a_reset_reaches_the_policy_in_its_place_among_the_requests(start_daemon: Any) -> None:
    with start_daemon("stateful").client() as client:
        before = client.submit({"add": 5})
        client.reset()
        after = client.submit({"add": 7})

        assert before.result() == {"total": 5}
        assert after.result() == {"total": 7}


def test_a_policy_without_reset_takes_one_all_the_same(echo: Daemon) -> None:
    with echo.client() as client:
        client.reset()

        assert client.infer({"x": 1}) == {"x": 1}

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
    RingFull,
    ShmClient,
)
from tests.daemon_process import Daemon, wait_until
from tests.gate import Gate


def test_as_many_requests_as_slots_are_out_at_a_time_and_answered_in_order(client: ShmClient) -> None:
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
    assert pending.reply is not None and pending.reply.number == pending.number


def test_more_requests_than_slots_wait_for_a_slot(obedient: Daemon) -> None:
    with obedient.client(slots=2) as client:
        pendings = [client.submit({"do": "echo", "value": number}) for number in range(40)]

        assert [pending.result() for pending in pendings] == list(range(40))


def test_a_ring_without_a_free_slot_is_refused_and_works_again_afterwards(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=2) as client:
        held = client.submit(gate.observation)
        waiting = client.submit({"do": "echo", "value": 1})

        with pytest.raises(RingFull, match=r"every slot of 't' .*more slots"):
            client.submit({"do": "echo", "value": 2}, timeout=0.2)
        gate.open()

        assert held.result()["waited"]
        assert waiting.result() == 1
        assert client.infer({"do": "echo", "value": 3}) == 3


def test_a_service_gives_no_more_slots_than_it_allows(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=64) as client:
        held = client.submit(gate.observation)
        pendings = [client.submit({"do": "echo", "value": number}) for number in range(15)]
        with pytest.raises(RingFull, match="every slot"):
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


def test_a_wait_can_be_shorter_than_the_request_lives(client: ShmClient, gate: Gate) -> None:
    pending = client.submit(gate.observation)
    with pytest.raises(RequestTimeout):
        pending.result(timeout=0.05)
    gate.open()

    assert pending.result()["waited"]


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


def test_a_request_that_has_begun_runs_to_its_end(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    gate.wait_entered()

    assert not held.cancel()
    gate.open()

    assert held.result()["waited"]


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


def test_closing_the_client_ends_what_is_out(obedient: Daemon, gate: Gate) -> None:
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

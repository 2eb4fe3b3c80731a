"""Deadlines: what a client hears, what the model runs, and what becomes of a late reply."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shmserve.client import RequestTimeout, ShmClient
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


@pytest.mark.fault("T59")
def test_a_late_reply_is_discarded_and_the_next_request_gets_its_own(client: ShmClient, gate: Gate) -> None:
    with pytest.raises(RequestTimeout, match=r"no reply from 't' to request \d+ within .*discarded"):
        client.infer(gate.observation, timeout=0.1)
    gate.open()

    assert client.infer({"do": "echo", "value": "mine"}) == "mine"
    assert client.late_replies == 1


def test_a_client_survives_more_timeouts_than_it_has_slots(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=2) as client:
        held = client.submit(gate.observation)
        gate.wait_entered()
        with pytest.raises(RequestTimeout):
            client.infer({"do": "echo", "value": 1}, timeout=0.05)
        gate.open()

        assert held.result()["waited"]
        for number in range(20):
            assert client.infer({"do": "echo", "value": number}) == number
        assert client.late_replies == 1


def test_an_expired_request_is_not_run(obedient: Daemon, gate: Gate) -> None:
    before = obedient.status()["requests"]["expired"]
    with obedient.client() as client, obedient.client() as other:
        client.infer({"do": "tags"})
        held = other.submit(gate.observation)
        gate.wait_entered()
        # Not waited for, so that nothing but its deadline keeps it from running.
        expiring = client.submit({"do": "count", "tag": 1}, timeout=0.05)
        lasting = client.submit({"do": "count", "tag": 2})
        with pytest.raises(RequestTimeout):
            client.infer({"do": "count", "tag": 3}, timeout=0.1)
        gate.open()

        lasting.result()
        with pytest.raises(RequestTimeout):
            expiring.result()
        held.result()
        assert client.infer({"do": "tags"}) == [2]
    # The one that was waited for was withdrawn by its client as well.
    obedient.wait_counted(expired=before + 1)


def test_a_timeout_of_zero_is_a_timeout_and_not_forever(client: ShmClient) -> None:
    client.infer({"do": "count"})

    with pytest.raises(RequestTimeout):
        client.infer({"do": "count"}, timeout=0)
    assert client.infer({"do": "echo", "value": 1}) == 1


@pytest.mark.fault("T24")
@pytest.mark.parametrize("timeout", [-1.0, math.nan, math.inf, 1e9])
def test_an_invalid_timeout_is_refused(obedient: Daemon, client: ShmClient, timeout: float) -> None:
    with pytest.raises(ValueError, match="0 to 86400 seconds"):
        client.infer({"do": "count"}, timeout=timeout)
    with pytest.raises(ValueError, match="0 to 86400 seconds"):
        obedient.client(timeout=timeout)


def test_a_timeout_leaves_no_request_behind(obedient: Daemon, gate: Gate) -> None:
    with obedient.client() as client:
        with pytest.raises(RequestTimeout):
            client.infer(gate.observation, timeout=0.1)
        gate.open()

        def answered() -> Any:
            client.infer({"do": "count"})
            return client.late_replies == 1

        wait_until("the late reply was thrown away", answered)

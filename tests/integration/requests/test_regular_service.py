"""A client that knows when its reply is due gets the same results as one that does not."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient, service_time
from shmserve.client.reply_waiter import ReplyWaiter
from tests.support.daemon_process import Daemon

pytestmark = [pytest.mark.sealed_too, pytest.mark.pure_too]

_REGULAR_S = 0.003
Ask = Callable[[ShmClient, dict[str, Any]], Any]
ASKS: dict[str, Ask] = {
    "infer": lambda client, observation: client.infer(observation),
    "submit": lambda client, observation: client.submit(observation).result(),
    "loaned": lambda client, observation: infer_loaned(client, observation),
}


def infer_loaned(client: ShmClient, observation: dict[str, Any]) -> Any:
    with client.infer_loaned(observation) as action:
        return np.array(action)


class Asked:
    """Requests of one client, each with another number."""

    def __init__(self, client: ShmClient, ask: Ask) -> None:
        self._client = client
        self._ask = ask
        self._number = 0

    def once(self, service_s: float) -> None:
        self._number += 1
        value = np.full(3, self._number)
        assert np.array_equal(self._ask(self._client, {"do": "echo_after", "s": service_s, "value": value}), value)

    def until_polled(self, least: int = 5, most: int = 3000) -> None:
        """Ask, always with the same service time, until the client has polled for this many replies that were due."""
        waiter, polls = self._client._pipeline._waiter, 0
        for _ in range(most):
            self.once(_REGULAR_S)
            polls += waiter._polled_ns != 0
            if polls == least:
                return
        raise AssertionError(f"the client has polled for {polls} of {most} replies")


@pytest.fixture(params=ASKS)
def asked(request: pytest.FixtureRequest, obedient: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A client that expects each reply 2 to 4 ms after its request, however long the last ones took."""
    monkeypatch.setattr(ReplyWaiter, "_plan", lambda self: (2_000_000, 2_000_000))
    with obedient.client() as client:
        yield Asked(client, ASKS[request.param])


def test_a_client_learns_from_the_engine_when_a_reply_is_due(obedient: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine no service is regular by the real limits.
    monkeypatch.setattr(service_time, "LONGEST_NS", 50_000_000)
    monkeypatch.setattr(service_time, "_PART", 1)
    with obedient.client() as client:
        asked, service = Asked(client, ASKS["infer"]), client._pipeline._waiter._service
        for _ in range(3000):
            asked.once(_REGULAR_S)
            if service.sleep_ns:
                break

        assert service.sleep_ns + service.poll_ns > 3_000_000


def test_results_are_right_while_the_service_is_regular_and_after_it_is_not(asked: Asked) -> None:
    noise = random.Random(1)
    asked.until_polled()
    for _ in range(30):
        asked.once(noise.uniform(0.0, 0.006))
    asked.until_polled()
    for _ in range(10):
        asked.once(0.0)


def test_signals_during_the_waits_change_no_result(asked: Asked) -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: handled.append(number))
    try:
        asked.until_polled()
        signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
        for _ in range(50):
            asked.once(_REGULAR_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert handled


def test_a_client_that_may_not_spin_does_not_poll(obedient: Daemon) -> None:
    with obedient.client(spin_us=0) as client:
        asked = Asked(client, ASKS["infer"])
        for _ in range(20):
            asked.once(_REGULAR_S)

        assert client._pipeline._waiter._service.sleep_ns == 0

"""The thread of a client with a rate: when it rehearses, and when it ends."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from shmserve.client import rate_thread
from shmserve.client.rate_thread import LEAST_NS, pause_ns, start
from shmserve.errors import ClientClosed
from shmserve.rhythm import Rhythm

_MS = 1_000_000
_PERIOD = 20 * _MS
_START = 1_000 * _MS


def steady() -> Rhythm:
    rhythm = Rhythm()
    rhythm.note(_START, _PERIOD)
    return rhythm


def rehearsed_at(after_ms: float) -> tuple[bool, float]:
    """Whether it rehearses so long after a request, and how long it sleeps then (ms)."""
    rehearsals: list[int] = []
    pause = pause_ns(steady(), _PERIOD, _START + int(after_ms * _MS), lambda: rehearsals.append(1))
    return bool(rehearsals), pause / _MS


@pytest.mark.parametrize(
    ("after_ms", "expected"),
    [
        (0.3, (False, 18.7)),
        (18.5, (False, 0.5)),
        (18.8, (True, 20.2)),
        (19.0, (True, 20.0)),
        (19.9, (True, 19.1)),
        (20.5, (False, 18.5)),  # it is due already: the robot may be inside
    ],
)
def test_it_rehearses_a_millisecond_before_the_request(after_ms: float, expected: tuple[bool, float]) -> None:
    rehearsed, pause_ms = rehearsed_at(after_ms)

    assert (rehearsed, round(pause_ms, 3)) == expected


def test_it_looks_once_in_a_period_while_nothing_is_known() -> None:
    assert pause_ns(Rhythm(), _PERIOD, _START, lambda: pytest.fail("rehearsed")) == _PERIOD


class Client:
    """A client that is asked for its latest request, and says so."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.closed = False

    def _latest_submitted_ns(self) -> int:
        self.asked.set()
        if self.closed:
            raise ClientClosed("closed")
        return 0

    def _rehearse_unless_inside(self) -> None:
        pytest.fail("nothing is due")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the thread has ended."""
    event, run = threading.Event(), rate_thread._run

    def noted(*arguments: Any) -> None:
        run(*arguments)
        event.set()

    monkeypatch.setattr(rate_thread, "_run", noted)
    return event


def test_it_ends_when_its_client_is_closed(ended: threading.Event) -> None:
    client = Client()
    start(client, LEAST_NS)
    assert client.asked.wait(30)
    client.closed = True

    assert ended.wait(30)


def test_it_ends_when_its_client_is_forgotten(ended: threading.Event) -> None:
    client = Client()
    start(client, LEAST_NS)
    assert client.asked.wait(30)
    del client
    gc.collect()

    assert ended.wait(30)


def test_a_client_that_asks_often_has_no_thread() -> None:
    client = Client()
    start(client, LEAST_NS - 1)

    assert not client.asked.wait(0.05)

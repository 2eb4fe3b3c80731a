"""The rehearsal of a request: it takes the fast path, leaves nothing in flight, and an interrupt of it is the caller's."""

from __future__ import annotations

import signal

import pytest

from shmserve.client import ShmClient
from shmserve.client.rehearsal import Nowhere, Rehearsal

pytestmark = pytest.mark.pure_too


def test_a_rehearsal_takes_the_fast_path_each_time_and_leaves_nothing() -> None:
    rehearsal = Rehearsal("arm")
    pipeline = rehearsal._pipeline
    native = pipeline._fast_path.native
    assert native is not None

    sequences = []
    for _ in range(100):
        rehearsal.run()
        sequences.append(native.sequence >> 6)
        assert native.waited_ns > 0  # it went to the doorbell, as a client that sleeps

    assert sequences == list(range(1, 101))
    assert (pipeline._table.in_flight, pipeline._waiter.leader) == ({}, 0)


def test_an_interrupted_rehearsal_raises_and_the_next_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ShmClient("arm")
    client._rehearse()
    first = client._rehearsal

    with monkeypatch.context() as patch:
        patch.setattr(Nowhere, "wait", lambda self, timeout_ns: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            client._rehearse()
    client._rehearse()

    assert client._rehearsal is not None and client._rehearsal is not first
    assert client._rehearsal._pipeline._table.in_flight == {}


def test_a_forked_copy_of_a_rehearsal_is_disabled_without_an_error() -> None:
    rehearsal = Rehearsal("arm")
    rehearsal.run()

    rehearsal._pipeline.control.after_fork_in_child()

    assert rehearsal._pipeline._connector.connection is None
    rehearsal._pipeline._connector.close()

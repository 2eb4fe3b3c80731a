"""A Pending as a Future: states, callbacks and awaiting, without a daemon."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from shmserve.client.pending import Pending
from shmserve.errors import InferenceFailed, RequestCancelled, RequestTimeout, ShmServeError


class Owner:
    """Completes a request when it is waited for."""

    def __init__(self, result: Any = None, error: ShmServeError | None = None, *, running: bool = False) -> None:
        self.result, self.error, self.taken = result, error, running
        self.notified: list[Pending] = []

    def complete(self, pending: Pending) -> None:
        pending._result, pending._error, pending._completed_ns = self.result, self.error, 1

    def wait(self, pending: Pending, until_ns: int) -> None:
        if until_ns < pending.deadline_ns:
            raise RequestTimeout("this wait")
        self.complete(pending)

    def poll(self, pending: Pending) -> bool:
        return pending._completed_ns != 0

    def cancel(self, pending: Pending) -> bool:
        return not self.taken

    def is_running(self, pending: Pending) -> bool:
        return self.taken

    def notify(self, pending: Pending) -> None:
        self.notified.append(pending)
        self.complete(pending)
        pending._run_callbacks()

    def release_reply(self, sequence: int) -> None: ...

    def check_owner(self) -> None: ...


def pending_of(owner: Owner) -> Pending:
    return Pending(owner, 0, 1 << 62)


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        (Owner(5), "<Pending #0 done>"),
        (Owner(error=InferenceFailed("no")), "<Pending #0 InferenceFailed>"),
        (Owner(error=RequestCancelled("no")), "<Pending #0 RequestCancelled>"),
    ],
)
def test_its_text_shows_its_state(owner: Owner, text: str) -> None:
    pending = pending_of(owner)
    assert repr(pending) == "<Pending #0 pending>"

    owner.complete(pending)

    assert repr(pending) == text


def test_a_wait_that_ends_early_leaves_the_request_going() -> None:
    pending = pending_of(Owner(5))

    with pytest.raises(TimeoutError):
        pending.result(0.01)
    with pytest.raises(TimeoutError):
        pending.exception(0.01)

    assert not pending.done()
    assert pending.result() == 5
    assert pending.exception() is None


def test_exception_returns_the_error_and_raises_a_cancellation() -> None:
    failed, cancelled = InferenceFailed("no"), RequestCancelled("cancelled")

    assert pending_of(Owner(error=failed)).exception() is failed
    pending = pending_of(Owner(error=cancelled))
    with pytest.raises(RequestCancelled):
        pending.exception()
    assert pending.cancelled()


@pytest.mark.parametrize("running", [False, True])
def test_a_running_request_cannot_be_cancelled(running: bool) -> None:
    pending = pending_of(Owner(running=running))

    assert (pending.running(), pending.cancel(), pending.cancelled()) == (running, not running, False)


def test_each_callback_is_called_once_whatever_another_raises(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner(5)
    pending = pending_of(owner)
    called: list[Pending] = []

    with caplog.at_level(logging.ERROR):
        pending.add_done_callback(lambda pending: 1 / 0)
    pending.add_done_callback(called.append)

    assert called == [pending] and owner.notified == [pending]
    assert "ZeroDivisionError" in caplog.text


def test_an_event_loop_awaits_its_result() -> None:
    async def main() -> Any:
        return await pending_of(Owner(5))

    assert asyncio.run(main()) == 5

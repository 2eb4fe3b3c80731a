"""A wait for a reply that is due at a known time: two sleeps at the doorbell, and a spin in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from shmserve.backend import ClientFastPath
from shmserve.client.connection import Connection
from shmserve.client.fast_path import FastPath
from shmserve.client.pending import Pending
from shmserve.client.reply_waiter import ReplyWaiter, WaiterUser
from shmserve.client.request_options import DEFAULT_OPTIONS
from shmserve.client.service_time import ServiceTime
from shmserve.codec import Encoder
from shmserve.layout import ASLEEP, COUNTER_LINE
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget
from tests.support.channel_ends import ChannelEnds, new_pending
from tests.support.native import NATIVE

pytestmark = pytest.mark.pure_too

needs_native = pytest.mark.skipif(not NATIVE, reason="Python does not say where it runs, and that it sleeps")
_FAR_NS = 1 << 62
_LONG_NS = 60_000_000_000
#: A process may lose its processor for a while between the moment when a reply becomes due and the first sleep.
_SLEEP_NS, _POLL_NS = 50_000_000, 100_000
_PROCESSOR = COUNTER_LINE.names.index("processor")
Step = Callable[[], bool]


class Bell:
    """A doorbell at which one step of the test runs for each sleep; the step says whether a token came."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.timeouts: list[int] = []
        self.taken = 0

    def try_take(self) -> bool:
        self.taken += 1
        return True

    def wait(self, timeout_ns: int, /) -> bool:
        self.timeouts.append(timeout_ns)
        return self._steps.pop(0)()

    def close(self) -> None:
        """Do nothing."""


class Waiting:
    """A request that was sent, and a wait for it, on the fast path or on the slow one."""

    sequence = 0

    def __init__(self, ends: ChannelEnds) -> None:
        self.ends = ends
        self.pending = new_pending()
        self._bell = Bell()
        ends.channel.reply_bell.close()
        self.ring_at(self._bell)

    def ring_at(self, *steps: Any) -> Bell:
        """Let these steps happen at the doorbell."""
        self._bell._steps[:] = steps
        self.ends.channel.reply_bell = cast(Any, self._bell)
        return self._bell

    # Steps

    def answers(self) -> bool:
        self.ends.answer(self.pending.sequence, {"n": 2})
        return True

    def is_due(self) -> bool:
        """The timer ends."""
        time.sleep(self._bell.timeouts[-1] / 1e9 + 1e-6)
        return False

    def answers_when_due(self) -> bool:
        """The timer ends; the reply is there, and its token comes a moment later."""
        self.is_due()
        self.answers()
        return False


class FastWaiting(Waiting):
    """By the backend's half."""

    def __init__(self, ends: ChannelEnds) -> None:
        super().__init__(ends)
        encoder, first = Encoder(), new_pending()
        path = FastPath(ends.guard, ends.connector, ends.table, encoder)
        ends.answer(ends.publish(first, encoder, {"n": 0}), {"n": 0})
        ends.table.poll()
        path.specialize(cast(Connection, ends.connection))
        self.path = path
        native = path.try_send(self.pending, {"n": 1}, DEFAULT_OPTIONS, leads=True)
        assert native is not None
        self.native: ClientFastPath = native

    def wait(
        self, sleep_ns: int = _SLEEP_NS, poll_ns: int = _POLL_NS, longest_ns: int = _LONG_NS, until_ns: int = _FAR_NS
    ) -> Any:
        """Wait once; return the result, or None."""
        sequence = self.pending.sequence
        found = self.native.wait(sequence, False, 0, sleep_ns, poll_ns, longest_ns, until_ns, ReplyHead)
        return None if found is None else found[0]

    def how(self) -> tuple[int, int]:
        return self.native.waited_ns, self.native.polled_ns


class SlowWaiting(Waiting):
    """By the reply waiter."""

    def __init__(self, ends: ChannelEnds) -> None:
        super().__init__(ends)
        self.waiter = ReplyWaiter(ends.guard, ends.connector, ends.table, ends.lot, SpinBudget("adaptive"))
        ends.publish(self.pending, Encoder(), {"n": 1})

    def wait(
        self, sleep_ns: int = _SLEEP_NS, poll_ns: int = _POLL_NS, longest_ns: int = _LONG_NS, until_ns: int = _FAR_NS
    ) -> Any:
        """Wait once; return the result, or None."""
        words = self.ends.channel.requests
        since_ns = time.monotonic_ns() - words.submitted_ns(self.pending.sequence)
        self.waiter._service.sleep_ns, self.waiter._service.poll_ns = since_ns + sleep_ns, poll_ns
        until_ns = min(until_ns, time.monotonic_ns() + longest_ns)
        self.waiter.wait(until_ns, cast(WaiterUser, None), self.pending)
        return self.pending._result

    def how(self) -> tuple[int, int]:
        return self.waiter._waited_ns, self.waiter._polled_ns


@pytest.fixture
def ends() -> Iterator[ChannelEnds]:
    with ChannelEnds() as ends:
        yield ends


@pytest.fixture(params=[FastWaiting, SlowWaiting], ids=["fast", "slow"])
def waiting(request: pytest.FixtureRequest, ends: ChannelEnds, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("shmserve.client.reply_waiter.LONGEST_WAIT_NS", _LONG_NS)
    return request.param(ends)


def test_a_reply_that_is_due_is_seen_awake_and_leaves_its_token(waiting: Any) -> None:
    bell = waiting.ring_at(waiting.answers_when_due)

    assert waiting.wait(poll_ns=_LONG_NS) == {"n": 2}
    waited_ns, polled_ns = waiting.how()
    assert waited_ns < 0 < polled_ns <= -waited_ns
    assert len(bell.timeouts) == 1 and 0 < bell.timeouts[0] <= _SLEEP_NS


def test_a_reply_that_comes_early_wakes_the_client(waiting: Any) -> None:
    bell = waiting.ring_at(waiting.answers)

    assert waiting.wait(sleep_ns=_LONG_NS // 2) == {"n": 2}
    waited_ns, polled_ns = waiting.how()
    assert waited_ns > 0 == polled_ns
    assert len(bell.timeouts) == 1


def test_a_reply_that_comes_late_is_waited_for_asleep(waiting: Any) -> None:
    bell = waiting.ring_at(waiting.is_due, waiting.answers)

    assert waiting.wait() == {"n": 2}
    waited_ns, polled_ns = waiting.how()
    assert polled_ns < 0 < waited_ns
    assert len(bell.timeouts) == 2 and bell.timeouts[1] > _LONG_NS // 2


def test_a_reply_that_does_not_come_ends_the_wait_in_time(waiting: Any) -> None:
    waiting.ring_at(waiting.is_due, lambda: False)

    assert waiting.wait() is None
    waited_ns, polled_ns = waiting.how()
    assert polled_ns < 0 == waited_ns


def test_a_signal_in_the_first_sleep_does_not_make_the_client_poll_earlier(waiting: Any) -> None:
    bell = waiting.ring_at(lambda: False)

    assert waiting.wait(sleep_ns=_LONG_NS // 2, poll_ns=_LONG_NS) is None
    assert waiting.how() == (0, 0)
    assert len(bell.timeouts) == 1


@pytest.mark.parametrize("limit", ["longest wait", "deadline"])
def test_a_wait_that_ends_before_the_reply_is_due_does_not_poll(waiting: Any, limit: str) -> None:
    bell = waiting.ring_at(waiting.is_due)
    limits = {"longest_ns": 1000} if limit == "longest wait" else {"until_ns": time.monotonic_ns() + 1_000_000}

    assert waiting.wait(sleep_ns=_LONG_NS // 2, poll_ns=_LONG_NS, **limits) is None
    assert waiting.how() == (0, 0)
    assert len(bell.timeouts) == 1 and bell.timeouts[0] <= 1_000_000


def test_a_deadline_ends_the_polling(waiting: Any) -> None:
    waiting.ring_at(waiting.is_due, lambda: False)

    assert waiting.wait(sleep_ns=1_000_000, poll_ns=_FAR_NS // 2, until_ns=time.monotonic_ns() + 2_000_000) is None


@needs_native
@pytest.mark.parametrize("sleep", [1, 2])
def test_a_client_says_that_it_sleeps_and_is_awake_after_an_error(waiting: Any, sleep: int) -> None:
    requests = waiting.ends.channel.requests
    asleep: list[bool] = []

    def is_asleep() -> bool:
        return int(requests.words[requests.counter + _PROCESSOR]) & ASLEEP != 0

    def interrupt() -> bool:
        asleep.append(is_asleep())
        raise KeyboardInterrupt

    def is_due() -> bool:
        asleep.append(is_asleep())
        return bool(waiting.is_due())

    waiting.ring_at(*[is_due] * (sleep - 1), interrupt)

    with pytest.raises(KeyboardInterrupt):
        waiting.wait()
    assert asleep == [True] * sleep
    assert not is_asleep()


@needs_native
@pytest.mark.parametrize("writer", ["on this processor", "asleep elsewhere"])
def test_a_client_does_not_spin_where_the_engine_may_need_its_processor(waiting: Any, writer: str) -> None:
    replies = waiting.ends.engine.replies
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    at = here + 1 if writer == "on this processor" else ASLEEP | 1000
    bell = waiting.ring_at(waiting.is_due, waiting.answers)
    os.sched_setaffinity(0, {here})
    try:
        replies.words[replies.counter + _PROCESSOR] = at

        assert waiting.wait(poll_ns=_FAR_NS // 2) == {"n": 2}
    finally:
        os.sched_setaffinity(0, allowed)

    assert waiting.how()[1] < 0
    assert len(bell.timeouts) == 2


@needs_native
def test_a_channel_that_is_closed_in_the_first_sleep_ends_the_wait(ends: ChannelEnds) -> None:
    fast = FastWaiting(ends)

    def close() -> bool:
        fast.is_due()
        ends.channel.replies.poller.close()
        return False

    fast.ring_at(close)

    assert fast.wait() is None


# What the waiter learns


def lead(waiter: ReplyWaiter, path: FastPath, ends: ChannelEnds, bell: Bell, infer_ns: int) -> None:
    pending = new_pending()

    def answers() -> bool:
        ends.answer(pending.sequence, {"n": 1}, infer_ns=infer_ns)
        return True

    bell._steps = [answers]
    assert waiter.lead(path, pending, {"n": 1}, DEFAULT_OPTIONS)
    assert pending._result == {"n": 1}


@pytest.mark.parametrize("setting", ["adaptive", 0])
def test_only_an_adaptive_client_learns_when_a_reply_is_due(ends: ChannelEnds, setting: Any) -> None:
    waiter = ReplyWaiter(ends.guard, ends.connector, ends.table, ends.lot, SpinBudget(setting, cap_ns=1))
    waiting = FastWaiting(ends)
    bell = waiting.ring_at()
    for _ in range(12):
        lead(waiter, waiting.path, ends, bell, 5_000_000)

    assert (4_500_000 < waiter._service.sleep_ns < 5_000_000) == (setting == "adaptive")
    assert (bell.timeouts[-1] < 5_000_000) == (setting == "adaptive")


def test_a_reply_is_learnt_from_once(ends: ChannelEnds, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[int, int]] = []
    monkeypatch.setattr(ServiceTime, "note", lambda self, *times: noted.append(times))
    waiter = ReplyWaiter(ends.guard, ends.connector, ends.table, ends.lot, SpinBudget("adaptive"))
    pendings: list[Pending] = [new_pending() for _ in range(2)]
    sequences = [ends.publish(pending, Encoder(), 1) for pending in pendings]
    ends.answer(sequences[0], 1)
    ends.table.poll()
    for _ in range(3):
        waiter.wait(time.monotonic_ns() + 1000, cast(Any, None), pendings[1])

    assert noted == [(10, 0)]

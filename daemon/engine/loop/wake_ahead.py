"""Plan of the engine's waking up ahead of requests that are expected.

A robot's request meets an engine that is awake and warm, and waits for neither. The engine sleeps until
shortly before the request is due, touches what the request will touch, and polls until it comes, for a bounded time. A
client keeps a rhythm, or says when it will ask (`expected_ns` beside its counter). Its words are hints: a client that lies
costs the engine the bounded time, and is not believed for a while.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from shmserve.layout import COUNTER_LINE

from ...ipc.stats import Counter
from ..channel.channel_state import ChannelState
from ..channel.expectation import FIRST_DOUBT_NS

_EXPECTED = COUNTER_LINE.names.index("expected_ns")
_PERIOD = COUNTER_LINE.names.index("period_ns")
#: Longest time for which an engine is awake for one request that is expected: 2 % of a processor at 50 Hz.
LONGEST_NS = 400_000
#: Limits of the time from the wake-up until the request is due; each client's follows how long the engine waited.
_LEAST_LEAD_NS, _MOST_LEAD_NS = 100_000, 350_000
_LITTLE_NS, _LONG_NS = 60_000, 150_000
_LONGER_NS, _SHORTER_NS = 20_000, 10_000
#: A request that comes later than this was not the one that was expected, and no other word for it.
_LATE_NS = 5_000_000
#: An expectation further away than this is none.
_FURTHEST_NS = 10_000_000_000
#: After this many requests that did not come a client is not believed for a while, twice as long each time.
_MISSES, _LONGEST_DOUBT_NS = 3, 60_000_000_000


class Expected(NamedTuple):
    """A request that is expected, and when to be awake for it."""

    wake_ns: int
    due_ns: int
    state: ChannelState


def leave_processor(number: int) -> bool:
    """Move this thread to another processor that it may use; return whether there is one.

    The client wakes up where it ran last. Beside an engine that is awake there it would wait, or both would take turns.
    """
    allowed = os.sched_getaffinity(0)
    others = allowed - {number}
    if not others or number not in allowed:
        return False
    try:
        os.sched_setaffinity(0, others)  # moves it at once
        os.sched_setaffinity(0, allowed)
    except OSError:  # a control group has changed meanwhile what is allowed
        return False
    return True


class WakeAhead:
    """Finds the request that is expected next, and learns from what became of it."""

    def __init__(self, words: memoryview) -> None:
        """Count in `words`, the engine's stats."""
        self._words = words

    def next(self, states: Iterable[ChannelState], now_ns: int) -> Expected | None:
        """Return what is expected next of these clients; None if nothing is. Called before the engine sleeps."""
        found: Expected | None = None
        for state in states:
            due_ns = self._due(state, now_ns)
            if due_ns and (found is None or due_ns < found.due_ns):
                found = Expected(due_ns - state.expectation.lead_ns, due_ns, state)
        return found

    def _due(self, state: ChannelState, now_ns: int) -> int:
        expectation = state.expectation
        words, line = state.words, state.counter
        submitted_ns = state.submitted_ns()
        if submitted_ns != expectation.noted_ns:
            expectation.noted_ns = submitted_ns
            if expectation.misses and 0 <= submitted_ns - expectation.awaited_ns < _LATE_NS:
                expectation.misses = 0  # it came after all
                expectation.lead_ns = max(expectation.lead_ns - _SHORTER_NS, _LEAST_LEAD_NS)
            expectation.rhythm.note(submitted_ns, words[line + _PERIOD])
        if now_ns < expectation.doubted_until_ns:
            return 0
        said_ns = words[line + _EXPECTED]
        due_ns = expectation.rhythm.due_ns(now_ns)
        if due_ns:
            due_ns -= expectation.write_ns
        if said_ns > submitted_ns and now_ns - LONGEST_NS < said_ns < now_ns + _FURTHEST_NS:
            # A client says the latest time; its rhythm is exact.
            due_ns = due_ns if due_ns and due_ns < said_ns + _LATE_NS else said_ns
        # Each is waited for once.
        return due_ns if due_ns > expectation.awaited_ns + LONGEST_NS else 0

    def began(self, expected: Expected) -> None:
        """The engine is awake for this request."""
        expected.state.expectation.awaited_ns = expected.due_ns

    def came(self, expected: Expected, waited_ns: int, awake_ns: int) -> None:
        """A request came, or its client began to write it, while the engine was awake for one and had polled for `waited_ns`."""
        expectation = expected.state.expectation
        expectation.misses, expectation.doubt_ns = 0, FIRST_DOUBT_NS
        if waited_ns < _LITTLE_NS:
            expectation.lead_ns = min(expectation.lead_ns + _LONGER_NS, _MOST_LEAD_NS)
        elif waited_ns > _LONG_NS:
            expectation.lead_ns = max(expectation.lead_ns - _SHORTER_NS, _LEAST_LEAD_NS)
        self._words[Counter.AHEAD_MET] += 1
        self._words[Counter.AHEAD_NS] += awake_ns

    def came_not(self, expected: Expected, now_ns: int, awake_ns: int) -> None:
        """The request did not come in time."""
        expectation = expected.state.expectation
        expectation.misses += 1
        if expectation.misses >= _MISSES:
            expectation.misses = 0
            expectation.doubted_until_ns = now_ns + expectation.doubt_ns
            expectation.doubt_ns = min(2 * expectation.doubt_ns, _LONGEST_DOUBT_NS)
        self._words[Counter.AHEAD_MISSED] += 1
        self._words[Counter.AHEAD_NS] += awake_ns

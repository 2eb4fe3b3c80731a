"""Thread that rehearses a request shortly before the next one is due, for a client that was made with its rate.

The robot's own thread sleeps at that time. The thread keeps neither the client alive nor the process, and it ends with either.
"""

from __future__ import annotations

import _thread
import contextlib
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from shmserve.errors import ShmServeError
from shmserve.rhythm import Rhythm

#: The rehearsal is over by then, also on a slow machine.
_AHEAD_NS = 1_000_000
#: A request that is due later than that much after a wake-up is not rehearsed yet.
_EARLY_NS = 300_000
#: With a shorter period nothing cools down.
LEAST_NS = 4_000_000
_LEAST_PAUSE_NS, _MOST_PAUSE_NS = 200_000, 1_000_000_000


class Rehearsing(Protocol):
    """The client, as its thread sees it."""

    def _latest_submitted_ns(self) -> int:
        """Return when the latest request was published, 0 if there is none; raises ShmServeError once it is closed."""

    def _rehearse_unless_inside(self) -> None:
        """Run the code of a request, unless another thread is inside."""


def pause_ns(rhythm: Rhythm, period_ns: int, now_ns: int, rehearse: Callable[[], None]) -> int:
    """Rehearse if a request is due soon; return how long to sleep."""
    due_ns = rhythm.due_ns(now_ns)
    until_ns = due_ns - _AHEAD_NS if due_ns else now_ns + period_ns
    if due_ns and until_ns <= now_ns + _EARLY_NS:
        if now_ns < due_ns:
            rehearse()
        until_ns += period_ns
    return max(_LEAST_PAUSE_NS, min(until_ns - now_ns, _MOST_PAUSE_NS))


def start(client: Rehearsing, period_ns: int) -> None:
    """Start the thread, if the process can start one."""
    if period_ns < LEAST_NS:
        return
    # Not threading.Thread, which the end of the process would wait for.
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(_run, (weakref.ref(client), period_ns))


def _run(reference: weakref.ref[Rehearsing], period_ns: int) -> None:
    rhythm, noted_ns = Rhythm(), 0
    while (client := reference()) is not None:
        try:
            submitted_ns = client._latest_submitted_ns()
            if submitted_ns != noted_ns:
                rhythm.note(submitted_ns, period_ns)
                noted_ns = submitted_ns
            pause = pause_ns(rhythm, period_ns, time.monotonic_ns(), client._rehearse_unless_inside)
        except ShmServeError:  # it was closed
            return
        client = None  # or it would live until the end of the pause
        time.sleep(pause / 1e9)

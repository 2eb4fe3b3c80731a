"""Expectation of one client's next request, which the engine is awake for (loop/wake_ahead.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from shmserve.rhythm import Rhythm

#: Time from the wake-up of the engine until a request is due, at first.
FIRST_LEAD_NS = 250_000
#: Time for which a client is not believed after its requests did not come as expected, at first.
FIRST_DOUBT_NS = 500_000_000
#: A client that writes for longer is not waited for from the beginning.
LONGEST_WRITE_NS = 5_000_000


@dataclass(slots=True)
class Expectation:
    """When a client asks, how much sooner to be awake, and how far it is believed."""

    rhythm: Rhythm = field(default_factory=Rhythm)
    #: When the request was published that the rhythm has learnt from last.
    noted_ns: int = 0
    #: When the request was due that the engine was last awake for.
    awaited_ns: int = 0
    lead_ns: int = FIRST_LEAD_NS
    #: How long a large observation is written before it is published: the engine copies it meanwhile.
    write_ns: int = 0
    #: Requests in a row that did not come.
    misses: int = 0
    doubt_ns: int = FIRST_DOUBT_NS
    doubted_until_ns: int = 0

    def note_write(self, took_ns: int) -> None:
        """Learn from a large observation that the engine saw being written."""
        if 0 < took_ns < LONGEST_WRITE_NS:
            self.write_ns += (took_ns - self.write_ns) // 4

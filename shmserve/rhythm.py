"""Rhythm of one client's requests: their period and phase, learnt from when they were published.

Pure logic: it reads no clock. All times are CLOCK_MONOTONIC nanoseconds.

>>> rhythm = Rhythm()
>>> for beat in range(1, 7): rhythm.note(beat * 20_000_000)
>>> rhythm.due_ns(120_100_000)                     # the next request of a loop of 50 Hz
140000000
>>> rhythm.note(147_000_000); rhythm.note(151_000_000)
>>> rhythm.due_ns(151_100_000)                     # it keeps no rhythm any longer
0
"""

from __future__ import annotations

#: Shorter periods need no help: the engine spins through them.
LEAST_NS, MOST_NS = 1_000_000, 2_000_000_000
#: Beats in a row that make a rhythm; one that is late or missing after that costs two of them.
_STEADY, _STEADIEST = 4, 9
#: A request may come this part of the period early or late.
_TOLERANCE = 8
#: The phase follows each request by this part of the difference. A single late one moves it no further than this, because the
#: next one is on time again.
_FOLLOW, _LATER_NS, _LATE_IN_A_ROW = 4, 20_000, 3


class Rhythm:
    """What is known of when a client asks."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._period_ns = 0
        self._due_ns = 0
        self._steady = 0
        self._late = 0  # requests in a row that were late

    def note(self, published_ns: int, given_ns: int = 0) -> None:
        """Learn that a request was published; `given_ns` is the period that the client was made with, or 0."""
        gap_ns, self._last_ns = published_ns - (self._last_ns or published_ns), published_ns
        if gap_ns <= 0 and self._period_ns:
            self._steady = 0
            return
        given = LEAST_NS <= given_ns <= MOST_NS
        period_ns = given_ns if given else self._period_ns
        late_ns = published_ns - self._due_ns
        room_ns = period_ns // _TOLERANCE
        if self._steady and -room_ns <= late_ns <= room_ns:
            self._steady = min(self._steady + 1, _STEADIEST)
            self._late = self._late + 1 if late_ns > _LATER_NS else 0
            move_ns = late_ns // _FOLLOW
            if self._late <= _LATE_IN_A_ROW:
                move_ns = min(move_ns, _LATER_NS)
            self._period_ns = period_ns if given else period_ns + move_ns // _FOLLOW
            self._due_ns += move_ns + self._period_ns
            return
        if self._steady > _STEADY:  # once late, or once left out
            self._steady -= 2
        elif given:
            # A client that says its period is believed at first, and again after two gaps of it.
            near = not gap_ns or abs(gap_ns - given_ns) <= given_ns // _TOLERANCE
            self._steady = _STEADY if near else 0
            period_ns = given_ns
        else:
            self._steady, period_ns = 1, gap_ns
        self._period_ns = period_ns
        self._due_ns = published_ns + period_ns

    def due_ns(self, now_ns: int) -> int:
        """Return when the next request is due; 0 if that is not known. A time in the past is that of a late one."""
        if self._steady < _STEADY or not LEAST_NS <= self._period_ns <= MOST_NS:
            return 0
        return self._due_ns if now_ns - self._due_ns < self._period_ns // _TOLERANCE else 0

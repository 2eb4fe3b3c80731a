"""Delay of chunks: the rows between an observation and the arrival of its chunk, learned from recent requests."""

from __future__ import annotations

from collections import deque

#: As many of the latest requests count.
WINDOW = 32
#: The share of them, in percent, that arrived within the learned delay.
PERCENT = 95


class ChunkDelay:
    """The delay of 95 % of the latest 32 chunks.

    The first reply of a connection and of a model version is slower than those that follow: it does not count. Until
    another one has arrived, its delay is used all the same, because a request that is too early costs less than a chunk
    that is too late.

    >>> delay = ChunkDelay()
    >>> delay.add(40, "a")
    >>> delay.rows
    40
    >>> for rows in (2, 3, 2):
    ...     delay.add(rows, "a")
    >>> delay.rows
    3
    >>> delay.add(40, "b")  # the first reply of another model
    >>> delay.rows
    3
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WINDOW)
        self._version: str | None = None
        self._rows = 0

    def add(self, rows: int, version: str) -> None:
        """Note the arrival of a chunk of this model version, `rows` after its observation."""
        counts = version == self._version
        self._version = version
        if counts:
            self._recent.append(rows)
            self._rows = sorted(self._recent)[(PERCENT * len(self._recent) + 99) // 100 - 1]
        elif not self._recent:
            self._rows = rows

    def begin_connection(self) -> None:
        """Note that the service may have been started anew: its next reply does not count."""
        self._version = None

    @property
    def rows(self) -> int:
        """The learned delay in rows; 0 before the first chunk."""
        return self._rows

    @property
    def measured_rows(self) -> int:
        """The learned delay in rows; 0 until a chunk has arrived that counts."""
        return self._rows if self._recent else 0

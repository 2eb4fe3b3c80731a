"""Rate limit for log lines that a peer can provoke at will."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..token_bucket import TokenBucket


class ProvokedLog:
    """At most `burst` lines at once and one a second after that; a line that gets through counts those that did not.

    Lines must hold numbers and words of this program only, never a peer's text.
    """

    def __init__(self, log: logging.Logger, burst: int = 10, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock` gives nanoseconds."""
        self._log = log
        self._clock = clock
        self._bucket = TokenBucket(per_s=1.0, burst=burst, now_ns=clock())
        self._left_out = 0

    def warning(self, text: str, *arguments: object) -> None:
        self._write(logging.WARNING, text, arguments)

    def exception(self, text: str, *arguments: object) -> None:
        """With the traceback of the exception being handled."""
        self._write(logging.ERROR, text, arguments, traceback=True)

    def _write(self, level: int, text: str, arguments: tuple[object, ...], *, traceback: bool = False) -> None:
        if not self._bucket.take(self._clock()):
            self._left_out += 1
            return
        if self._left_out:
            text, arguments = text + " (%d such lines left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._log.log(level, text, *arguments, exc_info=traceback)

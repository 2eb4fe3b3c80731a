"""Log lines that a peer can provoke at will, limited to so many a second."""

from __future__ import annotations

import logging
import time


class ProvokedLog:
    """At most `burst` lines at once and one a second after that; a line that gets through counts those that did not.

    Lines must hold numbers and words of this program only, never a peer's text.
    """

    def __init__(self, log: logging.Logger, burst: int = 10) -> None:
        self._log = log
        self._burst = burst
        self._allowance = float(burst)
        self._refilled_s = time.monotonic()
        self._left_out = 0

    def warning(self, text: str, *arguments: object) -> None:
        self._write(logging.WARNING, text, arguments)

    def exception(self, text: str, *arguments: object) -> None:
        """With the traceback of the exception being handled."""
        self._write(logging.ERROR, text, arguments, traceback=True)

    def _write(self, level: int, text: str, arguments: tuple[object, ...], *, traceback: bool = False) -> None:
        now_s = time.monotonic()
        self._allowance = min(self._burst, self._allowance + now_s - self._refilled_s)
        self._refilled_s = now_s
        if self._allowance < 1:
            self._left_out += 1
            return
        self._allowance -= 1
        if self._left_out:
            text, arguments = text + " (%d such lines left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._log.log(level, text, *arguments, exc_info=traceback)

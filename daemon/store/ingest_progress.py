"""Progress of an ingest, for status, for waiting callers, and as a log line every few seconds.

>>> gigabytes(1_500_000_000), gigabytes(12_300_000), gigabytes(6)
('1.5 GB', '12 MB', '6 bytes')
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)

#: Smaller packages are ingested so quickly that their progress is not logged.
_TOLD_BYTES = 64 << 20
_REPORT_INTERVAL_S = 5.0


class IngestProgress:
    """The ingest or comparison that is running."""

    def __init__(self, report_interval_s: float = _REPORT_INTERVAL_S) -> None:
        self._report_interval_s = report_interval_s
        self._now: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any] | None:
        """Return the step (`compare` with the served version, or `ingest`), source, bytes and total; None if idle."""
        return self._now

    @contextlib.contextmanager
    def of(self, source: str, step: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
        """Show progress during the block, which calls the yielded function with the bytes done and the total."""
        began_s = told_s = time.monotonic()
        self._now = {"step": step, "source": source, "bytes": 0, "of": total}
        verb = "comparing with the served version:" if step == "compare" else "ingesting"
        was_told = False

        def report(done: int, of: int | None) -> None:
            nonlocal told_s, was_told
            self._now = {"step": step, "source": source, "bytes": done, "of": of}
            now_s = time.monotonic()
            if of is not None and of >= _TOLD_BYTES and not was_told:
                log.info("%s %s: %s", verb, _shown(source), gigabytes(of))
                was_told = True
            elif was_told and now_s - told_s >= self._report_interval_s:
                log.info("%s %s: %s", verb, _shown(source), progress_words(done, of))
                told_s = now_s

        try:
            if total is not None:
                report(0, total)
            yield report
            if was_told:
                log.info("%s %s: done after %.1f s", verb, _shown(source), time.monotonic() - began_s)
        finally:
            self._now = None


def progress_words(done: int, of: int | None) -> str:
    """Return a progress in words.

    >>> progress_words(400_000_000, 1_500_000_000), progress_words(7, None)
    ('0.4 of 1.5 GB (26 %)', '7 bytes')
    """
    if not of:
        return gigabytes(done)
    done = min(done, of)
    total, unit = gigabytes(of).split()
    scale = {"GB": 1e9, "MB": 1e6, "bytes": 1}[unit]
    return f"{done / scale:.{1 if unit == 'GB' else 0}f} of {total} {unit} ({100 * done // of} %)"


def gigabytes(count: int) -> str:
    """Return a number of bytes in a readable unit."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"


def _shown(source: str) -> str:
    """Return a sender's name on one line.

    >>> _shown("models/big"), _shown("a\\nb")
    ('models/big', "'a\\\\nb'")
    """
    return source if source.isprintable() else ascii(source)

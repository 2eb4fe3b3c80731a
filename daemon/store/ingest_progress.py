"""Progress of a package's ingest or check, for status, for waiting callers, and as a log line every ten seconds.

>>> gigabytes(1_500_000_000), gigabytes(12_300_000), gigabytes(6)
('1.5 GB', '12 MB', '6 bytes')
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stored_version import StoredVersion

log = logging.getLogger(__name__)

#: Smaller packages are ingested so quickly that their progress is not logged.
_TOLD_BYTES = 64 << 20
_REPORT_INTERVAL_S = 10.0
#: Between two reports of a check, which reads far more often.
_TELL_S = 0.1
_VERBS = {"receive": "ingesting", "compare": "comparing with the served version:", "check": "checking"}

#: Called with the bytes done and the total, if known.
Report = Callable[[int, "int | None"], None]


class IngestProgress:
    """The ingest, comparison or check that is running."""

    def __init__(self, report_interval_s: float = _REPORT_INTERVAL_S) -> None:
        self._report_interval_s = report_interval_s
        self._now: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any] | None:
        """Return the step (a key of `_VERBS`), source, bytes and total; None if idle."""
        return self._now

    @contextlib.contextmanager
    def of(self, source: str, step: str, total: int | None = None) -> Iterator[Report]:
        """Show progress during the block, which calls the yielded function; it may do so in another thread.

        The lines of a large package come at their times even if the block reports nothing meanwhile: while the disk
        writes, or while the source hangs.
        """
        began_s = time.monotonic()
        self._now = {"step": step, "source": source, "bytes": 0, "of": total}
        subject = f"{_VERBS[step]} {_shown(source)}"
        was_told = False

        def report(done: int, of: int | None) -> None:
            nonlocal was_told
            self._now = {"step": step, "source": source, "bytes": done, "of": of}
            if of is not None and of >= _TOLD_BYTES and not was_told:
                was_told = True
                log.info("%s: %s", subject, gigabytes(of))

        async def tell() -> None:
            while True:
                await asyncio.sleep(self._report_interval_s)
                if was_told and self._now is not None:
                    log.info("%s: %s", subject, progress_words(self._now["bytes"], self._now["of"]))

        teller = asyncio.get_running_loop().create_task(tell())
        try:
            if total is not None:
                report(0, total)
            yield report
            if was_told:
                log.info("%s: done after %.1f s", subject, time.monotonic() - began_s)
        finally:
            teller.cancel()
            self._now = None

    @contextlib.contextmanager
    def of_check(
        self, version: StoredVersion, on_bytes: Report = lambda done, of: None
    ) -> Iterator[Callable[[int], None]]:
        """Show the check of a version during the block, whose thread calls the yielded function with the bytes read.

        `on_bytes` is called in the event loop, now and then, with the same bytes and the total.
        """
        loop, told_s, total = asyncio.get_running_loop(), 0.0, version.size_bytes
        with self.of(version.source, "check", total) as report:

            def read(done: int) -> None:
                nonlocal told_s
                report(done, total)
                now_s = time.monotonic()
                if now_s - told_s >= _TELL_S or done == total:
                    told_s = now_s
                    loop.call_soon_threadsafe(on_bytes, done, total)

            yield read


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

"""Wake-up of one asyncio task from any thread."""

from __future__ import annotations

import asyncio
import time


class TaskWaker:
    """An event that other threads set; each wait consumes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> bool:
        """End the task's wait, or its next one; return False if the task's loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        self._woken = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, deadline_ns: int) -> bool:
        """Wait until woken; return False at the deadline."""
        if not self._woken:
            remaining_s = (deadline_ns - time.monotonic_ns()) / 1e9
            if remaining_s <= 0:
                return False
            # Not asyncio.wait_for, which before Python 3.12 can lose a cancellation.
            self._future = self._loop.create_future()
            timer = self._loop.call_later(remaining_s, self._end_wait)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        woken, self._woken = self._woken, False
        return woken

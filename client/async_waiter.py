"""Lets an event loop wait for replies: one thread sleeps at the doorbell while anything is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

from shmserve.errors import ClientClosed, ClientForked

from .exchange import Exchange, Terms
from .pending import Pending


class AsyncWaiter:
    """A semaphore cannot be polled, so a thread waits for the loop; without anything awaited it sleeps."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._awaited = 0
        self._thread: threading.Thread | None = None

    async def infer(self, pending: Pending, observation: Any, terms: Terms) -> Any:
        """Publish and await the result; a cancelled wait abandons the request."""
        loop = asyncio.get_running_loop()
        settled = asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settled.set)

        pending._on_settled = notify
        try:
            if not self._exchange.try_publish(pending, observation, terms):
                # It must attach, grow, or wait for a slot: not in the loop.
                await asyncio.to_thread(self._exchange.publish, pending, observation, terms)
            with self._waiting():
                remaining_s = (pending.deadline_ns - time.monotonic_ns()) / 1e9
                if not pending._settled_ns:
                    await asyncio.wait_for(settled.wait(), max(0.0, remaining_s))
        except asyncio.TimeoutError:
            self._exchange.abandon(pending)
            raise self._exchange.timeout_error(pending) from None
        except BaseException:
            self._exchange.abandon(pending)
            raise
        return pending.result()

    @contextlib.contextmanager
    def _waiting(self) -> Any:
        with self._lock:
            self._awaited += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shmserve-waiter", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._awaited -= 1

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._awaited == 0:
                    self._thread = None
                    return
            try:
                self._exchange.wait_a_while()
            except (ClientClosed, ClientForked):
                with self._lock:
                    self._thread = None
                return

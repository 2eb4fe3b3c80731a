"""Lets event loops wait for replies: one thread sleeps at the doorbell while anything is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from shmserve.errors import ClientClosed, ServiceRestarted, ServiceStopping, ServiceUnavailable, ShmServeError

from .exchange import Exchange
from .pending import Pending
from .terms import Step, Terms

#: The thread stays so long for the next request of a control loop.
_LINGER_S = 0.5


class AsyncWaiter:
    """A semaphore cannot be polled, so a thread waits for the loops; it ends when nothing is awaited for a while."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._awaited = 0
        self._thread: threading.Thread | None = None
        #: Who waits for a slot, in the order they came.
        self._queue: list[_News] = []

    async def infer(self, observation: Any, terms: Terms, started_ns: int, deadline_ns: int) -> Any:
        """Publish and await the result; a cancelled wait abandons the request."""
        self._exchange.check_usable()
        attempts = 0
        while True:
            pending = Pending(self._exchange, started_ns, deadline_ns)
            try:
                return await self._ask(pending, observation, terms)
            except ServiceRestarted:
                attempts += 1
                if self._exchange.stateful() is None:
                    await self._connect(deadline_ns)
                if not self._exchange.may_ask_again(attempts, terms):
                    raise
            except ServiceStopping as stopping:
                attempts += 1
                if not self._exchange.may_retry(stopping, attempts, deadline_ns):
                    raise
                await asyncio.sleep(self._exchange.retry_delay_s)
                await self._connect(deadline_ns)

    async def _ask(self, pending: Pending, observation: Any, terms: Terms) -> Any:
        news = _News(asyncio.get_running_loop())
        pending._on_settled = news.tell
        try:
            with self._waiting():
                await self._publish(pending, observation, terms, news)
                while not pending._settled_ns and await news.come(pending.deadline_ns):
                    pass
        except BaseException:
            self._exchange.abandon(pending)
            raise
        if not pending._settled_ns:
            self._exchange.abandon(pending)
            raise self._exchange.timeout_error(pending)
        return pending.result()

    async def _publish(self, pending: Pending, observation: Any, terms: Terms, news: _News) -> None:
        """Wait for a slot behind those who came before, and use it."""
        with self._lock:
            self._queue.append(news)
        try:
            while True:
                if self._queue[0] is news:
                    step = self._exchange.try_publish(pending, observation, terms)
                    if step == Step.DONE:
                        return
                    if step == Step.CONNECT:
                        await self._connect(pending.deadline_ns)
                        continue
                    if step == Step.GROW and await asyncio.to_thread(self._exchange.make_room, pending.deadline_ns):
                        continue
                if not await news.come(pending.deadline_ns):
                    raise self._exchange.full_error()
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._queue.remove(news)
            self._tell_first()

    async def _connect(self, deadline_ns: int) -> None:
        attempts = 0
        while True:
            try:
                return await asyncio.to_thread(self._exchange.try_connect, deadline_ns)
            except ServiceUnavailable as error:
                attempts += 1
                if not self._exchange.may_retry(error, attempts, deadline_ns):
                    raise
                await asyncio.sleep(self._exchange.retry_delay_s)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        with self._lock:
            self._awaited += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shmserve-waiter", daemon=True)
                self._thread.start()
            self._wanted.notify()
        try:
            yield
        finally:
            with self._lock:
                self._awaited -= 1

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._awaited and not self._wanted.wait_for(lambda: self._awaited, _LINGER_S):
                    self._thread = None
                    return
            try:
                self._exchange.wait_a_while()
            except ClientClosed:
                with self._lock:
                    self._thread = None
                self._tell_first()
                return
            except (ShmServeError, OSError):
                pass  # the channel was lost, and whoever had a request in it has been told
            self._tell_first()

    def _tell_first(self) -> None:
        """A slot may be free for whoever waits longest."""
        with self._lock:
            while self._queue and not self._queue[0].tell():
                del self._queue[0]  # its loop was closed under it


class _News:
    """Wakes one task, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._came = False
        self._future: asyncio.Future[None] | None = None

    def tell(self) -> bool:
        """There is news; False if the task's loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False
        return True

    def _wake(self) -> None:
        self._came = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def come(self, deadline_ns: int) -> bool:
        """Wait for news; False if there was none until the deadline."""
        if not self._came:
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
        came, self._came = self._came, False
        return came

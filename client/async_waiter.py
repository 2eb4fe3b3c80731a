"""Lets event loops wait for replies: one thread sleeps at the doorbell while anything is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from shmserve.errors import ClientClosed, ServiceRestarted, ServiceStopping, ServiceUnavailable, ShmServeError

from .exchange import Exchange
from .fork_guard import note_owned
from .pending import Pending
from .retry_policy import RetryPolicy
from .terms import Step, Terms

log = logging.getLogger(__name__)

#: The thread stays so long for the next request of a control loop.
_LINGER_S = 0.5
#: Between two looks after one that failed in a way that is not known.
_PAUSE_S = 0.05

_T = TypeVar("_T")


class AsyncWaiter:
    """A semaphore cannot be polled, so a thread waits for the loops; it ends when nothing is awaited for a while."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._renew_lock()
        self._awaited = 0
        self._thread: threading.Thread | None = None
        #: Who waits for a slot, in the order they came.
        self._queue: list[_News] = []
        note_owned(self)

    def _renew_lock(self) -> None:
        # Reentrant: a coroutine that is collected as garbage leaves its blocks in whatever this thread is doing.
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)

    def after_fork_in_child(self) -> None:
        """The lock's holder is not here to release it, and coroutines that were copied end here as well."""
        self._renew_lock()

    async def infer(self, observation: Any, terms: Terms, started_ns: int, deadline_ns: int) -> Any:
        """Publish and await the result; a cancelled wait abandons the request."""
        self._exchange.check_usable()
        retry = self._exchange.retry
        attempts = 0
        while True:
            pending = Pending(self._exchange, started_ns, deadline_ns)
            try:
                return await self._ask(pending, observation, terms)
            except ServiceRestarted:
                attempts += 1
                if self._exchange.stateful() is None:
                    await self._connect(deadline_ns, retry)
                if not self._exchange.may_ask_again(attempts, terms, retry):
                    raise
            except ServiceStopping as stopping:
                attempts += 1
                if not self._exchange.may_retry(stopping, attempts, deadline_ns, retry):
                    raise
                await self._pause(retry)
                await self._connect(deadline_ns, retry)

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
            raise await _apart(lambda: self._exchange.timeout_error(pending))
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
                        await self._connect(pending.deadline_ns, self._exchange.retry)
                        continue
                    if step == Step.RESIZE_REQUIRED and await _apart(
                        lambda: self._exchange.make_room(pending.deadline_ns)
                    ):
                        continue
                if not await news.come(pending.deadline_ns):
                    raise self._exchange.full_error()
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._queue.remove(news)
            self._tell_first()

    async def _connect(self, deadline_ns: int, retry: RetryPolicy) -> None:
        attempts = 0
        while True:
            try:
                return await _apart(lambda: self._exchange.try_connect(deadline_ns))
            except ServiceUnavailable as error:
                attempts += 1
                if not self._exchange.may_retry(error, attempts, deadline_ns, retry):
                    raise
                await self._pause(retry)

    async def _pause(self, retry: RetryPolicy) -> None:
        """As `DaemonCalls.pause`."""
        until = time.monotonic() + retry.delay_s
        while (remaining_s := until - time.monotonic()) > 0:
            self._exchange.check_usable()
            await asyncio.sleep(min(remaining_s, _PAUSE_S))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        with self._lock:
            self._awaited += 1
        try:
            with self._lock:
                if self._thread is None:
                    self._start()
                self._wanted.notify()
            yield
        finally:
            with self._lock:
                self._awaited -= 1

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="shmserve-waiter", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            raise _no_thread(error) from error

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
            except Exception:
                log.exception("replies could not be looked for; they are again in a moment")
                time.sleep(_PAUSE_S)
            self._tell_first()

    def _tell_first(self) -> None:
        """A slot may be free for whoever waits longest."""
        with self._lock:
            while self._queue and not (first := self._queue[0]).tell():
                with contextlib.suppress(ValueError):
                    self._queue.remove(first)  # its loop was closed under it


async def _apart(call: Callable[[], _T]) -> _T:
    """Run what may wait in a thread of the loop's."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except RuntimeError as error:
        raise _no_thread(error) from error
    return await future


def _no_thread(error: RuntimeError) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"infer_async needs a thread beside the event loop, and there is none to be had ({error}): end threads, raise "
        "the limit (ulimit -u, TasksMax=), or ask before the interpreter ends"
    )


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

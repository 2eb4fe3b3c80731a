"""AsyncShmClient: asks the model of a service on this host, for an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, final

from shmserve.errors import ContractMismatch, ServiceRestarted, ServiceStopping, ServiceUnavailable
from shmserve.protocol import Flag, Kind

from .client_base import ClientBase
from .model_unchecked import ModelUnchecked
from .pending import Pending, Reply
from .reply_thread import no_thread_error
from .request_options import NOT_CONNECTED, RESIZE_REQUIRED, RequestOptions
from .request_pipeline import request_options
from .retry_loop import RetryStep, connect_steps, resend_steps, run_async
from .task_waker import TaskWaker

#: A pause between two attempts ends this soon after the client was closed.
_PAUSE_S = 0.05

_T = TypeVar("_T")


@final
class AsyncShmClient(ClientBase):
    """A robot process's client for asyncio: other tasks run while the model does.

        async with AsyncShmClient("arm") as client:
            action = await client.infer(observation)

    The parameters, the options of a request and the errors are those of `ShmClient`. Cancelling a task that awaits
    `infer` or `request` abandons its request. A client may be used by several event loops.
    """

    async def infer(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Any:
        """As `ShmClient.infer`."""
        options = request_options(capture_time, max_age, supersede, repeatable)
        return (await self._request(observation, options, self._duration_ns(timeout)))._result

    async def request(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Reply:
        """As `ShmClient.request`."""
        options = request_options(capture_time, max_age, supersede, repeatable)
        reply = (await self._request(observation, options, self._duration_ns(timeout))).reply
        assert reply is not None  # it is answered
        return reply

    async def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Pending:
        """As `ShmClient.submit`: await the slot here, and the Pending for the result."""
        options = request_options(capture_time, max_age, supersede, repeatable)
        started_ns = time.monotonic_ns()
        pending = Pending(self._pipeline.control, started_ns, started_ns + self._duration_ns(timeout))
        waker = TaskWaker(asyncio.get_running_loop())
        thread, control = self._pipeline.control.reply_thread, self._pipeline.control
        try:
            thread.watch(pending, control, waker.wake)
            await self._publish(pending, observation, options, waker)
        except BaseException:
            control.abandon(pending)
            raise
        finally:
            thread.unwatch(pending)
        return pending

    async def reset(self, *, timeout: float | None = None) -> None:
        """As `ShmClient.reset`."""
        await self._request(None, RequestOptions(Kind.RESET, Flag.REPEATABLE), self._duration_ns(timeout))

    async def connect(self, *, timeout: float | None = None) -> AsyncShmClient:
        """As `ShmClient.connect`."""
        deadline_ns = self._deadline_ns(timeout)
        await self._connect(deadline_ns)
        if self._pipeline.gate.robot is not None:
            await _in_thread(lambda: self._pipeline.connect(deadline_ns))
        return self

    async def check(self, example: Any) -> None:
        """As `ShmClient.check`."""
        self._check(await self.describe(), example)

    async def describe(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As `ShmClient.describe`."""
        deadline_ns = self._deadline_ns(timeout)
        await self._connect(deadline_ns)
        return self._model_of(await _in_thread(lambda: self._pipeline.describe(deadline_ns)))

    async def close(self) -> None:
        """As `ShmClient.close`; it waits for other threads only a moment."""
        self._pipeline.close()

    async def __aenter__(self) -> AsyncShmClient:
        try:
            return await self.connect()
        except ContractMismatch:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # A request from beginning to end

    async def _request(self, observation: Any, options: RequestOptions, timeout_ns: int) -> Pending:
        self._pipeline.check_usable()
        started_ns = time.monotonic_ns()
        deadline_ns = started_ns + timeout_ns
        policy = self._pipeline.retrier.policy
        pending = Pending(self._pipeline.control, started_ns, deadline_ns)

        async def perform(step: RetryStep) -> ServiceUnavailable | None:
            nonlocal pending
            if step is not RetryStep.SEND:
                return await self._perform(step, deadline_ns)
            pending = Pending(self._pipeline.control, started_ns, deadline_ns)
            try:
                await self._attempt(pending, observation, options)
            except (ServiceRestarted, ServiceStopping) as error:
                return error
            return None

        try:
            await self._attempt(pending, observation, options)
        except (ServiceRestarted, ServiceStopping) as failure:
            await run_async(resend_steps(self._pipeline.retrier, failure, options, deadline_ns, policy), perform)
        return pending

    async def _attempt(self, pending: Pending, observation: Any, options: RequestOptions) -> None:
        control = self._pipeline.control
        waker = TaskWaker(asyncio.get_running_loop())
        try:
            control.reply_thread.watch(pending, control, waker.wake)
            await self._publish(pending, observation, options, waker)
            while not pending._completed_ns and await waker.wait(pending.deadline_ns):
                pass
            if not pending._completed_ns:
                control.abandon(pending)
                await _in_thread(lambda: control.expire(pending))
            if type(pending._error) is ModelUnchecked:
                await _in_thread(lambda: control.settle(pending))
            pending.result(0)
        except BaseException:
            control.abandon(pending)
            raise
        finally:
            control.reply_thread.unwatch(pending)

    async def _publish(self, pending: Pending, observation: Any, options: RequestOptions, waker: TaskWaker) -> None:
        """Wait for a slot behind the tasks that came before, and use it."""
        thread, pipeline = self._pipeline.control.reply_thread, self._pipeline
        thread.enqueue(waker, pending)
        try:
            while True:
                if thread.is_first(waker):
                    status = pipeline.try_publish(pending, observation, options)
                    if status >= 0:
                        return
                    if status == NOT_CONNECTED:
                        await self._connect(pending.deadline_ns)
                        continue
                    if status == RESIZE_REQUIRED and await _in_thread(lambda: pipeline.make_room(pending.deadline_ns)):
                        continue
                if not await waker.wait(pending.deadline_ns):
                    raise pipeline.exhausted_error()
        finally:
            thread.dequeue(waker, pending)

    async def _connect(self, deadline_ns: int) -> None:
        retrier = self._pipeline.retrier
        steps = connect_steps(retrier, deadline_ns, retrier.policy)
        await run_async(steps, lambda step: self._perform(step, deadline_ns))

    async def _perform(self, step: RetryStep, deadline_ns: int) -> ServiceUnavailable | None:
        retrier = self._pipeline.retrier
        if step is RetryStep.CONNECT:
            return await _in_thread(lambda: retrier.try_connect(deadline_ns))
        until = time.monotonic() + retrier.policy.delay_s
        while (remaining_s := until - time.monotonic()) > 0:
            self._pipeline.check_usable()
            await asyncio.sleep(min(remaining_s, _PAUSE_S))
        return None


async def _in_thread(call: Callable[[], _T]) -> _T:
    """Run a call that may wait in a thread of the loop's."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except RuntimeError as error:
        raise no_thread_error(error) from error
    return await future

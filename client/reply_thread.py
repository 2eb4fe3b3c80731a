"""Background thread that completes requests while no call waits for them.

A doorbell cannot be polled by an event loop, so a thread waits for awaited requests and for those with callbacks. It
starts with the first of them and ends when there has been none for a while.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from shmserve.errors import ClientClosed, ServiceUnavailable, ShmServeError

from .fork_guard import note_owned
from .pending import Pending
from .task_waker import TaskWaker

log = logging.getLogger(__name__)

#: The thread waits this long for the next request of a control loop.
_LINGER_S = 0.5
#: The pause after an unexpected error.
_PAUSE_S = 0.05


class ThreadUser(Protocol):
    """The pipeline, as its thread sees it."""

    def wait_a_while(self) -> None:
        """Process replies for a bounded time, without holding the interpreter; raises ClientClosed."""

    def expire(self, pending: Pending) -> None:
        """Complete a request whose deadline has passed."""

    def fail_closed(self, pending: Pending) -> None:
        """Complete a request of a closed client."""


class _Watched(NamedTuple):
    completed: Callable[[], object]
    expires: bool


class ReplyThread:
    """Owner of the thread, of the requests that it watches, and of the queue of tasks that wait for a slot."""

    def __init__(self) -> None:
        self._renew_lock()
        self._watched: dict[Pending, _Watched] = {}
        #: Tasks that wait for a slot, in the order they came.
        self._slot_queue: list[tuple[TaskWaker, Pending]] = []
        self._thread: threading.Thread | None = None
        note_owned(self)

    def _renew_lock(self) -> None:
        # Reentrant: a coroutine that is collected as garbage leaves its blocks in whatever this thread is doing.
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)

    def after_fork_in_child(self) -> None:
        """Renew the lock, whose holder is not here to release it; the thread is the parent's."""
        self._renew_lock()

    def watch(
        self, pending: Pending, user: ThreadUser, completed: Callable[[], object], *, expires: bool = False
    ) -> None:
        """Call `completed` once `pending` is completed; with `expires`, complete it at its deadline.

        Raises ServiceUnavailable if no thread can be started.
        """
        with self._lock:
            self._watched[pending] = _Watched(completed, expires)
            if self._thread is None:
                self._start(pending, user)
            self._wanted.notify()

    def unwatch(self, pending: Pending) -> None:
        """Stop watching; nothing happens if it is not watched."""
        with self._lock:
            self._watched.pop(pending, None)

    def enqueue(self, waker: TaskWaker, pending: Pending) -> None:
        """Let a task wait for a slot behind those that came before."""
        with self._lock:
            self._slot_queue.append((waker, pending))

    def is_first(self, waker: TaskWaker) -> bool:
        """Return whether this task waits longest for a slot."""
        with self._lock:
            return self._slot_queue[0][0] is waker

    def dequeue(self, waker: TaskWaker, pending: Pending) -> None:
        """Let the next task have the slot."""
        with self._lock, contextlib.suppress(ValueError):
            self._slot_queue.remove((waker, pending))
        self._wake_first()

    def _start(self, pending: Pending, user: ThreadUser) -> None:
        self._thread = threading.Thread(target=self._run, args=(user,), name="shmserve-waiter", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self._watched.pop(pending, None)
            raise no_thread_error(error) from error

    def _run(self, user: ThreadUser) -> None:
        while True:
            with self._lock:
                if not self._watched and not self._wanted.wait_for(lambda: self._watched, _LINGER_S):
                    self._thread = None
                    return
            try:
                user.wait_a_while()
            except ClientClosed:
                with self._lock:
                    watched = tuple(self._watched)
                    self._thread = None
                for pending in watched:
                    user.fail_closed(pending)
                self._notify(user)
                return
            except (ShmServeError, OSError):
                pass  # the channel was lost, and its requests were completed
            except Exception:
                log.exception("replies could not be processed; the thread tries again in a moment")
                time.sleep(_PAUSE_S)
            self._notify(user)

    def _notify(self, user: ThreadUser) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            expired = [
                pending
                for pending, watched in tuple(self._watched.items())
                if watched.expires and not pending._completed_ns and pending.deadline_ns <= now_ns
            ]
        for pending in expired:
            user.expire(pending)
        with self._lock:
            done = [pending for pending in tuple(self._watched) if pending._completed_ns]
            completed = [self._watched.pop(pending).completed for pending in done]
        for call in completed:
            call()
        self._wake_first()

    def _wake_first(self) -> None:
        """Wake the task that waits longest for a slot: one may be free."""
        with self._lock:
            while self._slot_queue and not (first := self._slot_queue[0])[0].wake():
                # Its loop was closed under it: nothing may keep its coroutine alive.
                with contextlib.suppress(ValueError):
                    self._slot_queue.remove(first)
                self.unwatch(first[1])


def no_thread_error(error: RuntimeError) -> ServiceUnavailable:
    """Return the error for a process that cannot start a thread."""
    return ServiceUnavailable(
        f"awaiting a reply needs a thread beside the event loop, and there is none to be had ({error}): end threads, raise "
        "the limit (ulimit -u, TasksMax=), or ask before the interpreter ends"
    )

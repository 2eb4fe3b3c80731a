"""A request that is out, and what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmserve.errors import ShmServeError
from shmserve.layout import number_of
from shmserve.ring import ReplyHead

from .arguments import seconds
from .reply import Reply

if TYPE_CHECKING:
    from .exchange import Exchange


class Pending:
    """The result of `submit`, once it is there."""

    __slots__ = (
        "_error",
        "_exchange",
        "_head",
        "_lend",
        "_on_settled",
        "_result",
        "_settled_ns",
        "_started_ns",
        "deadline_ns",
        "sequence",
    )

    def __init__(self, exchange: Exchange, started_ns: int, deadline_ns: int, lend: bool = False) -> None:
        self._exchange = exchange
        self._started_ns = started_ns
        self.deadline_ns = deadline_ns
        self.sequence = 0
        self._head: ReplyHead | None = None
        self._result: Any = None
        self._error: ShmServeError | None = None
        self._settled_ns = 0
        # The thread that reads the result in its slot, which is this request's until given back; 0: it is copied.
        self._lend = threading.get_ident() if lend else 0
        self._on_settled: Callable[[], object] | None = None

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        if not self._settled_ns:
            self._exchange.look()
        return self._settled_ns != 0 or self._exchange.closed

    def result(self, timeout: float | None = None) -> Any:
        """Return what the model returned; arrays are the caller's own.

        `timeout` (seconds) ends this wait, not the request, whose deadline was fixed by `submit`: a RequestTimeout that
        says so may be followed by another call of `result`. One that comes at the deadline ends the request.
        Raises RequestTimeout, or what the request ended with: InferenceFailed, RequestRejected, ...
        """
        timeout_s = None if timeout is None else seconds("timeout", timeout)
        if not self._settled_ns:
            until_ns = self.deadline_ns if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
            self._exchange.wait(self, min(until_ns, self.deadline_ns))
        if (watch := self._exchange.model_watch) is not None and self._head is not None:
            watch.saw(self._head.version)
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> bool:
        """Withdraw the request, as `concurrent.futures.Future.cancel`.

        True: no engine had taken it, and `result` raises RequestCancelled, now and later; so again for a request that
        was withdrawn before. False, and nothing has changed: it runs already, and `result` returns its result; or it
        has ended, with a result or an error; or it was lost, with its daemon or to its deadline.
        """
        return self._exchange.cancel(self)

    @property
    def reply(self) -> Reply | None:
        """Timing and model version; None until it is answered."""
        return Reply.of(self._head, self._settled_ns - self._started_ns) if self._head is not None else None

    @property
    def number(self) -> int:
        """Which of this client's requests it is, from 1; 0 before it is published. As `Reply.number`."""
        return number_of(self.sequence)

    def _settle(self, result: Any, error: ShmServeError | None, head: ReplyHead | None) -> None:
        if not self._settled_ns:  # or it was cancelled, or its client closed, while it was decoded
            self._result = result
            self._error = error
            self._head = head
            self._settled_ns = time.monotonic_ns()
        if self._on_settled is not None:
            self._on_settled()

    def _tell(self) -> None:
        if self._on_settled is not None:
            self._on_settled()

"""Background connection attempt: one thread that connects a client while its caller goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from shmserve.errors import ServiceUnavailable, ShmServeError

from .client_guard import ParkingLot
from .retry_policy import RetryPolicy

#: A daemon that is away is tried until it is back; a ban ends, too.
_RETRY = RetryPolicy(math.inf, 0.02, outlasts_bans=True)
_ATTEMPT_S = 0.5


class Connects(Protocol):
    """The part of a client that the attempt needs."""

    def connect(self, *, timeout: float | None = None) -> Any: ...


def _describe(client: Connects, timeout: float) -> dict[str, Any] | None:
    """Return the description of the model; None if the client has no `describe`, or the service no model yet."""
    describe: Callable[..., dict[str, Any]] | None = getattr(client, "describe", None)
    try:
        return None if describe is None else describe(timeout=timeout)
    except ShmServeError:  # the next request ends with it, too
        return None


class BackgroundConnect:
    """Connects in a thread, because that lasts as long as the daemon is away. Begins with the constructor."""

    def __init__(self, client: Connects, delay_s: float = 0.0) -> None:
        """`delay_s`: the pause before the first attempt."""
        self._client = client
        self._delay_s = delay_s
        self._stopped = False
        # Not threading.Event: a signal handler may find its lock held by the call that it interrupts.
        self._parking_lot = ParkingLot()
        self.ended = False
        #: The error that ended the attempts; None once the client is connected.
        self.error: ShmServeError | None = None
        #: The description of the model (`ShmClient.describe`), once the client is connected; None if there is none.
        self.model: dict[str, Any] | None = None
        #: The error of the latest attempt.
        self.unreachable: ServiceUnavailable | None = None
        try:
            threading.Thread(target=self._run, name="shmserve-connect", daemon=True).start()
        except RuntimeError as error:
            # Not ServiceUnavailable, after which a step tries again at once.
            self.error = ShmServeError(
                f"ActionChunks connects to the service in a thread, and the system starts no further one ({error}): "
                "end threads, or raise the limit (ulimit -u, TasksMax=)"
            )
            self.ended = True

    def wait(self, until_ns: int) -> bool:
        """Wait until the attempts end or `until_ns` has passed; return whether they ended."""
        while not self.ended and time.monotonic_ns() < until_ns:
            self._parking_lot.park(until_ns)
        return self.ended

    def stop(self) -> None:
        """End the attempts; an attempt in progress ends by its timeout."""
        self._stopped = True
        self._parking_lot.unpark_all()

    def _run(self) -> None:
        try:
            self._pause(self._delay_s)
            _RETRY.run(self._attempt, pause=self._note_outage)
        except ShmServeError as error:  # an error that time does not mend: another wire version, a closed client
            self.error = error
        finally:
            self.ended = True
            self._parking_lot.unpark_all()

    def _attempt(self) -> None:
        if not self._stopped:
            self._client.connect(timeout=_ATTEMPT_S)
            self.model = _describe(self._client, _ATTEMPT_S)

    def _note_outage(self, error: ServiceUnavailable) -> None:
        self.unreachable = error
        self._pause(_RETRY.delay_s)

    def _pause(self, delay_s: float) -> None:
        until_ns = time.monotonic_ns() + round(delay_s * 1e9)
        while not self._stopped and time.monotonic_ns() < until_ns:
            self._parking_lot.park(until_ns)

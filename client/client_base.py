"""Common part of the blocking and the asyncio client: construction, and calls that ask nothing."""

from __future__ import annotations

import os
import time
from typing import Any

from shmserve.errors import InvalidArgument, ServiceUnavailable
from shmserve.spin import SpinBudget, SpinSetting

from .arguments import place_of, seconds, whole
from .model_watch import OnModelChange
from .request_pipeline import RequestPipeline
from .retry_policy import RetryPolicy


class ClientBase:
    """A client's pipeline and default timeout."""

    def __init__(
        self,
        name: str = "default",
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        slots: int = 4,
        spin_us: SpinSetting = "adaptive",
        check_contract: bool = True,
    ) -> None:
        self._timeout_ns = int(seconds("timeout", timeout) * 1e9)
        try:
            budget = SpinBudget(spin_us)
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        self._pipeline = RequestPipeline(
            name,
            place_of(name, runtime_dir),
            whole("slots", slots, 1, 64),
            budget,
            RetryPolicy.of(max_retries, retry_delay),
            check_contract=check_contract,
        )

    def on_model_change(self, callback: OnModelChange) -> OnModelChange:
        """Call `callback(before, after)` when a reply is the first one of another model version; returns `callback`.

        The versions are those of `Reply.model_version`. It is called in the thread that asks for the result, or in the
        event loop, just before it gets it; `describe` describes the new model by then. An exception of the callback is
        logged. Only changes that the client sees count: of two updates between two replies there is one call, of an
        update that was rolled back before the next reply none.
        """
        if not callable(callback):
            raise InvalidArgument(
                f"on_model_change({callback!r}): a function of the versions before and after is needed"
            )
        self._pipeline.control.watch_model().add(callback)
        return callback

    @property
    def late_replies(self) -> int:
        """The number of replies that arrived after their deadline and were discarded."""
        return self._pipeline.late_replies

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pipeline!r}>"

    def _duration_ns(self, timeout: float | None) -> int:
        return self._timeout_ns if timeout is None else int(seconds("timeout", timeout) * 1e9)

    def _deadline_ns(self, timeout: float | None) -> int:
        return time.monotonic_ns() + self._duration_ns(timeout)

    def _model_of(self, description: dict[str, Any]) -> dict[str, Any]:
        model = description["model"]
        if model is None:
            raise ServiceUnavailable(
                f"service {self._pipeline.name!r} has no model ready; shmserve-admin status tells why",
                service=self._pipeline.name,
            )
        return model  # type: ignore[no-any-return]

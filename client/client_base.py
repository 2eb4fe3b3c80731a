"""Common part of the blocking and the asyncio client: construction, and calls that ask nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from shmserve.errors import InvalidArgument, ServiceUnavailable
from shmserve.robot_contract import RobotContract
from shmserve.spin import SpinBudget, SpinSetting

from . import rate_thread
from .arguments import place_of, rate_hz, seconds, whole
from .contract_check import check_observation
from .model_watch import OnModelChange
from .rehearsal import Rehearsal
from .request_pipeline import RequestPipeline
from .retry_policy import RetryPolicy

#: The furthest ahead that a request may be expected.
_FURTHEST_S = 10.0


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
        robot: Mapping[str, Any] | None = None,
        rate: float | None = None,
    ) -> None:
        self._timeout_ns = int(seconds("timeout", timeout) * 1e9)
        try:
            budget = SpinBudget(spin_us)
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        self._rehearsal: Rehearsal | None = None
        period_ns = 0 if rate is None else max(1, round(1e9 / rate_hz(rate)))
        self._pipeline = RequestPipeline(
            name,
            place_of(name, runtime_dir),
            whole("slots", slots, 1, 64),
            budget,
            RetryPolicy.of(max_retries, retry_delay),
            check_contract=check_contract,
            robot=None if robot is None else RobotContract(robot),
            period_ns=period_ns,
        )
        if rate is not None:
            rate_thread.start(self, period_ns)

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

    def expect(self, within: float = 0.002) -> None:
        """Say that a request of this client follows `within` seconds (0 to 10), for example as the camera begins to expose.

        A sleeping engine wakes up for it. The memory that the request will use is touched, and its code runs once without a
        request: microseconds, or as long as cold code takes, which the request then does not. It never waits, and
        nothing happens if no request follows. It does nothing while the client is not attached, while another thread is
        inside the client, and in a signal handler or a finalizer that has interrupted it there.

        Raises InvalidArgument, ClientClosed, ClientForked.
        """
        self._pipeline.expect(int(seconds("within", within, most=_FURTHEST_S) * 1e9), self._rehearse)

    def _rehearse_unless_inside(self) -> None:
        self._pipeline.rehearse(self._rehearse)

    def _latest_submitted_ns(self) -> int:
        return self._pipeline.latest_submitted_ns()

    def _rehearse(self) -> None:
        """Run the code of a request; the caller holds the lock."""
        rehearsal, self._rehearsal = self._rehearsal, None
        if rehearsal is None:
            rehearsal = Rehearsal(self._pipeline.name)
        rehearsal.run()
        self._rehearsal = rehearsal  # unless it was interrupted

    @property
    def late_replies(self) -> int:
        """The number of replies that arrived after their deadline and were discarded."""
        return self._pipeline.late_replies

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pipeline!r}>"

    def _state_rate(self, steps_hz: float | None) -> None:
        """As `ContractGate.state_rate`; for ActionChunks."""
        self._pipeline.gate.state_rate(steps_hz)

    def _duration_ns(self, timeout: float | None) -> int:
        return self._timeout_ns if timeout is None else int(seconds("timeout", timeout) * 1e9)

    def _deadline_ns(self, timeout: float | None) -> int:
        return time.monotonic_ns() + self._duration_ns(timeout)

    def _check(self, model: dict[str, Any], example: Any) -> None:
        robot = self._pipeline.gate.robot
        if robot is not None:
            robot.check(self._pipeline.name, model)
        check_observation(self._pipeline.name, model, example)

    def _model_of(self, description: dict[str, Any]) -> dict[str, Any]:
        model = description["model"]
        if model is None:
            raise ServiceUnavailable(
                f"service {self._pipeline.name!r} has no model ready; shmserve-admin status tells why",
                service=self._pipeline.name,
            )
        return model  # type: ignore[no-any-return]

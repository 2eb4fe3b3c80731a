"""ShmClient: asks the model of a service on this host, through shared memory."""

from __future__ import annotations

from types import TracebackType
from typing import Any, final

from shmserve.errors import ContractMismatch, RequestRejected
from shmserve.protocol import Flag, Kind

from .client_base import ClientBase
from .loans import ReplyLoan, RequestLoan
from .pending import Pending, Reply
from .request_options import DEFAULT_OPTIONS, RequestOptions
from .request_pipeline import request_options
from .retry_policy import RetryPolicy


@final
class ShmClient(ClientBase):
    """A robot process's client; safe to call from several threads, not across a fork.

        with ShmClient("arm") as client:
            action = client.infer(observation)

    It attaches with the first request, or with `connect`, or on entering a `with` block, and again
    when the daemon was restarted.

    Parameters:

    * `name`, `runtime_dir`: the service, and the folder of its sockets.
    * `timeout`: seconds for a whole call, retries included.
    * `max_retries`, `retry_delay`: how often an unreachable service is tried again, and how many seconds apart.
    * `slots`: how many requests can be in flight at a time.
    * `spin_us`: how long to spin for a reply before blocking: microseconds, or "adaptive", which also wakes up shortly
      before a reply is due if all take about the same time.
    * `rate`: how many requests a second this robot makes, for example 50: the engine wakes up shortly before each of
      them, and up to 250 a second a thread of the client runs the code of a request once, 1 ms before, so that the
      caches have it. None: the engine learns the rate from a regular loop; see `expect`, too.
    * `check_contract`: whether the first observation of each structure is compared with the model's contract.
    * `robot`: what this robot's numbers mean, with the keys of `[contract]` in model.toml: units, names and their order,
      frames, rate_hz, action_horizon. Where the model states another value, `connect` and every request end with
      ContractMismatch, and no action is given, also after an update.

    Every request takes the same options:

    * `timeout`: seconds, instead of the client's.
    * `capture_time`: when the observation was captured, in seconds of `time.monotonic()`; default: now.
    * `max_age`: seconds; an observation that is older when its turn comes is not inferred, and the request
      ends with ObservationStale.
    * `supersede`: requests of this client that have not begun end with RequestSuperseded.
    * `repeatable`: a stateful policy may run the request again if an engine or daemon dies under it.
    """

    def infer(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Any:
        """Ask the model; returns what it returned, arrays owned and writable.

        An observation is a tree of dict, list, tuple, str, bytes, int, float, bool, None, numpy arrays
        and tensors; instances of their subclasses are carried by value. Arrays have any shape, strides and numeric dtype; the
        model gets tensors of their shape and dtype. The result has the model's structure, shapes and dtypes. The options are
        those of the class. A CUDA tensor, or another array in GPU memory (C order), stays there if the service takes it
        (`device_leaves`).

        Raises RequestTimeout, InferenceFailed, RequestRejected (UnsupportedType, DeviceArrayRefused, ObservationTooLarge,
        ContractMismatch, ObservationStale), ServiceUnavailable (ServiceRestarted), EngineLost, SlotsExhausted, ClientClosed.
        """
        if capture_time is None and max_age is None and not supersede and not repeatable:
            options = DEFAULT_OPTIONS
        else:
            options = request_options(capture_time, max_age, supersede, repeatable)
        timeout_ns = self._timeout_ns if timeout is None else self._duration_ns(timeout)
        return self._pipeline.request(observation, options, timeout_ns)._result

    def request(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Reply:
        """As `infer`; returns the result as `Reply.action`, with the model's version and the duration of each stage.

        Raises as `infer`.
        """
        options = request_options(capture_time, max_age, supersede, repeatable)
        reply = self._pipeline.request(observation, options, self._duration_ns(timeout)).reply
        assert reply is not None  # it is answered
        return reply

    def infer_loaned(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> ReplyLoan:
        """As `infer`, for a `with` block: gives read-only arrays in the reply slot, valid inside the block.

            with client.infer_loaned(observation) as action:
                robot.send(action["joints"])

        Raises as `infer`, and LoanOutlived at the end of the block if an array of the reply outlives it.
        """
        options = request_options(capture_time, max_age, supersede, repeatable)
        pending = self._pipeline.request(observation, options, self._duration_ns(timeout), loan=True)
        return pending._result  # type: ignore[no-any-return]

    def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> Pending:
        """Send without waiting for the result; up to `slots` requests can be in flight.

        Raises SlotsExhausted when no slot became free within the timeout, RequestRejected for an observation that cannot be
        sent, ServiceUnavailable, ClientClosed; `Pending.result` raises the rest.
        """
        timeout_ns = self._duration_ns(timeout)
        return self._pipeline.submit(
            observation, request_options(capture_time, max_age, supersede, repeatable), timeout_ns
        )

    def _submit_continued(
        self, observation: Any, *, timeout: float | None, capture_time: float | None, max_age: float | None
    ) -> Pending:
        """As `submit`, for an observation to which the entries of `shmserve.real_time_chunking` were added."""
        options = request_options(capture_time, max_age, False, False)
        options = options._replace(flags=options.flags | Flag.REAL_TIME_CHUNKING)
        return self._pipeline.submit(observation, options, self._duration_ns(timeout))

    def loan(
        self,
        example: dict[str, Any],
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
        supersede: bool = False,
        repeatable: bool = False,
    ) -> RequestLoan:
        """Borrow the next request slot, laid out for observations like `example` (its values are copied in).

        Its arrays are slot memory, of the shapes and dtypes of the example's: a camera driver writes into them, and `send()`
        publishes them without a copy. Raises as `submit`.
        """
        if not issubclass(type(example), dict):
            raise RequestRejected(f"a loan is made for a dict, not for {type(example).__name__}")
        timeout_ns = self._duration_ns(timeout)
        options = request_options(capture_time, max_age, supersede, repeatable)
        return self._pipeline.loan(example, options, timeout_ns)

    def reset(self, *, timeout: float | None = None) -> None:
        """Tell the policy that this client begins a new episode; it keeps its place among the requests. Raises as `infer`."""
        self._pipeline.request(None, RequestOptions(Kind.RESET, Flag.REPEATABLE), self._duration_ns(timeout))

    def connect(self, *, timeout: float | None = None) -> ShmClient:
        """Attach now rather than with the first request; returns itself.

        Raises ServiceUnavailable, and ContractMismatch if the model states other fields than `robot`.
        """
        self._pipeline.connect(self._deadline_ns(timeout))
        return self

    def check(self, example: Any) -> None:
        """Compare an observation with the model's contract, before anything moves, and the robot's statement (`robot`).

        Raises ContractMismatch listing the differences entry by entry; returns if there are none, or if
        the model has no example observation and so declares nothing.
        """
        self._check(self.describe(), example)

    def describe(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Ask the daemon for its model: name, version, device, observation and action, and its own metadata.

        Observation and action are described entry by entry, with dtype and shape. Raises ServiceUnavailable.
        """
        return self._model_of(self._pipeline.describe(self._deadline_ns(timeout)))

    def close(self) -> None:
        """Give the channel back; requests in flight end with ClientClosed. May be called twice.

        It may be called by any thread, by a signal handler and by a finalizer, whatever they interrupt. What an
        interrupted call or another thread still uses is closed when that has ended.
        """
        self._pipeline.close()

    def __enter__(self) -> ShmClient:
        try:
            return self.connect()
        except ContractMismatch:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(self, observation: Any, timeout: float | None, retry: RetryPolicy) -> Any:
        """As `infer`, with a retry policy of this call."""
        timeout_ns = self._duration_ns(timeout)
        return self._pipeline.request(observation, DEFAULT_OPTIONS, timeout_ns, retry=retry)._result

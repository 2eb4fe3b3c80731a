"""The slow path of serving: checks, staging, inference and replies for a batch of requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shmserve.contract import Entries, describe_tree
from shmserve.errors import RequestRejected, ValueOutOfRange
from shmserve.layout import slot_of
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.real_time_chunking import delivered
from shmserve.ring import RequestHead

from ...failpoints import failpoint
from ...ipc.stats import SEVERAL, ChannelWord, Counter, Stats
from ...packages.range_checks import RangeCheck
from ..channel.channel_state import ChannelState
from ..channel.staging import Staging
from ..device_failure import DeviceLost
from ..error_text import PolicyRaised, client_message, log_message
from ..models.model import Model, PerClient
from ..models.range_checks import RangeChecks
from .policy_warming import PolicyWarming

log = logging.getLogger(__name__)

_COUNTED: dict[int, int] = {
    Status.OK: Counter.SERVED,
    Status.EXPIRED: Counter.EXPIRED,
    Status.CANCELLED: Counter.CANCELLED,
    Status.SUPERSEDED: Counter.SUPERSEDED,
    Status.STALE: Counter.STALE,
    Status.REJECTED: Counter.REJECTED,
    Status.FAILED: Counter.FAILED,
    Status.ENGINE_LOST: Counter.LOST,
}

# Integers for the hot path: looking an enum member up costs 0.1 us, and comparing with one as much again.
_OK, _INFER = int(Status.OK), int(Kind.INFER)
_CHANNEL, _BUSY_NS, _BATCHES = int(Counter.CHANNEL), int(Counter.BUSY_NS), int(Counter.BATCHES)
_CUT_THROUGH = int(Counter.CUT_THROUGH)
_CHANNEL_SERVED, _CHANNEL_LAST_NS = int(ChannelWord.SERVED), int(ChannelWord.LAST_NS)
_IN_HAND = int(ChannelWord.IN_HAND)

QueuedRequest = tuple[ChannelState, RequestHead]
#: The answer to a request that does not run: its status, and the type and text of an error.
Refusal = tuple[Status, tuple[str, str] | None]

CANCELLED: Refusal = (Status.CANCELLED, None)
_LOST: Refusal = (
    Status.ENGINE_LOST,
    ("EngineLost", "an engine died while it ran this request, and it may not run again"),
)


class BatchItem:
    """One request of a batch, staged."""

    __slots__ = (
        "clamped",
        "head",
        "in_place",
        "is_new",
        "observation",
        "queued_ns",
        "staged_ns",
        "staging",
        "state",
    )

    def __init__(
        self,
        state: ChannelState,
        head: RequestHead,
        observation: Any,
        staging: Staging,
        in_place: bool,
        queued_ns: int,
        staged_ns: int,
    ) -> None:
        self.state = state
        self.head = head
        self.observation = observation
        self.staging = staging
        self.in_place = in_place
        self.queued_ns = queued_ns
        self.staged_ns = staged_ns
        self.clamped = False
        #: Whether its structure was new; the time to read it and to encode the reply is then charged to its client.
        self.is_new = False


class Serving:
    """Serves batches of requests with one model."""

    def __init__(
        self,
        model: Model,
        stats: Stats,
        *,
        version: int,
        max_batch: int,
        in_place: bool,
        stateful: bool,
        checks: Mapping[str, Mapping[str, RangeCheck]],
        real_time_chunking: bool = False,
    ) -> None:
        self._model = model
        # Decided once, so that models without client ids pay nothing for it.
        self._per_client = model if isinstance(model, PerClient) else None
        self._stats = stats
        self._words = stats.words
        self._version = version
        self._in_place = in_place
        self._stateful = stateful
        self._real_time_chunking = real_time_chunking
        #: The value ranges that the package declares; None, and nothing is checked, if it declares none.
        self._observations = RangeChecks("observation", checks["observation"]) if "observation" in checks else None
        self._actions = RangeChecks("action", checks["action"]) if "action" in checks else None
        #: Whether the log says that a reset changes nothing, because the model has no reset.
        self._told_of_reset = False
        warm: Callable[[], object] | None = getattr(model, "warm", None)
        self._policy_warming = PolicyWarming(warm) if warm is not None else None
        #: Called once, with the entries of the first observation that the model answered; None: not wanted, or called.
        self.on_first: Callable[[Entries], None] | None = None
        self._first: Entries | None = None
        #: Most requests in one call of the model.
        self.max_batch = max_batch if model.batches else 1

    def serve_fast(self, state: ChannelState) -> bool:
        """Answer this client's next request if it can take the fast path; False if nothing was done."""
        return False

    def warm(self, state: ChannelState) -> bool:
        """Touch what this client's next request will touch; return whether it came meanwhile, and was answered."""
        self._warm_policy()
        return False

    def _warm_policy(self) -> None:
        if self._policy_warming is not None:
            self._policy_warming.run()

    def serve(self, batch: list[QueuedRequest]) -> None:
        """Answer every request of `batch`, in order; each gets one reply even if the model raises."""
        words = self._words
        began_ns = taken_ns = time.monotonic_ns()
        items: list[BatchItem] = []
        isolated: list[QueuedRequest] = []
        for index, (state, head) in enumerate(batch):
            if index:
                taken_ns = time.monotonic_ns()
            if len(batch) > 1 and state.channel.replies.attempts(head.sequence):
                isolated.append(
                    (state, head)
                )  # an engine died of it or of its neighbours in a batch: alone, the next death names one client
                continue
            if head.kind != _INFER and items:
                self._infer(items)  # a reset keeps its place: earlier requests run before it
                items = []
            words[_CHANNEL] = state.number + 1
            item = self._stage(state, head, index, taken_ns)
            if item is not None:
                items.append(item)
        if items:
            self._infer(items)
        words[_CHANNEL] = 0
        words[_BUSY_NS] += time.monotonic_ns() - began_ns
        if len(batch) > 1:
            self._note_answered(state for state, _ in batch)
        for taken in isolated:
            self.serve([taken])

    def _stage(self, state: ChannelState, head: RequestHead, index: int, taken_ns: int) -> BatchItem | None:
        """Prepare a request for the model; return None if it was answered without the model."""
        queued_ns = taken_ns - head.submitted_ns if taken_ns > head.submitted_ns else 0
        channel = state.channel
        # One condition that is false for most requests, so that they skip the detailed checks.
        if (
            head.kind != _INFER
            or head.max_age_ns
            or 0 < head.deadline_ns < taken_ns
            or state.rate is not None
            or channel.requests.cancelled(head.sequence)
        ) and self._refused(state, head, taken_ns, queued_ns):
            return None
        refusal = self._take(state, head)
        if refusal is not None:
            self._finish(state, head, *refusal, 0, queued_ns)
            return None
        if head.kind != _INFER:
            self._reset(state, head, queued_ns)
            return None
        slot = channel.requests.memories[slot_of(head.sequence)]
        staging = state.staging(index)
        in_place = self._in_place
        is_new = False
        try:
            pickled = head.flags & Flag.PICKLED != 0
            if pickled and not state.trusted:
                raise RequestRejected("a pickled object from a client that is not trusted")
            schemas = state.schemas
            schema = schemas.known.get(head.schema)
            if schema is None:
                is_new = True
                schema = schemas.get(head.schema, head.metadata_bytes, slot)
            observation = staging.observation(
                schema, slot, head.payload_bytes, in_place=in_place, pickled=pickled, write_id=head.write_id
            )
            if staging.cut_through_bytes:
                self._words[_CUT_THROUGH] += 1
                staging.cut_through_bytes = 0
        except (MetadataError, RequestRejected) as error:
            self._reject(state, head, error, queued_ns, taken_ns)
            return None
        except BaseException as error:  # noqa: BLE001  unpickling a trusted client's object runs that object's own code
            log.warning("request of client %d cannot be read\n%s", state.number, log_message(error))
            self._reject(state, head, error, queued_ns, taken_ns)
            return None
        if head.flags & Flag.REAL_TIME_CHUNKING:
            observation = delivered(observation, is_wanted=self._continues(state))
        clamped = False
        if self._observations is not None:
            try:
                observation, clamped = self._observations.apply(observation)
            except ValueOutOfRange as error:
                self._words[Counter.OUT_OF_RANGE] += 1
                self._reject(state, head, error, queued_ns, taken_ns)
                return None
            except BaseException as error:  # noqa: BLE001  as above: reading its entries may run its own code
                self._reject(state, head, error, queued_ns, taken_ns)
                return None
        now_ns = time.monotonic_ns()
        staged_ns = now_ns - taken_ns
        if is_new:
            state.overhead.add(staged_ns, now_ns)
        item = BatchItem(state, head, observation, staging, in_place, queued_ns, staged_ns)
        item.clamped = clamped
        item.is_new = is_new
        return item

    def _continues(self, state: ChannelState) -> bool:
        """Return whether the policy gets this client's rows: not if they are of the version before, which an update overtook."""
        return self._real_time_chunking and state.latest_version() in (0, self._version)

    def _refused(self, state: ChannelState, head: RequestHead, taken_ns: int, queued_ns: int) -> bool:
        """Answer a request that may not run, or no longer; return whether it was answered."""
        refusal = self._refusal(state, head, taken_ns)
        if refusal is not None:
            self._finish(state, head, *refusal, 0, queued_ns)
            return True
        if state.rate is not None and not state.rate.take(taken_ns):
            self._finish(state, head, Status.REJECTED, ("TooManyRequests", state.rate.refusal), 0, queued_ns)
            return True
        return False

    def _refusal(self, state: ChannelState, head: RequestHead, now_ns: int) -> Refusal | None:
        # The head is a copy made when the request was admitted; the client may have cancelled it since, or kept it.
        if state.channel.requests.cancelled(head.sequence):
            refusal = CANCELLED
        elif head.deadline_ns and now_ns > head.deadline_ns:
            refusal = Status.EXPIRED, None
        elif head.max_age_ns and head.capture_ns and now_ns - head.capture_ns > head.max_age_ns:
            refusal = Status.STALE, None
        elif head.kind not in (Kind.INFER, Kind.RESET):
            refusal = Status.REJECTED, ("RequestRejected", f"unknown kind of request: {head.kind}")
        else:
            return None
        # These say that the model did not run, and an engine that died may have run it.
        return _LOST if state.channel.replies.attempts(head.sequence) else refusal

    def _take(self, state: ChannelState, head: RequestHead) -> Refusal | None:
        """Mark a request as taken, before it runs; return the answer if it may not run after all."""
        failpoint("request.checked")
        channel = state.channel
        attempts = channel.replies.take(head.sequence)
        # Its client may have withdrawn it after the engine's last look, and have looked for the mark before it was there.
        if channel.requests.cancelled(head.sequence):
            return CANCELLED if attempts == 1 else _LOST
        if attempts == 1 or 0 < attempts <= self._attempts_allowed(state, head):
            return None
        return _LOST

    def _attempts_allowed(self, state: ChannelState, head: RequestHead) -> int:
        if not state.may_try_again:
            return 1  # an engine died of it alone, and other clients would wait for the next engine
        if self._stateful and head.kind == Kind.INFER and not head.flags & Flag.REPEATABLE:
            return 1
        return 2

    def _reset(self, state: ChannelState, head: RequestHead, queued_ns: int) -> None:
        began_ns = time.monotonic_ns()
        try:
            self._model.reset(state.number)
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code
            self._fail(state, head, error, queued_ns, 0, 0)
            return
        if not self._model.resets and not self._told_of_reset:
            self._told_of_reset = True
            keeps = "although it is stateful" if self._stateful else "and it is not declared stateful"
            log.log(
                logging.WARNING if self._stateful else logging.INFO,
                "client %d asked for a reset, which changes nothing: the model has no reset, %s",
                state.number,
                keeps,
            )
        self._words[Counter.RESETS] += 1
        self._finish(state, head, Status.OK, None, 0, queued_ns, 0, time.monotonic_ns() - began_ns)

    def client_left(self, client_id: int) -> None:
        """Notify a model that keeps a separate state for each client."""
        if self._per_client is None:
            return
        try:
            self._per_client.client_left(client_id)
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code: the others' requests go on
            log.error("the model failed when client %d left\n%s", client_id, log_message(error))

    def _infer(self, items: list[BatchItem]) -> None:
        began_ns = time.monotonic_ns()
        try:
            if len(items) == 1:
                observations = [items[0].observation]
            else:
                self._note_in_hand([item.state for item in items])
                observations = [item.observation for item in items]
            if self.on_first is not None:
                self._note_first(observations)
            if self._per_client is None:
                results = self._model.infer(observations)
            else:
                results = self._per_client.infer_for(observations, [item.state.number for item in items])
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code: the next request works
            self._failed(items, error, began_ns)
            return
        infer_ns = time.monotonic_ns() - began_ns
        del observations  # otherwise the policy would seem to keep part of each arena
        self._words[_BATCHES] += 1
        for index, item in enumerate(items):
            self._reply(item, results, index, infer_ns)

    def _note_in_hand(self, clients: Iterable[ChannelState]) -> None:
        """Mark the clients of a running batch, as suspects if the engine dies of it; `_note_answered` ends it."""
        for state in clients:
            self._words[self._stats.channel_index(state.number) + _IN_HAND] = 1
        self._words[_CHANNEL] = SEVERAL

    def _note_answered(self, clients: Iterable[ChannelState]) -> None:
        for state in clients:
            self._words[self._stats.channel_index(state.number) + _IN_HAND] = 0

    def _failed(self, items: list[BatchItem], error: BaseException, began_ns: int) -> None:
        """Answer batch items on which the model raised."""
        if len(items) > 1:
            # One bad batch item must not fail its neighbours: run each alone.
            for item in items:
                self._words[Counter.CHANNEL] = item.state.number + 1
                self._infer([item])
            return
        item = items[0]
        # Not isinstance, which calls the object's own `__class__`.
        if issubclass(type(error), RequestRejected):  # the model rejected the observation: the client's fault
            self._reject(item.state, item.head, error, item.queued_ns)
            forget_traceback(error)
        else:
            self._fail(item.state, item.head, error, item.queued_ns, item.staged_ns, time.monotonic_ns() - began_ns)
        self._release(item)

    def _reply(
        self, item: BatchItem, results: list[Any], index: int, infer_ns: int, limited: int | None = None
    ) -> None:
        """Answer with a result; `limited`: the flags of one that was checked against the package's bounds already."""
        flags = Flag.IN_PLACE if item.in_place else 0
        try:
            result = results[index]
            if limited is not None:
                flags |= limited
            elif item.clamped or self._actions is not None:
                result, limited = self._limited(result, clamped=item.clamped)
                flags |= limited
            copied_ns = self._finish(
                item.state, item.head, _OK, result, flags, item.queued_ns, item.staged_ns, infer_ns
            )
            if item.is_new:
                item.state.overhead.add(copied_ns, time.monotonic_ns())
            if self.on_first is not None:
                self._report_first()
        except RequestRejected as error:  # a value exceeds its range, or the codec cannot encode the model's result
            self._fail(item.state, item.head, error, item.queued_ns, item.staged_ns, infer_ns)
        result = results[index] = None  # a result may be the observation itself, which must not seem kept
        self._release(item)

    def _note_first(self, observations: list[Any]) -> None:
        """Describe the observation of a single request before the model, which may change it, gets it."""
        try:
            self._first = describe_tree(observations[0]) if len(observations) == 1 else None
        except Exception as error:  # noqa: BLE001  reading its entries may run its own code
            self._first = None
            forget_traceback(error)

    def _report_first(self) -> None:
        """Report the first observation that was answered, if it was described."""
        if self.on_first is not None and self._first is not None:
            report, self.on_first = self.on_first, None
            report(self._first)

    def _limited(self, action: Any, *, clamped: bool) -> tuple[Any, int]:
        """Return the action within the package's bounds, and the flags of its reply."""
        if self._actions is not None:
            try:
                action, limited = self._actions.apply(action)
            except ValueOutOfRange:
                self._words[Counter.OUT_OF_RANGE] += 1
                raise
            except BaseException as error:  # reading an action's entries may run its own code
                raise PolicyRaised("the action cannot be read") from error
            clamped |= limited
        if clamped:
            self._words[Counter.CLAMPED] += 1
        return action, Flag.CLAMPED if clamped else 0

    def _release(self, item: BatchItem) -> None:
        item.observation = None
        if not item.in_place:
            item.staging.give_back()

    def _reject(
        self, state: ChannelState, head: RequestHead, error: BaseException, queued_ns: int, began_ns: int = 0
    ) -> None:
        """Reject a request; charge its client the time since `began_ns`, or that of the rejection."""
        began_ns = began_ns or time.monotonic_ns()
        self._finish(state, head, Status.REJECTED, client_message(error), 0, queued_ns)
        now_ns = time.monotonic_ns()
        state.overhead.add(now_ns - began_ns, now_ns)

    def _fail(
        self,
        state: ChannelState,
        head: RequestHead,
        error: BaseException,
        queued_ns: int,
        staged_ns: int,
        infer_ns: int,
    ) -> None:
        failed_ns = time.monotonic_ns()
        log.error("the model failed on a request of client %d\n%s", state.number, log_message(error))
        forget_traceback(error)
        self._finish(state, head, Status.FAILED, client_message(error), 0, queued_ns, staged_ns, infer_ns)
        now_ns = time.monotonic_ns()
        state.overhead.add(now_ns - failed_ns, now_ns)

    def _finish(
        self,
        state: ChannelState,
        head: RequestHead,
        status: int,
        tree: Any,
        flags: int,
        queued_ns: int,
        staged_ns: int = 0,
        infer_ns: int = 0,
    ) -> int:
        """Answer with a result, or with an error as (type, text), and count it after the client has it.

        Returns how long encoding took (ns).
        """
        if self._stateful:
            flags |= Flag.STATEFUL
        copied_ns = state.answer(head.sequence, status, tree, flags, self._version, (queued_ns, staged_ns, infer_ns))
        words = self._words
        words[_COUNTED[status]] += 1
        line = self._stats.channel_index(state.number)
        if status == _OK:
            words[line + _CHANNEL_SERVED] += 1
            if flags & Flag.IN_PLACE:
                words[Counter.IN_PLACE] += 1
            if head.kind == _INFER:
                self._stats.record(queued_ns, staged_ns, infer_ns, copied_ns)
        else:
            words[line + ChannelWord.ERRORS] += 1
        words[line + _CHANNEL_LAST_NS] = time.monotonic_ns()
        return copied_ns


def forget_traceback(error: BaseException) -> None:
    """Drop an exception's traceback, which holds the observation: the policy would seem to keep part of the arena."""
    # BaseException's method: a policy's exception class may override it.
    BaseException.with_traceback(error, None)
    if type(error) is PolicyRaised and error.__cause__ is not None:
        BaseException.with_traceback(error.__cause__, None)

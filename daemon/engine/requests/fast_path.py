"""The fast path of serving: one call of the backend's core between a client's counter and the model."""

from __future__ import annotations

import logging
import time
from typing import Any

from shmserve.backend import ServerFastPath
from shmserve.errors import RequestRejected, ValueOutOfRange
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.real_time_chunking import LEFT_OVER, delivered
from shmserve.ring import RequestHead

from ...ipc.stats import ChannelWord, Counter
from ..channel.channel_state import ChannelState
from ..device_failure import DeviceLost
from ..error_text import log_message
from .serving import CANCELLED, BatchItem, Serving

log = logging.getLogger(__name__)

# Integers instead of enum members, as in serving.py.
_CHANNEL, _BUSY_NS, _BATCHES = int(Counter.CHANNEL), int(Counter.BUSY_NS), int(Counter.BATCHES)
_SERVED, _IN_PLACE, _CUT_THROUGH = int(Counter.SERVED), int(Counter.IN_PLACE), int(Counter.CUT_THROUGH)
_CHANNEL_SERVED, _CHANNEL_LAST_NS = int(ChannelWord.SERVED), int(ChannelWord.LAST_NS)
_INFER, _RESET = int(Kind.INFER), int(Kind.RESET)


class FastPathServing(Serving):
    """A `Serving` with a fast path from a client's counter to its reply.

    The core (native/python/server_fast_path.c) decides whether a request can take the fast path, and does most of the work.
    A request that cannot continue there goes on with the slow path from where it is.
    """

    def __init__(self, *model: Any, **settings: Any) -> None:
        super().__init__(*model, **settings)
        self._fast_flags = (Flag.IN_PLACE if self._in_place else 0) | (Flag.STATEFUL if self._stateful else 0)

    def warm(self, state: ChannelState) -> bool:
        # There is no request yet: what runs up to there is warm then.
        if not state.deferred_replies and self.serve_fast(state):
            return True
        self._warm_policy()
        return False

    def serve_fast(self, state: ChannelState) -> bool:
        path = state.fast_path
        if path is None or self.on_first is not None:
            return False
        words = self._words
        words[_CHANNEL] = state.number + 1
        taken_ns = time.monotonic_ns()
        self._take_and_answer(state, path, taken_ns)
        words[_CHANNEL] = 0
        if not path.sequence:
            return False
        words[_BUSY_NS] += time.monotonic_ns() - taken_ns
        return True

    def _take_and_answer(self, state: ChannelState, path: ServerFastPath, taken_ns: int) -> None:
        poller = state.poller
        observation: Any = None
        unreadable: Exception | None = None
        try:
            observation = path.try_take(poller.last_seen)
            if path.unknown_schema and self._has_learnt(state, path):
                observation = path.try_take(poller.last_seen)
        except Exception as error:
            if not path.sequence:
                raise
            unreadable = error
        if not path.sequence:
            return
        poller.last_seen = path.sequence
        if state.rate is not None and not state.rate.take(taken_ns):
            error_of_rate = ("TooManyRequests", state.rate.refusal)
            self._finish(state, path.head(RequestHead), Status.REJECTED, error_of_rate, 0, path.queued_ns)
            return
        if unreadable is not None:
            if isinstance(unreadable, ValueError):  # sizes or a text that cannot be: the client's fault
                unreadable = MetadataError(str(unreadable))
            else:
                log.warning("request of client %d cannot be read\n%s", state.number, log_message(unreadable))
            self._reject(state, path.head(RequestHead), unreadable, path.queued_ns, taken_ns)
            return
        if path.kind != _INFER:
            head = path.head(RequestHead)
            if path.kind == _RESET:
                self._reset(state, head, path.queued_ns)
            else:
                self._finish(state, head, *CANCELLED, 0, path.queued_ns)
            return
        if (
            type(observation) is dict
            and LEFT_OVER in observation
            and path.head(RequestHead).flags & Flag.REAL_TIME_CHUNKING
        ):
            observation = delivered(observation, is_wanted=self._continues(state))
        clamped = False
        if self._observations is not None:
            try:
                observation, clamped = self._observations.apply(observation)
            except BaseException as error:  # noqa: BLE001  reading its entries may run its own code
                if type(error) is ValueOutOfRange:
                    self._words[Counter.OUT_OF_RANGE] += 1
                self._reject(state, path.head(RequestHead), error, path.queued_ns, taken_ns)
                return
        self._infer_fast(state, path, observation, clamped)
        observation = None  # otherwise the policy would seem to keep part of the arena
        if not self._in_place and path.views is not None:
            state.staging(0).keep_unless_held(path.views)

    def _has_learnt(self, state: ChannelState, path: ServerFastPath) -> bool:
        """Read the structure of a request that was not taken for its sake, and charge its client for that."""
        if state.rate is not None or path.unknown_schema in state.schemas.known:
            return False  # the slow path asks the rate limit first, and reads bfloat16
        head, began_ns = path.head(RequestHead), time.monotonic_ns()
        try:
            state.schemas.get(head.schema, head.metadata_bytes, state.channel.requests.memory(head.sequence))
        except MetadataError:
            return False  # the slow path rejects the request
        now_ns = time.monotonic_ns()
        state.overhead.add(now_ns - began_ns, now_ns)
        return True

    def _infer_fast(self, state: ChannelState, path: ServerFastPath, observation: Any, clamped: bool) -> None:
        began_ns = time.monotonic_ns()
        try:
            if self._per_client is None:
                results: Any = self._model.infer([observation])
            else:
                results = self._per_client.infer_for([observation], [state.number])
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code: the next request works
            item, observation = self._item(state, path, observation, clamped), None
            self._failed([item], error, began_ns)
            return
        infer_ns = time.monotonic_ns() - began_ns
        words = self._words
        words[_BATCHES] += 1
        limited, copied_ns = 0, -1
        if clamped or self._actions is not None:
            try:
                results[0], limited = self._limited(results[0], clamped=clamped)
            except RequestRejected as error:
                self._fail(state, path.head(RequestHead), error, path.queued_ns, path.staged_ns, infer_ns)
                return
        try:
            copied_ns = path.reply(results[0], self._fast_flags | limited, self._version, infer_ns)
            if copied_ns < 0 and state.encoder.learn(results[0]):
                copied_ns = path.reply(results[0], self._fast_flags | limited, self._version, infer_ns)
        except BaseException:  # noqa: BLE001  the policy's own: nothing was answered, the slow path reports why
            copied_ns = -1
        if copied_ns < 0:
            item, observation = self._item(state, path, observation, clamped), None
            self._reply(item, results, 0, infer_ns, limited)
            return
        state.channel.reply_bell.ring()
        words[_SERVED] += 1
        line = self._stats.channel_index(state.number)
        words[line + _CHANNEL_SERVED] += 1
        if path.cut_through_bytes:
            words[_CUT_THROUGH] += 1
        if self._in_place:
            words[_IN_PLACE] += 1
        self._stats.record(path.queued_ns, path.staged_ns, infer_ns, copied_ns)
        words[line + _CHANNEL_LAST_NS] = time.monotonic_ns()

    def _item(self, state: ChannelState, path: ServerFastPath, observation: Any, clamped: bool) -> BatchItem:
        """Return the request that the fast path took last, as a batch item for the slow path."""
        head = path.head(RequestHead)
        times = path.queued_ns, path.staged_ns
        item = BatchItem(state, head, observation, state.staging(0), self._in_place, *times)
        item.clamped = clamped
        return item

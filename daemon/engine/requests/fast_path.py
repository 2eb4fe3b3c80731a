"""The fast path of serving: one call of the native core between a client's counter and the model."""

from __future__ import annotations

import logging
import time
from typing import Any

from shmserve.backend import core
from shmserve.layout import slot_of
from shmserve.protocol import Flag
from shmserve.ring import RequestHead

from ...ipc.stats import ChannelWord, Counter
from ..channel.channel_state import ChannelState
from ..device_failure import DeviceLost
from ..error_text import log_message
from .serving import BatchItem, Serving

log = logging.getLogger(__name__)

# Integers instead of enum members, as in serving.py.
_CHANNEL, _BUSY_NS, _BATCHES = int(Counter.CHANNEL), int(Counter.BUSY_NS), int(Counter.BATCHES)
_SERVED, _IN_PLACE, _CUT_THROUGH = int(Counter.SERVED), int(Counter.IN_PLACE), int(Counter.CUT_THROUGH)
_CHANNEL_SERVED, _CHANNEL_LAST_NS = int(ChannelWord.SERVED), int(ChannelWord.LAST_NS)


class FastPathServing(Serving):
    """A `Serving` with a fast path from a client's counter to its reply, for requests without special options.

    The native core (native/python/server_fast_path.c) decides whether a request can take the fast path, and does most
    of the work. A request that cannot continue there goes on with the slow path from where it is.
    """

    def __init__(self, *model: Any, **settings: Any) -> None:
        super().__init__(*model, **settings)
        # The slow path serves models that take client ids and packages that declare value ranges.
        self._has_fast_path = self._per_client is None and self._observations is None and self._actions is None
        self._plain_flags = (Flag.IN_PLACE if self._in_place else 0) | (Flag.STATEFUL if self._stateful else 0)

    def serve_fast(self, state: ChannelState) -> bool:
        path = state.fast_path
        if path is None or not path.schema or not self._has_fast_path:
            return False
        words = self._words
        words[_CHANNEL] = state.number + 1
        taken_ns = time.monotonic_ns()
        self._take_and_answer(state, path)
        words[_CHANNEL] = 0
        if not path.sequence:
            return False
        words[_BUSY_NS] += time.monotonic_ns() - taken_ns
        return True

    def _take_and_answer(self, state: ChannelState, path: core.ServerFastPath) -> None:
        poller = state.poller
        try:
            observation = path.try_take(poller.last_seen)
        except Exception as error:
            if not path.sequence:
                raise
            poller.last_seen = path.sequence
            log.warning("request of client %d cannot be read\n%s", state.number, log_message(error))
            self._reject(state, path.head(RequestHead), error, path.queued_ns)
            return
        sequence = path.sequence
        if not sequence:
            return
        poller.last_seen = sequence
        began_ns = time.monotonic_ns()
        try:
            results: Any = self._model.infer([observation])
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001  the model's own code: the next request works
            item, observation = self._item(state, path, observation), None
            self._failed([item], error, began_ns)
            return
        infer_ns = time.monotonic_ns() - began_ns
        words = self._words
        words[_BATCHES] += 1
        known, copied_ns = state.encoder.latest, -1
        memory = state.channel.replies.memories[slot_of(sequence)]
        if known is not None and known.encoder is not None and memory.written_schema == known.schema_id:
            try:
                copied_ns = path.reply(
                    known.encoder,
                    results[0],
                    memory.payload,
                    known.schema_id,
                    known.metadata_bytes,
                    self._plain_flags,
                    self._version,
                    infer_ns,
                )
            except BaseException:  # noqa: BLE001  the policy's own: nothing was answered, the slow path reports why
                copied_ns = -1
        if copied_ns < 0:
            item, observation = self._item(state, path, observation), None
            self._reply(item, results, 0, infer_ns)
            return
        state.channel.reply_bell.ring()
        words[_SERVED] += 1
        line = self._stats.channel_index(state.number)
        words[line + _CHANNEL_SERVED] += 1
        if path.cut_through_bytes:
            words[_CUT_THROUGH] += 1
        self._stats.record(path.queued_ns, path.staged_ns, infer_ns, copied_ns)
        words[line + _CHANNEL_LAST_NS] = time.monotonic_ns()
        results = observation = None  # otherwise the policy would seem to keep part of the arena
        if self._in_place:
            words[_IN_PLACE] += 1
        else:
            state.staging(0).keep_unless_held(state.fast_views)

    def _item(self, state: ChannelState, path: core.ServerFastPath, observation: Any) -> BatchItem:
        """Return the request that the fast path took last, as a batch item for the slow path."""
        schema = state.fast_schema
        assert schema is not None
        head = path.head(RequestHead)
        times = path.queued_ns, path.staged_ns
        return BatchItem(state, head, observation, state.staging(0), schema, self._in_place, *times)

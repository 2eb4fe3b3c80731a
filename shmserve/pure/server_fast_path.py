"""Engine half of the fast path in Python; native/python/server_fast_path.c says which requests are eligible."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shmserve.layout import REQUEST, number_of, slot_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.tree_reader import Array

from .cut_through import CutThroughCopier
from .slots import Slots
from .tree_decoder import TreeDecoder, stage
from .tree_encoder import TreeEncoder

_Head = TypeVar("_Head", bound=tuple[int, ...])

_INFER, _RESET, _OK = int(Kind.INFER), int(Kind.RESET), int(Status.OK)
#: No kind on the wire: of a request that was taken and must not run.
_WITHDRAWN = 0
#: Nothing of the client waits, so there is nothing that a request could supersede. The caller heeds the last.
_REFUSED_FLAGS = ~(Flag.SUPERSEDE | Flag.REPEATABLE | Flag.REAL_TIME_CHUNKING)
_KIND, _FLAGS, _DEADLINE = (REQUEST.names.index(name) for name in ("kind", "flags", "deadline_ns"))
_CAPTURE, _MAX_AGE, _SUBMITTED = (REQUEST.names.index(name) for name in ("capture_ns", "max_age_ns", "submitted_ns"))
_SCHEMA, _PAYLOAD_BYTES = REQUEST.names.index("schema"), REQUEST.names.index("payload_bytes")


class ServerFastPath:
    """Takes and answers requests of structures that are known."""

    __slots__ = (
        *("_arena", "_cached", "_decoders", "_encoder", "_head", "_reads_in_place", "_replies", "_reply_memories"),
        *("_request_memories", "_requests", "_wrap"),
        *("cut_through_bytes", "kind", "queued_ns", "sequence", "staged_ns", "submitted_ns", "unknown_schema", "views"),
    )

    def __init__(
        self,
        requests: Slots,
        request_memories: list[Any],
        replies: Slots,
        reply_memories: list[Any],
        copier: CutThroughCopier | None,
        wrap: Callable[[Array], Any] | None,
        decoders: dict[int, TreeDecoder],
        encoder: TreeEncoder,
        reads_in_place: bool,
        /,
    ) -> None:
        self._requests = requests
        self._request_memories = request_memories
        self._replies = replies
        self._reply_memories = reply_memories
        self._wrap = wrap
        self._decoders = decoders
        self._encoder = encoder
        self._reads_in_place = reads_in_place
        self._arena: npt.NDArray[np.uint8] | None = None
        self._head: tuple[int, ...] = ()
        self._cached: tuple[TreeDecoder | None, bytes] = (None, b"")
        #: The arrays that the last observation was made from.
        self.views: list[Array] | None = None
        #: The last request taken, 0 for none, and its kind; 0: its client has withdrawn it, and it must not run.
        self.sequence = 0
        self.kind = 0
        #: The structure of a request that was not taken because it is not known; 0: none.
        self.unknown_schema = 0
        #: From its publication until it was taken, and from then until the observation was ready.
        self.queued_ns = 0
        self.staged_ns = 0
        #: When the request was published that `try_take` has looked at last.
        self.submitted_ns = 0
        self.cut_through_bytes = 0

    def use_arena(self, arena: npt.NDArray[np.uint8], /) -> None:
        """Copy payloads into this memory from now on."""
        self.reset()
        self._arena = arena

    def reset(self) -> None:
        """Release the arena and every view; may be called twice."""
        self._arena = self.views = None
        self._cached = None, b""

    def _is_eligible(self, seen: int, now_ns: int) -> bool:
        sequence = self._requests._count()
        slot = slot_of(sequence)
        if number_of(sequence) != number_of(seen) + 1 or slot >= min(self._requests._slots, self._replies._slots):
            return False
        head = self._requests.request(tuple, sequence)
        if head is None:
            return False
        self._head = head
        self.submitted_ns = head[_SUBMITTED]
        kind, deadline_ns, max_age_ns, capture_ns = head[_KIND], head[_DEADLINE], head[_MAX_AGE], head[_CAPTURE]
        if (
            kind not in (_INFER, _RESET)
            or head[_FLAGS] & _REFUSED_FLAGS
            or 0 < deadline_ns < now_ns
            or (max_age_ns and capture_ns and now_ns - capture_ns > max_age_ns)
            or self._requests.cancelled(sequence)
            or self._replies._is_begun(sequence)
        ):
            return False
        if kind == _RESET:
            return True
        decoder = self._decoders.get(head[_SCHEMA])
        if decoder is None or not decoder.is_complete:
            self.unknown_schema = head[_SCHEMA]
            return False
        return self._reads_in_place or (self._arena is not None and head[_PAYLOAD_BYTES] <= self._arena.size)

    def try_take(self, seen: int, /) -> Any:
        """Return the observation of the request after `seen`, None for one of another kind; `sequence` is 0 if it is not eligible."""
        taken_ns = time.monotonic_ns()
        self.sequence = self.unknown_schema = 0
        if not self._is_eligible(seen, taken_ns):
            return None
        head = self._head
        sequence = head[0]
        self._replies.take(sequence)
        self.sequence, self.kind = sequence, _WITHDRAWN if self._requests.cancelled(sequence) else head[_KIND]
        self.queued_ns = max(0, taken_ns - head[_SUBMITTED])
        observation = self._observation(head) if self.kind == _INFER else None
        self.staged_ns = time.monotonic_ns() - taken_ns
        return observation

    def _observation(self, head: tuple[int, ...]) -> Any:
        payload_bytes, decoder = head[_PAYLOAD_BYTES], self._decoders[head[_SCHEMA]]
        source = self._request_memories[slot_of(head[0])].payload
        if self._reads_in_place:
            self.views = decoder.views(source, payload_bytes)
        else:
            assert self._arena is not None
            stage(source, payload_bytes, self._arena, None, 0)
            source = self._arena
            sizes = source[: 8 * decoder.sizes_count].tobytes()
            if self.views is None or self._cached != (decoder, sizes):
                self.views = decoder.views(source, payload_bytes)
                self._cached = decoder, sizes
        return decoder.decode_over(source, payload_bytes, self.views, self._wrap)

    def head(self, kind: type[_Head], /) -> _Head:
        """Return the head of the request that was taken last, as this type."""
        return tuple.__new__(kind, self._head)

    def reply(self, tree: Any, flags: int, version: int, infer_ns: int, /) -> int:
        """Reply to the request taken last; return how long that took (ns), or -1, and nothing was replied."""
        began_ns = time.monotonic_ns()
        if not self.sequence:
            raise ValueError("no request was taken, or this segment was closed")
        memory = self._reply_memories[slot_of(self.sequence)]
        encoded: Any = self._encoder._put(tree, memory)
        if type(encoded) is not tuple or len(encoded) != 4:
            return -1
        copied_ns = time.monotonic_ns() - began_ns
        durations = self.queued_ns, self.staged_ns, infer_ns, copied_ns
        self._replies.complete(self.sequence, _OK, flags, *encoded[:3], version, *durations)
        return copied_ns

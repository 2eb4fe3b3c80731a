"""Meaning of the numbers in shared memory."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

#: First word of every segment: the bytes ``shmserve`` read as a little-endian number.
MAGIC = int.from_bytes(b"shmserve", "little")

#: Moves with every change of layout or meaning. A peer of another version is refused when it
#: attaches (ProtocolMismatch), before either side has mapped anything.
WIRE_VERSION = 4


class Kind(IntEnum):
    """Kind of a request. A reset is a request, so that it keeps its place in the order."""

    INFER = 1
    RESET = 2


class Flag:
    """Bits of a request's or a reply's ``flags`` word; plain numbers, because IntFlag's `&` costs 2 us."""

    #: The tree could not be carried in the safe form: it is (pickle bytes, out-of-band buffers).
    PICKLED: Final = 1
    #: Answer an unstarted request of the same client that this one replaces as SUPERSEDED.
    SUPERSEDE: Final = 2
    #: The client allows this request to run again if an engine dies while running it.
    REPEATABLE: Final = 4
    #: (reply) The model read the slot itself, without staging.
    IN_PLACE: Final = 8
    #: (reply) The policy declares itself stateful: running a request twice is not the same as once.
    STATEFUL: Final = 16
    #: (reply) A number of the observation or the action was outside its declared range and was clamped to it.
    CLAMPED: Final = 32
    #: The client added the entries of real-time chunking, which reach only a policy that declares them.
    REAL_TIME_CHUNKING: Final = 64


class Status(IntEnum):
    """How a request ended; every reply carries one."""

    OK = 0
    #: The reply does not fit: the client resizes the channel and the engine then delivers it.
    RESIZE_REQUIRED = 1
    #: Its deadline had passed when its turn came; the model did not run.
    EXPIRED = 2
    #: The client withdrew it before its turn came.
    CANCELLED = 3
    #: The same client replaced it with a newer one before its turn came.
    SUPERSEDED = 4
    #: The observation was older than the client allows when its turn came.
    STALE = 5
    #: The request itself cannot be served: its bytes, its size, its types.
    REJECTED = 6
    #: The model raised.
    FAILED = 7
    #: An engine died while running it.
    ENGINE_LOST = 8
    #: The service is going away and did not start it.
    STOPPING = 9

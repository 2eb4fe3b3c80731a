"""Rehearsal of a request: its code runs once in private memory, so that the next request finds it in the processor's caches.

After 20 ms of sleep the caches hold other programs, and the code of a request takes several times as long. The rehearsal is
a separate client that is attached to nothing: its replies are there before it asks. It is made of the classes of a real
client, because the interpreter adapts a function's instructions to the types that it meets.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from shmserve.backend import ClientFastPath, CounterPoller, Slots
from shmserve.channel import ClientChannel
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.directories import ServicePlace
from shmserve.layout import COUNTER_OFFSET, SLOT_HEAD_BYTES, SLOTS_OFFSET, WORD, sequence_of
from shmserve.protocol import Status
from shmserve.spin import SpinBudget

from .connection import Connection
from .request_options import DEFAULT_OPTIONS
from .request_pipeline import RequestPipeline
from .retry_policy import RetryPolicy

_OBSERVATION = {"state": np.zeros(8, np.float32)}
_ACTION = {"action": np.zeros(8, np.float32)}
_SLOT_BYTES = 4096


class Rehearsal:
    """A client that is attached to nothing. After `run` has raised, which a signal handler may do, make another one."""

    def __init__(self, name: str) -> None:
        memory = [np.zeros(SLOTS_OFFSET + SLOT_HEAD_BYTES, np.uint8) for _ in range(2)]
        slot = [SlotMemory(np.zeros(_SLOT_BYTES, np.uint8), np.zeros(_SLOT_BYTES, np.uint8)) for _ in range(2)]
        places = COUNTER_OFFSET // WORD, SLOTS_OFFSET // WORD, SLOT_HEAD_BYTES // WORD, 1
        requests, self._replies = (Slots(each, *places) for each in memory)
        # Nothing here looks for a service.
        self._pipeline = pipeline = RequestPipeline(
            name, cast(ServicePlace, None), 1, SpinBudget(0), RetryPolicy(0, 0.0), check_contract=False
        )
        decoder = Decoder(allow_pickle=False)
        pipeline._encoder.encode(_OBSERVATION, slot[0])
        #: The words of a reply's head behind its sequence, as far as they are published.
        self._head = (int(Status.OK), 0, *Encoder().encode(_ACTION, slot[1])[:3], 0, 0, 0, 0, 0)
        decoder.decode(slot[1], *self._head[2:5], False)
        self._number = 0
        nowhere: Any = Nowhere()
        connection = Connection.__new__(Connection)
        connection.channel = channel = cast(ClientChannel, nowhere)
        connection._control = nowhere
        connection.decoder, connection.resizing, connection.closed = decoder, False, False
        pipeline._connector.connection = connection
        pipeline._fast_path._channel = channel
        pipeline._fast_path.native = ClientFastPath(
            requests,
            slot[:1],
            1,
            self._replies,
            slot[1:],
            CounterPoller(memory[1], COUNTER_OFFSET // WORD),
            pipeline._encoder.trees,
            decoder.schemas.decoders,
            None,
            nowhere,
        )

    def run(self) -> None:
        """Ask once, and get the reply."""
        self._number += 1
        self._replies.complete(sequence_of(self._number, 0), *self._head)
        self._pipeline.request(_OBSERVATION, DEFAULT_OPTIONS, 0)


class Nowhere:
    """Replacement of a channel, a doorbell and a socket for a rehearsed request."""

    @property
    def requests(self) -> Nowhere:
        """The part of a channel that an interrupted request is withdrawn from."""
        return self

    def cancel(self, sequence: int) -> None:
        """Withdraw nothing."""

    def wait(self, timeout_ns: int, /) -> bool:
        """Return at once: the reply is there."""
        return True

    def try_take(self) -> bool:
        """Take no token."""
        return False

    def shut_down(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

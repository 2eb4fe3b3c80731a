"""Copy of a model's example, which its engine writes to memory of the operator's command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..ipc.messages import ExampleGiven, GiveExample
from .engine_process import EngineEnded, EngineProcess

#: An engine that is in a long inference gives its example afterwards.
_LIMIT_S = 10.0


class ExampleCopy:
    """One copy at a time: an engine's answer does not say which order it answers."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def copy(self, engine: EngineProcess | None, memory: int, ring: Callable[[], None]) -> tuple[int, int]:
        """Let an engine write its example to this descriptor, which stays the caller's; `ring` wakes it.

        Returns the bytes of its metadata and of its payload: 0 without an engine or an example, or if it is busy for too
        long. An answer that comes later may be taken for that to the next order, whose memory is then still empty.
        """
        if engine is None:
            return 0, 0
        async with self._lock:
            given = engine.expect(ExampleGiven)
            engine.send(GiveExample(), fds=(memory,))
            ring()
            try:
                message = await asyncio.wait_for(given, _LIMIT_S)
            except (EngineEnded, asyncio.TimeoutError):
                return 0, 0
        return message.metadata_bytes, message.payload_bytes

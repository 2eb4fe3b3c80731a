"""The parts of a client and of a request that ActionChunks needs, and its request in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .pending import Reply


class PendingChunk(Protocol):
    """The part of `Pending` that ActionChunks needs."""

    deadline_ns: int

    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> bool: ...
    @property
    def reply(self) -> Reply | None: ...


class ChunkClient(Protocol):
    """The part of `ShmClient` that ActionChunks needs; `submit` takes the options of a request by keyword."""

    def connect(self, *, timeout: float | None = None) -> Any: ...
    @property
    def submit(self) -> Callable[..., PendingChunk]: ...
    def reset(self, *, timeout: float | None = None) -> None: ...


@dataclass
class ChunkRequest:
    """A request for a chunk, in flight."""

    pending: PendingChunk
    capture_ns: int
    tick: int  # the step that sent it

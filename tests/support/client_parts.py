"""Parts of a client that tests look at or replace."""

from __future__ import annotations

from shmserve.client import AsyncShmClient, ShmClient
from shmserve.client.connection import Connection


def connection_of(client: ShmClient) -> Connection:
    """The connection of an attached client."""
    connection = client._pipeline._connector.connection
    assert connection is not None
    return connection


def in_loop(client: ShmClient) -> AsyncShmClient:
    """The asyncio client of the same pipeline, so that threads and event loops share channel and slots."""
    looped = AsyncShmClient.__new__(AsyncShmClient)
    looped._pipeline, looped._timeout_ns = client._pipeline, client._timeout_ns
    return looped

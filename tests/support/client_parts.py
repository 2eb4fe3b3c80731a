"""Parts of a client that tests look at or replace."""

from __future__ import annotations

from shmserve.client import ShmClient
from shmserve.client.connection import Connection


def connection_of(client: ShmClient) -> Connection:
    """The connection of an attached client."""
    connection = client._pipeline._connector.connection
    assert connection is not None
    return connection

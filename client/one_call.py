"""The function that the HTTP server's users call, over shared memory."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from shmserve.errors import ShmServeError

from .shm_client import ShmClient

_lock = threading.Lock()
_clients: dict[str, ShmClient] = {}


def send_inference_request(
    data_dict: Any,
    name: str = "default",
    timeout: float = 10,
    max_retries: int = 3,
    retry_delay: float = 1.0,
) -> dict[str, Any]:
    """Ask service `name`; returns `{"status": "ok", "output": what the model returned}`.

    The client behind it is kept for the next call. Raises RuntimeError when the retries are used up
    or the request failed; its `__cause__` is the typed error.
    """
    try:
        client = _client(name)
        client._exchange.max_retries = max_retries
        client._exchange.retry_delay_s = retry_delay
        return {"status": "ok", "output": client.infer(data_dict, timeout=timeout)}
    except ShmServeError as error:
        raise RuntimeError(f"inference request to {name!r} failed: {error}") from error


def _client(name: str) -> ShmClient:
    with _lock:
        client = _clients.get(name)
        if client is None:
            client = _clients[name] = ShmClient(name)
        return client


def _close_all() -> None:
    while _clients:
        _, client = _clients.popitem()
        client.close()


def _after_fork_in_child() -> None:
    """The clients are the parent's, and a thread that held the lock is not here to release it."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

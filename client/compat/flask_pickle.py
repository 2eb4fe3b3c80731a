"""send_inference_request: the function of a Flask server that exchanges pickles, over shared memory.

Before: an HTTP request whose body is a pickle
After:  `from shmserve.client import send_inference_request`
"""

from __future__ import annotations

import atexit
import os
from typing import Any

from shmserve.errors import InvalidArgument, ShmServeError

from ..retry_policy import RetryPolicy
from ..shm_client import ShmClient

_clients: dict[str, ShmClient] = {}


def send_inference_request(
    data_dict: Any,
    name: str = "default",
    timeout: float = 10,
    max_retries: int = 3,
    retry_delay: float = 1.0,
) -> dict[str, Any]:
    """Send an observation to service `name`; return `{"status": "ok", "output": the model's result}`.

    The client is kept for the next call of any thread; the settings govern this call alone. Raises RuntimeError when
    the retries are used up or the request failed, with the typed error as its `__cause__`, and InvalidArgument (a
    ValueError) for an argument without meaning.
    """
    retry = RetryPolicy.of(max_retries, retry_delay)
    try:
        return {"status": "ok", "output": _client(name)._infer(data_dict, timeout, retry)}
    except InvalidArgument:
        raise
    except ShmServeError as error:
        raise RuntimeError(f"inference request to {name!r} failed: {error}") from error


def _client(name: str) -> ShmClient:
    client = _clients.get(name) if isinstance(name, str) else None
    # Without a lock, which a finalizer or a signal handler would find held by the call that it interrupts. A client
    # that loses this race has no connection to close: it attaches with its first request.
    return client or _clients.setdefault(name, ShmClient(name))


def _close_all() -> None:
    while _clients:
        _, client = _clients.popitem()
        client.close()


def _after_fork_in_child() -> None:
    """Forget the clients, which belong to the parent process."""
    _clients.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

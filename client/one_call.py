"""The function that the HTTP server's users call, over shared memory."""

from __future__ import annotations

import atexit
import os
from typing import Any

from shmserve.errors import InvalidArgument, ShmServeError

from .retry_policy import RetryPolicy
from .shm_client import ShmClient

_clients: dict[str, ShmClient] = {}


def send_inference_request(
    data_dict: Any,
    name: str = "default",
    timeout: float = 10,
    max_retries: int = 3,
    retry_delay: float = 1.0,
) -> dict[str, Any]:
    """Ask service `name`; returns `{"status": "ok", "output": what the model returned}`.

    The client behind it is kept for the next call, of any thread; the settings are this call's alone. Raises
    RuntimeError when the retries are used up or the request failed; its `__cause__` is the typed error. InvalidArgument
    (a ValueError) says that an argument has no meaning.
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
    # No lock, which a finalizer or a signal handler would find held by the call that it interrupts. A client that
    # another thread was faster with is none yet: it attaches with its first request.
    return client or _clients.setdefault(name, ShmClient(name))


def _close_all() -> None:
    while _clients:
        _, client = _clients.popitem()
        client.close()


def _after_fork_in_child() -> None:
    """The clients are the parent's."""
    _clients.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

"""Event loops of tests: a client for one, and a run that leaves no thread behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from tests.support.daemon_process import wait_until
from tests.support.gate import Gate


def waiters() -> list[threading.Thread]:
    """The threads that wait on behalf of event loops."""
    return [thread for thread in threading.enumerate() if thread.name == "shmserve-waiter"]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """The loop's result; it leaves no thread behind."""
    found = asyncio.run(main)
    wait_until("the thread has ended", lambda: not waiters())
    return found


async def entered(gate: Gate) -> None:
    """Until the policy runs the request that the gate holds up."""
    while not gate.is_entered():
        await asyncio.sleep(0.002)

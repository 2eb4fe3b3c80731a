"""End of the supervisor's tasks when the service stops."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from shmserve.daemon.supervisor import supervisor
from shmserve.daemon.supervisor.supervisor import cancel


def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wait_for() does before Python 3.12 if its result comes at the same time."""
    monkeypatch.setattr(supervisor, "_CANCEL_AGAIN_S", 0.01)
    lost = 0

    async def endless() -> None:
        nonlocal lost
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost += 1
        await asyncio.sleep(60)

    async def main() -> bool:
        task = asyncio.create_task(endless())
        await asyncio.sleep(0)
        await cancel(task)
        return task.cancelled()

    assert asyncio.run(main()) and lost == 1


def test_what_a_task_has_raised_before_is_raised() -> None:
    async def failing() -> None:
        raise LookupError("the release")

    async def main() -> None:
        task = asyncio.create_task(failing())
        await asyncio.wait((task,))
        await cancel(task)

    with pytest.raises(LookupError, match="the release"):
        asyncio.run(main())

"""infer_async: many at once, cancelled, timed out, beside other tasks and threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from shmserve.client import InferenceFailed, RequestTimeout, ShmClient
from tests.daemon_process import Daemon, wait_until
from tests.gate import Gate


def waiters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shmserve-waiter"]


def test_more_requests_than_slots_are_each_answered_with_their_own(client: ShmClient) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(client.infer_async({"do": "echo", "value": number}) for number in range(60)))

    assert asyncio.run(main()) == list(range(60))
    wait_until("nobody waits for nothing", lambda: not waiters())


def test_other_tasks_run_while_the_model_does(client: ShmClient, gate: Gate) -> None:
    async def main() -> Any:
        held = asyncio.create_task(client.infer_async(gate.observation))
        while not gate.is_entered():
            await asyncio.sleep(0.005)
        assert not held.done()
        gate.open()
        return await held

    assert asyncio.run(main())["waited"]


def test_the_first_request_attaches_and_a_larger_one_grows_the_channel(obedient: Daemon) -> None:
    async def main(client: ShmClient) -> None:
        for size in (10, 100_000, 3_000_000):
            reply = await client.infer_async({"do": "echo", "value": np.full(size, 3, np.uint8)})
            assert reply.shape == (size,)

    with obedient.client() as client:
        client.close()
    fresh = obedient.client()
    try:
        asyncio.run(main(fresh))
    finally:
        fresh.close()


def test_a_cancelled_wait_gives_the_request_up_and_the_next_one_works(client: ShmClient, gate: Gate) -> None:
    async def main() -> Any:
        held = asyncio.create_task(client.infer_async(gate.observation))
        while not gate.is_entered():
            await asyncio.sleep(0.005)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        gate.open()
        return await client.infer_async({"do": "echo", "value": "next"})

    assert asyncio.run(main()) == "next"


def test_a_deadline_ends_the_wait_with_the_same_error_as_infer(client: ShmClient, gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(RequestTimeout, match="no reply from 't'"):
            await client.infer_async(gate.observation, timeout=0.1)
        gate.open()
        assert await client.infer_async({"do": "echo", "value": 1}) == 1

    asyncio.run(main())


def test_an_error_of_the_model_is_raised_where_it_is_awaited(client: ShmClient) -> None:
    async def main() -> None:
        with pytest.raises(InferenceFailed):
            await client.infer_async({"do": "no such thing"})

    asyncio.run(main())


def test_a_thread_s_requests_and_a_loop_s_do_not_meet(client: ShmClient) -> None:
    wrong: list[Any] = []

    def ask() -> None:
        for number in range(200):
            if client.infer({"do": "echo", "value": -number}) != -number:
                wrong.append(number)

    async def main() -> None:
        for number in range(200):
            if await client.infer_async({"do": "echo", "value": number}) != number:
                wrong.append(number)

    thread = threading.Thread(target=ask)
    thread.start()
    asyncio.run(main())
    thread.join(60)

    assert not thread.is_alive()
    assert wrong == []

"""AsyncShmClient: what a request leaves behind that was cancelled, came too late, or lost its loop or its daemon."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmserve.client import (
    AsyncShmClient,
    ClientClosed,
    RequestTimeout,
    ShmClient,
    SlotsExhausted,
)
from tests.support.client_parts import in_loop
from tests.support.daemon_process import Daemon, wait_until
from tests.support.event_loop import entered, run, waiters
from tests.support.gate import Gate

pytestmark = pytest.mark.sealed_too


@pytest.fixture
def blocking(obedient: Daemon) -> Iterator[ShmClient]:
    with obedient.client() as client:
        yield client


@pytest.fixture
def client(blocking: ShmClient) -> AsyncShmClient:
    """The asyncio client of the blocking one's pipeline."""
    return in_loop(blocking)


def test_a_cancelled_request_that_has_not_begun_is_not_run(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        await client.infer({"do": "tags"})
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        # The first of them have slots, the others wait for one.
        tasks = [asyncio.create_task(client.infer({"do": "count", "tag": number})) for number in range(10)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])  # a task is cancelled at the loop's next turn, and before that it may still run
        gate.open()
        found = await asyncio.gather(held, *tasks, return_exceptions=True)

        assert [isinstance(one, asyncio.CancelledError) for one in found] == [False, *[True, False] * 5]
        assert await client.infer({"do": "tags"}) == [1, 3, 5, 7, 9]

    run(main())


def test_requests_are_cancelled_at_any_moment_and_the_others_get_their_answers(client: AsyncShmClient) -> None:
    chance = random.Random(3)

    async def ask(number: int) -> None:
        assert await client.infer({"do": "echo", "value": number}) == number

    async def main() -> None:
        cancelled = 0
        for _ in range(60):
            tasks = [asyncio.create_task(ask(number)) for number in range(12)]
            for task in chance.sample(tasks, 5):
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                assert found is None or isinstance(found, asyncio.CancelledError), found
                cancelled += found is not None
        assert cancelled > 50
        assert await client.infer({"do": "echo", "value": "last"}) == "last"

    run(main())


def test_timeouts_of_waiting_and_of_running_requests(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        await client.infer({"do": "tags"})
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        tasks = [asyncio.create_task(client.infer({"do": "count", "tag": number}, timeout=0.1)) for number in range(8)]
        found = await asyncio.gather(*tasks, return_exceptions=True)

        assert not held.done()
        assert [type(one) for one in found] == [RequestTimeout] * 3 + [SlotsExhausted] * 5
        gate.open()
        await held
        assert await client.infer({"do": "tags"}) == []

    run(main())


def test_the_loops_own_timeout_gives_the_request_up(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.infer(gate.observation), 0.1)
        gate.open()
        assert await client.infer({"do": "echo", "value": 1}) == 1

    run(main())


def test_short_timeouts_at_random_mix_nothing_up(client: AsyncShmClient) -> None:
    chance = random.Random(5)

    async def ask(number: int) -> bool:
        timeout = chance.choice((0.0001, 0.0005, 0.002, 60.0))
        try:
            return bool(await client.infer({"do": "echo", "value": number}, timeout=timeout) == number)
        except (RequestTimeout, SlotsExhausted):
            return timeout < 60

    async def main() -> None:
        for _ in range(30):
            assert all(await asyncio.gather(*(ask(number) for number in range(20))))

    run(main())


def test_a_loop_that_is_closed_under_its_requests_leaves_a_usable_client(
    blocking: ShmClient, client: AsyncShmClient, gate: Gate
) -> None:
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(client.infer(gate.observation)) for _ in range(9)]
    loop.run_until_complete(entered(gate))
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # said on purpose here
    loop.close()
    gate.open()

    async def main() -> None:
        for number in range(5):
            assert await client.infer({"do": "echo", "value": number}) == number

    asyncio.run(main())
    assert blocking.infer({"do": "echo", "value": 1}) == 1
    del tasks, task
    gc.collect()
    wait_until("the thread has ended", lambda: not waiters())


def test_closing_the_client_ends_every_wait(obedient: Daemon, gate: Gate) -> None:
    client = in_loop(obedient.client())

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(client.infer(gate.observation)) for _ in range(10)]
        await entered(gate)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(found) for found in run(main())] == [ClientClosed] * 10

    async def again() -> None:
        with pytest.raises(ClientClosed):
            await client.infer({"do": "count"})

    run(again())


def test_a_daemon_that_restarts_is_waited_for_and_asked_again(
    make_daemon: Callable[..., Daemon], tmp_path: Any
) -> None:
    daemon = make_daemon("journal").start()
    journal, opened = tmp_path / "journal", tmp_path / "gate"
    client = in_loop(daemon.client(max_retries=1000, retry_delay=0.05))

    async def main() -> Any:
        asked = asyncio.create_task(
            client.infer({"journal": str(journal), "tag": "a", "gate": str(opened)}, timeout=100)
        )
        while not journal.exists() or not journal.read_text():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(daemon.kill9)
        opened.touch()
        await asyncio.to_thread(daemon.start)
        return await asked

    assert run(main()) == {"tag": "a"}
    assert journal.read_text().split() == ["a", "a"]

"""AsyncShmClient: its answers, what else the loop does meanwhile, and no busy thread."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import (
    AsyncShmClient,
    ClientClosed,
    ContractMismatch,
    InferenceFailed,
    Pending,
    RequestSuperseded,
    RequestTimeout,
    ServiceUnavailable,
    ShmClient,
    ShmServeError,
)
from tests.support.client_parts import in_loop
from tests.support.daemon_process import Daemon, wait_until
from tests.support.event_loop import entered, run, waiters
from tests.support.gate import Gate
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


@pytest.fixture
def blocking(obedient: Daemon) -> Iterator[ShmClient]:
    with obedient.client() as client:
        yield client


@pytest.fixture
def client(blocking: ShmClient) -> AsyncShmClient:
    """The asyncio client of the blocking one's pipeline."""
    return in_loop(blocking)


def raises(ask: Callable[[], Any]) -> Exception | None:
    """What it raises."""
    try:
        ask()
    except ShmServeError as error:
        return error
    return None


# Answers


def test_more_requests_than_slots_each_receive_the_matching_result(client: AsyncShmClient) -> None:
    async def ask(number: int) -> None:
        value = {"n": number, "x": np.full(number % 700, number)}
        assert_same(await client.infer({"do": "echo", "value": value}), value)

    async def main() -> None:
        await asyncio.gather(*(ask(number) for number in range(500)))

    run(main())


def test_requests_that_wait_for_a_slot_are_sent_in_the_order_they_were_made(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        await client.infer({"do": "tags"})
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        tasks = [asyncio.create_task(client.infer({"do": "count", "tag": number})) for number in range(40)]
        await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(held, *tasks)

        assert await client.infer({"do": "tags"}) == list(range(40))

    run(main())


def test_errors_are_the_same_as_those_of_infer(client: AsyncShmClient) -> None:
    async def main() -> None:
        with pytest.raises(InferenceFailed, match="LookupError: no such joint"):
            await client.infer({"do": "raise", "text": "no such joint"})
        with pytest.raises(ValueError, match="0 to 86400 seconds"):
            await client.infer({"do": "count"}, timeout=-1)
        with pytest.raises(RequestTimeout):
            await client.infer({"do": "count"}, timeout=0)
        assert await client.infer({"do": "echo", "value": 1}) == 1

    run(main())


def test_without_a_service_the_error_is_typed_and_the_loop_free_meanwhile(tmp_path: Any) -> None:
    client = AsyncShmClient("absent", runtime_dir=tmp_path, max_retries=3, retry_delay=0.05)

    async def main() -> int:
        ticks = 0
        task = asyncio.create_task(client.infer({"x": 1}))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        with pytest.raises(ServiceUnavailable, match="no daemon serves 'absent'"):
            await task
        return ticks

    assert run(main()) > 5  # the loop was not held up


# The loop does other things


def test_a_loop_that_awaits_an_answer_serves_a_socket_meanwhile(client: AsyncShmClient, gate: Gate) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1")
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number in range(300):
            writer.write(f"{number}\n".encode())
            assert await reader.readline() == f"{number}\n".encode()
        assert not held.done()
        gate.open()
        assert (await held)["waited"]
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_requests_that_wait_for_a_slot_leave_the_loops_threads_to_others(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        tasks = [asyncio.create_task(client.infer({"do": "echo", "value": number})) for number in range(100)]
        await asyncio.sleep(0.01)

        # Somebody else's use of the executor, which has a handful of threads.
        found = await asyncio.gather(*(asyncio.to_thread(abs, number) for number in range(20)))

        assert found == list(range(20))
        assert not held.done()
        gate.open()
        await held
        assert await asyncio.gather(*tasks) == list(range(100))

    run(main())


def test_a_daemon_that_does_not_answer_holds_up_neither_the_loop_nor_another_threads_timeout() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shmserve-")))
        (folder / "deaf").mkdir()
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
        deaf.bind(str(folder / "deaf" / "client.sock"))
        deaf.listen()
        client = ShmClient("deaf", runtime_dir=folder, max_retries=0)
        errors: list[Exception | None] = []
        thread = threading.Thread(target=lambda: errors.append(raises(lambda: client.infer({"x": 1}, timeout=60))))
        thread.start()
        wait_until("the thread asks for a channel", lambda: select.select([deaf], [], [], 0)[0])

        async def main() -> int:
            ticks = 0
            task = asyncio.create_task(in_loop(client).infer({"x": 1}, timeout=0.5))
            while not task.done():
                ticks += 1
                await asyncio.sleep(0.001)
            with pytest.raises(ServiceUnavailable, match="another thread"):
                await task
            return ticks

        assert run(main()) > 5  # the loop was not held up
        assert type(raises(lambda: client.infer({"x": 1}, timeout=0.05))) is ServiceUnavailable
        assert client.late_replies == 0
        assert thread.is_alive()
        client.close()
        thread.join()  # long before its deadline
        assert [type(error) for error in errors] == [ClientClosed]


def test_an_idle_wait_costs_next_to_no_processor_time(client: AsyncShmClient, gate: Gate) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(client.infer(gate.observation)) for _ in range(20)]
        await entered(gate)
        before, began = time.process_time(), time.monotonic()
        await asyncio.sleep(1)
        used, passed = time.process_time() - before, time.monotonic() - began
        gate.open()
        await asyncio.gather(*tasks)
        # A thread that spins takes all of it.
        assert used < passed / 2, (used, passed)

    run(main())


def test_one_thread_serves_a_control_loop(client: AsyncShmClient) -> None:
    async def main() -> set[int]:
        seen = set()
        for number in range(50):
            assert await client.infer({"do": "echo", "value": number}) == number
            seen |= {thread.native_id or 0 for thread in waiters()}
            await asyncio.sleep(0.002)
        return seen

    assert len(run(main())) == 1


# Beside threads, and growth


def test_a_growing_result_is_delivered_while_another_request_is_in_flight(client: AsyncShmClient, gate: Gate) -> None:
    second = Gate(gate.path.with_name("second"))

    async def main() -> None:
        first = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        # Both are out before the engine comes to either: it cannot deliver the one without the other in its way.
        growing = asyncio.create_task(client.infer({"do": "grow", "items": 300_000, "value": 5}))
        held = asyncio.create_task(client.infer(second.observation))
        await asyncio.sleep(0)
        gate.open()
        await entered(second)
        await asyncio.sleep(0.2)  # longer than the thread waits at a time
        assert not growing.done()
        second.open()
        assert_same(await growing, np.full(300_000, 5))
        assert (await first)["waited"] and (await held)["waited"]
        large = np.arange(700_000)
        assert_same(await client.infer({"do": "echo", "value": large}), large)

    run(main())


def test_observations_of_every_size_grow_the_channel_during_other_requests(client: AsyncShmClient) -> None:
    async def ask(size: int) -> None:
        value = np.full(size, size % 251, np.uint8)
        assert_same(await client.infer({"do": "echo", "value": value}), value)

    async def main() -> None:
        await asyncio.gather(*(ask(size) for size in (10, 100_000, 7, 1_000_000, 50, 3_000_000, 1)))

    run(main())


def test_threads_and_loops_share_a_client(blocking: ShmClient, client: AsyncShmClient) -> None:
    wrong: list[Any] = []

    def ask(thread: int) -> None:
        for number in range(150):
            if blocking.infer({"do": "echo", "value": (thread, number)}) != (thread, number):
                wrong.append((thread, number))

    async def ask_async(task: int) -> None:
        for number in range(50):
            if await client.infer({"do": "echo", "value": (task, number)}) != (task, number):
                wrong.append((task, number))

    async def main(first: int) -> None:
        await asyncio.gather(*(ask_async(task) for task in range(first, first + 5)))

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(2)]
    threads += [threading.Thread(target=lambda first=first: asyncio.run(main(first))) for first in (100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# Every method


def test_a_block_attaches_the_client_and_closes_it(obedient: Daemon) -> None:
    async def main() -> None:
        async with AsyncShmClient(obedient.name, runtime_dir=obedient.runtime_dir) as client:
            assert "attached" in repr(client) and "not attached" not in repr(client)
            assert await client.infer({"do": "echo", "value": 1}) == 1
        assert "closed" in repr(client)
        with pytest.raises(ClientClosed):
            await client.infer({"do": "echo", "value": 1})

    run(main())


def test_each_method_asks_the_service_while_the_loop_goes_on(obedient: Daemon) -> None:
    async def main() -> None:
        async with AsyncShmClient(obedient.name, runtime_dir=obedient.runtime_dir) as client:
            model = await client.describe()
            assert model["name"] == "obedient"
            await client.check({"do": "echo"})  # this model has no example observation
            reply = await client.request({"do": "echo", "value": "asked"})
            pending = await client.submit({"do": "echo", "value": "submitted"})

            assert (reply.action, reply.model_version, reply.request_id) == ("asked", model["version"], 1)
            assert 0 < reply.timing.infer_us <= reply.timing.round_trip_us
            assert await pending == "submitted" and await pending == "submitted"
            assert pending.request_id == 2
            resets = (await client.infer({"do": "count"}))["resets"]
            await client.reset()
            assert (await client.infer({"do": "count"}))["resets"] == resets + 1

    run(main())


def test_check_compares_an_observation_with_the_contract(described: Daemon) -> None:
    image, state = np.zeros((480, 640, 3), np.uint8), np.zeros(6, np.float32)

    async def main() -> None:
        async with AsyncShmClient(described.name, runtime_dir=described.runtime_dir) as client:
            await client.check({"instruction": "pick", "state": state, "image": image})
            with pytest.raises(ContractMismatch, match="state"):
                await client.check({"instruction": "pick", "state": state[:5], "image": image})

    run(main())


@pytest.mark.parametrize("way", ["infer", "request", "submit"])
def test_a_newer_request_supersedes_a_waiting_one(client: AsyncShmClient, gate: Gate, way: str) -> None:
    async def ask(tag: int, *, supersede: bool) -> Any:
        observation = {"do": "count", "tag": tag}
        if way == "submit":
            return await (await client.submit(observation, supersede=supersede))
        return await getattr(client, way)(observation, supersede=supersede)

    async def main() -> None:
        await client.infer({"do": "tags"})
        held = asyncio.create_task(client.infer(gate.observation))
        await entered(gate)
        old = asyncio.create_task(ask(1, supersede=False))
        while len(client._pipeline._table.in_flight) < 2:
            await asyncio.sleep(0.001)
        new = asyncio.create_task(ask(2, supersede=True))
        while len(client._pipeline._table.in_flight) < 3:
            await asyncio.sleep(0.001)
        gate.open()
        await asyncio.gather(held, new)

        with pytest.raises(RequestSuperseded, match="newer"):
            await old
        assert await client.infer({"do": "tags"}) == [2]

    run(main())


# Callbacks


def test_the_reply_thread_calls_back_when_a_request_has_ended(blocking: ShmClient, gate: Gate) -> None:
    called: list[tuple[str, Any]] = []

    def note(pending: Pending) -> None:
        called.append((threading.current_thread().name, pending.result(0)))

    pending = blocking.submit(gate.observation)
    pending.add_done_callback(note)
    gate.wait_entered()
    assert called == []
    gate.open()
    wait_until("the callback was called", lambda: called)

    assert [(name, found["waited"]) for name, found in called] == [("shmserve-waiter", True)]
    pending.add_done_callback(note)  # it has ended: this thread calls it, at once
    assert [name for name, _ in called] == ["shmserve-waiter", threading.current_thread().name]


def test_the_reply_thread_calls_back_when_a_request_expires(blocking: ShmClient, gate: Gate) -> None:
    called: list[Pending] = []
    blocking.connect()
    pending = blocking.submit(gate.observation, timeout=0.3)
    pending.add_done_callback(called.append)
    gate.wait_entered()
    wait_until("the callback was called", lambda: called)

    assert called == [pending]
    assert type(pending.exception(0)) is RequestTimeout
    gate.open()
    assert blocking.infer({"do": "echo", "value": 1}) == 1

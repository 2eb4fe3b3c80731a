"""One client in the hands of several threads: no mix, no crash, and an end for each of them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve.client import ClientClosed, RequestTimeout, SlotsExhausted
from tests.support.daemon_process import Daemon, environment, wait_until
from tests.support.gate import Gate
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too


class Threads:
    """Runs `work(number)` in each of several threads; `join` gives what they raised."""

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self.raised: list[BaseException] = []
        self._work = work
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            self._work(number)
        except BaseException as error:  # noqa: BLE001  shown by the test
            self.raised.append(error)

    def join(self) -> list[BaseException]:
        for thread in self._threads:
            thread.join()
        return self.raised


def asked(thread: int, number: int, chance: random.Random) -> dict[str, Any]:
    return {"tag": f"{thread}/{number}", "k": thread + 2, "x": np.arange(chance.randrange(400))}


def assert_answers(found: dict[str, Any], sent: dict[str, Any]) -> None:
    assert found["tag"] == sent["tag"], (found["tag"], sent["tag"])
    assert found["k"] == sent["k"]
    assert np.array_equal(found["y"], sent["x"] * sent["k"])


def test_eight_threads_ask_in_every_way_and_each_gets_its_own_answers(tagged: Daemon) -> None:
    def work(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(120):
            sent = asked(thread, number, chance)
            match chance.randrange(5):
                case 0:
                    assert_answers(client.infer(sent), sent)
                case 1:
                    assert_answers(client.submit(sent).result(), sent)
                case 2:
                    with client.infer_loaned(sent) as found:
                        assert_answers(found, sent)
                        found = None
                case 3:
                    with client.loan({**sent, "x": np.zeros_like(sent["x"])}) as observation:
                        observation["x"][:] = sent["x"]
                        pending = observation.send()
                    assert_answers(pending.result(), sent)
                case 4:
                    pendings = [client.submit(sent) for _ in range(2)]
                    for pending in reversed(pendings):
                        assert_answers(pending.result(), sent)

    with tagged.client(slots=5) as client:
        assert Threads(8, work).join() == []


def test_threads_with_growing_observations_share_a_client(tagged: Daemon) -> None:
    def work(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(12):
            sent = {
                "tag": f"{thread}/{number}",
                "k": 3,
                "x": np.arange(chance.choice((10, 9_000, 40_000 * (number + 1)))),
            }
            assert_answers(client.infer(sent), sent)

    with tagged.client(slots=4) as client:
        assert Threads(4, work).join() == []


def test_timeouts_of_one_thread_do_not_touch_the_requests_of_another(tagged: Daemon) -> None:
    ended: list[str] = []

    def work(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(400):
            sent = asked(thread, number, chance)
            timeout = 60.0 if thread % 2 else chance.choice((1e-5, 1e-4, 5e-4))
            try:
                assert_answers(client.infer(sent, timeout=timeout), sent)
            except (RequestTimeout, SlotsExhausted):
                assert thread % 2 == 0
                ended.append("timeout")

    with tagged.client(slots=4) as client:
        assert Threads(4, work).join() == []
    assert ended


def test_a_thread_that_waits_for_a_slot_is_woken_by_the_thread_that_frees_it(obedient: Daemon, gate: Gate) -> None:
    with obedient.client(slots=2) as client:
        held = client.submit(gate.observation)
        gate.wait_entered()
        threads = Threads(6, lambda number: client.infer({"do": "echo", "value": number}))
        gate.open()

        assert held.result()["waited"]
        assert threads.join() == []


def test_clients_of_different_threads_do_not_meet(tagged: Daemon) -> None:
    def work(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(3):
            with tagged.client() as client:
                for _ in range(40):
                    sent = asked(thread, number, chance)
                    assert_answers(client.infer(sent), sent)

    assert Threads(4, work).join() == []


# Ends


def test_waiting_threads_get_an_error_when_the_client_is_closed(obedient: Daemon, gate: Gate) -> None:
    for _ in range(5):
        client = obedient.client(slots=3)
        client.connect()
        threads = Threads(6, lambda number, client=client: client.infer(gate.observation))  # type: ignore[misc]
        wait_until("requests are out", lambda client=client: len(client._pipeline._table.in_flight) == 3)
        client.close()

        assert [type(error) for error in threads.join()] == [ClientClosed] * 6


@pytest.mark.fault("T27")
def test_a_client_is_closed_at_any_moment_without_a_crash(tagged: Daemon, start_robot: Callable[..., Robot]) -> None:
    found = start_robot("closing", tagged, 200).finish()

    assert found["rounds"] == 200
    assert found["wrong"] == []
    assert found["answers"] > 0  # how many, is the scheduler's affair
    assert set(found["ends"]) == {"ClientClosed"}
    wait_until("every channel was given back", lambda: tagged.status()["clients"] == [])


@pytest.mark.parametrize("what", ["infer", "await", "asyncio client"])
def test_a_process_may_end_while_threads_of_it_wait(obedient: Daemon, gate: Gate, what: str) -> None:
    program = f"""
import asyncio, sys, threading, time
from shmserve.client import AsyncShmClient, ShmClient
kind = AsyncShmClient if {what!r} == "asyncio client" else ShmClient
client = kind({obedient.name!r}, runtime_dir={str(obedient.runtime_dir)!r})
wait = {{"do": "wait", "gate": {str(gate.path)!r}}}
async def awaited():
    await (client.infer(wait) if kind is AsyncShmClient else client.submit(wait))
ask = (lambda: client.infer(wait)) if {what!r} == "infer" else (lambda: asyncio.run(awaited()))
for _ in range(3):
    threading.Thread(target=ask, daemon=True).start()
while len(client._pipeline._table.in_flight) < 3:
    time.sleep(0.001)
"""
    for _ in range(5):
        ended = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", program],
            check=False,
            env=environment(),
            capture_output=True,
            text=True,
        )

        assert (ended.returncode, ended.stderr) == (0, "")

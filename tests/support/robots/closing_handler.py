"""Closes its client in a signal handler at random instants, sometimes twice, while other threads wait; says what ended how."""

import asyncio
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import ShmClient, ShmServeError
from tests.support.client_parts import in_loop

name, runtime_dir, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
faulthandler.dump_traceback_later(75, exit=True)
chance = random.Random(seed)
ends: Counter[str] = Counter()
wrong: list[str] = []
handled = 0
client: ShmClient


def handle(number: int, frame: object) -> None:
    global handled
    handled += 1
    client.close()
    if number == signal.SIGALRM and chance.random() < 0.5:
        os.kill(os.getpid(), signal.SIGUSR1)  # a second one, inside the first or just after it
    client.close()


def until_closed(where: str, call: Callable[[], Any]) -> None:
    """Call again and again; it is to end with ClientClosed."""
    try:
        while True:
            call()
    except ShmServeError as error:
        ends[f"{where}: {type(error).__name__}"] += 1
    except BaseException as error:  # noqa: BLE001  shown by the test
        wrong.append(f"{where}: {type(error).__name__}: {error}")


def sent() -> dict[str, Any]:
    return {"tag": 1, "k": 2, "x": np.arange(chance.choice((3, 300, 60_000)))}


def submitted() -> None:
    for pending in [client.submit(sent()) for _ in range(3)]:
        pending.cancel()
        pending.done()


def lent() -> None:
    with client.loan({"tag": 1, "k": 2, "x": np.arange(3)}) as observation:
        pending = observation.send()
    pending.result()
    with client.infer_loaned(sent()):
        pass


async def in_event_loop() -> None:
    for _ in range(50):
        await in_loop(client).infer(sent())


async def together() -> None:
    await asyncio.gather(*(in_event_loop() for _ in range(6)))


ways: dict[str, Callable[[], Any]] = {
    "infer": lambda: client.infer({"tag": 1, "k": 2, "x": np.arange(3)}),
    "growing": lambda: client.infer(sent()),
    "submit": submitted,
    "loans": lent,
    "reset": lambda: client.reset(),
    "describe": lambda: client.describe(),
    "event loop": lambda: asyncio.run(together()),
}
signal.signal(signal.SIGALRM, handle)
signal.signal(signal.SIGUSR1, handle)
settled = 0
for number in range(rounds):
    client = ShmClient(name, runtime_dir=runtime_dir, timeout=60)
    way = chance.choice(list(ways))
    if chance.random() < 0.8:
        client.connect()
    threads = [
        threading.Thread(target=until_closed, args=(f"thread {other}", ways[other]))
        for other in chance.sample(["infer", "submit", "reset", "describe"], 2)
    ]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 1e-4 + chance.random() * 0.01)
    until_closed(way, ways[way])
    for thread in threads:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if number == 5:
        settled = len(os.listdir("/proc/self/fd"))
until = time.monotonic() + 20  # what an interrupted call still used is closed by another thread
gc.collect()
while len(os.listdir("/proc/self/fd")) > settled and time.monotonic() < until:
    time.sleep(0.01)
    gc.collect()  # errors keep the frames that they passed, and these the memory of channels: also those of late threads
print(
    json.dumps(
        {
            "handled": handled,
            "ends": ends,
            "wrong": wrong[:10],
            "more descriptors": len(os.listdir("/proc/self/fd")) - settled,
        }
    )
)

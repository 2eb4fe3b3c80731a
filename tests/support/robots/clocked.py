"""Asks, waits, times out and tells after each step; its wall clock may be off, and may be set while it waits."""

import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import ObservationStale, RequestTimeout, ShmClient, SlotsExhausted
from tests.support.client_parts import in_loop

name, runtime_dir, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def ask(client: ShmClient) -> None:
    served = sum(client.infer({"do": "echo", "value": number}) == number for number in range(200))
    say({"served": served})


# This process was not there when the kernel last set its clock; the file system's is the kernel's.
(folder / "now").touch()
say({"off": time.time() - (folder / "now").stat().st_mtime})
with ShmClient(name, runtime_dir=runtime_dir, timeout=60, slots=3) as client:
    ask(client)
    held = client.submit({"do": "wait", "gate": str(folder / "held")})
    say("a request without a timeout worth mentioning waits")
    try:
        client.infer({"do": "echo", "value": 1}, timeout=0.7)
    except RequestTimeout as error:
        say({"timed out": type(error).__name__, "behind one that was held": not held.done()})
    try:
        asyncio.run(in_loop(client).infer({"do": "echo", "value": 1}, timeout=0.3))
    except RequestTimeout as error:
        say({"in an event loop": type(error).__name__})
    try:
        client.infer({"do": "echo", "value": 1}, timeout=0.2)
    except SlotsExhausted as error:
        say({"no slot": type(error).__name__})
    say({"held": held.result()["waited"]})
    try:
        client.infer({"do": "count"}, capture_time=time.monotonic() - 2, max_age=1)
    except ObservationStale as error:
        fresh = "runs" in client.infer({"do": "count"}, capture_time=time.monotonic() - 2, max_age=1000)
        say({"stale": type(error).__name__, "fresh": fresh})
    ask(client)
say("done")

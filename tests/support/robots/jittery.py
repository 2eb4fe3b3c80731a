"""Waits in every way while a thousand signals a second are handled; says how many there were and what came of the waits."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import RequestTimeout, ShmClient
from tests.support.client_parts import in_loop

name, runtime_dir, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
handled = 0
#: So many shall have been handled before each wait ends.
enough = [0]


def count(number: int, frame: object) -> None:
    global handled
    handled += 1
    if handled == enough[-1]:
        (folder / f"enough{len(enough)}").touch()


def gate(number: int) -> dict[str, object]:
    return {"do": "wait", "gate": str(folder / f"gate{number}")}


signal.signal(signal.SIGALRM, count)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
with ShmClient(name, runtime_dir=runtime_dir, timeout=60) as client:
    waited = []
    ways: list[Callable[[], Any]] = [
        lambda: client.infer(gate(0)),
        lambda: client.submit(gate(1)).result(),
        lambda: asyncio.run(in_loop(client).infer(gate(2))),
    ]
    for number, ask in enumerate(ways):
        enough.append(handled + 200)
        print(json.dumps(f"waits {number}"), flush=True)  # the test opens the gate when these have come
        waited.append([ask()["waited"], handled >= enough[-1]])
    held = client.submit(gate(3))
    began, before = time.monotonic(), handled
    try:
        client.infer({"do": "echo", "value": 1}, timeout=0.5)
        late = "answered"
    except RequestTimeout:
        late = "RequestTimeout"
    timed_out = [late, time.monotonic() - began >= 0.5, handled - before]
    (folder / "gate3").touch()
    held.result()
    right = sum(client.infer({"do": "echo", "value": number}) == number for number in range(3000))
    signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps({"waited": waited, "timed out": timed_out, "right": right, "handled": handled}))

"""Forks while requests and loans are out: a child tries everything, the parent must not notice; prints what either got."""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import ShmClient, ShmServeError
from shmserve.client.action_chunks import ActionChunks
from tests.support.client_parts import in_loop

name, runtime_dir, gate, leave = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
client = ShmClient(name, runtime_dir=runtime_dir, slots=8)


def answer(number: int) -> Any:
    return client.infer({"do": "echo", "value": number})


def heard(ask: Callable[[], Any]) -> str:
    """The error that it ends with, as type and text."""
    try:
        return f"answered {ask()!r:.60}"
    except (ShmServeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


answer(0)
held = client.submit({"do": "wait", "gate": str(gate)})  # the fork is in the middle of this one
settled = client.submit({"do": "echo", "value": "settled"})
later = client.submit({"do": "echo", "value": "later"})
loan = client.loan({"do": "echo", "value": np.arange(4)})
while not gate.with_suffix(".entered").exists():
    time.sleep(0.002)
stop = threading.Event()
other = ShmClient(name, runtime_dir=runtime_dir, timeout=60)
wrong: list[Any] = []
asked = 0


def keep_asking(thread: int) -> None:
    global asked
    while not stop.is_set():
        asked += 1
        if other.infer({"do": "echo", "value": (thread, asked)})[0] != thread:
            wrong.append(thread)


def write_to_loan() -> None:
    loan["value"][0] = 99


ways: dict[str, Callable[[], Any]] = {
    "infer": lambda: client.infer({"do": "count"}),
    "infer, lent": lambda: client.infer_loaned({"do": "count"}),
    "submit": lambda: client.submit({"do": "count"}),
    "in a loop": lambda: asyncio.run(in_loop(client).infer({"do": "count"})),
    "loan": lambda: client.loan({"do": "count"}),
    "reset": client.reset,
    "connect": client.connect,
    "with": client.__enter__,
    "check": lambda: client.check({"do": "count"}),
    "describe": client.describe,
    "result": held.result,
    "done": held.done,
    "cancel": later.cancel,
    "result later": lambda: later.result(0.1),
    "send": loan.send,
    "enter a loan": loan.__enter__,
    "write to a loan": write_to_loan,
    "a client that is busy": lambda: other.infer({"do": "count"}),
    "chunks": lambda: ActionChunks(client, steps=1, period=None, max_wait=5, fallback="raise").step({"do": "count"}),
    "its own": lambda: ShmClient(name, runtime_dir=runtime_dir).describe()["name"],
}


def try_everything(writing: int) -> None:
    try:
        found = {way: heard(ask) for way, ask in ways.items()}
        client.close()
        loan.__exit__(None, None, None)
        other.close()
        os.write(writing, json.dumps(found).encode())
    except BaseException:
        os.write(writing, json.dumps({"child": traceback.format_exc()}).encode())
        raise


def in_child() -> tuple[Any, int]:
    """What a forked child got, and its exit status."""
    reading, writing = os.pipe()
    if leave == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=try_everything, args=(writing,))
        child.start()
    elif (pid := os.fork()) == 0:
        stop.set()
        try_everything(writing)
        if leave == "_exit":
            os._exit(0)
        sys.exit(0)  # the whole way: exit functions, finalizers, the interpreter's end
    os.close(writing)
    said = b""
    while part := os.read(reading, 65536):
        said += part
    os.close(reading)
    if leave == "multiprocessing":
        child.join()
        status = child.exitcode
        assert status is not None
    else:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(said), status


threads = [threading.Thread(target=keep_asking, args=(thread,)) for thread in range(2)]
for thread in threads:
    thread.start()
children = [in_child() for _ in range(3)]
stop.set()
gate.touch()
for thread in threads:
    thread.join()

loan["value"][:] = [3, 1, 4, 1]
sent = loan.send()
print(
    json.dumps(
        {
            "children": children,
            "held": held.result()["waited"],
            "settled": settled.result(),
            "later": later.result(),
            "loan": sent.result().tolist(),
            "after": [answer(number) for number in range(5)],
            "busy": [asked > 0, wrong],
            # Requests of one channel count on: 1 first, 3 out, the loan, 5 after, this one; a new connection begins anew.
            "number": client.request({"do": "echo", "value": 5}).request_id,
        }
    )
)

"""Uses a client at each line of each of its own calls, as a signal handler or a finalizer does; says what became of both.

Or it interrupts the call at each line, as Ctrl-C does, and says whether the client is as good as before.
"""

import asyncio
import faulthandler
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import shmserve

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from shmserve.client import ShmClient, ShmServeError
from tests.support.client_parts import in_loop

name, runtime_dir, what, stride, offset = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
faulthandler.dump_traceback_later(75, exit=True)
#: The steps of a call; what only computes within them is left away.
FILES = ("/client/", "varlink_connection.py", "channel.py", "doorbell.py", "codec.py")


class Injection:
    """In its block, `act` runs once, in this thread, before the `number`-th line of the client that it executes."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number = number
        self.lines = 0
        self.where = ""
        self._act = act

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        path = frame.f_code.co_filename.removeprefix(ROOT)
        return self._line if path != frame.f_code.co_filename and any(file in path for file in FILES) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.number:
                sys.settrace(None)
                self._act()
        return self._line


class Interruption(Injection):
    """In its block, `act` runs once where Python may run a signal handler: as a function begins, or a built-in one ends."""

    def __enter__(self) -> None:
        sys.setprofile(self._note)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        path = frame.f_code.co_filename.removeprefix(ROOT)
        if frame.f_code.co_name == "<genexpr>":
            return  # Python ignores what is raised as a generator ends
        if event in ("call", "c_return") and path != frame.f_code.co_filename and any(file in path for file in FILES):
            self.lines += 1
            if self.lines == self.number:
                sys.setprofile(None)
                self.where = f"{path}:{frame.f_lineno}"
                self._act()


def echo(client: ShmClient, value: Any) -> Any:
    return client.infer({"do": "echo", "value": value})


def large(client: ShmClient) -> Any:
    return int(echo(client, np.full(300_000, 7))[-1])


def submit(client: ShmClient) -> Any:
    pendings = [client.submit({"do": "echo", "value": number}) for number in range(2)]
    return [pending.result() for pending in pendings]


def loan(client: ShmClient) -> Any:
    with client.loan({"do": "echo", "value": np.zeros(3)}) as observation:
        observation["value"][:] = 4
        pending = observation.send()
    return pending.result().tolist()


def lent(client: ShmClient) -> Any:
    with client.infer_loaned({"do": "echo", "value": np.ones(3)}) as found:
        value = found.tolist()
        found = None
    return value


def polled(client: ShmClient) -> Any:
    pending = client.submit({"do": "echo", "value": 5})
    while not pending.done():
        time.sleep(0.0001)
    return pending.result()


def withdrawn(client: ShmClient) -> Any:
    pending = client.submit({"do": "echo", "value": 5})
    pending.cancel()
    try:
        return pending.result()
    except ShmServeError as error:
        if type(error).__name__ != "RequestCancelled":
            raise
        return 5


def describe(client: ShmClient) -> Any:
    return client.describe()["device"]


def expected(client: ShmClient) -> Any:
    client.expect()
    return echo(client, 6)


def in_event_loop(client: ShmClient) -> Any:
    return asyncio.run(in_loop(client).infer({"do": "echo", "value": 8}))


ROOT = str(Path(shmserve.__file__).parents[1])
WAYS: dict[str, tuple[Callable[[ShmClient], Any], Any]] = {
    "plain": (lambda client: echo(client, 1), 1),
    "structured": (lambda client: echo(client, [1, {"a": 2.5}]), [1, {"a": 2.5}]),
    "large": (large, 7),
    "submit": (submit, [0, 1]),
    "loan": (loan, [4.0, 4.0, 4.0]),
    "lent": (lent, [1.0, 1.0, 1.0]),
    "polled": (polled, 5),
    "withdrawn": (withdrawn, 5),
    "reset": (lambda client: client.reset(), None),
    "describe": (describe, describe),
    "expected": (expected, 6),
    "in an event loop": (in_event_loop, 8),
}


def outcome(call: Callable[[], Any]) -> str:
    try:
        return repr(call())
    except ShmServeError as error:
        return type(error).__name__
    except BaseException as error:  # noqa: BLE001  shown by the test
        return f"untyped {type(error).__name__}: {error}"


def new_client(attached: bool) -> ShmClient:
    client = ShmClient(name, runtime_dir=runtime_dir, timeout=30)
    if attached:
        for _ in range(6):
            echo(client, 1)
    return client


class Neighbour:
    """Another thread that asks by the same client until that is closed."""

    def __init__(self, client: ShmClient) -> None:
        self.ended = ""
        self._stopped = False
        self._client = client
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopped:
            number += 1
            self.ended = outcome(lambda number=number: echo(self._client, ["neighbour", number]))  # type: ignore[misc]
            if self.ended != repr(["neighbour", number]):
                return
            time.sleep(0.001)  # the channel can grow only while nothing else is out
        self.ended = ""

    def end(self) -> str:
        self._stopped = True
        self._thread.join()
        return self.ended


def nested(client: ShmClient) -> Any:
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "close":
        return client.close()
    if what == "submit":
        return client.submit({"do": "echo", "value": "nested"}, timeout=20).result(20)
    if what == "reset":
        return client.reset()
    if what == "describe":
        return client.describe()["device"]
    return echo(client, "nested")


def all_of_it(client: ShmClient) -> Any:
    """Use every slot at once; return the answers, and the requests that are left in the client's table."""
    pendings = [client.submit({"do": "echo", "value": number}) for number in range(4)]
    return [pending.result() for pending in pendings], client._pipeline._table.in_flight


answers = {"close": "None", "submit": "'nested'", "infer": "'nested'", "reset": "None", "describe": "'cpu'"}
#: What the call may end with instead of its answer, and what may be heard inside it.
ALLOWED = {"close": ("ClientClosed",), "interrupt": ("untyped KeyboardInterrupt: ",)}.get(what, ())
ALLOWED_INSIDE = (answers.get(what),) if what == "close" else (answers.get(what), "ReentrantCall", "SlotsExhausted")
ends: Counter[str] = Counter()
wrong: list[str] = []


def interrupted(way: str, number: int, *, attached: bool) -> bool:
    """Whether the call has so many lines; notes what became of it, and of the one inside."""
    call, expected = WAYS[way]
    client = new_client(attached)
    neighbour = Neighbour(client) if number % 2 and attached else None
    inside: list[str] = []

    def act() -> None:
        if what == "interrupt":
            inside.append("")
            nested(client)
        inside.append(outcome(lambda: nested(client)))

    injection = (Interruption if what == "interrupt" else Injection)(number, act)
    with injection:
        found = outcome(lambda: call(client))
    where = f"{way}, {'attached' if attached else 'not attached'}, line {number} {injection.where}"
    if inside:
        ends[found if what == "close" else inside[0]] += 1
        if found != ("'cpu'" if expected is describe else repr(expected)) and found not in ALLOWED:
            wrong.append(f"{where}: {found}")
        if what != "interrupt" and inside[0] not in ALLOWED_INSIDE:
            wrong.append(f"{where}, inside: {inside[0]}")
        if what != "close" and (after := outcome(lambda: echo(client, "after"))) != "'after'":
            wrong.append(f"{where}, afterwards: {after}")
    if neighbour is not None and (ended := neighbour.end()) not in ("", *ALLOWED):
        wrong.append(f"{where}, the other thread: {ended}")
    if what == "interrupt" and (after := outcome(lambda: all_of_it(client))) != repr(([0, 1, 2, 3], {})):
        wrong.append(f"{where}, every slot: {after}")
    client.close()
    return bool(inside)


instants = 0
for way in WAYS:
    for attached in (True, False) if way in ("plain", "loan", "describe", "in an event loop") else (True,):
        number = 1 + offset
        while interrupted(way, number, attached=attached):
            instants += 1
            number += stride
# What an interrupted call still used is closed by another thread; errors keep the frames that they have passed.
gc.collect()
until = time.monotonic() + 20
while len(left := os.listdir("/proc/self/fd")) > 12 and time.monotonic() < until:
    time.sleep(0.01)
print(
    json.dumps({"instants": instants, "wrong": wrong[:10], "ends": ends, "descriptors": left if len(left) > 12 else []})
)

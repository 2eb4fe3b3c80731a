"""Interrupts itself (SIGALRM, raising KeyboardInterrupt) at a random instant of every call; says what was lost or mixed."""

import contextlib
import json
import os
import random
import signal
import sys
import threading
from typing import Any

import numpy as np

from shmserve.client import RequestTimeout, ServiceUnavailable, ShmClient, SlotsExhausted

name, runtime_dir, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
SLOTS = 3
chance = random.Random(seed)
inside = False


def interrupt(number: int, frame: object) -> None:
    if inside:
        raise KeyboardInterrupt


def ask(way: str, sent: dict[str, Any]) -> None:
    """One call, and a look at its answer; `inside` is true for as long as it may be interrupted."""
    global inside
    inside = True
    if way == "infer":
        found = client.infer(sent)
        inside = False
        check(sent, found)
    elif way == "lent":
        with client.infer_loaned(sent) as found:
            inside = False
            check(sent, found)
            found = None
    elif way == "loan":
        with client.loan({**sent, "x": np.zeros_like(sent["x"])}) as observation:
            observation["x"][:] = sent["x"]
            pending = observation.send()
        found = pending.result()
        inside = False
        check(sent, found)
    elif way == "submit":
        pendings = [client.submit(sent) for _ in range(2)]
        found = [pending.result() for pending in pendings]
        inside = False
        for one in found:
            check(sent, one)
    else:
        with contextlib.suppress(RequestTimeout, SlotsExhausted, ServiceUnavailable):
            client.infer(sent, timeout=0.0005)
        inside = False


def check(sent: dict[str, Any], found: dict[str, Any]) -> None:
    if found["tag"] != sent["tag"] or not np.array_equal(found["y"], sent["x"] * sent["k"]):
        wrong.append(f"{sent['tag']}: {found['tag']}")


wrong: list[str] = []
interrupts: dict[str, int] = dict.fromkeys(("infer", "lent", "loan", "submit", "late"), 0)
signal.signal(signal.SIGALRM, interrupt)
with ShmClient(name, runtime_dir=runtime_dir, timeout=60, slots=SLOTS) as client:
    # Descriptors and memory at the end are compared with those after everything has happened once.
    settled = 0
    for number in range(rounds):
        way = chance.choice(list(interrupts))
        # Some observations make the channel grow, so that its move is interrupted, too.
        size = chance.randrange(400) if chance.random() < 0.95 else chance.randrange(400_000)
        sent = {"tag": number, "k": 3, "x": np.arange(size)}
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.choice((2e-5, 1e-4, 5e-4)) * chance.random() * 2)
            try:
                ask(way, sent)
            finally:
                inside = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts[way] += 1
        if number == rounds // 2:
            settled = len(os.listdir("/proc/self/fd"))
    # No slot was lost: all of them can be out at a time.
    out = [client.submit({"tag": number, "k": 2, "x": np.arange(number)}, timeout=30) for number in range(SLOTS)]
    last = [pending.result()["tag"] for pending in out]
    in_flight = len(client._pipeline._table.in_flight)
    print(
        json.dumps(
            {
                "interrupts": interrupts,
                "wrong": wrong[:5],
                "last": last,
                "in_flight": in_flight,
                "threads": threading.active_count(),
                "more descriptors": len(os.listdir("/proc/self/fd")) - settled,
            }
        )
    )

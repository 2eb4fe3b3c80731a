"""Sends COUNT requests with data of its own, WINDOW of them at a time, and checks every answer."""

import json
import sys
from collections import deque
from typing import Any

import numpy as np

from shmserve.client import Pending, ShmClient

name, runtime_dir, robot, count, window = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
random = np.random.default_rng(robot)
wrong: list[str] = []
numbers: list[int] = []
out: deque[tuple[dict[str, Any], Pending]] = deque()


def collect() -> None:
    sent, pending = out.popleft()
    found = pending.result()
    numbers.append(pending.request_id)
    right = (
        found["tag"] == sent["tag"] and found["k"] == sent["k"] and np.array_equal(found["y"], sent["x"] * sent["k"])
    )
    if not right or pending.reply is None or pending.reply.request_id != pending.request_id:
        wrong.append(f"{sent['tag']} {sent['k']}: {found}")


with ShmClient(name, runtime_dir=runtime_dir, timeout=60, slots=window) as client:
    for number in range(count):
        # Shapes of its own, so that slots and schemas change hands all the time.
        x = random.integers(-1000, 1000, int(random.integers(1, 300)))
        sent = {"tag": f"{robot}/{number}", "k": int(random.integers(1, 1000)), "x": x}
        if len(out) == window:
            collect()
        out.append((sent, client.submit(sent)))
    while out:
        collect()
    late = client.late_replies

print(
    json.dumps(
        {
            "answers": len(numbers),
            "numbers": numbers == list(range(1, count + 1)),
            "wrong": wrong[:3],
            "late": late,
        }
    )
)

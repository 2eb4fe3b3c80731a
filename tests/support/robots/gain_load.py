"""Asks y = k * x without a pause, or at a pace, until SIGTERM, and checks each answer against the version that says it made it."""

import collections
import json
import signal
import sys
import time

import numpy as np

from shmserve.client import InferenceFailed, Reply, ShmClient

name, runtime_dir, robot = sys.argv[1:4]
k_of: dict[str, int] = json.loads(sys.argv[4])
pace_s = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0
stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

answers: collections.Counter[int] = collections.Counter()
wrong: list[str] = []
failed = attachments = number = last = 0
longest_ns, before_ns = 0, time.monotonic_ns()
# A daemon that was killed is back within seconds; a request waits for it.
with ShmClient(name, runtime_dir=runtime_dir, timeout=80, max_retries=2000, retry_delay=0.02) as client:
    while not stopped:
        number += 1
        x = np.arange(3) + number
        reply: Reply | None = None
        try:
            asked = client.request({"x": x, "robot": robot})
            reply, request_id = asked, asked.request_id
        except InferenceFailed as error:
            failed += 1
            assert error.request_id is not None
            request_id = error.request_id
        # Sequences count up by one; a new attachment begins anew.
        attachments += request_id == 1
        if request_id != last + 1 and request_id != 1:
            wrong.append(f"request {request_id} after {last}")
        last = request_id
        if reply is not None:
            found, k = reply.action, k_of.get(reply.model_version)
            if k is None or found["k"] != k or not np.array_equal(found["y"], x * k):
                wrong.append(f"{reply.model_version}: {found['k']}, {found['y'][:3]} for {x[:3]}")
            answers[found["k"]] += 1
        now_ns = time.monotonic_ns()
        longest_ns, before_ns = max(longest_ns, now_ns - before_ns), now_ns
        if pace_s:
            time.sleep(pace_s)
        if number == 20:
            print(json.dumps("busy"), flush=True)
    late = client.late_replies

print(
    json.dumps(
        {
            "asked": number,
            "answers": answers,
            "failed": failed,
            "wrong": wrong[:5],
            "late": late,
            "attachments": attachments,
            "longest_ms": round(longest_ns / 1e6, 3),
        }
    )
)

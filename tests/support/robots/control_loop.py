"""A 50 Hz loop with a client of its own, through whatever happens to the daemon, until SIGTERM; says what each beat got."""

import json
import signal
import sys
import time
from collections import Counter

import numpy as np

from shmserve.client import ShmClient, ShmServeError

PERIOD_S = 0.02
name, runtime_dir, max_retries = sys.argv[1], sys.argv[2], int(sys.argv[3])
stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

beats: list[str] = []  # "answered", "late" or the error's type, in their order
texts: Counter[str] = Counter()
wrong: list[str] = []
smooth = 0
with ShmClient(name, runtime_dir=runtime_dir, timeout=0.3, max_retries=max_retries, retry_delay=0.02) as client:
    due = time.monotonic()
    while not stopped:
        x = np.arange(len(beats) % 50)
        began = time.monotonic()
        try:
            found = client.infer({"tag": len(beats), "k": 2, "x": x}, repeatable=True)
            if found["tag"] != len(beats) or not np.array_equal(found["y"], x * 2):
                wrong.append(f"{len(beats)}: {found['tag']}")
            beats.append("answered" if time.monotonic() - began < 0.1 else "late")
        except ShmServeError as error:
            beats.append(type(error).__name__)
            texts[str(error)] += 1
        smooth = smooth + 1 if beats[-1] in ("answered", "late") else 0
        if smooth == 20:
            print(json.dumps("goes on"), flush=True)
        due = max(due + PERIOD_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
print(json.dumps({"beats": beats, "wrong": wrong, "texts": texts}))

"""Asks without end, through whatever happens to the daemon, until SIGTERM; then says how often an answer was wrong."""

import json
import signal
import sys

import numpy as np

from shmserve.client import ShmClient

name, runtime_dir = sys.argv[1:3]
stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
wrong = number = 0
with ShmClient(name, runtime_dir=runtime_dir, timeout=60, max_retries=1000, retry_delay=0.05) as client:
    while not stopped:
        found = client.infer({"tag": number, "k": 2, "x": np.arange(number % 100)})
        wrong += found["tag"] != number or found["y"].size != number % 100
        number += 1
        if number == 20:
            print(json.dumps("busy"), flush=True)
print(json.dumps({"wrong": wrong}))

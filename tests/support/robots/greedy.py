"""Keeps WINDOW requests of five milliseconds each out, until it is killed: longer than a busy machine takes to wake a process."""

import json
import sys
from collections import deque

from shmserve.client import ShmClient

name, runtime_dir, window = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ShmClient(name, runtime_dir=runtime_dir, timeout=60, slots=window) as client:
    print(json.dumps("attached"), flush=True)
    out = deque(client.submit({"do": "sleep", "s": 0.005}) for _ in range(window))
    while True:
        out.popleft().result()
        out.append(client.submit({"do": "sleep", "s": 0.005}))

"""Asks again and again, large and pipelined, until it is killed."""

import json
import sys

import numpy as np

from shmserve.client import ShmClient

name, runtime_dir = sys.argv[1:3]
with ShmClient(name, runtime_dir=runtime_dir, timeout=60, slots=4) as client:
    number = 0
    while True:
        pendings = [client.submit({"tag": number, "k": 2, "x": np.arange(200_000)}) for _ in range(4)]
        for pending in pendings:
            pending.result()
        number += 1
        if number == 3:
            print(json.dumps("busy"), flush=True)

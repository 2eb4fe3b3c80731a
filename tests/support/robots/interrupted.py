"""Asks and asks while its parent interrupts it (SIGINT) inside the client, until a file appears; then says how it went."""

import json
import os
import signal
import sys
import time

import numpy as np

from shmserve.client import ShmClient

name, runtime_dir, pause_s, enough = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
interrupts = answers = wrong = number = 0
inside = False


def interrupt(number: int, frame: object) -> None:
    if inside:
        raise KeyboardInterrupt


signal.signal(signal.SIGINT, interrupt)
print(json.dumps("up"), flush=True)
with ShmClient(name, runtime_dir=runtime_dir, timeout=30) as client:
    while not os.path.exists(enough):
        number += 1
        x = np.arange(number % 500)
        try:
            inside = True
            found = client.infer({"tag": number, "k": 3, "x": x})
            inside = False
        except KeyboardInterrupt:
            inside = False
            interrupts += 1
            continue
        answers += 1
        wrong += found["tag"] != number or not np.array_equal(found["y"], x * 3)
        time.sleep(pause_s)
    last = client.infer({"tag": "last", "k": 2, "x": np.arange(3)})
print(json.dumps({"interrupts": interrupts, "wrong": wrong, "last": last["y"].tolist()}), flush=True)

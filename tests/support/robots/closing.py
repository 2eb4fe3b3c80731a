"""Closes clients under the threads that use them, at random moments, again and again."""

import json
import random
import sys
import threading
import time
from collections import Counter

import numpy as np

from shmserve.client import ClientClosed, ShmClient

name, runtime_dir, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
ends: Counter[str] = Counter()
wrong: list[str] = []
answers = 0


def work(client: ShmClient, thread: int) -> None:
    global answers
    chance = random.Random(thread)
    try:
        while True:
            x = np.arange(chance.choice((3, 300, 30_000)))
            if chance.random() < 0.3:
                with client.loan({"tag": thread, "k": 2, "x": x}) as observation:
                    found = observation.send().result()
            else:
                found = client.infer({"tag": thread, "k": 2, "x": x})
            answers += 1
            if found["tag"] != thread or not np.array_equal(found["y"], x * 2):
                wrong.append(f"{thread}: {found}")
    except ClientClosed:
        ends["ClientClosed"] += 1
    except BaseException as error:  # noqa: BLE001  counted by the test
        ends[f"{type(error).__name__}: {error}"] += 1


chance = random.Random(0)
for _ in range(rounds):
    client = ShmClient(name, runtime_dir=runtime_dir, timeout=30, slots=3)
    threads = [threading.Thread(target=work, args=(client, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(chance.random() * 0.02)
    client.close()
    for thread in threads:
        thread.join()

print(json.dumps({"rounds": rounds, "answers": answers, "wrong": wrong, "ends": ends}))

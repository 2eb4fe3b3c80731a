"""Forks with a client in hand: the child must be refused, the parent unharmed, and no lock may stay behind."""

import contextlib
import json
import os
import sys
import threading
import time

from shmserve.client import ClientForked, ShmClient, ShmServeError

name, runtime_dir = sys.argv[1:3]


def in_child(client: ShmClient) -> str:
    """What a forked child gets from the client, and from one of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.infer({"x": 1})
            found = "answered"
        except ClientForked as error:
            client.close()
            with ShmClient(name, runtime_dir=runtime_dir) as own:
                found = f"{error} | {own.infer({'x': 'own'})['x']}"
        os.write(writing, found.encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while part := os.read(reading, 4096):
        said += part
    os.close(reading)
    os.waitpid(child, 0)
    return said.decode()


client = ShmClient(name, runtime_dir=runtime_dir)
client.infer({"x": 0})
plain = in_child(client)
after = [client.infer({"x": number})["x"] for number in range(5)]

# Another thread is inside the client at the moment of the fork, and keeps its lock for a while.
absent = ShmClient("absent", runtime_dir=runtime_dir, timeout=60, max_retries=60, retry_delay=0.5)


def wait_for_nobody() -> None:
    with contextlib.suppress(ShmServeError):
        absent.infer({"x": 1})


threading.Thread(target=wait_for_nobody, daemon=True).start()
time.sleep(0.2)
locked = in_child(absent)
print(json.dumps({"plain": plain, "after": after, "locked": locked}))
sys.stdout.flush()
os._exit(0)

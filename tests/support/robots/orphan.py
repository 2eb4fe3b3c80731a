"""Forks a child that lives on with a copy of the client, and waits to be killed; prints the child's process id."""

import json
import os
import sys
import time

from shmserve.client import ShmClient

client = ShmClient(sys.argv[1], runtime_dir=sys.argv[2])
pending = client.submit({"do": "echo", "value": 1})
del client  # the request that is out keeps its channel
child = os.fork()
if child == 0:
    time.sleep(120)
    os._exit(0)
print(json.dumps({"child": child, "answer": pending.result()}), flush=True)
time.sleep(120)

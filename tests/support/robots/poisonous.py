"""Kills the engine with every other request, until it is evicted; then says how its requests ended.

With an argument it kills one engine only, and says how a request after that ended.
"""

import json
import sys

from shmserve.client import ShmClient, ShmServeError

name, runtime_dir, *once = sys.argv[1:]
ended: list[str] = []
# Sent away, it is not to try again.
client = ShmClient(name, runtime_dir=runtime_dir, timeout=100, max_retries=0)
while len(ended) < (2 if once else 20) and "ClientEvicted" not in ended:
    try:
        client.infer({"do": "exit"} if len(ended) % 2 == 0 else {"do": "echo", "value": 1})
        ended.append("answered")
    except ShmServeError as error:
        ended.append(type(error).__name__)
client.close()
print(json.dumps(ended))

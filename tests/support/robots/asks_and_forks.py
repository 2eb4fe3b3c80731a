"""Asks through the one function, forks, and asks on both sides; prints how often each was answered rightly."""

import json
import os
import sys

from shmserve.client import send_inference_request

name, os.environ["SHMSERVE_RUNTIME_DIR"] = sys.argv[1:3]
COUNT = 20


def rightly_answered(side: str) -> int:
    values = [f"{side} {number}" for number in range(COUNT)]
    return sum(send_inference_request({"do": "echo", "value": value}, name)["output"] == value for value in values)


before = rightly_answered("before")
child = os.fork()
if child == 0:
    os._exit(rightly_answered("child"))
parent = rightly_answered("parent")
in_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps({"before": before, "parent": parent, "child": in_child}))

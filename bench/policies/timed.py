"""A policy that takes as long as the observation's `service_us` says, and answers with its `number`."""

import time
from typing import Any


class Policy:
    """Keeps the processor busy, as a model on the CPU does."""

    def __init__(self, path: object = None, device: object = None) -> None:
        """Takes what a model package's class is given, and needs neither."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        until = time.perf_counter_ns() + observation["service_us"] * 1000
        while time.perf_counter_ns() < until:
            pass
        return {"number": observation["number"]}

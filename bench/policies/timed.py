"""Policy that runs for the observation's `service_us` and returns its `number`."""

import time
from typing import Any


class Policy:
    """Policy that keeps the processor busy, as a model on the CPU does."""

    def __init__(self, path: object = None, device: object = None) -> None:
        """Accept the arguments of a model package's class, and use neither."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        until = time.perf_counter_ns() + observation["service_us"] * 1000
        while time.perf_counter_ns() < until:
            pass
        return {"number": observation["number"]}

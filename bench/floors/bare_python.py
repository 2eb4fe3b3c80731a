"""Floor in Python: the same exchange without a server, the limit of a data path in Python on this machine.

    python -m bench.floors.bare_python WORKLOAD COPIES SECONDS >ROUND_TRIPS

One client and one server share memory with a fixed layout; one word names the published request, one the answered
request, and each side polls the other's word without ever sleeping. No leases, no deadlines, no validation, no
statistics, no fence (x86). With COPIES 2 the server copies the observation before it calls the policy. The output is
that of floor.c.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers.peer import end_with_parent
from bench.peers.policy import ACTIONS_SHAPE, Policy
from bench.workloads import Workload, workload

LINE = 64
WARM_UP = 50
STOP = 1 << 62

Array = npt.NDArray[Any]


class Shared:
    """Memory for one observation and one reply, with the same layout in both processes."""

    def __init__(self, observation: dict[str, Any]) -> None:
        self._places: list[tuple[Array, int]] = []
        self.bytes = 0
        _walk(observation, self._place)
        self._memory = mmap.mmap(-1, self.bytes + 16 * LINE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x8000)
        words = memoryview(self._memory).cast("Q")
        self.asked, self.answered = words[:1], words[8:9]
        self.check = words[16:17]
        self.actions = np.frombuffer(self._memory, np.float32, np.prod(ACTIONS_SHAPE), 3 * LINE).reshape(ACTIONS_SHAPE)
        self.payload = np.frombuffer(self._memory, np.uint8, self.bytes, 16 * LINE)

    def _place(self, leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            self._places.append((leaf, self.bytes))
            self.bytes += -(-leaf.nbytes // LINE) * LINE
        return leaf

    def arrays(self) -> list[tuple[Array, Array]]:
        """Pair the caller's arrays with their places in the shared memory."""
        return [(array, _view(self.payload, array, start)) for array, start in self._places]

    def tree(self, observation: dict[str, Any], payload: Array) -> Any:
        """Build the observation with arrays in `payload`."""
        views = iter([_view(payload, array, start) for array, start in self._places])
        return _walk(observation, lambda leaf: next(views) if isinstance(leaf, np.ndarray) else leaf)


def _view(payload: Array, array: Array, start: int) -> Array:
    return payload[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


def _walk(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _walk(value, change) for key, value in tree.items()}
    return change(tree)


def serve(shared: Shared, observation: dict[str, Any], copies: int) -> None:
    aligned = np.empty(shared.bytes + LINE, np.uint8)
    own = aligned[-aligned.ctypes.data % LINE :][: shared.bytes]
    own[:] = 0
    tree = shared.tree(observation, own if copies == 2 else shared.payload)
    policy = Policy()
    asked, answered, check, actions = shared.asked, shared.answered, shared.check, shared.actions
    request = 0
    while True:
        request += 1
        while asked[0] < request:
            pass
        if asked[0] == STOP:
            return
        if copies == 2:
            np.copyto(own, shared.payload)
        reply = policy.infer(tree)
        np.copyto(actions, reply["actions"])
        check[0] = reply["check"]
        answered[0] = request


def ask(shared: Shared, asked_of: Workload, seconds: float) -> tuple[int, list[int]]:
    """Return this process's CPU time and the round trips, in nanoseconds; raise WrongReply."""
    arrays = shared.arrays()
    asked, answered, check, actions = shared.asked, shared.answered, shared.check, shared.actions
    took: list[int] = []
    request, end, processor = 0, sys.maxsize, 0
    while time.monotonic_ns() < end:
        request += 1
        if request == WARM_UP:
            end = time.monotonic_ns() + int(seconds * 1e9)
            processor = time.process_time_ns()
        asked_of.stamp(request)
        start = time.monotonic_ns()
        for array, place in arrays:
            np.copyto(place, array)
        asked[0] = request
        while answered[0] != request:
            pass
        reply = {"actions": actions.copy(), "check": check[0]}
        took.append(time.monotonic_ns() - start)
        asked_of.verify(reply, request)
    processor = time.process_time_ns() - processor
    asked[0] = STOP
    return processor, took[WARM_UP:] or took


def main(name: str, copies: int, seconds: float) -> None:
    asked_of = workload(name)
    shared = Shared(asked_of.observation)
    if not (server := os.fork()):
        end_with_parent()
        serve(shared, asked_of.observation, copies)
        os._exit(0)
    processor, took = ask(shared, asked_of, seconds)
    usage = os.wait4(server, 0)[2]
    server_ns = int((usage.ru_utime + usage.ru_stime) * 1e9)
    sys.stdout.buffer.write(np.array([processor, server_ns, 0, *took], np.int64).tobytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

"""Client process that keeps a given number of requests in flight."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers.asking import wait_until
from bench.peers.peer import end_with_parent
from bench.service import Service

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answered:
    """Requests that were answered in time, in order, with the times of the caller's clock."""

    done_ns: npt.NDArray[np.int64]
    queued_us: npt.NDArray[np.float64]
    infer_us: npt.NDArray[np.float64]
    version: list[str]
    failed: list[str]  # Outcomes of requests without a correct reply.

    def __len__(self) -> int:
        return len(self.done_ns)


class Load:
    """Load that sends `observation` with an increasing `number`, which the reply must return."""

    def __init__(self, service: Service, observation: dict[str, Any], *, in_flight: int = 1) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = (str(service.runtime_dir), observation, in_flight, theirs)
        self._process = spawn.Process(target=_run, args=arguments)
        self._process.start()
        theirs.close()

    def ready(self) -> Load:
        """Wait until its first requests are answered."""
        self._receive(TIMEOUT_S)
        return self

    def begin(self, begin_ns: int, seconds: float) -> None:
        """Send requests from then on, for this long; 0 seconds: until `halt`."""
        self._pipe.send((begin_ns, seconds))

    def halt(self) -> None:
        """End a load that has no duration."""
        self._pipe.send(None)

    def end(self) -> Answered:
        answered: Answered = self._receive(TIMEOUT_S)
        return answered

    def close(self) -> None:
        self._pipe.close()
        self._process.join(TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _receive(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"a client of the benchmark said nothing for {timeout_s:.0f} s")
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise ConnectionError(f"a client of the benchmark failed: {answer}")
        return answer


def _run(runtime_dir: str, observation: dict[str, Any], in_flight: int, pipe: Connection) -> None:
    from shmserve.client import ShmClient

    end_with_parent()
    try:
        with ShmClient(runtime_dir=runtime_dir, timeout=60.0, slots=max(4, in_flight)) as client:
            asking = _Asking(client, observation, in_flight)
            asking.until(time.monotonic_ns() + 50_000_000, None)
            pipe.send(True)
            while True:
                begin_ns, seconds = pipe.recv()
                wait_until(begin_ns)
                end_ns = begin_ns + int(seconds * 1e9) if seconds else None
                pipe.send(asking.until(end_ns, pipe))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  the benchmark raises it
        pipe.send(f"{type(error).__name__}: {error}")


class _Asking:
    def __init__(self, client: Any, observation: dict[str, Any], in_flight: int) -> None:
        self._client = client
        self._observation = observation
        self._in_flight = in_flight
        self._number = 0

    def until(self, end_ns: int | None, pipe: Connection | None) -> Answered:
        """Keep the requests in flight until then, or until the pipe is readable; wait for the remaining ones."""
        out: deque[tuple[int, Any]] = deque()
        done, queued, infer, version, failed = [], [], [], [], []
        while time.monotonic_ns() < end_ns if end_ns else not (pipe and pipe.poll()):
            while len(out) < self._in_flight:
                self._number += 1
                self._observation["number"] = self._number
                out.append((self._number, self._client.submit(self._observation)))
            number, pending = out.popleft()
            try:
                answer = pending.result()["number"]
                if answer != number:
                    failed.append(f"request {number} got the answer to {answer}")
            except Exception as error:  # noqa: BLE001  some benchmarks count the failures
                failed.append(f"{type(error).__name__}: {error}")
                continue
            done.append(time.monotonic_ns())
            reply = pending.reply
            queued.append(reply.queued_us)
            infer.append(reply.infer_us)
            version.append(reply.model_version)
        for _, pending in out:
            pending.result()
        if end_ns is None and pipe:
            pipe.recv()
        return Answered(np.array(done, np.int64), np.array(queued), np.array(infer), version, failed)

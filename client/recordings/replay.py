"""Replay of a recording on a service, in order, and comparison of the replies."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from shmserve.client import ShmClient
from shmserve.errors import ServiceUnavailable, ShmServeError
from shmserve.shortened import shortened

from .comparison import Comparison
from .recording import RecordedRequest

#: Clients that are kept open; the recording's latest leases.
_CLIENTS = 32
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Replay:
    """Service to send to, and the tolerance for its replies."""

    name: str
    runtime_dir: str | os.PathLike[str] | None
    atol: float
    rtol: float
    timeout_s: float = 60.0
    #: Send even requests that were rejected or killed an engine; only for a service without other clients.
    everything: bool = False
    #: With the recording's own gaps between the requests; without, the next as soon as one is answered.
    paced: bool = False

    def run(self, requests: Iterable[RecordedRequest], progress: Callable[[int], None]) -> dict[str, Any]:
        """Send the requests; return the result as `replay --json` prints it. Raises ServiceUnavailable."""
        comparison = Comparison(self.atol, self.rtol)
        errors: Counter[str] = Counter()
        examples: dict[str, str] = {}
        rows: list[tuple[float, float, float, float, float]] = []
        asked = compared = skipped = 0
        versions: set[str] = set()
        with _Clients(self) as clients:
            began_s = time.monotonic()
            first_s: float | None = None
            for request in requests:
                facts = request.facts
                if not self.everything and facts.status not in ("ok", "failed"):
                    skipped += 1
                    continue
                if self.paced:
                    first_s = facts.at_s if first_s is None else first_s
                    time.sleep(max(0.0, began_s + facts.at_s - first_s - time.monotonic()))
                client = clients.of(facts.lease)
                asked += 1
                try:
                    if facts.kind == "reset":
                        client.reset()
                        continue
                    reply = client.request(request.observation)
                except ServiceUnavailable:
                    raise
                except ShmServeError as error:
                    if facts.status != "ok":
                        continue  # as it was
                    errors[type(error).__name__] += 1
                    examples.setdefault(type(error).__name__, shortened(f"request {facts.number}: {error}", 500))
                    continue
                finally:
                    progress(asked)
                timing = reply.timing
                versions.add(reply.model_version)
                if facts.status == "ok":
                    compared += 1
                    comparison.add(facts.number, request.action, reply.action)
                    service_us = timing.queued_us + timing.staged_us + timing.infer_us + timing.copied_us
                    was_us, was_infer_us = facts.service_us, facts.infer_us
                    rows.append((was_us or 0.0, was_infer_us or 0.0, service_us, timing.infer_us, timing.round_trip_us))
        columns = np.array(rows, np.float64).reshape(-1, 5).T
        names = ("recorded_service", "recorded_infer", "service", "infer", "round_trip")
        return {
            "requests": asked,
            "skipped": skipped,
            "compared": compared,
            "errors": dict(errors),
            "error_examples": examples,
            "versions": sorted(versions),
            "atol": self.atol,
            "rtol": self.rtol,
            "fields": {name: asdict(found) for name, found in comparison.fields.items()},
            "latency_us": {name: _summary(values) for name, values in zip(names, columns, strict=True)},
            "same": compared > 0 and not errors and not comparison.differ,
        }


def _summary(values: Any) -> dict[str, float] | None:
    if not values.size:
        return None
    found = {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in _PERCENTILES}
    return {**found, "max": round(float(values.max()), 2)}


@final
class _Clients:
    """A client for each lease of the recording, so that a policy that remembers its clients sees the same ones."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._open: OrderedDict[int, ShmClient] = OrderedDict()

    def of(self, lease: int) -> ShmClient:
        client = self._open.get(lease)
        if client is None:
            if len(self._open) >= _CLIENTS:
                self._open.popitem(last=False)[1].close()
            replay = self._replay
            # The recording's own actions say what fits; a service that refuses one says so in its answer.
            client = self._open[lease] = ShmClient(
                replay.name,
                runtime_dir=replay.runtime_dir,
                timeout=replay.timeout_s,
                max_retries=0,
                check_contract=False,
            )
        self._open.move_to_end(lease)
        return client

    def __enter__(self) -> _Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._open.values():
            client.close()

"""Pause of clients during an update: `python -m bench.scale.update_pause`.

`--seconds 200` is a thousand updates.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.service import POLICIES, Service
from shmserve.client.cli.connection import AdminConnection

from .figure import Figure, main
from .load import Answered, Load

TITLE = "Replacing the model under load"
CLIENTS, SERVICE_US = 4, 200
SWAPS_PER_S = 5


def measure(seconds: float) -> list[Figure]:
    """Measure saturating clients while two models replace each other.

    The first change starts an engine; the later ones use the other model's warm standby.
    """
    observation = {"service_us": SERVICE_US, "number": 0}
    with ExitStack() as cleanup:
        service = cleanup.enter_context(Service(POLICIES / "timed.py"))
        packages = [service.package(name, POLICIES / "timed.py") for name in ("other", "another")]
        loads = [Load(service, observation) for _ in range(CLIENTS)]
        for load in loads:
            cleanup.callback(load.close)
        for load in loads:
            load.ready().begin(time.monotonic_ns(), 0)
        updates = 2 + max(2, round(seconds * SWAPS_PER_S))
        said_ms = []
        for number in range(updates):
            said_ms.append(_update(service, packages[number % 2]))
            time.sleep(0.05)
        for load in loads:
            load.halt()
        answered = [load.end() for load in loads]
    failed = [text for each in answered for text in each.failed]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed during updates, the first with: {failed[0]}")
    pauses = np.concatenate([update_gaps_ms(each) for each in answered])
    if len(pauses) != updates * CLIENTS:
        raise RuntimeError(f"{updates} updates, but {CLIENTS} clients saw {len(pauses)} changes of the version")
    usual = np.concatenate([np.diff(each.done_ns) / 1e6 for each in answered])
    seen = [
        Figure(
            name,
            f"between the old model's last reply to a client and the new one's first, {which} of {len(pauses):,}",
            float(np.percentile(pauses, percentile)),
            "ms",
            float(np.percentile(usual, percentile)),
            "between any two replies",
        )
        for name, which, percentile in (
            ("p50_ms", "p50", 50),
            ("p99_ms", "p99", 99),
            ("longest_ms", "the longest", 100),
        )
    ]
    return [
        *seen,
        Figure("not_taken_p50_ms", "no engine took requests, p50, by the daemon", float(np.median(said_ms)), "ms"),
        Figure("not_taken_longest_ms", f"the longest of {updates:,} updates", float(np.max(said_ms)), "ms"),
        Figure("failed", f"requests that failed, of {sum(map(len, answered)):,}", float(len(failed)), ""),
    ]


def update_gaps_ms(answered: Answered) -> npt.NDArray[np.float64]:
    """Return the time without a reply of this client around each change of the version.

    >>> milliseconds = np.array([0, 1, 4, 5]) * 1_000_000
    >>> replies = Answered(milliseconds, np.zeros(4), np.zeros(4), ["old", "old", "new", "new"], [])
    >>> update_gaps_ms(replies).tolist()
    [3.0]
    """
    versions = np.array(answered.version)
    gaps: npt.NDArray[np.float64] = np.diff(answered.done_ns)[versions[1:] != versions[:-1]] / 1e6
    return gaps


def _update(service: Service, package: Path) -> float:
    """Return the milliseconds for which no engine took requests.

    Without the command, whose interpreter would take a processor from the clients while it starts.
    """
    descriptor = os.open(package, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with AdminConnection("default", service.runtime_dir) as connection:
            for reply in connection.call_more("UpdateModel", {"name": package.name}, fd=descriptor):
                if reply["result"] is not None:
                    if not reply["result"]["changed"]:
                        raise RuntimeError(f"{package.name} was served already")
                    return float(reply["result"]["pause_ms"])
    finally:
        os.close(descriptor)
    raise RuntimeError(f"the update to {package.name} came to no end\n{service.log}")


if __name__ == "__main__":
    main(TITLE, measure)

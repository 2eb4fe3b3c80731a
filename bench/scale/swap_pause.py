"""How long robots wait when the model is replaced under them: `python -m bench.scale.swap_pause`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.service import POLICIES, Service

from .figure import Figure, main
from .load import Answered, Load

TITLE = "Replacing the model under load"
CLIENTS, SERVICE_US = 2, 200
SWAPS_PER_S = 5
TIMEOUT_S = 120.0


def measure(seconds: float) -> list[Figure]:
    """Clients never stop asking while two models replace each other.

    The first change starts an engine; the later ones find the other model's engine still warm.
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
        swaps = 2 + max(2, round(seconds * SWAPS_PER_S))
        for swap in range(swaps):
            _update(service, packages[swap % 2])
            time.sleep(0.05)
        for load in loads:
            load.halt()
        answered = [load.end() for load in loads]
    failed = [text for each in answered for text in each.failed]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed during updates, the first with: {failed[0]}")
    pauses = np.concatenate([swap_gaps_ms(each) for each in answered])
    if len(pauses) != swaps * CLIENTS:
        raise RuntimeError(f"{swaps} updates, but {CLIENTS} clients saw {len(pauses)} changes of the version")
    usual = np.concatenate([np.diff(each.done_ns) / 1e6 for each in answered])
    return [
        Figure(
            f"p{percentile}_ms",
            f"between the old model's last reply to a client and the new one's first, p{percentile} of {len(pauses)}",
            float(np.percentile(pauses, percentile)),
            "ms",
            float(np.percentile(usual, percentile)),
            "between any two replies",
        )
        for percentile in (50, 99)
    ] + [Figure("failed", f"requests that failed, of {sum(map(len, answered)):,}", float(len(failed)), "")]


def swap_gaps_ms(answered: Answered) -> npt.NDArray[np.float64]:
    """How long this client had no reply around each change of the version.

    >>> milliseconds = np.array([0, 1, 4, 5]) * 1_000_000
    >>> replies = Answered(milliseconds, np.zeros(4), np.zeros(4), ["old", "old", "new", "new"], [])
    >>> swap_gaps_ms(replies).tolist()
    [3.0]
    """
    versions = np.array(answered.version)
    gaps: npt.NDArray[np.float64] = np.diff(answered.done_ns)[versions[1:] != versions[:-1]] / 1e6
    return gaps


def _update(service: Service, package: Path) -> None:
    command = service.admin("update-model", str(package))
    _, error = command.communicate(timeout=TIMEOUT_S)
    if command.returncode:
        raise RuntimeError(f"shmserve-admin update-model {package.name}: {error.decode().strip()}\n{service.log}")


if __name__ == "__main__":
    main(TITLE, measure)

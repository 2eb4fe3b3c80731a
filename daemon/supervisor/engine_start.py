"""Start of an engine: its order to load a model, and the wait until it is ready or has failed.

A process that was stopped (SIGSTOP) makes no progress and does not end. It is noticed by its state, because a process that
imports or loads may be silent for minutes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from ..ipc.messages import Accepted, Failed, Load, Ready
from .deployment import EngineStartError
from .engine_process import EngineEnded, EngineProcess, exit_reason

#: A spare engine that is ready has the order to load a model at once.
ACCEPT_S = 3.0
#: Between two looks at the process's state, and the number of looks that find it stopped before it is given up.
_LOOK_S = 0.25
_STOPPED_LOOKS = 12


class EngineUnusable(EngineStartError):
    """The process itself ended or does not run, so that the model is not at fault."""


async def load_model(engine: EngineProcess, load: Load, *, accept_s: float | None, load_s: float) -> Ready | Failed:
    """Send the order to load a model; return the engine's answer.

    `accept_s`: time in seconds until the engine has the order, or None; `load_s`: until it is ready. Raises EngineUnusable
    if the process ended before it had the order, or does not run, and EngineStartError if it ended or was too slow later.
    """
    accepted, ready, failed = engine.expect(Accepted), engine.expect(Ready), engine.expect(Failed)
    engine.send(load)
    if accept_s is not None:
        await asyncio.wait((accepted,), timeout=accept_s)
        if not accepted.done():
            raise EngineUnusable("start", "TimeoutError", f"it did not respond within {accept_s:g} s")
    done = await _first_of(engine, ready, failed, limit_s=load_s)
    if done is None:
        message = f"not ready after load_s = {load_s:g} s; if it needs longer, raise load_s"
        raise EngineStartError(engine.stage, "TimeoutError", message)
    try:
        answer: Ready | Failed = done.result()
    except EngineEnded as ended:
        reason = f"{exit_reason(ended.status)}; its output is in the daemon's log"
        kind = EngineUnusable if accepted.exception() is not None else EngineStartError
        raise kind(engine.stage, "the engine died", reason) from ended
    return answer


async def _first_of(engine: EngineProcess, *futures: asyncio.Future[Any], limit_s: float) -> asyncio.Future[Any] | None:
    """Return the first future that is done, or None after `limit_s`; raise EngineUnusable if the process is stopped.

    The looks are counted, not their time: a supervisor that was itself stopped made none.
    """
    until_s = time.monotonic() + limit_s
    stopped = 0
    while True:
        left_s = until_s - time.monotonic()
        done: set[asyncio.Future[Any]]
        done, _ = await asyncio.wait(
            futures, timeout=max(0.0, min(left_s, _LOOK_S)), return_when=asyncio.FIRST_COMPLETED
        )
        for future in done:
            return future
        if left_s <= _LOOK_S:
            return None
        stopped = stopped + 1 if is_stopped(engine.pid) else 0
        if stopped == _STOPPED_LOOKS:
            reason = f"it was stopped (SIGSTOP) and did not continue within {_STOPPED_LOOKS * _LOOK_S:g} s"
            raise EngineUnusable(engine.stage, "the engine does not run", reason)


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal; one under a debugger, or that has ended, was not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"

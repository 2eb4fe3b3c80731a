"""What an operator may do about a service that is not well."""

from __future__ import annotations

from typing import Any

#: An engine looks around more often than that, unless it has a request in hand.
_QUIET_S = 5.0


def advice(status: dict[str, Any]) -> str | None:
    """One sentence, or None where nothing is to be done.

    >>> advice({"state": "ready", "engine": None, "logs": "tail /log"}) is None
    True
    >>> advice({"state": "failed", "engine": None, "logs": "tail /log"})
    'the log says why (tail /log); once that is put right: shmserve-admin update-model PATH, or start it again'
    """
    state, engine, logs = status["state"], status["engine"], status["logs"]
    beat = engine["heartbeat_age_s"] if engine is not None else None
    if state == "failed":
        return f"the log says why ({logs}); once that is put right: shmserve-admin update-model PATH, or start it again"
    if state == "draining":
        return "it answers what was sent and ends; robots wait for the next one"
    if beat is not None and beat > _QUIET_S:
        return (
            f"the engine has not moved for {beat:.0f} s: a long request, or it is stuck and replaced after heartbeat_timeout_s "
            "(shmserve-admin config)"
        )
    if state in ("loading", "warming") and engine is not None and engine["restarts"]:
        return f"engines died and another one loads: the log says of what ({logs})"
    return None

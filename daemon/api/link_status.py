"""Status and metrics of a link to a model on another machine."""

from __future__ import annotations

from typing import Any

from ..supervisor import ServiceStatus

#: Counters of a link, in the order in which they are printed: how the remote model answered each request.
REMOTE_COUNTERS = ("ok", "failed", "stale", "late", "down", "busy", "open", "mismatch")


def is_link(status: ServiceStatus) -> bool:
    """Return whether the served package is a link to a model on another machine."""
    return status.model is not None and status.model.get("remote") is not None


def remote_json(status: ServiceStatus) -> dict[str, int]:
    """Return how the remote model answered the requests of this run, and how often the answering model changed."""
    counts = {name: status.counters[f"remote_{name}"] for name in REMOTE_COUNTERS}
    return {**counts, "switches": status.counters["remote_switches"]}


def link_problem(model: dict[str, Any] | None) -> list[str]:
    """Return why the remote model of a link is not asked, if it is not."""
    remote = None if model is None else model.get("remote")
    if remote is None or remote["reason"] is None:
        return []
    return [f"the remote model {remote['application']} is not asked, {remote['source']} answers: {remote['reason']}"]

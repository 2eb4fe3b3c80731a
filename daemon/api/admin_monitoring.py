"""Answers the part of io.shmserve.Admin that programs look at: clients in pages, latencies as counted, metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from shmserve.varlink import Reply

from ..ipc.stats import BUCKET_BOUNDS_US, Stage
from ..supervisor.supervisor import Supervisor
from ..varlink.interface import Answer, Connection, Method

DESCRIPTION = """\

# Every client; must be called with 'more', because a message has room for some hundred.
method Clients() -> (clients: []object)

# How many requests took how long in each stage, over this run of the daemon. Bucket i counts those from
# bounds_us[i] to bounds_us[i + 1]; it only grows, so the difference of two answers is what happened between.
method Latencies() -> (bounds_us: []float, stages: object)

# OpenMetrics text, in pieces: must be called with 'more'.
method Metrics() -> (text: string)
"""

_CLIENTS_A_REPLY = 64
_TEXT_A_REPLY = 24 * 1024
#: Bytes of a status's JSON; a varlink message has 64 KiB.
_STATUS_LIMIT = 48 * 1024
_MODEL_LIMIT = 16 * 1024
#: What is left out of a model's description that is too long: a client's `metadata` and `Describe` have it all.
_LONG_OF_A_MODEL = ("contract", "observation", "action", "metadata")


class AdminSight:
    """The methods, for one supervisor; `clients` lists what is known of each client."""

    def __init__(self, supervisor: Supervisor, clients: Callable[[Supervisor], list[dict[str, Any]]]) -> None:
        self._supervisor = supervisor
        self._all_clients = clients

    def methods(self) -> dict[str, Method]:
        return {"Clients": self.clients, "Latencies": self.latencies, "Metrics": self.metrics}

    async def clients(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        found = self._all_clients(self._supervisor)
        for first in range(0, max(1, len(found)), _CLIENTS_A_REPLY):
            page = found[first : first + _CLIENTS_A_REPLY]
            yield Reply({"clients": page}, continues=first + _CLIENTS_A_REPLY < len(found))

    async def latencies(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        found = {stage.name.lower(): self._supervisor.engines.counts.latency(stage) for stage in Stage}
        stages = {name: list(distribution.counts) for name, distribution in found.items() if distribution is not None}
        return {"bounds_us": BUCKET_BOUNDS_US, "stages": stages}

    async def metrics(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        from .metrics import openmetrics  # not before somebody asks: it takes a tenth of a second to import

        text = openmetrics(self._supervisor)
        for first in range(0, len(text), _TEXT_A_REPLY):
            piece = text[first : first + _TEXT_A_REPLY]
            yield Reply({"text": piece}, continues=first + _TEXT_A_REPLY < len(text))


def fitted(status: dict[str, Any]) -> dict[str, Any]:
    """`status` as one message can carry it: long lists of clients and long descriptions are cut, and say so."""
    clients, model = status["clients"], status["model"]
    if model is not None and _size(model) > _MODEL_LIMIT:
        model = {**{key: value for key, value in model.items() if key not in _LONG_OF_A_MODEL}, "shortened": True}
    found = {**status, "model": model, "clients_total": len(clients)}
    room = _STATUS_LIMIT - _size({**found, "clients": []})
    shown = []
    for client in clients:
        room -= _size(client) + 2
        if room < 0:
            break
        shown.append(client)
    return {**found, "clients": shown}


def _size(value: Any) -> int:
    return len(json.dumps(value))

"""Recording part of io.shmserve.Admin: hands requests and their answers to a recorder."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from shmserve.record_ring import RecordRingBroken, check_record_ring
from shmserve.varlink import INVALID_PARAMETER, Reply, VarlinkError, optional

from ..supervisor import Supervisor
from ..varlink.interface import Answer, Connection, Method

log = logging.getLogger(__name__)

DESCRIPTION = """\

# Put every request and its answer, as they are served, on the record ring behind the file descriptor that comes with the call
# (docs/how-to/recording.md), until the caller hangs up; `client`: only of this one. Must be called with 'more': a reply when
# it has begun, and one whenever another model serves.
method Record(client: ?int) -> (model: ?object)
"""

#: Parts of a model's description that a recording keeps.
_OF_THE_MODEL = ("name", "version", "device", "stateful", "contract")


class AdminRecording:
    """The method, for one supervisor and the interface called `interface`."""

    def __init__(self, interface: str, supervisor: Supervisor) -> None:
        self._interface = interface
        self._supervisor = supervisor

    def methods(self) -> dict[str, Method]:
        return {"Record": self.record}

    async def record(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        if len(fds) != 1:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "the record ring's file descriptor"})
        client = optional(parameters, "client", int)
        status = self._supervisor.snapshot()
        if status.is_recording:
            raise self._refused("busy", "a recording is running already: one recording at a time")
        if client is not None and client not in {each.channel for each in status.clients}:
            raise self._refused("unknown_client", f"client {client} is not attached; shmserve-admin clients lists them")
        try:
            capacity = check_record_ring(fds[0])
        except RecordRingBroken as error:
            raise self._refused("record_ring", str(error)) from error
        log.info("recording for %s, through %d bytes", connection.peer, capacity)
        try:
            self._supervisor.record(fds[0], client)
            reported = None
            while True:
                model = self._supervisor.model
                if model is not None and model != reported:
                    reported = model
                    yield Reply({"model": {key: model[key] for key in _OF_THE_MODEL}}, continues=True)
                elif reported is None:
                    reported = {}
                    yield Reply({"model": None}, continues=True)
                await self._supervisor.wait_change()
        finally:
            self._supervisor.end_recording()
            log.info("recording for %s has ended", connection.peer)

    def _refused(self, reason: str, message: str) -> VarlinkError:
        return VarlinkError(f"{self._interface}.Refused", {"reason": reason, "message": message})

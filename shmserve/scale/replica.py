"""One replica of a package: it answers the messages of links, whatever carries them. Loaded, warmed up and checked as an engine does."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shmserve.base_values import plain_tree
from shmserve.daemon.engine.error_text import client_message, log_message
from shmserve.daemon.engine.models import load_model
from shmserve.daemon.engine.models.host_arrays import on_host, tensors_of
from shmserve.daemon.engine.models.model import PerClient
from shmserve.daemon.engine.models.range_checks import RangeChecks
from shmserve.daemon.engine.warmup.warmup import warm_up
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError, RequestRejected
from shmserve.message import Kind, Packer, Reply, Request, read_request
from shmserve.metadata import MetadataError
from shmserve.protocol import Status

log = logging.getLogger(__name__)


class _Row(NamedTuple):
    place: int
    request: Request
    observation: Any
    received_ns: int


class Replica:
    """A loaded model; its methods are called by one thread at a time."""

    def __init__(self, path: Path, device: str = "cpu", *, version: str | None = None) -> None:
        """Load and warm up the package at `path`.

        Raises ModelPackageError for a package that cannot be served to links: a stateful one, one without an example,
        or another version than `version`.
        """
        self.package = package = ModelPackage.read(path)
        if version is not None and package.version != version:
            raise ModelPackageError(f"{path} is version {package.version} on this machine, and {version} is deployed")
        if package.link is not None:
            raise ModelPackageError(f"{path} is a link itself: deploy the package that it links to")
        self._device = torch.device(device)
        self._model = load_model(package, self._device)
        if package.stateful or isinstance(self._model, PerClient):
            raise ModelPackageError(
                f"{path} keeps a state of each robot, and a robot's requests go to any replica: serve it on the robot"
            )
        with torch.no_grad():
            result = warm_up(self._model, self._device, package)
        if result.example is None:
            raise ModelPackageError(f"{path} has no example, which links need to compare answers: add [warmup] example")
        schema, payload = result.example
        self._example = schema.decode(payload, result.request_bytes)
        self._version = int(package.version, 16)
        self._observations = RangeChecks("observation", package.checks.get("observation", {}))
        self._actions = RangeChecks("action", package.checks.get("action", {}))
        self.max_batch = package.max_batch if self._model.batches else 1
        self._packer = Packer("action")
        self._description = json.dumps(
            {
                "name": package.name,
                "version": package.version,
                "contract": result.contract,
                "max_batch": self.max_batch,
                "stateful": False,
                "metadata": self._model.metadata(),
                "device": str(self._device),
            },
            default=str,
        )

    def describe(self, data: bytes) -> bytes:
        """Answer a message of kind DESCRIBE or PROBE."""
        packer = Packer("example")  # this may run beside `infer`
        try:
            request, _ = read_request(data)
        except MetadataError as error:
            return packer.reply(Reply(Status.REJECTED, 0, self._version), client_message(error))
        head = Reply(Status.OK, 0, self._version, request.number)
        if request.kind == Kind.PROBE:
            return packer.reply(head)
        return packer.reply(head, {"description": self._description, "example": self._example})

    def infer(self, messages: Sequence[tuple[bytes, int]]) -> list[bytes]:
        """Answer messages of kind INFER, each given with its arrival (time.monotonic_ns()).

        One that is late, stale, for another version or unreadable does not reach the model, and one on which the model
        raises fails alone.
        """
        began_ns = time.monotonic_ns()
        answers: list[bytes] = [b""] * len(messages)
        rows = []
        for index, (data, received_ns) in enumerate(messages):
            row = self._row(index, data, received_ns, began_ns)
            if isinstance(row, bytes):
                answers[index] = row
            else:
                rows.append(row)
        for first in range(0, len(rows), self.max_batch):
            self._run(rows[first : first + self.max_batch], answers)
        return answers

    def _row(self, index: int, data: bytes, received_ns: int, now_ns: int) -> _Row | bytes:
        """Return a request that the model has to run, or the answer to one that it does not."""
        try:
            request, observation = read_request(data)
            if request.kind != Kind.INFER:
                raise RequestRejected(f"a request of kind {request.kind} to infer")
        except (MetadataError, RequestRejected) as error:
            return self._packer.reply(Reply(Status.REJECTED, 0, self._version), client_message(error))
        waited_ns = max(0, now_ns - received_ns)
        head = Reply(Status.OK, 0, self._version, request.number, waited_ns)
        if request.version not in (0, self._version):
            text = f"version {request.version:016x} is asked, and {self._version:016x} answers"
            return self._packer.reply(head._replace(status=Status.REJECTED), ("VersionMismatch", text))
        if request.budget_ns and waited_ns >= request.budget_ns:
            return self._packer.reply(head._replace(status=Status.EXPIRED))
        if request.max_age_ns and request.age_ns and request.age_ns + waited_ns > request.max_age_ns:
            return self._packer.reply(head._replace(status=Status.STALE))
        try:
            observation, _ = self._observations.apply(observation)
        except RequestRejected as error:
            return self._packer.reply(head._replace(status=Status.REJECTED), client_message(error))
        return _Row(index, request, observation, received_ns)

    def _run(self, rows: list[_Row], answers: list[bytes]) -> None:
        began_ns = time.monotonic_ns()
        try:
            given = [self._given(row.observation) for row in rows]
            with torch.no_grad():
                actions = [on_host(action) for action in self._model.infer(given)]
        except Exception as error:  # noqa: BLE001  the model's own code
            if len(rows) > 1:
                for row in rows:  # one bad request must not fail its neighbours
                    self._run([row], answers)
                return
            log.error("the model failed on a request\n%s", log_message(error))
            status = Status.REJECTED if isinstance(error, RequestRejected) else Status.FAILED
            answers[rows[0].place] = self._packer.reply(self._head(rows[0], began_ns, status), client_message(error))
            return
        for row, action in zip(rows, actions, strict=True):
            try:
                limited, _ = self._actions.apply(action)
                answers[row.place] = self._packer.reply(
                    self._head(row, began_ns, Status.OK), plain_tree(limited, "action")
                )
            except Exception as error:  # noqa: BLE001  a number out of range, or what no message carries
                head = self._head(row, began_ns, Status.FAILED)
                answers[row.place] = self._packer.reply(head, client_message(error))

    def _head(self, row: _Row, began_ns: int, status: Status) -> Reply:
        queued_ns, infer_ns = max(0, began_ns - row.received_ns), time.monotonic_ns() - began_ns
        return Reply(status, 0, self._version, row.request.number, queued_ns, infer_ns)

    def _given(self, observation: Any) -> Any:
        return observation if self._model.takes_numpy else tensors_of(observation, self._device)

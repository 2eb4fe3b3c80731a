"""A model on another machine, and the package inside the link that answers when it does not."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from shmserve.contract import contract_differences, contract_of
from shmserve.errors import ModelPackageError
from shmserve.message import NOTHING, Kind, Packer, Reply, Request, read_reply
from shmserve.metadata import MetadataError
from shmserve.protocol import Status
from shmserve.shortened import shortened

from ...ipc.stats import Counter
from ...packages.package import ModelPackage
from ...packages.remote_link import RemoteLink
from ..real_time_priority import SERVICE_THREADS
from .host_arrays import on_host, tensors_of
from .link_breaker import LinkBreaker
from .model import Model, PerClient
from .uplink import DESCRIBE, INFER, GrpcUplink, Senders, Sent, Uplink, UplinkBusy, UplinkError, UplinkLate

log = logging.getLogger(__name__)

#: For what is asked while a model is loaded: no robot waits for it.
_LOAD_S = 10.0
#: A request with less time left than this is not sent: no answer could come.
_LEAST_NS = 1_000_000
_TYPE_CHARACTERS, _TEXT_CHARACTERS = 100, 400
#: Threads beyond one for each request of a batch, for calls that gRPC has not ended at their deadline.
_MORE_SENDERS = 4
_NOT_REACHED = "it was not reached when this package was loaded"


class RemoteUnavailable(RuntimeError):
    """The remote model did not answer, and the package has no fallback."""


@dataclass(frozen=True)
class Terms:
    """Facts of a request for the remote, and the limits of the wait for it."""

    client: int = 0
    number: int = 0
    elapsed_ns: int = 0  # since the client sent it
    deadline_ns: int = 0  # CLOCK_MONOTONIC; 0: none
    capture_ns: int = 0  # CLOCK_MONOTONIC; 0: unknown
    max_age_ns: int = 0


class Answer(NamedTuple):
    """How the remote answered one request."""

    counter: Counter  # how it is counted; only REMOTE_OK, REMOTE_FAILED and REMOTE_STALE are answers for the robot
    status: int = Status.OK
    tree: Any = NOTHING
    reason: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the robot gets it; else the fallback answers."""
        return self.counter in (Counter.REMOTE_OK, Counter.REMOTE_FAILED, Counter.REMOTE_STALE)


Done = queue.SimpleQueue[tuple[int, bytes | UplinkError]]


class Asked(NamedTuple):
    """A request that is on its way."""

    number: int
    until_ns: int  # CLOCK_MONOTONIC


def load(package: ModelPackage, device: torch.device) -> RemoteModel:
    """Load the fallback, then describe the remote; see `RemoteModel.connect` for what is refused."""
    from . import load_model  # the loader of every format, this one among them

    assert package.link is not None  # read_manifest requires it
    inside = package.read_fallback()
    fallback = None if inside is None else load_model(inside, device)
    model = RemoteModel(package, GrpcUplink(package.link.target, package.link.application), inside, fallback, device)
    model.connect()
    return model


class RemoteModel:
    """Asks the remote model within the budget of a link, and otherwise the fallback."""

    batches = True
    takes_numpy = True
    resets = False

    def __init__(
        self,
        package: ModelPackage,
        uplink: Uplink,
        fallback_package: ModelPackage | None,
        fallback: Model | None,
        device: torch.device,
    ) -> None:
        assert package.link is not None
        if isinstance(fallback, PerClient):
            raise ModelPackageError(
                f"{package.path}: the fallback keeps a state for each client, which a fallback cannot"
            )
        self.link: RemoteLink = package.link
        self.fallback_package = fallback_package
        self.fallback = fallback
        #: Of the answers of each.
        self.remote_version = int(self.link.version, 16)
        self.fallback_version = 0 if fallback_package is None else int(fallback_package.version, 16)
        #: Duration of the fallback; that long before a request's deadline the engine gives the remote up.
        self.margin_ns = 0
        #: The contract that the remote must keep, if it was not compared when the package was loaded.
        self.expected: dict[str, Any] | None = None
        self.is_verified = False
        self.breaker = LinkBreaker(open_after=self.link.open_after, recover_after=self.link.recover_after)
        self._package = package
        self._uplink = uplink
        self._device = device
        self._senders = Senders(uplink, package.max_batch + _MORE_SENDERS)
        self._packer = Packer("observation")
        self._description: dict[str, Any] = {}
        self._example: Any = None
        self._reported: object = NOTHING
        self._told: str | None = None

    # At load

    def connect(self) -> None:
        """Describe the remote, and start the thread that probes an open link.

        With a fallback, a remote that cannot be reached is not an error: the fallback serves the robots, and the thread compares
        the remote's contract before its first request. Raises ModelPackageError for a remote of another version, a
        stateful one, or none at all without a fallback.
        """
        try:
            self._describe(self._packer, _LOAD_S)
            self.is_verified = True
        except UplinkError as error:
            if self.fallback is None:
                raise ModelPackageError(
                    f"the remote model {self.link.application!r} does not answer, and the package has no fallback: {error}"
                ) from error
            log.warning("the remote model does not answer, so the fallback serves: %s", error)
            self.breaker.open(f"{_NOT_REACHED}: {error}")
        threading.Thread(target=self._probe_while_open, name=f"{SERVICE_THREADS}link", daemon=True).start()

    def _describe(self, packer: Packer, timeout_s: float) -> None:
        """Ask for description and example; raises UplinkError, and ModelPackageError for a remote that cannot be used."""
        data = self._uplink.ask(DESCRIBE, packer.request(Request(Kind.DESCRIBE)), timeout_s, "describe")
        try:
            head, tree = read_reply(data)
            description = json.loads(tree["description"]) if head.status == Status.OK else None
        except (MetadataError, ValueError, KeyError, TypeError) as error:
            raise ModelPackageError(
                f"{self.link.target} does not speak shmserve's messages, or another version of them: {error}"
            ) from error
        if not isinstance(description, dict):
            raise UplinkError(f"it is not ready: {_error_of(tree)[1]}")
        if head.version != self.remote_version:
            raise ModelPackageError(
                f"the remote model {self.link.application!r} is version {head.version:016x}, and this package links to "
                f"{self.link.version}: deploy that version, or write the other one into [remote]"
            )
        if description.get("stateful"):
            raise ModelPackageError(
                f"the remote model {self.link.application!r} is stateful: a replica would have to keep each robot's state. "
                "Serve a stateful policy on the robot's own machine"
            )
        self._description, self._example = description, tree.get("example")

    def infer(self, observations: list[Any]) -> list[Any]:
        """Ask the remote alone, one after the other, as the warm-up does; raises RemoteUnavailable."""
        found = []
        for observation in observations:
            answer = self.ask(observation, Terms(), timeout_ns=int(_LOAD_S * 1e9))
            if answer.counter != Counter.REMOTE_OK:
                kind, text = _error_of(answer.tree) if answer.is_final else ("", answer.reason)
                raise RemoteUnavailable(f"the remote model failed on the example: {kind} {text}".replace("  ", " "))
            found.append(answer.tree)
        return found

    def reset(self, client_id: int) -> None:
        """Do nothing: neither side keeps a state."""

    def example_observation(self) -> Any:
        return self._example

    def metadata(self) -> dict[str, Any]:
        return {**self._description.get("metadata", {}), **self._package.metadata}

    # Requests, by the engine's thread

    def ask(self, observation: Any, terms: Terms, *, timeout_ns: int | None = None) -> Answer:
        """Ask the remote and wait for its answer, no longer than the budget."""
        batch = Batch(self)
        answer = batch.begin(0, observation, terms, timeout_ns)
        return answer if answer is not None else batch.next()[1]

    def begin(self, key: int, observation: Any, terms: Terms, timeout_ns: int | None, done: Done) -> Asked | Answer:
        """Send a request; `key` and what was found are put on `done`. An Answer if it was not sent."""
        prepared = self._prepared(observation, terms, timeout_ns)
        if isinstance(prepared, Answer):
            return prepared
        data, until_ns = prepared
        self._senders.send(Sent(data, until_ns, _tag(terms), done, key))
        return Asked(terms.number, until_ns)

    def settle(self, asked: Asked, found: bytes | UplinkError) -> Answer:
        """Return the answer of a request that was sent."""
        return self._missed(found) if isinstance(found, UplinkError) else self._read(found, asked.number)

    def answer_locally(self, observations: list[Any]) -> list[Any]:
        """Return the fallback's actions; raises RemoteUnavailable without one, and what its own code raises."""
        if self.fallback is None or self.fallback_package is None:
            raise RemoteUnavailable(
                f"the remote model {self.link.application!r} gave no answer within {self.link.budget_s:g} s"
                f"{f' ({self.breaker.reason})' if self.breaker.is_open else ''}, and the package has no fallback"
            )
        given = observations if self.fallback.takes_numpy else [tensors_of(each, self._device) for each in observations]
        together = self.fallback_package.max_batch if self.fallback.batches else 1
        found: list[Any] = []
        for first in range(0, len(given), together):
            found += self.fallback.infer(given[first : first + together])
        return found if self._device.type == "cpu" else [on_host(action) for action in found]

    def _prepared(self, observation: Any, terms: Terms, timeout_ns: int | None) -> tuple[bytes, int] | Answer:
        if timeout_ns is None:
            if self.breaker.is_open:
                return Answer(Counter.REMOTE_OPEN, reason=self.breaker.reason or "")
            timeout_ns = int(self.link.budget_s * 1e9) - terms.elapsed_ns
        now_ns = time.monotonic_ns()
        if terms.deadline_ns:
            timeout_ns = min(timeout_ns, terms.deadline_ns - now_ns - self.margin_ns)
        if timeout_ns < _LEAST_NS:
            return Answer(Counter.REMOTE_LATE, reason="its budget was over before it was sent")
        head = Request(
            Kind.INFER,
            version=self.remote_version,
            number=terms.number,
            client=terms.client,
            budget_ns=timeout_ns,
            age_ns=max(1, now_ns - terms.capture_ns) if terms.capture_ns else 0,
            max_age_ns=terms.max_age_ns,
        )
        return self._packer.request(head, observation), now_ns + timeout_ns

    def _read(self, data: bytes, number: int) -> Answer:
        try:
            head, tree = read_reply(data)
        except MetadataError as error:
            return self._unusable(Counter.REMOTE_DOWN, f"it answers what cannot be read: {error}")
        if head.number != number:
            return self._unusable(Counter.REMOTE_DOWN, f"it answers request {head.number} instead of {number}")
        if head.version != self.remote_version:
            return self._unusable(Counter.REMOTE_MISMATCH, self._other_version(head))
        if head.status == Status.EXPIRED:
            self.breaker.missed("its answers are late")
            return Answer(Counter.REMOTE_LATE, reason="no answer in time")
        if head.status == Status.OK and tree is not NOTHING:
            self.breaker.answered()
            return Answer(Counter.REMOTE_OK, Status.OK, tree)
        if head.status == Status.STALE:
            self.breaker.answered()
            return Answer(Counter.REMOTE_STALE, Status.STALE, None)
        if head.status in (Status.FAILED, Status.REJECTED):
            self.breaker.answered()
            return Answer(Counter.REMOTE_FAILED, head.status, _error_of(tree))
        return self._unusable(Counter.REMOTE_DOWN, f"it answers status {head.status}")

    def _missed(self, error: UplinkError) -> Answer:
        if isinstance(error, UplinkLate):
            self.breaker.missed("its answers are late")
            return Answer(Counter.REMOTE_LATE, reason=str(error))
        if isinstance(error, UplinkBusy):
            self.breaker.missed("it is busy")
            return Answer(Counter.REMOTE_BUSY, reason=str(error))
        return self._unusable(Counter.REMOTE_DOWN, str(error))

    def _unusable(self, counter: Counter, reason: str) -> Answer:
        self.breaker.open(reason)
        return Answer(counter, reason=reason)

    def _other_version(self, head: Reply) -> str:
        return f"version {head.version:016x} answers, and this package links to {self.link.version}"

    # The open link, by its thread

    def _probe_while_open(self) -> None:
        packer = Packer("observation")
        while True:
            self.breaker.opened.wait()
            time.sleep(self.link.probe_s)
            try:
                reason = self._probe(packer) if self.is_verified else self._verify(packer)
            except Exception as error:  # noqa: BLE001  whatever it is, the next probe is made
                reason = f"a probe failed: {type(error).__name__}: {error}"
            if reason is not None:
                self.breaker.open(reason)
            if self.breaker.probed(reason is None):
                log.info("the remote model answers again; its requests are sent to it")

    def _probe(self, packer: Packer) -> str | None:
        """Ask whether the remote is there; return why it cannot be used, or None."""
        request = packer.request(Request(Kind.PROBE, version=self.remote_version))
        try:
            head, tree = read_reply(self._uplink.ask(DESCRIBE, request, self.link.budget_s, "probe"))
        except (UplinkError, MetadataError) as error:
            return str(error)
        if head.version != self.remote_version:
            return self._other_version(head)
        return None if head.status == Status.OK else _error_of(tree)[1]

    def _verify(self, packer: Packer) -> str | None:
        """Do what `connect` could not, before the first request; return why the remote cannot be used, or None."""
        try:
            self._describe(packer, _LOAD_S)
            request = packer.request(Request(Kind.INFER, version=self.remote_version), self._example)
            head, action = read_reply(self._uplink.ask(INFER, request, _LOAD_S, "verify"))
        except (UplinkError, ModelPackageError, MetadataError) as error:
            return f"{_NOT_REACHED}: {error}"
        if head.status != Status.OK:
            return f"it fails on its own example: {_error_of(action)[1]}"
        if differences := contract_differences(self.expected, contract_of(self._example, action)):
            return f"its contract is not the fallback's (fallback -> remote): {'; '.join(differences)}"
        self.is_verified = True
        return None

    # Reports

    def change(self) -> dict[str, Any] | None:
        """Return the link's state for the status if it is another one than this returned last; log a change."""
        reason = self.breaker.reason
        if reason == self._reported:
            return None
        if reason is not None and (self._told is None or self._told.partition(":")[0] != reason.partition(":")[0]):
            log.warning("the remote model is not asked: %s", reason)
        self._reported = self._told = reason
        return self.state()

    def state(self) -> dict[str, Any]:
        """Return the link as `shmserve-admin status --json` shows it."""
        reason, link = self.breaker.reason, self.link
        return {
            "target": link.target,
            "application": link.application,
            "version": link.version,
            "budget_s": link.budget_s,
            "fallback_version": None if self.fallback is None else f"{self.fallback_version:016x}",
            "source": "remote" if reason is None else "none" if self.fallback is None else "fallback",
            "reason": None if reason is None else shortened(reason, _TEXT_CHARACTERS),
        }


class Batch:
    """Requests that are sent together; each is answered when its own answer is there, or at its own deadline."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model
        self._done: Done = queue.SimpleQueue()  # of this batch alone: a later answer finds nobody
        self._asked: dict[int, Asked] = {}

    def begin(self, key: int, observation: Any, terms: Terms, timeout_ns: int | None = None) -> Answer | None:
        """Send a request; return its answer if it was not sent."""
        asked = self._model.begin(key, observation, terms, timeout_ns, self._done)
        if isinstance(asked, Answer):
            return asked
        self._asked[key] = asked
        return None

    def next(self) -> tuple[int, Answer]:
        """Return the next of the requests that were sent, and its answer; waits no longer than until the first deadline."""
        while True:
            first = min(self._asked, key=lambda key: self._asked[key].until_ns)
            left_ns = self._asked[first].until_ns - time.monotonic_ns()
            try:
                key, found = self._done.get(timeout=max(0, left_ns) / 1e9)
            except queue.Empty:
                key, found = first, UplinkLate("no answer in time")
            asked = self._asked.pop(key, None)
            if asked is not None:  # else it was given up before
                return key, self._model.settle(asked, found)

    def __len__(self) -> int:
        """Return how many have no answer yet."""
        return len(self._asked)


def _tag(terms: Terms) -> str:
    return f"{terms.client}/{terms.number}"


def _error_of(tree: Any) -> tuple[str, str]:
    kind, text = tree if isinstance(tree, tuple) else ("RemoteError", "the remote says nothing more")
    return kind[:_TYPE_CHARACTERS], shortened(text, _TEXT_CHARACTERS)

"""gRPC to the remote model: one call for each message of shmserve.message, bytes in and bytes out, no generated code."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, NamedTuple, Protocol

from shmserve.errors import ModelPackageError
from shmserve.message import MAX_MESSAGE_BYTES

from ..real_time_priority import SERVICE_THREADS

#: The gRPC service and its methods. Describe also takes probes.
SERVICE = "shmserve.Model"
INFER, DESCRIBE = f"/{SERVICE}/Infer", f"/{SERVICE}/Describe"
_TEXT = 300


class UplinkError(Exception):
    """The remote gave no answer; the text says why."""


class UplinkLate(UplinkError):
    """Not within the time given."""


class UplinkDown(UplinkError):
    """No connection, or it ended."""


class UplinkBusy(UplinkError):
    """The remote has no room for this request."""


class Uplink(Protocol):
    """The way to one application; called by several threads."""

    def ask(self, method: str, data: bytes, timeout_s: float, tag: str) -> bytes:
        """Send a message and return the reply's bytes; raises UplinkError. `tag` names the request in the remote's log."""

    def close(self) -> None:
        """End the calls that are on their way."""


class GrpcUplink:
    """Uplink to an application of Ray Serve behind its gRPC proxy, or to anything that speaks the same two methods."""

    def __init__(self, target: str, application: str) -> None:
        """Connect in the background. Raises ModelPackageError if grpcio is not installed."""
        try:
            import grpc
        except ImportError as error:
            raise ModelPackageError(
                f"format 'remote' needs grpcio ({error}): pip install 'shmserve[remote]' in the daemon's environment"
            ) from error
        self._grpc = grpc
        self._target = target
        self._application = application
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # A robot's request is never sent twice, and waits for no connection: the fallback answers meanwhile.
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
                ("grpc.service_config_disable_resolution", 1),
                # Each engine has its own connection: the end of one is not the end of another's.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._methods = {
            name: self._channel.unary_unary(name, request_serializer=None, response_deserializer=None)
            for name in (INFER, DESCRIBE)
        }

    def ask(self, method: str, data: bytes, timeout_s: float, tag: str) -> bytes:
        try:
            found: bytes = self._methods[method](data, timeout=timeout_s, metadata=self._metadata(tag))
        except self._grpc.RpcError as error:
            raise self._error(error) from None
        return found

    def close(self) -> None:
        self._channel.close()

    def _metadata(self, tag: str) -> tuple[tuple[str, str], ...]:
        return (("application", self._application), ("x-shmserve-request", tag))

    def _error(self, error: Any) -> UplinkError:
        """Return the error of a call that gave no bytes, by gRPC's status."""
        codes = self._grpc.StatusCode
        code, details = error.code(), str(error.details() or "")[:_TEXT]
        if code == codes.DEADLINE_EXCEEDED:
            return UplinkLate("no answer in time")
        if code == codes.RESOURCE_EXHAUSTED:
            return UplinkBusy(f"it is busy: {details}")
        if code == codes.NOT_FOUND:
            return UplinkDown(f"{self._target} has no application {self._application!r}: {details}")
        return UplinkDown(f"{self._target}: {code.name}: {details}")


class Sent(NamedTuple):
    """A request for a sender; `key` names it among those of the same `done`."""

    data: bytes
    until_ns: int
    tag: str
    done: queue.SimpleQueue[tuple[int, bytes | UplinkError]]
    key: int


class Senders:
    """Threads that wait for gRPC, so that the serving thread does not.

    gRPC ends a call at its deadline by several threads, one after the other, and on a busy machine each waits for a processor.
    The serving thread waits for `done` instead, until the request's own deadline, and needs none of them to give up.
    """

    def __init__(self, uplink: Uplink, threads: int) -> None:
        """Start the threads now: starting one waits until it runs."""
        self._uplink = uplink
        self._sent: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"{SERVICE_THREADS}send-{number}", daemon=True).start()

    def send(self, request: Sent) -> None:
        """Have a request sent, without waiting; its key is put on `done`, with the reply's bytes or the error."""
        self._sent.put(request)

    def _run(self) -> None:
        while True:
            request = self._sent.get()
            request.done.put((request.key, self._found(request)))

    def _found(self, request: Sent) -> bytes | UplinkError:
        left_ns = request.until_ns - time.monotonic_ns()
        if left_ns <= 0:
            return UplinkLate("its time was over before it was sent")
        try:
            return self._uplink.ask(INFER, request.data, left_ns / 1e9, request.tag)
        except UplinkError as error:
            return error
        except Exception as error:  # noqa: BLE001  a thread that ended would answer no other request
            return UplinkDown(f"{type(error).__name__}: {error}")

"""gRPC to the remote model: one call for each message of shmserve.message, bytes in and bytes out, no generated code."""

from __future__ import annotations

import queue
from typing import Any, Protocol

from shmserve.errors import ModelPackageError
from shmserve.message import MAX_MESSAGE_BYTES

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


class Call(Protocol):
    """A request that is on its way."""

    def result(self) -> bytes:
        """Return the reply's bytes, waiting for them; raises UplinkError."""


class Uplink(Protocol):
    """The way to one application; called by several threads."""

    def ask(self, method: str, data: bytes, timeout_s: float, tag: str) -> bytes:
        """Send a message and return the reply's bytes; raises UplinkError. `tag` names the request in the remote's log."""

    def begin(
        self, method: str, data: bytes, timeout_s: float, tag: str, done: queue.SimpleQueue[Any], key: Any
    ) -> Call:
        """Send a message; `key` is put on `done` once it is answered, or its time is over."""

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

    def begin(
        self, method: str, data: bytes, timeout_s: float, tag: str, done: queue.SimpleQueue[Any], key: Any
    ) -> Call:
        future = self._methods[method].future(data, timeout=timeout_s, metadata=self._metadata(tag))
        future.add_done_callback(lambda _: done.put(key))
        return _FutureCall(self, future)

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


class _FutureCall:
    """A call of `GrpcUplink.begin`."""

    def __init__(self, uplink: GrpcUplink, future: Any) -> None:
        self._uplink = uplink
        self._future = future

    def result(self) -> bytes:
        try:
            found: bytes = self._future.result()
        except self._uplink._grpc.RpcError as error:
            raise self._uplink._error(error) from None
        except self._uplink._grpc.FutureCancelledError:
            raise UplinkDown("the link was closed") from None
        return found

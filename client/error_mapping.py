"""Mapping of daemon errors, system errors and reply statuses to typed exceptions."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from typing import Any

import posix_ipc

from shmserve.codec import DoesNotFit
from shmserve.errors import (
    ClientEvicted,
    DeviceArrayRefused,
    EngineLost,
    Facts,
    InferenceFailed,
    InvalidArgument,
    ObservationStale,
    ObservationTooLarge,
    OutOfMemory,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    ServiceStopping,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
    TooManyRequests,
    UnsupportedType,
    ValueOutOfRange,
)
from shmserve.layout import number_of
from shmserve.protocol import WIRE_VERSION, Status
from shmserve.ring import ReplyHead
from shmserve.varlink import METHOD_NOT_FOUND, METHOD_NOT_IMPLEMENTED, PERMISSION_DENIED, VarlinkError

INTERFACE = "io.shmserve.Client"
#: Of a daemon that does not share GPU memory: every release has the other methods.
_UNKNOWN_METHOD = (METHOD_NOT_FOUND, METHOD_NOT_IMPLEMENTED)

#: Exceptions of reading an observation or a reply. OSError and others are not among them: a signal handler of the
#: caller may raise them there, and they belong to the caller.
READ_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    BufferError,
    MemoryError,
    struct.error,
)
#: Exceptions of the system calls and the memory that a connection needs.
UNTYPED = (OSError, posix_ipc.Error, MemoryError, ValueError, OverflowError, IndexError)


def attach_error(service: str, path: Path, error: Exception) -> ShmServeError:
    """Why this process cannot have a channel of a daemon that is there, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or (number is None and re.search("files open|open files", str(error))):
        return no_descriptors_error(service, error)
    if number == errno.ENAMETOOLONG:
        return InvalidArgument(f"{path} cannot be the socket of {service!r}: {error}", service=service)
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return OutOfMemory(
            f"no channel of {service!r}: this process has no memory to map it ({error}): fewer slots, smaller "
            "observations, or more memory (ulimit -v, MemoryMax=)",
            service=service,
        )
    if number in (errno.EACCES, errno.EPERM) or isinstance(error, posix_ipc.PermissionsError):
        return ServiceUnavailable(
            f"no channel of {service!r}: uid {os.geteuid()} may not open it ({error}): join the daemon's group and set "
            "group_clients, or use transport 'sealed'",
            service=service,
        )
    if number in (errno.ENOTDIR, errno.ELOOP):
        return ServiceUnavailable(
            f"no daemon serves {service!r} at {path} ({error}): say where it is (runtime_dir= or SHMSERVE_RUNTIME_DIR)",
            service=service,
        )
    if isinstance(error, (OSError, posix_ipc.Error)):
        return ServiceUnavailable(f"no channel of {service!r} at {path}: {error}", service=service)
    return unreadable_error(service, "Attach", f"{type(error).__name__}: {error}")


def no_descriptors_error(service: str, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"no channel of {service!r}: this process may open no more files ({error}): close clients and files that are "
        "not needed, or raise the limit (ulimit -n, LimitNOFILE=)",
        service=service,
    )


def unreadable_error(service: str, method: str, what: str) -> ProtocolMismatch:
    return ProtocolMismatch(
        f"the daemon of {service!r} gave {method} an answer that cannot be read ({what}): install the same shmserve on "
        "both sides, and see whose daemon it is",
        service=service,
    )


def daemon_error(service: str, error: VarlinkError) -> ShmServeError:
    name = error.error.removeprefix(f"{INTERFACE}.")
    parameters = error.parameters
    if name == "ProtocolMismatch":
        return ProtocolMismatch(
            f"the daemon of {service!r} speaks wire version {parameters.get('wire_version')}, this client "
            f"{WIRE_VERSION}: install the same shmserve on both sides",
            wire_version=_whole(parameters.get("wire_version")),
            service=service,
        )
    if name == "DeviceMemoryRefused" or error.error in _UNKNOWN_METHOD:
        return _no_device_memory(service, parameters)
    if name == "Refused" and parameters.get("reason") == "evicted":
        return evicted_error(service, parameters)
    if name == "Refused" and parameters.get("reason") == "too_large":
        return ObservationTooLarge(
            f"the daemon of {service!r} refuses a channel of this size: {parameters.get('message')}",
            needed_bytes=_whole(parameters.get("needed_bytes")),
            limit_bytes=_whole(parameters.get("limit_bytes")),
            service=service,
        )
    if name == "Refused":
        return ServiceUnavailable(
            f"the daemon of {service!r} gives no channel: {parameters.get('message')}",
            reason=str(parameters.get("reason")),
            needed_bytes=_whole(parameters.get("needed_bytes")),
            limit_bytes=_whole(parameters.get("limit_bytes")),
            retry_after=_seconds(parameters.get("retry_after_s")),
            service=service,
        )
    if name == "Stopping":
        return ServiceUnavailable(f"the daemon of {service!r} is stopping", service=service)
    if error.error == PERMISSION_DENIED:
        return ServiceUnavailable(
            f"the daemon of {service!r} does not serve uid {os.geteuid()}: its setting {parameters.get('setting')} must "
            "name this user",
            service=service,
        )
    return ServiceUnavailable(f"the daemon of {service!r} refused: {error}", service=service)


def _no_device_memory(service: str, parameters: dict[str, Any]) -> ShmServeError:
    reason = str(parameters.get("reason", "off"))
    message = parameters.get("message", "its release is older than this client's")
    if reason == "not_ready":
        return ServiceUnavailable(
            f"the daemon of {service!r} has no GPU memory to share yet: {message}", reason=reason, service=service
        )
    return DeviceArrayRefused(
        f"{service!r} does not take this array from GPU memory ({message}); send it from the host: .cpu().numpy() of a torch "
        "tensor, .get() of a cupy array",
        reason=reason,
        service=service,
    )


def evicted_error(service: str, parameters: dict[str, Any]) -> ClientEvicted:
    return ClientEvicted(
        f"the daemon of {service!r} serves this process no more: {parameters.get('message')}",
        reason="evicted",
        retry_after=_seconds(parameters.get("retry_after_s")),
        service=service,
    )


def _whole(value: Any) -> int | None:
    """Return a number that a daemon sent, or None for anything else."""
    return value if type(value) is int else None


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def reply_error(service: str, head: ReplyHead, tree: Any) -> ShmServeError:
    """The error that a reply of any status but OK and RESIZE_REQUIRED stands for; `tree` is (type, text) or nothing."""
    facts: Facts = {"service": service, "request_id": number_of(head.sequence)}
    what = f"request {facts['request_id']} to {service!r}"
    kind, text = tree if isinstance(tree, tuple) and len(tree) == 2 else ("", "")
    match head.status:
        case Status.FAILED:
            return InferenceFailed(
                f"the model raised {kind}: {text} (the traceback is in the daemon's log)",
                model_error_type=kind,
                model_error_message=text,
                **facts,
            )
        case Status.REJECTED if kind == "ValueOutOfRange":
            return ValueOutOfRange(f"{what} was not run: {text}", **facts)
        case Status.REJECTED if kind == "TooManyRequests":
            return TooManyRequests(f"{what} was not run: {text}; send fewer, or ask the operator for more", **facts)
        case Status.REJECTED if kind == "UnsupportedType":
            return UnsupportedType(f"{what} was rejected: {text}", **facts)
        case Status.REJECTED:
            return RequestRejected(f"{what} was rejected: {text}", **facts)
        case Status.EXPIRED:
            return RequestTimeout(f"{what} expired before its turn came; the model did not run", **facts)
        case Status.STALE:
            return ObservationStale(
                f"{what}: the observation was too old when its turn came; the model did not run", **facts
            )
        case Status.CANCELLED:
            return cancelled_error(service, head.sequence)
        case Status.SUPERSEDED:
            return RequestSuperseded(f"{what} was replaced by a newer one before it ran", **facts)
        case Status.ENGINE_LOST:
            return EngineLost(f"{what}: {text}; another engine serves the next request", reason=text, **facts)
        case Status.STOPPING:
            return ServiceStopping(
                f"{what} was not started: the daemon is stopping; its successor can be asked", **facts
            )
    return ProtocolMismatch(f"{what} ended with status {head.status}, which this client does not know", **facts)


def cancelled_error(service: str, sequence: int) -> RequestCancelled:
    """Return the error of a request that its client cancelled."""
    number = number_of(sequence)
    return RequestCancelled(
        f"request {number} to {service!r} was cancelled before it ran", service=service, request_id=number
    )


def observation_error(service: str, error: BaseException, *, on_loan: bool = False) -> BaseException:
    """Return the error for the caller when the observation, or an object in it, raised one while it was read."""
    if isinstance(error, DoesNotFit) and on_loan:
        return RequestRejected(
            f"the observation outgrew the slot that was lent for it ({error}): borrow one for its new shape",
            service=service,
        )
    if isinstance(error, (DoesNotFit, ShmServeError)) or not isinstance(error, READ_ERRORS):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(
            f"this process has no memory to send the observation to {service!r}: {error}", service=service
        )
    return RequestRejected(
        f"the observation for {service!r} cannot be read: {type(error).__name__}: {error}: send arrays and tensors "
        "that have data, on a device that this process can read (tensor.cpu())",
        service=service,
    )


def exhausted_error(service: str, slots: int, *, resize: bool = False) -> SlotsExhausted:
    """Return the error for a request that had no slot in time."""
    if resize:
        return SlotsExhausted(
            f"requests in flight or loans kept {service!r} from making larger slots in time",
            slots=slots,
            service=service,
        )
    return SlotsExhausted(
        f"every slot of {service!r} holds a request without a reply, or is lent out: collect results before "
        "sending more, or make the client with more slots",
        slots=slots,
        service=service,
    )

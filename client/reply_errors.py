"""What a request that did not end well is to its caller: a status on the wire as a typed exception."""

from __future__ import annotations

from typing import Any

from shmserve.errors import (
    EngineLost,
    InferenceFailed,
    ObservationStale,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    ServiceStopping,
    ShmServeError,
    TooManyRequests,
    UnsupportedType,
    ValueOutOfRange,
)
from shmserve.layout import number_of
from shmserve.protocol import Status
from shmserve.ring import ReplyHead


def reply_error(service: str, head: ReplyHead, tree: Any) -> ShmServeError:
    """The error that a reply of any status but OK and RESIZE_REQUIRED stands for; `tree` is (type, text) or nothing."""
    what = f"request {number_of(head.sequence)} to {service!r}"
    kind, text = tree if isinstance(tree, tuple) and len(tree) == 2 else ("", "")
    match head.status:
        case Status.FAILED:
            return InferenceFailed(f"the model raised {kind}: {text} (the traceback is in the daemon's log)")
        case Status.REJECTED if kind == "ValueOutOfRange":
            return ValueOutOfRange(f"{what} was not run: {text}")
        case Status.REJECTED if kind == "TooManyRequests":
            return TooManyRequests(f"{what} was not run: {text}; send fewer, or ask the operator for more")
        case Status.REJECTED if kind == "UnsupportedType":
            return UnsupportedType(f"{what} was rejected: {text}")
        case Status.REJECTED:
            return RequestRejected(f"{what} was rejected: {text}")
        case Status.EXPIRED:
            return RequestTimeout(f"{what} expired before its turn came; the model did not run")
        case Status.STALE:
            return ObservationStale(f"{what}: the observation was too old when its turn came; the model did not run")
        case Status.CANCELLED:
            return cancelled_error(service, head.sequence)
        case Status.SUPERSEDED:
            return RequestSuperseded(f"{what} was replaced by a newer one before it ran")
        case Status.ENGINE_LOST:
            return EngineLost(f"{what}: {text}; another engine serves the next request")
        case Status.STOPPING:
            return ServiceStopping(f"{what} was not started: the daemon is stopping; its successor can be asked")
    return ProtocolMismatch(f"{what} ended with status {head.status}, which this client does not know")


def cancelled_error(service: str, sequence: int) -> RequestCancelled:
    """What a request that its client withdrew ends with."""
    return RequestCancelled(f"request {number_of(sequence)} to {service!r} was cancelled before it ran")

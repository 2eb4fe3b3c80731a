"""The robot's side: numpy, posix_ipc and the standard library, never torch.

What needs numpy is imported when it is first asked for: `shmserve-admin status`, which lies below this package, does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

from shmserve.errors import (
    ClientClosed,
    ClientEvicted,
    ClientForked,
    ContractMismatch,
    DeviceArrayRefused,
    EngineLost,
    ForeignService,
    InferenceFailed,
    InvalidArgument,
    InvalidChunk,
    LoanEnded,
    LoanOutlived,
    NoFreshAction,
    ObservationStale,
    ObservationTooLarge,
    OutOfMemory,
    ProtocolMismatch,
    ReentrantCall,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    ServiceRestarted,
    ServiceStopping,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
    TooManyRequests,
    UnsupportedType,
    ValueOutOfRange,
)

if TYPE_CHECKING:
    from .action_chunks import ActionChunks, ActionStep, ChunkStats
    from .async_client import AsyncShmClient
    from .compat.flask_pickle import send_inference_request
    from .loans import ReplyLoan, RequestLoan
    from .pending import Pending, Reply, RequestTiming
    from .shm_client import ShmClient

__all__ = [
    "ActionChunks",
    "ActionStep",
    "AsyncShmClient",
    "ChunkStats",
    "ClientClosed",
    "ClientEvicted",
    "ClientForked",
    "ContractMismatch",
    "DeviceArrayRefused",
    "EngineLost",
    "ForeignService",
    "InferenceFailed",
    "InvalidArgument",
    "InvalidChunk",
    "LoanEnded",
    "LoanOutlived",
    "NoFreshAction",
    "ObservationStale",
    "ObservationTooLarge",
    "OutOfMemory",
    "Pending",
    "ProtocolMismatch",
    "ReentrantCall",
    "Reply",
    "ReplyLoan",
    "RequestCancelled",
    "RequestLoan",
    "RequestRejected",
    "RequestSuperseded",
    "RequestTimeout",
    "RequestTiming",
    "ServiceRestarted",
    "ServiceStopping",
    "ServiceUnavailable",
    "ShmClient",
    "ShmServeError",
    "SlotsExhausted",
    "TooManyRequests",
    "UnsupportedType",
    "ValueOutOfRange",
    "send_inference_request",
]

_WHERE = {
    "ActionChunks": "action_chunks",
    "ActionStep": "action_chunks",
    "ChunkStats": "action_chunks",
    "AsyncShmClient": "async_client",
    "Pending": "pending",
    "Reply": "pending",
    "ReplyLoan": "loans",
    "RequestLoan": "loans",
    "RequestTiming": "pending",
    "ShmClient": "shm_client",
    "send_inference_request": "compat.flask_pickle",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""PyTorch policy server for the robot processes of one host, through shared memory.

>>> import shmserve
>>> client = shmserve.ShmClient("arm")  # names of shmserve.client are loaded with their first use

The package has one core and two sides that never import each other; imports run downwards only
(held by import-linter, see pyproject.toml):

    client/  daemon/                      the robot's side, the service's side
    channel  varlink_connection           one client's channel; one caller's control connection
    directories  contract  package_signature
    ring  varlink_socket  package_files   who writes which word, and in which order
    codec  varlink                        a tree of arrays, a control message <-> bytes
    schema  strict_json                   the structure of one observation
    metadata  segment  doorbell  spin
    backend                               the native core, or pure/, which does the same in Python
    fence
    errors
    layout                                where every byte is
    protocol                              what the words mean
"""

import importlib
from typing import Any

__version__ = "0.1.0"

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
    "__version__",
    "send_inference_request",
]


def __getattr__(name: str) -> Any:
    """Import the client with the first use of one of its names: `import shmserve` alone stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # By its name: the core never imports one of its sides, and __init__.pyi has the types.
    value = globals()[name] = getattr(importlib.import_module("shmserve.client"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

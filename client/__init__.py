"""The robot's side: numpy, posix_ipc and the standard library, never torch."""

from shmserve.errors import (
    ClientClosed,
    ClientForked,
    ClientSentAway,
    ContractMismatch,
    EngineLost,
    InferenceFailed,
    LoanKept,
    NoFreshAction,
    NotAChunk,
    NumbersRefused,
    ObservationTooLarge,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    RingFull,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
    Stale,
    TooManyRequests,
    UnsupportedType,
)

from .loans import LentReply, LoanedObservation
from .one_call import send_inference_request
from .pending import Pending
from .reply import Reply
from .shm_client import ShmClient

__all__ = [
    "ClientClosed",
    "ClientForked",
    "ClientSentAway",
    "ContractMismatch",
    "EngineLost",
    "InferenceFailed",
    "LentReply",
    "LoanKept",
    "LoanedObservation",
    "NoFreshAction",
    "NotAChunk",
    "NumbersRefused",
    "ObservationTooLarge",
    "Pending",
    "ProtocolMismatch",
    "Reply",
    "RequestCancelled",
    "RequestRejected",
    "RequestSuperseded",
    "RequestTimeout",
    "RingFull",
    "ServiceRestarted",
    "ServiceUnavailable",
    "ShmClient",
    "ShmServeError",
    "Stale",
    "TooManyRequests",
    "UnsupportedType",
    "send_inference_request",
]

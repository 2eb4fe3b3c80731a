"""The exception tree.

    ShmServeError
      ServiceUnavailable (ConnectionError)     no daemon serves this name, or it refuses new clients
        ClientEvicted                         this client broke its channel, or crashed the engine again and again
        ServiceRestarted                       the daemon went away while the request was out
        ServiceStopping                        the daemon is going away and did not start the request
      ForeignService (PermissionError)         another user's daemon or directory, which the caller did not name
      ProtocolMismatch                         the other side speaks another wire version
      RequestTimeout (TimeoutError)            the deadline passed
      RequestRejected (ValueError)             the request itself cannot be served
        UnsupportedType (TypeError)            an object that the codec does not carry
        ObservationTooLarge                    more bytes than the service allows
        ContractMismatch                       not what the model was declared to take
        ValueOutOfRange                         a number that is not finite, or out of the range that the model declares
        TooManyRequests                        more a second than the operator allows one user
        ObservationStale                                  older than the client's own max_age_s when its turn came
      RequestCancelled                         withdrawn by the client
        RequestSuperseded                      replaced by a newer request of the same client
      SlotsExhausted                                 every slot is in use: results not yet collected
      InferenceFailed (RuntimeError)           the model raised; its type and message
      EngineLost (RuntimeError)                the engine died while running the request
      LoanOutlived (RuntimeError)                  an array of a lent reply outlived its block
      LoanEnded (ValueError)                   a loan was used again after it was sent or given back
      ClientClosed                             this client was closed
        ClientForked                           this client belongs to the parent process
      ReentrantCall (RuntimeError)             a signal handler or a finalizer asked this client inside its own call
      InvalidArgument (ValueError, TypeError)  an argument of a call or a constructor has no meaning
      OutOfMemory (MemoryError)                this process has no memory for an observation or a result
      NoFreshAction                            no action chunk has an action for this step, and the rule gives none
      InvalidChunk (ValueError)                   the model's answer has no chunk of actions in it
      ModelPackageError (ValueError)           the model package cannot be served; what and why

Builtin bases let plain handlers (`except TimeoutError`) work. A class that answers a wire status
names it in `status`.
"""

from __future__ import annotations

from typing import ClassVar

from .protocol import Status


class ShmServeError(Exception):
    """Everything shmserve raises on purpose."""

    status: ClassVar[Status | None] = None


class ServiceUnavailable(ShmServeError, ConnectionError):
    """No daemon serves this name, or it refuses new clients."""


class ServiceRestarted(ServiceUnavailable):
    """The daemon went away while the request was out; whether it ran is not known."""


class ServiceStopping(ServiceUnavailable):
    """The daemon is going away and did not start the request: its successor can be asked, whatever the model keeps."""

    status = Status.STOPPING


class ClientEvicted(ServiceUnavailable):
    """The daemon closed this client's channel, and lets its process back in after a while only; the message says why."""


class ForeignService(ShmServeError, PermissionError):
    """Another user owns the daemon or its directory, and the caller did not name that directory; nothing was sent."""


class ProtocolMismatch(ShmServeError):
    """The other side speaks another wire version: update the older of the two."""


class RequestTimeout(ShmServeError, TimeoutError):
    """The deadline passed. A late reply is discarded, never delivered to another request."""

    status = Status.EXPIRED


class RequestRejected(ShmServeError, ValueError):
    """The request itself cannot be served; sending it again changes nothing."""

    status = Status.REJECTED


class UnsupportedType(RequestRejected, TypeError):
    """The observation holds an object that the codec does not carry."""


class ObservationTooLarge(RequestRejected):
    """The observation needs more bytes than the service allows a channel."""


class ContractMismatch(RequestRejected):
    """The observation is not what the model was declared to take; the message lists the differences."""


class ValueOutOfRange(RequestRejected):
    """The observation holds a number that is not finite, or out of the range that the model declares for it."""


class TooManyRequests(RequestRejected):
    """The clients of this user send more requests a second than the operator allows; the model did not run."""


class ObservationStale(RequestRejected):
    """The observation was older than `max_age_s` when its turn came; the model did not run."""

    status = Status.STALE


class RequestCancelled(ShmServeError):
    """The client withdrew the request before it ran."""

    status = Status.CANCELLED


class RequestSuperseded(RequestCancelled):
    """A newer request of the same client replaced this one before it ran."""

    status = Status.SUPERSEDED


class SlotsExhausted(ShmServeError):
    """Every slot of the channel holds a request whose result has not been collected."""


class InferenceFailed(ShmServeError, RuntimeError):
    """The model raised; the message names the exception's type and text. The traceback is in the daemon's log."""

    status = Status.FAILED


class EngineLost(ShmServeError, RuntimeError):
    """The engine died while it ran this request; another engine serves the next one."""

    status = Status.ENGINE_LOST


class LoanOutlived(ShmServeError, RuntimeError):
    """An array of a reply that was lent out is still held; its memory is the next reply's now."""


class LoanEnded(ShmServeError, ValueError):
    """This loan was sent or given back before; borrow again."""


class ClientClosed(ShmServeError):
    """This client was closed; make a new one."""


class ClientForked(ClientClosed):
    """This client belongs to the parent process; a forked child makes its own."""


class ReentrantCall(ShmServeError, RuntimeError):
    """A signal handler, a finalizer or an object of the observation used the client whose call it interrupted."""


class InvalidArgument(ShmServeError, ValueError, TypeError):
    """An argument of a call or of a constructor has no meaning; the message gives its value and what is allowed."""


class OutOfMemory(ShmServeError, MemoryError):
    """This process has no memory for the observation or the result; the service is not affected."""


class NoFreshAction(ShmServeError):
    """No chunk has an action for this step and the fallback gives none; `__cause__` says what keeps chunks away."""


class InvalidChunk(ShmServeError, ValueError):
    """The model's answer has no chunk of actions in it."""


class ModelPackageError(ShmServeError, ValueError):
    """The model package cannot be served; the message says what is wrong with which file."""

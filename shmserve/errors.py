"""The exception tree.

    ShmServeError
      ServiceUnavailable (ConnectionError)     no daemon serves this name, or it refuses new clients
        ClientEvicted                          this client corrupted its channel, or crashed the engine repeatedly
        ServiceRestarted                       the daemon went away while the request was in flight
        ServiceStopping                        the daemon is going away and did not start the request
      ForeignService (PermissionError)         another user's daemon or directory, which the caller did not name
      ProtocolMismatch                         the other side speaks another wire version
      RequestTimeout (TimeoutError)            the deadline passed
      RequestRejected (ValueError)             the request itself cannot be served
        UnsupportedType (TypeError)            an object that the codec does not carry
          DeviceArrayRefused                   an array in GPU memory that this service does not take from there
        ObservationTooLarge                    more bytes than the service allows
        ContractMismatch                       the observation does not match the model's contract
        ValueOutOfRange                        a number that is not finite, or outside the range that the model declares
        TooManyRequests                        more per second than the operator allows one user
        ObservationStale                       older than the client's max_age when its turn came
      RequestCancelled                         cancelled by the client
        RequestSuperseded                      replaced by a newer request of the same client
      SlotsExhausted                           every slot is in use: results not yet collected
      InferenceFailed (RuntimeError)           the model raised; its type and message
      EngineLost (RuntimeError)                the engine died while it ran the request
      LoanOutlived (RuntimeError)              an array of a reply on loan outlived its block
      LoanEnded (ValueError)                   a loan was used again after it was sent or released
      ClientClosed                             this client was closed
        ClientForked                           this client belongs to the parent process
      ReentrantCall (RuntimeError)             a signal handler or a finalizer used this client inside its own call
      InvalidArgument (ValueError, TypeError)  an argument of a call or a constructor has no meaning
      OutOfMemory (MemoryError)                this process has no memory for an observation or a result
      NoFreshAction                            no action chunk has an action for this step, and the fallback gives none
      InvalidChunk (ValueError)                the model's result has no chunk of actions in it
      ModelPackageError (ValueError)           the model package cannot be served; what and why

Builtin bases let plain handlers (`except TimeoutError`) work. A class that answers a wire status names it in `status`.

The facts of an error are attributes beside its text, None where they are unknown: `service` and `request_id` of every
error, and those that a class lists. They are keyword arguments of the constructor, and survive copy and pickle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, TypedDict

from .protocol import Status

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Facts(TypedDict, total=False):
    """Keyword arguments of every error."""

    service: str | None
    request_id: int | None


class ShmServeError(Exception):
    """Base of all errors that shmserve raises on purpose.

    `service`: the name of the service; `request_id`: the number of the request, counted by its client.
    """

    status: ClassVar[Status | None] = None

    def __init__(self, *args: object, service: str | None = None, request_id: int | None = None) -> None:
        super().__init__(*args)
        self.service = service
        self.request_id = request_id


class ServiceUnavailable(ShmServeError, ConnectionError):
    """No daemon serves this name, or it refuses new clients.

    `reason`: the daemon's code for a refusal, as "too_many_clients"; `needed_bytes` and `limit_bytes`: of shared memory;
    `retry_after`: seconds until the daemon may accept this process.
    """

    def __init__(
        self,
        *args: object,
        reason: str | None = None,
        needed_bytes: int | None = None,
        limit_bytes: int | None = None,
        retry_after: float | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(*args, **facts)
        self.reason = reason
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes
        self.retry_after = retry_after


class ServiceRestarted(ServiceUnavailable):
    """The daemon went away while the request was in flight; the request may have run."""


class ServiceStopping(ServiceUnavailable):
    """The daemon is going away and did not start the request: send it to its successor, whatever state the model keeps."""

    status = Status.STOPPING


class ClientEvicted(ServiceUnavailable):
    """The daemon closed this client's channel and refuses its process for `retry_after` seconds; the message says why."""


class ForeignService(ShmServeError, PermissionError):
    """Another user owns the daemon or its directory, and the caller did not name that directory; nothing was sent.

    `path`: the directory, socket or object; `owner_uid`: the user who owns it.
    """

    def __init__(
        self, *args: object, path: str | None = None, owner_uid: int | None = None, **facts: Unpack[Facts]
    ) -> None:
        super().__init__(*args, **facts)
        self.path = path
        self.owner_uid = owner_uid


class ProtocolMismatch(ShmServeError):
    """The other side speaks another wire version: update the older of the two.

    `wire_version`: that of the other side.
    """

    def __init__(self, *args: object, wire_version: int | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(*args, **facts)
        self.wire_version = wire_version


class RequestTimeout(ShmServeError, TimeoutError):
    """The deadline passed. A late reply is discarded, never delivered to another request.

    `waited`: seconds from the call until the error.
    """

    status = Status.EXPIRED

    def __init__(self, *args: object, waited: float | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(*args, **facts)
        self.waited = waited


class RequestRejected(ShmServeError, ValueError):
    """The request itself cannot be served; sending it again changes nothing."""

    status = Status.REJECTED


class UnsupportedType(RequestRejected, TypeError):
    """The observation holds an object that the codec does not carry."""


class DeviceArrayRefused(UnsupportedType):
    """An array in GPU memory cannot be given to the service there; the message says why and what to send instead.

    `reason`: a code, "off", "no_gpu", "numpy", "other_gpu", "layout", "dtype", "too_large", "too_many_bytes" or "failed".
    """

    def __init__(self, *args: object, reason: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(*args, **facts)
        self.reason = reason


class ObservationTooLarge(RequestRejected):
    """The observation needs more bytes than the service allows a channel.

    `needed_bytes` and `limit_bytes`: of the whole channel.
    """

    def __init__(
        self, *args: object, needed_bytes: int | None = None, limit_bytes: int | None = None, **facts: Unpack[Facts]
    ) -> None:
        super().__init__(*args, **facts)
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes


class ContractMismatch(RequestRejected):
    """The observation does not match the model's contract.

    `differences`: a line each; `model` and `model_version`: whose contract it is.
    """

    def __init__(
        self,
        *args: object,
        differences: Iterable[str] = (),
        model: str | None = None,
        model_version: str | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(*args, **facts)
        self.differences = tuple(differences)
        self.model = model
        self.model_version = model_version


class ValueOutOfRange(RequestRejected):
    """The observation holds a number that is not finite, or outside the range that the model declares for it."""


class TooManyRequests(RequestRejected):
    """The clients of this user send more requests per second than the operator allows; the model did not run."""


class ObservationStale(RequestRejected):
    """The observation was older than `max_age` when its turn came; the model did not run."""

    status = Status.STALE


class RequestCancelled(ShmServeError):
    """The client cancelled the request before it ran."""

    status = Status.CANCELLED


class RequestSuperseded(RequestCancelled):
    """A newer request of the same client replaced this one before it ran."""

    status = Status.SUPERSEDED


class SlotsExhausted(ShmServeError):
    """Every slot of the channel holds a request whose result has not been collected.

    `slots`: how many slots the channel has.
    """

    def __init__(self, *args: object, slots: int | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(*args, **facts)
        self.slots = slots


class InferenceFailed(ShmServeError, RuntimeError):
    """The model raised; the message names the exception's type and text. The traceback is in the daemon's log.

    `model_error_type` and `model_error_message`: the exception that the model raised.
    """

    status = Status.FAILED

    def __init__(
        self,
        *args: object,
        model_error_type: str | None = None,
        model_error_message: str | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(*args, **facts)
        self.model_error_type = model_error_type
        self.model_error_message = model_error_message


class EngineLost(ShmServeError, RuntimeError):
    """The engine died while it ran this request; another engine serves the next one.

    `reason`: how it died, in the daemon's words.
    """

    status = Status.ENGINE_LOST

    def __init__(self, *args: object, reason: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(*args, **facts)
        self.reason = reason


class LoanOutlived(ShmServeError, RuntimeError):
    """An array of a reply on loan outlived its block; its memory now belongs to the next reply."""


class LoanEnded(ShmServeError, ValueError):
    """This loan was sent or released before; make a new one."""


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
    """No chunk has an action for this step and the fallback gives none; `__cause__` is the error that keeps chunks away."""


class InvalidChunk(ShmServeError, ValueError):
    """The model's result has no chunk of actions in it."""


class ModelPackageError(ShmServeError, ValueError):
    """The model package cannot be served; the message says what is wrong with which file."""

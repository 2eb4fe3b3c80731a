"""One client's hold on a service: the connection that is its lease, and its channel."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import posix_ipc

from shmserve.backend import core
from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder
from shmserve.directories import CLIENT_SOCKET, ServicePlace
from shmserve.errors import (
    ClientEvicted,
    ForeignService,
    InvalidArgument,
    ObservationTooLarge,
    OutOfMemory,
    ProtocolMismatch,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
)
from shmserve.layout import number_of, sequence_of, slot_of
from shmserve.protocol import WIRE_VERSION
from shmserve.service_owner import connect_to_service
from shmserve.varlink import PERMISSION_DENIED, DescriptorsLost, Reply, VarlinkError, VarlinkProtocolError
from shmserve.varlink_connection import VarlinkConnection
from shmserve.varlink_socket import close_fds

from .lending import LentTree
from .pending import Pending

_INTERFACE = "io.shmserve.Client"
#: Descriptors of a channel of transport `sealed`.
_LANE_FDS = 4
#: Of an object in /dev/shm, shm_overview(7).
_OBJECT_NAME = re.compile(r"/[A-Za-z0-9_.-]{1,200}")


class Wanted:
    """How large this client's slots must be; it only grows, and outlives an attachment."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.request_metadata = 0
        self.request_bytes = 0
        self.reply_metadata = 0
        self.reply_bytes = 0

    def copy(self) -> Wanted:
        other = Wanted(self.slots)
        vars(other).update(vars(self))
        return other

    def grow_requests(self, metadata_bytes: int, payload_bytes: int) -> None:
        self.request_metadata = max(self.request_metadata, metadata_bytes)
        self.request_bytes = max(self.request_bytes, payload_bytes)

    def grow_replies(self, metadata_bytes: int, payload_bytes: int) -> None:
        self.reply_metadata = max(self.reply_metadata, metadata_bytes)
        self.reply_bytes = max(self.reply_bytes, payload_bytes)


class ChannelRefused(Exception):
    """The daemon gives no channel of this size, and has moved nothing; `error` is what the caller hears."""

    def __init__(self, error: ShmServeError) -> None:
        super().__init__(str(error))
        self.error = error


class Attachment:
    """Holds the channel until `hang_up`; the connection's end gives it back."""

    def __init__(
        self,
        connection: VarlinkConnection,
        service: str,
        directory: Path,
        granted: Wanted,
        reply: Reply,
        owners: Collection[int] | None = None,
    ) -> None:
        #: What the channel was last made for.
        self.granted = granted
        self._connection = connection
        self._service = service
        self._directory = directory
        #: The users to whom named memory may belong; None: anybody.
        self._owners = owners
        self.channel = _channel(service, reply, owners)
        #: Whether pickles may cross in both directions. By socket activation whoever connected before the daemon had
        #: started sees systemd as its peer, which is root; so the replies must be root's or this user's as well.
        try:
            self.trusted = (
                reply.parameters.get("trusted") is True
                and connection.peer_uid() in _trusted_uids()
                and _is_ours(self.channel)
            )
        except BaseException:
            self.channel.close()
            raise
        self.decoder = Decoder(allow_pickle=self.trusted)
        #: What asks plain requests in this generation of the channel; None before it has learnt what they are like.
        self.asking: core.Asking | None = None
        #: Requests without a reply by sequence; None for one that nobody waits for any more.
        self.in_flight: dict[int, Pending | None] = {}
        #: Sequences answered RESIZE_REQUIRED: delivered once the channel has been resized.
        self.carried: list[int] = []
        #: The engine's count of replies when they were last collected: while it stands, there are no more.
        self.answered = 0
        #: Replies that callers read in their slots, by sequence.
        self.lent: dict[int, weakref.ref[LentTree]] = {}
        #: What the daemon said of its model; None while it has none ready, or was not asked.
        self.model: dict[str, Any] | None = None
        self.asked_ns = 0
        #: Between two generations: nothing may be published.
        self.moving = False
        self.closed = False

    @classmethod
    def open(
        cls,
        service: str,
        place: ServicePlace | Path,
        wanted: Wanted,
        timeout_s: float,
        connected: Callable[[VarlinkConnection], None] = lambda connection: None,
    ) -> Attachment:
        """Attach to the service; raises ServiceUnavailable, ForeignService, ProtocolMismatch or ObservationTooLarge.

        A `place` that is a path counts as named by the caller. `connected` gets the connection before the daemon is asked,
        so that another thread can end the wait.
        """
        place = place if isinstance(place, ServicePlace) else ServicePlace(place, named=True)
        path = place.directory / CLIENT_SOCKET
        try:
            return cls._open(service, place, path, wanted, timeout_s, connected)
        except ShmServeError:
            raise
        except _UNTYPED as error:
            raise attach_error(service, path, error) from error

    @classmethod
    def _open(
        cls,
        service: str,
        place: ServicePlace,
        path: Path,
        wanted: Wanted,
        timeout_s: float,
        connected: Callable[[VarlinkConnection], None],
    ) -> Attachment:
        deadline = time.monotonic() + timeout_s
        try:
            connection, owners = connect_to_service(place, CLIENT_SOCKET, timeout_s, accept_fds=_LANE_FDS)
        except ForeignService:
            raise
        except (FileNotFoundError, ConnectionError) as error:
            raise ServiceUnavailable(
                f"no daemon serves {service!r} at {path}: start one (shmserved --model-path DIR --name {service}), "
                "or say where it is (runtime_dir= or SHMSERVE_RUNTIME_DIR)"
            ) from error
        except PermissionError as error:
            raise ServiceUnavailable(
                f"{path} may not be opened by uid {os.getuid()}: join the daemon's group and set group_clients"
            ) from error
        except TimeoutError as error:
            raise ServiceUnavailable(f"{path} accepted no connection within {timeout_s:g} s") from error
        try:
            connected(connection)
            parameters = {
                "wire_version": WIRE_VERSION,
                "wanted": vars(wanted),
                "program": Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python",
            }
            reply = _call(connection, service, "Attach", parameters, deadline - time.monotonic())
            return cls(connection, service, place.directory, wanted.copy(), reply, owners)
        except BaseException:
            connection.close()
            raise

    def resize(self, wanted: Wanted, timeout_s: float) -> tuple[ClientChannel, list[int]]:
        """Ask for a new generation of the channel with larger slots; returns it, and what it will deliver.

        Only RESIZE_REQUIRED answers may be outstanding, and until `move` nothing may be published. Raises
        ChannelRefused; after any other error nobody knows which generation the daemon has.
        """
        carried = self.carried.copy()
        parameters = {
            "wanted": vars(wanted),
            "published": self.channel.requests.published(),
            "carried": carried,
        }
        try:
            reply = _call(self._connection, self._service, "Resize", parameters, timeout_s)
        except ShmServeError as error:
            if isinstance(error.__cause__, VarlinkError) and error.__cause__.error == f"{_INTERFACE}.Refused":
                raise ChannelRefused(error) from error
            raise
        self.granted = wanted.copy()
        try:
            channel = _channel(self._service, reply, self._owners, before=self.channel)
        except ShmServeError:
            raise
        except _UNTYPED as error:
            raise attach_error(self._service, self._directory / CLIENT_SOCKET, error) from error
        if self.trusted and not _is_ours(channel):
            channel.close()
            raise ServiceUnavailable(
                f"the daemon of {self._service!r} gave reply memory of uid {channel.replies.segment.file.st_uid} to uid "
                f"{os.geteuid()}, which trusted it until now: another daemon may have taken its place"
            )
        return channel, carried

    def move(self, channel: ClientChannel, carried: list[int]) -> ClientChannel:
        """Go on in the next generation; returns the one that is left."""
        old, self.channel = self.channel, channel
        self.asking = None
        # Requests that nobody waits for stayed in the old generation; they will not be answered.
        self.in_flight = {sequence: self.in_flight[sequence] for sequence in carried}
        self.carried = []
        self.answered = 0
        return old

    def next_sequence(self) -> int:
        """What the next request is called, in the slot whose turn it is or else another one; 0 while none is free."""
        requests = self.channel.requests
        published = requests.words[requests.counter]
        number = number_of(published) + 1
        turn = number % requests.rotating_slots
        if not self.in_flight and not self.lent:
            return sequence_of(number, turn)
        self._forget_unpublished(published)
        used = {slot_of(sequence) for sequence in self.in_flight}
        used.update(slot_of(sequence) for sequence in tuple(self.lent) if self.lent_reply(sequence) is not None)
        for slot in (*range(turn, requests.slots), *range(turn)):
            if slot not in used:
                return sequence_of(number, slot)
        return 0

    def _forget_unpublished(self, published: int) -> None:
        """An interrupt came between the note of a request and its publication: no reply will ever come."""
        for sequence in tuple(self.in_flight):
            if number_of(sequence) > number_of(published):
                del self.in_flight[sequence]

    def busy(self) -> bool:
        """Whether requests or loans are out that live in this generation."""
        self._forget_unpublished(self.channel.requests.published())
        return any(map(self.lent_reply, tuple(self.lent))) or any(
            pending is not None and not pending._settled_ns and sequence not in self.carried
            for sequence, pending in self.in_flight.items()
        )

    def lent_reply(self, sequence: int) -> LentTree | None:
        """The reply that is lent out in this slot, as long as it is."""
        reference = self.lent.get(sequence)
        loan = reference() if reference is not None else None
        if loan is None:
            self.lent.pop(sequence, None)
        return loan

    def learn(self, timeout_s: float) -> None:
        """Ask what the model takes, and whether it keeps state."""
        self.model = self.describe(timeout_s)["model"]
        self.asked_ns = time.monotonic_ns()

    def describe(self, timeout_s: float) -> dict[str, Any]:
        """The service, its state and its model; raises ProtocolMismatch for an answer that is none."""
        found = _call(self._connection, self._service, "Describe", {}, timeout_s).parameters
        model = found.get("model")
        if type(found.get("state")) is not str or not (model is None or _is_model(model)):
            raise _nonsense(self._service, "Describe", "it holds no state, or a model without name, version and kind")
        return {**found, "model": model}

    def lost(self) -> bool:
        """Whether the daemon has gone away; one system call."""
        return self._connection.peer_closed()

    def lost_error(self) -> ServiceUnavailable:
        """What a request that is out ends with when the daemon is gone, or this client was evicted."""
        farewell = self._connection.farewell()
        if farewell is not None and farewell.error == f"{_INTERFACE}.Evicted":
            return _evicted(self._service, farewell.parameters)
        return ServiceRestarted(
            f"the daemon of {self._service!r} ({self._directory}) went away while the request was out; "
            "a new request attaches to its successor"
        )

    def close_connection(self) -> None:
        """Give up this process's copy of the connection (a forked child's)."""
        self._connection.close()

    def hang_up(self) -> None:
        """Give the channel back. All of it stays open until `close`: another thread may be looking at it."""
        self.closed = True
        self._connection.shut_down()

    def close(self) -> None:
        """Hang up, close and unmap; never while a thread waits at the doorbell or for the daemon. May be called twice."""
        self.hang_up()
        self._connection.close()
        self.asking = None  # it views the memory
        self.channel.close()


#: What the system, and the memory of this process, keep a client from.
_UNTYPED = (OSError, posix_ipc.Error, MemoryError, ValueError, OverflowError, IndexError)


def attach_error(service: str, path: Path, error: Exception) -> ShmServeError:
    """Why this process cannot have a channel of a daemon that is there, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or (number is None and re.search("files open|open files", str(error))):
        return _no_descriptors(service, error)
    if number == errno.ENAMETOOLONG:
        return InvalidArgument(f"{path} cannot be the socket of {service!r}: {error}")
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return OutOfMemory(
            f"no channel of {service!r}: this process has no memory to map it ({error}): fewer slots, smaller "
            "observations, or more memory (ulimit -v, MemoryMax=)"
        )
    if number in (errno.EACCES, errno.EPERM) or isinstance(error, posix_ipc.PermissionsError):
        return ServiceUnavailable(
            f"no channel of {service!r}: uid {os.geteuid()} may not open it ({error}): join the daemon's group and set "
            "group_clients, or use transport 'sealed'"
        )
    if number in (errno.ENOTDIR, errno.ELOOP):
        return ServiceUnavailable(
            f"no daemon serves {service!r} at {path} ({error}): say where it is (runtime_dir= or SHMSERVE_RUNTIME_DIR)"
        )
    if isinstance(error, (OSError, posix_ipc.Error)):
        return ServiceUnavailable(f"no channel of {service!r} at {path}: {error}")
    return _nonsense(service, "Attach", f"{type(error).__name__}: {error}")


def _call(
    connection: VarlinkConnection, service: str, method: str, parameters: dict[str, Any], timeout_s: float
) -> Reply:
    try:
        return connection.call(f"{_INTERFACE}.{method}", parameters, timeout_s=max(timeout_s, 0.001))
    except VarlinkError as error:
        raise _typed(service, error) from error
    except DescriptorsLost as error:
        raise _no_descriptors(service, error) from error
    except VarlinkProtocolError as error:
        raise _nonsense(service, method, str(error)) from error
    except TimeoutError as error:
        raise ServiceUnavailable(f"the daemon of {service!r} did not answer {method} in time") from error
    except ConnectionError as error:
        raise ServiceUnavailable(f"the daemon of {service!r} closed the connection") from error
    except OSError as error:
        raise ServiceUnavailable(f"the daemon of {service!r} could not be asked: {error}") from error


def _no_descriptors(service: str, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"no channel of {service!r}: this process may open no more files ({error}): close clients and files that are "
        "not needed, or raise the limit (ulimit -n, LimitNOFILE=)"
    )


def _nonsense(service: str, method: str, what: str) -> ProtocolMismatch:
    return ProtocolMismatch(
        f"the daemon of {service!r} gave {method} an answer that cannot be read ({what}): install the same shmserve on "
        "both sides, and see whose daemon it is"
    )


def _channel_info(service: str, reply: Reply) -> ChannelInfo:
    """The channel of which a reply tells; a sealed one comes with descriptors."""
    fields = reply.parameters.get("channel_info")
    try:
        channel_info = ChannelInfo.from_json(fields)  # type: ignore[arg-type]
        numbers = vars(channel_info.identity).values()
        names = () if channel_info.names is None else vars(channel_info.names).values()
    except (KeyError, TypeError, AttributeError) as error:
        close_fds(reply.fds)
        raise _nonsense(service, "Attach", f"its channel: {type(error).__name__}: {error}") from error
    # posix_ipc crashes on some of what cannot be a name.
    if not all(type(number) is int for number in numbers) or not all(
        type(name) is str and _OBJECT_NAME.fullmatch(name) for name in names
    ):
        close_fds(reply.fds)
        raise _nonsense(service, "Attach", "its channel is not described by numbers and names")
    return channel_info


def _channel(
    service: str, reply: Reply, owners: Collection[int] | None, before: ClientChannel | None = None
) -> ClientChannel:
    """The channel that came with a reply; raises ProtocolMismatch for one that is refused before it is mapped."""
    channel_info = _channel_info(service, reply)
    try:
        return ClientChannel(channel_info, reply.fds, before=before, owners=owners)
    except ProtocolMismatch as error:
        raise ProtocolMismatch(f"the channel that the daemon of {service!r} gave is refused: {error}") from error


def _is_model(model: Any) -> bool:
    """Whether a daemon's model says what this client asks of it."""
    if type(model) is not dict or type(model.get("stateful")) is not bool:
        return False
    version, contract = model.get("version"), model.get("contract")
    return (
        type(version) is str
        and re.fullmatch("[0-9a-f]{1,16}", version) is not None
        and (contract is None or type(contract) is dict)
    )


def _typed(service: str, error: VarlinkError) -> ShmServeError:
    name = error.error.removeprefix(f"{_INTERFACE}.")
    parameters = error.parameters
    if name == "ProtocolMismatch":
        return ProtocolMismatch(
            f"the daemon of {service!r} speaks wire version {parameters.get('wire_version')}, this client "
            f"{WIRE_VERSION}: install the same shmserve on both sides"
        )
    if name == "Refused" and parameters.get("reason") == "evicted":
        return _evicted(service, parameters)
    if name == "Refused" and parameters.get("reason") == "too_large":
        return ObservationTooLarge(
            f"the daemon of {service!r} refuses a channel of this size: {parameters.get('message')}"
        )
    if name == "Refused":
        return ServiceUnavailable(f"the daemon of {service!r} gives no channel: {parameters.get('message')}")
    if name == "Stopping":
        return ServiceUnavailable(f"the daemon of {service!r} is stopping")
    if error.error == PERMISSION_DENIED:
        return ServiceUnavailable(
            f"the daemon of {service!r} does not serve uid {os.geteuid()}: its setting {parameters.get('setting')} must "
            "name this user"
        )
    return ServiceUnavailable(f"the daemon of {service!r} refused: {error}")


def _evicted(service: str, parameters: dict[str, Any]) -> ClientEvicted:
    return ClientEvicted(f"the daemon of {service!r} serves this process no more: {parameters.get('message')}")


def _trusted_uids() -> tuple[int, int]:
    """Who may have this process unpickle what they send: it is root's and its own user's anyway."""
    return os.geteuid(), 0


def _is_ours(channel: ClientChannel) -> bool:
    return channel.replies.segment.written_only_by(_trusted_uids())

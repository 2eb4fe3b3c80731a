"""Connection of a client to a daemon: the socket, which is the lease of the channel, and the channel.

It knows nothing of requests: `RequestTable` does.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Decoder
from shmserve.directories import CLIENT_SOCKET, ServicePlace
from shmserve.errors import (
    ForeignService,
    ProtocolMismatch,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
)
from shmserve.protocol import WIRE_VERSION
from shmserve.service_owner import connect_to_service
from shmserve.varlink import DescriptorsLost, Reply, VarlinkError, VarlinkProtocolError
from shmserve.varlink_connection import VarlinkConnection
from shmserve.varlink_socket import close_fds

from .capacity import SlotCapacity
from .device_memory import SharedArea
from .error_mapping import (
    INTERFACE,
    UNTYPED,
    attach_error,
    daemon_error,
    evicted_error,
    no_descriptors_error,
    unreadable_error,
)

#: Descriptors of a channel of transport `sealed`.
_CHANNEL_FDS = 4
#: Of an object in /dev/shm, shm_overview(7).
_OBJECT_NAME = re.compile(r"/[A-Za-z0-9_.-]{1,200}")


class ChannelRefused(Exception):
    """The daemon refused a channel of this size and changed nothing; `error` is for the caller."""

    def __init__(self, error: ShmServeError) -> None:
        super().__init__(str(error))
        self.error = error


class Connection:
    """Keeps the channel until `shutdown`; the end of the socket gives it back."""

    #: GPU memory for arrays of this client's requests; None: it has asked for none.
    area: SharedArea | None = None

    def __init__(
        self,
        connection: VarlinkConnection,
        service: str,
        directory: Path,
        granted: SlotCapacity,
        reply: Reply,
        owners: Collection[int] | None = None,
    ) -> None:
        #: The capacity that the channel has now.
        self.granted = granted
        self._control = connection
        self._service = service
        self._directory = directory
        #: The users to whom named memory may belong; None: anybody.
        self._owners = owners
        self.channel = _channel(service, reply, owners)
        #: Whether pickles may cross in both directions. With socket activation a client that connected before the daemon
        #: had started sees systemd as its peer, which is root; so the replies must be root's or this user's as well.
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
        #: The daemon's description of its model; None while no model is ready, or before the first call of Describe.
        self.model: dict[str, Any] | None = None
        self.asked_ns = 0
        #: Between two generations: nothing may be published.
        self.resizing = False
        self.closed = False

    @classmethod
    def open(
        cls,
        service: str,
        place: ServicePlace | Path,
        capacity: SlotCapacity,
        timeout_s: float,
        connected: Callable[[VarlinkConnection], None] = lambda connection: None,
    ) -> Connection:
        """Attach to the service; raises ServiceUnavailable, ForeignService, ProtocolMismatch or ObservationTooLarge.

        A `place` that is a path counts as named by the caller. `connected` gets the connection before the daemon is asked,
        so that another thread can end the wait.
        """
        place = place if isinstance(place, ServicePlace) else ServicePlace(place, named=True)
        path = place.directory / CLIENT_SOCKET
        try:
            return cls._open(service, place, path, capacity, timeout_s, connected)
        except ShmServeError:
            raise
        except UNTYPED as error:
            raise attach_error(service, path, error) from error

    @classmethod
    def _open(
        cls,
        service: str,
        place: ServicePlace,
        path: Path,
        capacity: SlotCapacity,
        timeout_s: float,
        connected: Callable[[VarlinkConnection], None],
    ) -> Connection:
        deadline = time.monotonic() + timeout_s
        try:
            connection, owners = connect_to_service(place, CLIENT_SOCKET, timeout_s, accept_fds=_CHANNEL_FDS)
        except ForeignService:
            raise
        except (FileNotFoundError, ConnectionError) as error:
            raise ServiceUnavailable(
                f"no daemon serves {service!r} at {path}: start one (shmserved --model-path DIR --name {service}), "
                "or say where it is (runtime_dir= or SHMSERVE_RUNTIME_DIR)",
                service=service,
            ) from error
        except PermissionError as error:
            raise ServiceUnavailable(
                f"{path} may not be opened by uid {os.getuid()}: join the daemon's group and set group_clients",
                service=service,
            ) from error
        except TimeoutError as error:
            raise ServiceUnavailable(
                f"{path} accepted no connection within {timeout_s:g} s", service=service
            ) from error
        try:
            connected(connection)
            parameters = {
                "wire_version": WIRE_VERSION,
                "wanted": vars(capacity),
                "program": Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python",
            }
            reply = _call(connection, service, "Attach", parameters, deadline - time.monotonic())
            return cls(connection, service, place.directory, capacity.copy(), reply, owners)
        except BaseException:
            connection.close()
            raise

    def resize(self, capacity: SlotCapacity, published: int, deferred: list[int], timeout_s: float) -> ClientChannel:
        """Ask for the next generation of the channel, with larger slots; return it.

        Only the `deferred` replies may be outstanding, and nothing may be published until `switch_to`. Raises
        ChannelRefused; after any other error it is unknown which generation the daemon has.
        """
        parameters = {"wanted": vars(capacity), "published": published, "deferred": deferred}
        try:
            reply = _call(self._control, self._service, "Resize", parameters, timeout_s)
        except ShmServeError as error:
            if isinstance(error.__cause__, VarlinkError) and error.__cause__.error == f"{INTERFACE}.Refused":
                raise ChannelRefused(error) from error
            raise
        self.granted = capacity.copy()
        try:
            channel = _channel(self._service, reply, self._owners, before=self.channel)
        except ShmServeError:
            raise
        except UNTYPED as error:
            raise attach_error(self._service, self._directory / CLIENT_SOCKET, error) from error
        if self.trusted and not _is_ours(channel):
            channel.close()
            raise ServiceUnavailable(
                f"the daemon of {self._service!r} gave reply memory of uid {channel.replies.segment.file.st_uid} to uid "
                f"{os.geteuid()}, which trusted it until now: another daemon may have taken its place",
                service=self._service,
            )
        return channel

    def share_device_memory(self, area_bytes: int, timeout_s: float) -> None:
        """Replace `area` by one with `area_bytes` for each slot; no request may be in flight.

        Raises DeviceArrayRefused, and ServiceUnavailable with the reason "not_ready" if it may be asked again.
        """
        reply = _call(self._control, self._service, "ShareDeviceMemory", {"area_bytes": area_bytes}, timeout_s)
        try:
            found = reply.parameters
            granted, slots, size = (_positive(found.get(name)) for name in ("area_bytes", "slots", "bytes"))
            gpu = found.get("gpu")
            if (
                type(gpu) is not str
                or len(reply.fds) != 1
                or granted < area_bytes
                or not slots
                or size < granted * slots
            ):
                raise unreadable_error(
                    self._service, "ShareDeviceMemory", f"no memory of this size in {len(reply.fds)} descriptors"
                )
            self._forget_area()  # the engines use the new memory already
            self.area = SharedArea(reply.fds[0], granted, slots, size, gpu)
        finally:
            close_fds(reply.fds)

    def _forget_area(self) -> None:
        area, self.area = self.area, None
        if area is not None:
            area.close()

    def switch_to(self, channel: ClientChannel) -> None:
        """Continue in the next generation of the channel; the caller closes the previous one."""
        self.channel = channel

    def forget_model(self) -> None:
        """Forget the model's description, until `refresh_model_info`."""
        self.model = None

    def refresh_model_info(self, timeout_s: float) -> None:
        """Fetch the model's description: its contract, and whether it keeps state."""
        self.model = self.describe(timeout_s)["model"]
        self.asked_ns = time.monotonic_ns()

    def describe(self, timeout_s: float) -> dict[str, Any]:
        """Fetch the service, its state and its model; raises ProtocolMismatch for an answer that is not one."""
        found = _call(self._control, self._service, "Describe", {}, timeout_s).parameters
        model = found.get("model")
        if type(found.get("state")) is not str or not (model is None or _is_model(model)):
            raise unreadable_error(
                self._service, "Describe", "it holds no state, or a model without name, version and kind"
            )
        return {**found, "model": model}

    def is_peer_closed(self) -> bool:
        """Return whether the daemon has gone away; one system call."""
        return self._control.peer_closed()

    def close_error(self) -> ServiceUnavailable:
        """Return the error for requests in flight when the daemon went away, or evicted this client."""
        close_reason = self._control.farewell()
        if close_reason is not None and close_reason.error == f"{INTERFACE}.Evicted":
            return evicted_error(self._service, close_reason.parameters)
        return ServiceRestarted(
            f"the daemon of {self._service!r} ({self._directory}) went away while the request was in flight; "
            "a new request attaches to its successor",
            service=self._service,
        )

    def close_socket(self) -> None:
        """Close this process's copy of the socket (a forked child's)."""
        self._control.close()

    def shutdown(self) -> None:
        """Give the channel back. It stays mapped until `close`: another thread may be reading it."""
        self.closed = True
        self._control.shut_down()

    def close(self) -> None:
        """Shut down, close and unmap; never while a thread waits at the doorbell or for the daemon. May be called twice."""
        self.shutdown()
        self._control.close()
        self._forget_area()
        self.channel.close()


def _call(
    connection: VarlinkConnection, service: str, method: str, parameters: dict[str, Any], timeout_s: float
) -> Reply:
    try:
        return connection.call(f"{INTERFACE}.{method}", parameters, timeout_s=max(timeout_s, 0.001))
    except VarlinkError as error:
        raise daemon_error(service, error) from error
    except DescriptorsLost as error:
        raise no_descriptors_error(service, error) from error
    except VarlinkProtocolError as error:
        raise unreadable_error(service, method, str(error)) from error
    except TimeoutError as error:
        raise ServiceUnavailable(
            f"the daemon of {service!r} did not answer {method} in time", service=service
        ) from error
    except ConnectionError as error:
        raise ServiceUnavailable(f"the daemon of {service!r} closed the connection", service=service) from error
    except OSError as error:
        raise ServiceUnavailable(f"the daemon of {service!r} could not be asked: {error}", service=service) from error


def _positive(value: Any) -> int:
    """Return a number that a daemon sent, 0 for anything else."""
    return value if type(value) is int and value > 0 else 0


def _channel_info(service: str, reply: Reply) -> ChannelInfo:
    """The channel of which a reply tells; a sealed one comes with descriptors."""
    fields = reply.parameters.get("channel_info")
    try:
        channel_info = ChannelInfo.from_json(fields)  # type: ignore[arg-type]
        numbers = vars(channel_info.identity).values()
        names = () if channel_info.names is None else vars(channel_info.names).values()
    except (KeyError, TypeError, AttributeError) as error:
        close_fds(reply.fds)
        raise unreadable_error(service, "Attach", f"its channel: {type(error).__name__}: {error}") from error
    # posix_ipc crashes on some of what cannot be a name.
    if not all(type(number) is int for number in numbers) or not all(
        type(name) is str and _OBJECT_NAME.fullmatch(name) for name in names
    ):
        close_fds(reply.fds)
        raise unreadable_error(service, "Attach", "its channel is not described by numbers and names")
    return channel_info


def _channel(
    service: str, reply: Reply, owners: Collection[int] | None, before: ClientChannel | None = None
) -> ClientChannel:
    """The channel that came with a reply; raises ProtocolMismatch for one that is refused before it is mapped."""
    channel_info = _channel_info(service, reply)
    try:
        return ClientChannel(channel_info, reply.fds, before=before, owners=owners)
    except ProtocolMismatch as error:
        raise ProtocolMismatch(
            f"the channel that the daemon of {service!r} gave is refused: {error}", service=service
        ) from error


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


def _trusted_uids() -> tuple[int, int]:
    """Return the users whose pickles this process may load: root and its own user control it anyway."""
    return os.geteuid(), 0


def _is_ours(channel: ClientChannel) -> bool:
    return channel.replies.segment.written_only_by(_trusted_uids())

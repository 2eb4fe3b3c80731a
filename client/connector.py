"""Connector of a client: gets, resizes and replaces its connection to the daemon.

One thread at a time talks to the daemon (single-flight), and not under the lock, because the daemon may be slow to answer.
The connector knows nothing of requests: it reports to its user, the pipeline, what happens to the connection.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from shmserve.channel import ClientChannel
from shmserve.directories import ServicePlace
from shmserve.errors import DeviceArrayRefused, ObservationTooLarge, ServiceUnavailable, ShmServeError
from shmserve.varlink_connection import VarlinkConnection

from .capacity import SlotCapacity
from .client_guard import ClientGuard, ParkingLot
from .connection import ChannelRefused, Connection
from .device_memory import DeviceLeaves

#: A resize that has begun is given this time, however little its request has left.
_LEAST_RESIZE_S = 1.0
#: Between two calls for GPU memory that no engine can give yet.
_ASK_AGAIN_S = 0.1
#: States in which the daemon answers no request, whatever model it had.
_WITHOUT_MODEL = ("starting", "warming", "failed", "draining")

_T = TypeVar("_T")


class ConnectionUser(Protocol):
    """The pipeline, as its connector sees it. Each method is called under the lock."""

    def attached(self, connection: Connection) -> None:
        """A connection is new; raises if the client was closed meanwhile."""

    def lost(self, connection: Connection) -> None:
        """The daemon has gone away: complete the requests in flight and call `retire`."""

    def begin_resize(self, connection: Connection) -> bool:
        """Return whether the channel may be resized now: nothing but deferred replies lives in it."""

    def resize_arguments(self, connection: Connection) -> tuple[int, list[int]]:
        """Return the last published sequence, and the deferred replies."""

    def switched(self, connection: Connection, deferred: list[int]) -> None:
        """The channel has a new generation."""

    def resize_refused(self, refusal: ChannelRefused) -> None:
        """The channel stays as it is; raises if no deferred reply can be completed with the refusal."""


class Connector:
    """Owner of the connection, of those to be closed later, of the right to talk to the daemon, and of the capacity."""

    def __init__(
        self,
        guard: ClientGuard,
        place: ServicePlace,
        capacity: SlotCapacity,
        parking_lot: ParkingLot,
        on_device: DeviceLeaves | None = None,
    ) -> None:
        #: The requested capacity; survives a connection.
        self.capacity = capacity
        #: Arrays in GPU memory, which need an area as others need slots.
        self.on_device = on_device or DeviceLeaves()
        self.connection: Connection | None = None
        #: Unused, but mapped until no thread can be reading them: see `close_retired`.
        self.retired: list[Connection | ClientChannel] = []
        #: The thread that talks to the daemon; 0 for none.
        self.control_owner = 0
        self._guard = guard
        self._place = place
        self._parking_lot = parking_lot
        self._connecting: VarlinkConnection | None = None  # the latest that may not have a channel yet
        self._current: list[Connection] = []  # `connection` in a list, so that the finalizer needs no self
        # Not at exit: threads may be waiting at the doorbell then, and the kernel gives everything back.
        weakref.finalize(self, _close_all, self._current, self.retired).atexit = False

    def usable(self) -> Connection | None:
        """Return the connection, unless it is shut down; another thread may lose it at any time."""
        connection = self.connection
        return connection if connection is not None and not connection.closed else None

    def _set(self, connection: Connection | None) -> None:
        self._current[:] = [] if connection is None else [connection]
        self.connection = connection

    # Control calls

    def attach(self, deadline_ns: int, user: ConnectionUser) -> None:
        """Attach, unless that is done and the daemon still there; one attempt. Raises ServiceUnavailable."""
        self._guard.check_not_inside()
        with self._guard.lock:
            self._guard.check_usable()
            connection = self.usable()
            if connection is not None and connection.is_peer_closed():
                user.lost(connection)
        self._run_exclusively(deadline_ns, lambda: self._attach(deadline_ns, user))

    def _attach(self, deadline_ns: int, user: ConnectionUser) -> None:
        current = self.usable()
        if current is not None:  # by another thread meanwhile
            if current.model is None:
                self._ask(current, user, lambda: current.refresh_model_info(_remaining_s(deadline_ns)))
            return
        try:
            connection = self._open(deadline_ns)
        except ObservationTooLarge:
            # The capacity it grew to under an earlier daemon is more than this one allows.
            self.capacity.reset()
            connection = self._open(deadline_ns)
        try:
            connection.refresh_model_info(_remaining_s(deadline_ns))
            with self._guard.lock:
                user.attached(connection)
                self.on_device.attached()
                self._connecting = None
                if self.connection is not None:
                    self.retired.append(self.connection)
                self._set(connection)
        except BaseException:
            connection.close()
            raise

    def _open(self, deadline_ns: int) -> Connection:
        def connected(connection: VarlinkConnection) -> None:
            with self._guard.lock:
                self._guard.check_usable()
                self._connecting = connection

        return Connection.open(self._guard.name, self._place, self.capacity, _remaining_s(deadline_ns), connected)

    def _ask(self, connection: Connection, user: ConnectionUser, call: Callable[[], _T]) -> _T:
        """Run `call`, which asks the daemon; an interrupt of it closes the connection, and requests must not go there then."""
        try:
            return call()
        except BaseException:
            if connection.is_peer_closed():
                with self._guard.lock:
                    user.lost(connection)
            raise

    def describe(self, deadline_ns: int, user: ConnectionUser) -> dict[str, Any]:
        """Return the daemon's description of its service and model; the client is attached."""

        def describe() -> dict[str, Any]:
            connection = self.usable()
            if connection is None:
                raise ServiceUnavailable(f"the daemon of {self._guard.name!r} went away", service=self._guard.name)
            return self._ask(connection, user, lambda: connection.describe(_remaining_s(deadline_ns)))

        return self._run_exclusively(deadline_ns, describe)

    def refresh_model_info(self, deadline_ns: int, user: ConnectionUser) -> dict[str, Any] | None:
        """Fetch the model's description again and return it; the next request is compared with it."""

        def refresh() -> dict[str, Any] | None:
            connection = self.usable()
            if connection is None:
                raise ServiceUnavailable(f"the daemon of {self._guard.name!r} went away", service=self._guard.name)
            self._ask(connection, user, lambda: connection.refresh_model_info(_remaining_s(deadline_ns)))
            return connection.model

        return self._run_exclusively(deadline_ns, refresh)

    def reason_without_model(self, limit_ns: int, user: ConnectionUser) -> str:
        """Return why no reply comes, if the service has no model ready, else "".

        Asks the daemon for `limit_ns`, if no other thread is asking it.
        """
        connection = self.usable()
        if connection is None:
            return ""
        description = self._try_describe(connection, limit_ns, user) or {"state": "loading", "model": connection.model}
        state = description["state"]
        if description["model"] is not None and state not in _WITHOUT_MODEL:
            return ""
        if state in ("failed", "draining"):
            return f"the service is {state}, shmserve-admin status tells why"
        return f"the service is loading its model (state {state!r}), shmserve-admin wait-ready waits for it"

    def _try_describe(self, connection: Connection, limit_ns: int, user: ConnectionUser) -> dict[str, Any] | None:
        """Return the daemon's description, or None if it does not come within `limit_ns`.

        A thread asks: Ctrl-C in the middle of a call closes the connection, and requests of other threads end with it.
        """
        if self.control_owner or self._guard.is_inside():
            return None
        deadline_ns = time.monotonic_ns() + limit_ns
        answers: list[dict[str, Any] | None] = []

        def ask() -> None:
            answer = None
            try:
                with contextlib.suppress(ShmServeError):
                    answer = self._run_exclusively(
                        deadline_ns,
                        lambda: self._ask(connection, user, lambda: connection.describe(_remaining_s(deadline_ns))),
                    )
            finally:
                answers.append(answer)
                self._parking_lot.unpark_all()

        with contextlib.suppress(RuntimeError):  # the process cannot start a thread
            _thread.start_new_thread(ask, ())
            while not answers and time.monotonic_ns() < deadline_ns:
                self._parking_lot.park(deadline_ns)
        return answers[0] if answers else None

    def _run_exclusively(self, deadline_ns: int, call: Callable[[], _T]) -> _T:
        """Run `call`, which talks to the daemon, when no other thread does."""
        me = threading.get_ident()
        self._guard.check_not_inside()
        if self.control_owner == me:
            raise self._guard.reentrant_error()  # the connection is in the middle of another call
        try:
            while not self._claim_control(me):
                self._parking_lot.park(deadline_ns)
                if time.monotonic_ns() >= deadline_ns:
                    raise ServiceUnavailable(
                        f"the daemon of {self._guard.name!r} did not answer another thread in time",
                        service=self._guard.name,
                    )
            try:
                return call()
            except ServiceUnavailable:
                self._guard.check_usable()  # closing the client ends a call, too
                raise
        finally:
            if self.control_owner == me:
                self.control_owner = 0
                self._parking_lot.unpark_all()

    def _claim_control(self, me: int) -> bool:
        with self._guard.lock:
            if self.control_owner:
                return False
            self.control_owner = me
            return True

    # Capacity

    def resize(self, deadline_ns: int, user: ConnectionUser) -> bool:
        """Switch to slots of the requested capacity; return False, and do nothing, while the channel is in use.

        Raises ObservationTooLarge, and what `begin_resize` raises.
        """
        me = threading.get_ident()
        interrupts = self.control_owner == me  # another call of this thread, by a signal handler or a finalizer
        connection: Connection | None = None
        try:
            with self._guard.lock:
                self._guard.check_usable()
                usable = self.usable()
                if usable is None:
                    return True
                if interrupts:
                    raise self._guard.reentrant_error()
                if not user.begin_resize(usable) or not self._claim_control(me):
                    return False
                connection = usable
                connection.resizing = True
            needs_area = self.on_device.wanted > 0 and self.on_device.lacks(
                connection.area, connection.channel.requests.slots
            )
            if not needs_area or self.capacity.exceeds(connection.granted):
                self._resize(connection, deadline_ns, user)
            if needs_area and not connection.closed:
                self._share(connection, deadline_ns, user)
            return True
        finally:
            if connection is not None:
                connection.resizing = False
            if self.control_owner == me and not interrupts:
                self.control_owner = 0
                self._parking_lot.unpark_all()

    def _resize(self, connection: Connection, deadline_ns: int, user: ConnectionUser) -> None:
        channel: ClientChannel | None = None
        try:
            # After a call that was broken off it is unknown which generation the daemon has.
            published, deferred = user.resize_arguments(connection)
            timeout_s = max(_LEAST_RESIZE_S, _remaining_s(deadline_ns))
            wanted = self.capacity.with_headroom(connection.granted)
            try:
                channel = connection.resize(wanted, published, deferred, timeout_s)
            except ChannelRefused:
                if vars(wanted) == vars(self.capacity):
                    raise
                # The daemon's limits leave no headroom, but perhaps the room that is needed.
                channel = connection.resize(self.capacity, published, deferred, timeout_s)
            with self._guard.lock:
                if connection.closed:  # meanwhile; not closed here, for a thread may wait at the doorbell
                    self.retired.append(channel)
                else:
                    self.retired.append(connection.channel)
                    connection.switch_to(channel)
                    user.switched(connection, deferred)
        except ChannelRefused as refusal:
            with self._guard.lock:
                self.capacity.assign(connection.granted)  # or the next small request would ask for it again
                user.resize_refused(refusal)
        except ServiceUnavailable:
            with self._guard.lock:
                user.lost(connection)
        except BaseException:
            # It is unknown whether the daemon has switched, or this side is between the two: begin anew.
            with self._guard.lock:
                user.lost(connection)
                if channel is not None:
                    self.retired.append(channel)
            raise

    def _share(self, connection: Connection, deadline_ns: int, user: ConnectionUser) -> None:
        """Get GPU memory, once an engine serves that can give it; raises DeviceArrayRefused."""
        while True:
            timeout_s = max(_LEAST_RESIZE_S, _remaining_s(deadline_ns))
            share = functools.partial(connection.share_device_memory, self.on_device.wanted, timeout_s)
            try:
                self._ask(connection, user, share)
                return
            except DeviceArrayRefused as refusal:
                if not self.on_device.refuse(refusal, connection.area):
                    return
                continue
            except ServiceUnavailable as error:
                if connection.closed:  # the next one asks anew
                    return
                if error.reason != "not_ready":
                    with self._guard.lock:
                        user.lost(connection)  # an answer may still come
                    raise
                if time.monotonic_ns() >= deadline_ns:
                    raise
            self._guard.check_usable()
            time.sleep(_ASK_AGAIN_S)

    # The end of connections

    def retire(self, connection: Connection) -> None:
        """Shut a lost connection down, and keep it mapped until `close_retired`."""
        connection.shutdown()
        self.retired.append(connection)
        if connection is self.connection:
            self._set(None)

    def close_retired(self) -> None:
        """Close retired connections; called by the leader, so that no other thread waits at their doorbells."""
        if not self.control_owner:  # which may wait for the daemon there
            _close_all(self.retired)

    def shutdown(self) -> None:
        """End every wait for the daemon; nothing is unmapped."""
        if self.connection is not None:
            self.connection.shutdown()
        if self._connecting is not None:
            self._connecting.shut_down()

    def close(self) -> None:
        """Close everything; no thread waits at a doorbell or for the daemon."""
        _close_all(self._current, self.retired)
        self.connection = None

    def after_fork_in_child(self) -> None:
        """Close this copy's sockets, or the daemon misses the owner's end."""
        if self.connection is not None:
            self.connection.close_socket()
            # Unreachable, whatever this child does with its copies of requests in flight and loans.
            self.retired.append(self.connection)
            self._set(None)
        if self._connecting is not None:
            self._connecting.close()


def _close_all(*groups: list[Any]) -> None:
    for group in groups:
        while group:
            with contextlib.suppress(OSError):  # other code has closed its descriptors
                group[-1].close()
            group.pop()  # last: after an interrupt it is closed again


def _remaining_s(deadline_ns: int) -> float:
    return max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9)

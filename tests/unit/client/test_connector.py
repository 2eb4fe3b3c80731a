"""The connector: one thread at a time asks the daemon, and lost connections stay mapped until no thread reads them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shmserve.client import connector as connector_module
from shmserve.client.capacity import SlotCapacity
from shmserve.client.client_guard import ClientGuard, ParkingLot
from shmserve.client.connection import ChannelRefused, Connection
from shmserve.client.connector import Connector
from shmserve.errors import (
    ClientClosed,
    DeviceArrayRefused,
    ObservationTooLarge,
    ReentrantCall,
    ServiceUnavailable,
    ShmServeError,
)

_FAR_NS = 1 << 62


class StubChannel:
    """A generation of a channel."""

    requests = SimpleNamespace(slots=4)

    def close(self) -> None: ...


class StubConnection:
    """Answers as the test says."""

    def __init__(self) -> None:
        self.closed = self.gone = self.resizing = False
        self.closes = self.descriptions = self.switches = 0
        self.model: dict[str, Any] | None = {"version": "7"}
        self.granted = SlotCapacity(4)
        self.channel: Any = StubChannel()
        self.description: dict[str, Any] | ShmServeError = {"state": "ready", "model": self.model}
        self.resize_outcome: Any = StubChannel()
        #: Requests of more bytes are refused.
        self.most_bytes: int | None = None
        self.resizes: list[int] = []
        #: GPU memory, what was asked for, and errors that come first.
        self.area: Any = None
        self.shares: list[int] = []
        self.share_outcomes: list[Exception | None] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def is_peer_closed(self) -> bool:
        return self.gone

    def refresh_model_info(self, timeout_s: float) -> None:
        self.model = self.describe(timeout_s)["model"]

    def describe(self, timeout_s: float) -> dict[str, Any]:
        self.descriptions += 1
        self.asked.set()
        assert self.release.wait(30)
        if isinstance(self.description, ShmServeError):
            raise self.description
        return self.description

    def resize(self, capacity: SlotCapacity, published: int, deferred: list[int], timeout_s: float) -> Any:
        assert self.resizing
        if isinstance(self.resize_outcome, Exception):
            raise self.resize_outcome
        self.resizes.append(capacity.request_bytes)
        if self.most_bytes is not None and capacity.request_bytes > self.most_bytes:
            raise ChannelRefused(ObservationTooLarge("too large"))
        self.granted = capacity.copy()
        return self.resize_outcome

    def share_device_memory(self, area_bytes: int, timeout_s: float) -> None:
        assert self.resizing
        self.shares.append(area_bytes)
        outcome = self.share_outcomes.pop(0) if self.share_outcomes else None
        if isinstance(outcome, Exception):
            self.gone = str(outcome) == "gone"
            raise outcome
        self.area = SimpleNamespace(area_bytes=area_bytes, slots=4)

    def switch_to(self, channel: Any) -> None:
        self.switches += 1
        self.channel = channel

    def shutdown(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True
        self.closes += 1


class User:
    """The pipeline's part: notes what happens to the connection."""

    def __init__(self, connector: Connector) -> None:
        self.connector = connector
        self.events: list[str] = []
        self.ready = True
        self.closes_client = False

    def attached(self, connection: Connection) -> None:
        if self.closes_client:
            self.connector._guard.close()
        self.connector._guard.check_usable()
        self.events.append("attached")

    def lost(self, connection: Connection) -> None:
        self.events.append("lost")
        self.connector.retire(connection)

    def begin_resize(self, connection: Connection) -> bool:
        return self.ready

    def resize_arguments(self, connection: Connection) -> tuple[int, list[int]]:
        return 64, [64]

    def switched(self, connection: Connection, deferred: list[int]) -> None:
        self.events.append(f"switched {deferred}")

    def resize_refused(self, refusal: ChannelRefused) -> None:
        self.events.append("refused")


class Opened(list[StubConnection]):
    """The connections that were opened; `outcomes` come first, one for each attempt."""

    outcomes: list[StubConnection | Exception]

    def open(self, name: str, place: Any, capacity: SlotCapacity, timeout_s: float, connected: Any) -> StubConnection:
        connected(SimpleNamespace(shut_down=lambda: None, close=lambda: None))
        outcome = self.outcomes.pop(0) if self.outcomes else StubConnection()
        if isinstance(outcome, Exception):
            raise outcome
        self.append(outcome)
        return outcome


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    opened.outcomes = []
    monkeypatch.setattr(connector_module, "Connection", opened)
    return opened


@pytest.fixture
def connector() -> Iterator[Connector]:
    yield Connector(ClientGuard("arm"), cast(Any, None), SlotCapacity(4), ParkingLot())


@pytest.fixture
def user(connector: Connector) -> User:
    return User(connector)


def test_an_attached_client_attaches_once(connector: Connector, user: User, opened: Opened) -> None:
    connector.attach(_FAR_NS, user)
    connector.attach(_FAR_NS, user)

    assert user.events == ["attached"]
    assert connector.usable() is cast(Any, opened[0])
    assert connector.control_owner == 0


def test_threads_that_attach_at_a_time_share_one_connection(connector: Connector, user: User, opened: Opened) -> None:
    slow = StubConnection()
    slow.release.clear()
    opened.outcomes = [slow]
    threads = [threading.Thread(target=connector.attach, args=(_FAR_NS, user)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert slow.asked.wait(30)
    slow.release.set()
    for thread in threads:
        thread.join()

    assert list(opened) == [slow]
    assert user.events == ["attached"]


def test_a_thread_waits_for_the_one_that_asks_until_its_deadline(
    connector: Connector, user: User, opened: Opened
) -> None:
    connector.attach(_FAR_NS, user)
    connector.control_owner = -1  # another thread's

    with pytest.raises(ServiceUnavailable, match="another thread"):
        connector.describe(time.monotonic_ns() + 1_000_000, user)
    assert connector.control_owner == -1


def test_a_call_within_a_call_of_the_same_thread_is_rejected(connector: Connector, user: User, opened: Opened) -> None:
    connector.attach(_FAR_NS, user)
    connector.control_owner = threading.get_ident()

    with pytest.raises(ReentrantCall):
        connector.describe(time.monotonic_ns() + 1_000_000, user)
    with pytest.raises(ReentrantCall):
        connector.resize(_FAR_NS, user)
    assert connector.control_owner == threading.get_ident()


def test_a_lost_connection_is_replaced_and_stays_mapped_until_it_is_closed(
    connector: Connector, user: User, opened: Opened
) -> None:
    connector.attach(_FAR_NS, user)
    opened[0].gone = True
    connector.attach(_FAR_NS, user)

    assert user.events == ["attached", "lost", "attached"]
    assert (opened[0].closed, opened[0].closes) == (True, 0)
    assert connector.usable() is cast(Any, opened[1])
    connector.control_owner = -1  # another thread's, which may wait at the retired one
    connector.close_retired()
    assert opened[0].closes == 0
    connector.control_owner = 0
    connector.close_retired()
    assert (opened[0].closes, opened[1].closes, connector.retired) == (1, 0, [])


def test_a_daemon_that_refuses_the_capacity_of_an_earlier_one_is_asked_for_the_least(
    connector: Connector, user: User, opened: Opened
) -> None:
    connector.capacity.grow_requests(10, 20)
    opened.outcomes = [ObservationTooLarge("too large")]

    connector.attach(_FAR_NS, user)

    assert vars(connector.capacity) == vars(SlotCapacity(4))
    assert len(opened) == 1


def test_growing_lengths_cause_few_resizes(connector: Connector, user: User, opened: Opened) -> None:
    connector.attach(_FAR_NS, user)
    connection = opened[0]
    for length in range(1000, 101_000, 1000):
        if length > connection.granted.request_bytes:
            connector.capacity.grow_requests(80, length)
            connector.resize(_FAR_NS, user)
        assert connection.granted.request_bytes >= length

    assert len(connection.resizes) <= 13
    assert connector.capacity.request_bytes <= 100_000, "a new daemon is asked for what is needed"


def test_a_daemon_that_has_no_room_for_headroom_is_asked_for_what_is_needed(
    connector: Connector, user: User, opened: Opened
) -> None:
    connector.attach(_FAR_NS, user)
    connection = opened[0]
    connection.most_bytes = 1200
    for length in (1000, 1100, 1201):
        connector.capacity.grow_requests(80, length)
        connector.resize(_FAR_NS, user)

    assert connection.resizes == [1000, 1500, 1100, 1650, 1201]
    assert user.events[-1] == "refused"
    assert connector.capacity.request_bytes == connection.granted.request_bytes == 1100


@pytest.mark.parametrize("closed", [False, True])
def test_a_failed_attempt_leaves_nothing_open(connector: Connector, user: User, opened: Opened, closed: bool) -> None:
    failing = StubConnection()
    opened.outcomes = [failing]
    if closed:
        user.closes_client = True
        expected: type[ShmServeError] = ClientClosed
    else:
        failing.description = ServiceUnavailable("no")
        expected = ServiceUnavailable

    with pytest.raises(expected):
        connector.attach(_FAR_NS, user)

    assert failing.closes == 1
    assert (connector.connection, connector.control_owner) == (None, 0)


@pytest.mark.parametrize(
    ("outcome", "events", "raises", "retired"),
    [
        (StubChannel(), ["switched [64]"], None, "channel"),
        (ChannelRefused(ObservationTooLarge("no")), ["refused"], None, None),
        (ServiceUnavailable("gone"), ["lost"], None, "connection"),
        (ValueError("unexpected"), ["lost"], ValueError, "connection"),
    ],
    ids=["larger slots", "refused", "daemon gone", "broken off"],
)
def test_a_resize_ends_in_one_event(
    connector: Connector,
    user: User,
    opened: Opened,
    outcome: Any,
    events: list[str],
    raises: type[Exception] | None,
    retired: str | None,
) -> None:
    connector.attach(_FAR_NS, user)
    connection, before = opened[0], opened[0].channel
    connection.resize_outcome = outcome
    connector.capacity.grow_requests(10, 20)
    if raises is not None:
        with pytest.raises(raises):
            connector.resize(_FAR_NS, user)
    else:
        assert connector.resize(_FAR_NS, user)

    assert user.events[1:] == events
    assert connector.retired == {"channel": [before], "connection": [connection], None: []}[retired]
    assert (connection.resizing, connector.control_owner) == (False, 0)
    assert connector.capacity.request_bytes == (0 if events == ["refused"] else 20)


@pytest.mark.parametrize("reason", ["in use", "another thread asks"])
def test_a_channel_that_cannot_be_resized_now_stays(
    connector: Connector, user: User, opened: Opened, reason: str
) -> None:
    connector.attach(_FAR_NS, user)
    user.ready = reason != "in use"
    connector.control_owner = 0 if reason == "in use" else -1

    assert not connector.resize(_FAR_NS, user)

    assert (opened[0].switches, opened[0].resizing) == (0, False)
    assert connector.control_owner == (0 if reason == "in use" else -1)


@pytest.mark.parametrize(
    ("state", "model", "reason"),
    [
        ("ready", {"version": "7"}, ""),
        ("warming", {"version": "7"}, "loading its model (state 'warming')"),
        ("ready", None, "loading its model"),
        ("failed", {"version": "7"}, "the service is failed"),
        ("draining", None, "the service is draining"),
    ],
)
def test_a_request_without_a_reply_learns_the_state_of_the_service(
    connector: Connector, user: User, opened: Opened, state: str, model: Any, reason: str
) -> None:
    connector.attach(_FAR_NS, user)
    opened[0].description = {"state": state, "model": model}

    found = connector.reason_without_model(30_000_000_000, user)

    assert reason in found if reason else found == ""


def test_an_interrupt_between_two_generations_begins_anew(connector: Connector, user: User, opened: Opened) -> None:
    connector.attach(_FAR_NS, user)
    before, after = opened[0].channel, SimpleNamespace(close=lambda: None)
    opened[0].resize_outcome = after

    def interrupted(channel: Any) -> None:
        raise KeyboardInterrupt

    opened[0].switch_to = interrupted  # type: ignore[method-assign]
    connector.capacity.grow_requests(100, 1 << 20)
    with pytest.raises(KeyboardInterrupt):
        connector.resize(_FAR_NS, user)

    assert user.events == ["attached", "lost"]
    assert connector.usable() is None and connector.control_owner == 0
    assert before in connector.retired and after in connector.retired  # both are closed later


def test_an_interrupt_that_closes_the_connection_begins_anew(connector: Connector, user: User, opened: Opened) -> None:
    connector.attach(_FAR_NS, user)

    def interrupted(timeout_s: float) -> Any:
        opened[0].gone = True
        raise KeyboardInterrupt

    opened[0].describe = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        connector.describe(_FAR_NS, user)

    assert user.events == ["attached", "lost"]
    assert connector.usable() is None


def test_closing_closes_the_current_and_the_retired_connections(
    connector: Connector, user: User, opened: Opened
) -> None:
    connector.attach(_FAR_NS, user)
    opened[0].gone = True
    connector.attach(_FAR_NS, user)
    connector.shutdown()
    assert [connection.closes for connection in opened] == [0, 0]

    connector.close()

    assert [connection.closes for connection in opened] == [1, 1]
    assert connector.usable() is None


def not_ready() -> ServiceUnavailable:
    return ServiceUnavailable("no model serves now: ask again", reason="not_ready")


@pytest.fixture
def sharing(connector: Connector, user: User, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> StubConnection:
    """A connection whose client needs GPU memory for its next request."""
    monkeypatch.setattr(connector_module, "_ASK_AGAIN_S", 0.0)
    connector.attach(_FAR_NS, user)
    connector.on_device.want(1000, None)
    user.events.clear()
    return opened[0]


def test_gpu_memory_alone_needs_no_larger_slots(connector: Connector, user: User, sharing: StubConnection) -> None:
    assert connector.resize(_FAR_NS, user)

    assert (sharing.shares, sharing.resizes, user.events) == ([1000], [], [])
    connector.capacity.grow_requests(0, 5000)
    connector.on_device.want(1001, sharing.area)
    assert connector.resize(_FAR_NS, user)
    assert (sharing.shares, sharing.resizes) == ([1000, 1500], [5000])


def test_gpu_memory_is_asked_for_until_an_engine_can_give_it(
    connector: Connector, user: User, sharing: StubConnection
) -> None:
    sharing.share_outcomes = [not_ready(), not_ready()]
    assert connector.resize(_FAR_NS, user)
    assert sharing.shares == [1000] * 3

    sharing.area, sharing.share_outcomes = None, [not_ready(), not_ready()]
    with pytest.raises(ServiceUnavailable, match="ask again"):
        connector.resize(0, user)
    assert (sharing.shares, user.events, sharing.resizing) == ([1000] * 4, [], False)


def test_less_gpu_memory_is_asked_for_where_more_is_refused(
    connector: Connector, user: User, sharing: StubConnection
) -> None:
    connector.resize(_FAR_NS, user)
    connector.on_device.want(1200, sharing.area)
    sharing.share_outcomes = [DeviceArrayRefused("too much", reason="too_large")]

    assert connector.resize(_FAR_NS, user)

    assert sharing.shares == [1000, 1500, 1200]


@pytest.mark.parametrize("reason", ["off", "no_gpu", "numpy"])
def test_a_service_that_shares_no_gpu_memory_is_not_asked_again(
    reason: str, connector: Connector, user: User, sharing: StubConnection
) -> None:
    sharing.share_outcomes = [DeviceArrayRefused("none", reason=reason)]

    assert connector.resize(_FAR_NS, user)
    connector.on_device.want(1000, None)
    connector.resize(_FAR_NS, user)

    assert sharing.shares == [1000]


def test_a_daemon_that_goes_away_meanwhile_is_lost_and_one_that_hangs_is_an_error(
    connector: Connector, user: User, opened: Opened, sharing: StubConnection
) -> None:
    sharing.share_outcomes = [ServiceUnavailable("gone")]
    assert connector.resize(_FAR_NS, user)
    assert user.events == ["lost"]

    connector.attach(_FAR_NS, user)
    opened[1].share_outcomes = [ServiceUnavailable("did not answer in time")]
    with pytest.raises(ServiceUnavailable, match="in time"):
        connector.resize(_FAR_NS, user)
    assert user.events == ["lost", "attached", "lost"]

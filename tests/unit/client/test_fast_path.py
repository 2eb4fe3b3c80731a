"""The client's fast path: which requests and replies are eligible, on a channel whose both ends are in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from shmserve.backend import ClientFastPath
from shmserve.client.connection import Connection
from shmserve.client.fast_path import FastPath
from shmserve.client.loans import ReplyLoan, RequestLoan
from shmserve.client.pending import Pending
from shmserve.client.request_options import DEFAULT_OPTIONS, RequestOptions
from shmserve.codec import Encoder
from shmserve.layout import number_of, slot_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead
from tests.support.channel_ends import ChannelEnds, new_pending


class Client:
    """A fast path, and the slow path's steps that specialize it."""

    def __init__(self, ends: ChannelEnds) -> None:
        self.ends = ends
        self.encoder = Encoder()
        self.path = FastPath(ends.guard, ends.connector, ends.table, self.encoder)

    def ask_slowly(self, observation: Any, action: Any, flags: int = 0) -> None:
        pending = new_pending()
        self.ends.answer(self.ends.publish(pending, self.encoder, observation), action, flags=flags)
        self.ends.table.poll()
        self.path.specialize(cast(Connection, self.ends.connection))

    def try_send(
        self, pending: Pending, observation: Any, options: RequestOptions = DEFAULT_OPTIONS, *, leads: bool = True
    ) -> ClientFastPath | None:
        with self.ends.guard.lock:
            return self.path.try_send(pending, observation, options, leads=leads)

    def try_receive(self) -> Any:
        """The result of the request sent last, or None."""
        assert self.path.native is not None
        found = self.path.native.try_receive(ReplyHead)
        return None if found is None else found[0]


@pytest.fixture
def unused() -> Iterator[Client]:
    """A client whose fast path was not specialized yet."""
    with ChannelEnds() as ends:
        client = Client(ends)
        yield client
        client.path.deoptimize()


@pytest.fixture
def client(unused: Client) -> Client:
    unused.ask_slowly(state(0), state(0))
    return unused


def state(number: float, size: int = 3) -> dict[str, Any]:
    return {"state": np.full(size, number)}


def test_a_request_like_the_slow_one_before_it_is_sent_and_its_reply_received(unused: Client) -> None:
    client, ends = unused, unused.ends
    assert client.try_send(new_pending(), state(1)) is None
    client.ask_slowly(state(1), state(1))
    for number in range(2, 12):  # in each slot in turn
        pending = new_pending(deadline_ns=1 << 60)

        assert client.try_send(pending, state(number)) is client.path.native

        head, observation = ends.request(pending.sequence)
        assert (number_of(pending.sequence), head.deadline_ns) == (number, 1 << 60)
        assert observation["state"].tolist() == [number] * 3
        assert ends.table.in_flight == {pending.sequence: pending}
        native = client.path.native
        assert native is not None and native.try_receive(ReplyHead) is None
        ends.answer(pending.sequence, state(2 * number))
        found = native.try_receive(ReplyHead)
        assert found is not None
        action, reply, completed_ns = found
        assert action["state"].tolist() == [2 * number] * 3
        assert (reply.sequence, reply.version) == (pending.sequence, 7) and completed_ns > 0
        ends.table.complete(pending, found)


@pytest.mark.parametrize(
    "options",
    [
        RequestOptions(flags=Flag.SUPERSEDE),
        RequestOptions(flags=Flag.REPEATABLE),
        RequestOptions(capture_ns=5),
        RequestOptions(flags=Flag.SUPERSEDE | Flag.REPEATABLE, capture_ns=5, max_age_ns=6),
        RequestOptions(kind=Kind.RESET),
        RequestOptions(kind=Kind.RESET, flags=Flag.REPEATABLE),
    ],
    ids=str,
)
def test_every_option_is_sent_on_the_fast_path(client: Client, options: RequestOptions) -> None:
    pending = new_pending(deadline_ns=1 << 59)
    resets = options.kind == Kind.RESET

    assert client.try_send(pending, None if resets else state(2), options) is not None

    head = client.ends.engine.requests.head(pending.sequence)
    assert head is not None
    assert (head.kind, head.flags, head.capture_ns, head.max_age_ns) == options_of(options)
    assert head.deadline_ns == 1 << 59
    assert (head.payload_bytes == 0) == resets
    client.ends.answer(pending.sequence, None if resets else state(4))
    client.ends.table.poll()
    assert (pending._result is None) == resets and pending._error is None


def options_of(options: RequestOptions) -> tuple[int, int, int, int]:
    return options.kind, options.flags, options.capture_ns, options.max_age_ns


def test_other_lengths_and_texts_take_the_fast_path(unused: Client) -> None:
    client = unused
    client.ask_slowly({"points": np.zeros((2, 3)), "text": "a", "scores": [1.0]}, {"text": "b", "n": [1]})
    for number, text in enumerate(("", "longer than before", "ä")):
        tree = {"points": np.full((number, 3), number, np.float64), "text": text, "scores": [0.5] * (number + 1)}
        pending = new_pending()
        assert client.try_send(pending, tree) is not None
        np.testing.assert_equal(client.ends.request(pending.sequence)[1], tree)
        action = {"text": text * 2, "n": list(range(number + 2))}
        client.ends.answer(pending.sequence, action)
        assert client.try_receive() == action
        client.ends.table.poll()


def test_several_requests_are_in_flight_in_slots_of_their_own(client: Client) -> None:
    requests = [new_pending() for _ in range(4)]
    for number, pending in enumerate(requests):
        assert client.try_send(pending, state(number), leads=False) is not None
    assert client.try_send(new_pending(), state(4)) is None, "every slot is in use"
    assert len({slot_of(pending.sequence) for pending in requests}) == 4
    for number in (2, 0, 3, 1):
        client.ends.answer(requests[number].sequence, state(10 * number))

    assert client.ends.table.poll()
    assert [pending._result["state"].tolist() for pending in requests] == [[10.0 * number] * 3 for number in range(4)]
    assert client.try_send(new_pending(), state(4)) is not None


def test_a_request_that_an_interrupt_kept_from_being_published_does_not_keep_its_slot(client: Client) -> None:
    lost = new_pending()
    client.ends.table.claim(lost)  # an interrupt came before the publication
    client.ends.table.abandon(lost)

    assert client.try_send(new_pending(), state(1)) is None
    client.ask_slowly(state(1), state(1))

    assert client.ends.table.in_flight == {}
    assert client.try_send(new_pending(), state(1)) is not None


def lend_a_request(client: Client) -> object:
    loan = RequestLoan(cast(Any, None), None, 64, [], DEFAULT_OPTIONS, 0)
    client.ends.table.lend(loan)
    return loan


def lend_a_reply(client: Client) -> object:
    loan = ReplyLoan(cast(Any, None), 64, client.ends.channel.replies.memories[0], 1)
    client.ends.table.replies_on_loan[64] = cast(Any, lambda: loan)
    return loan


REASONS: dict[str, Callable[[Client], object]] = {
    "closed client": lambda client: client.ends.guard.close(),
    "lost connection": lambda client: setattr(client.ends.connector, "connection", None),
    "connection shut down": lambda client: client.ends.connection.shutdown(),
    "resize under way": lambda client: setattr(client.ends.connection, "resizing", True),
    "retired connection": lambda client: client.ends.connector.retired.append(client.ends.channel),
    "next generation": lambda client: setattr(client.ends.connection, "channel", object()),
    "request on loan": lend_a_request,
    "reply on loan": lend_a_reply,
    "deoptimized": lambda client: client.path.deoptimize(),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_path_declines_and_publishes_nothing(client: Client, reason: str) -> None:
    kept = REASONS[reason](client)
    before = client.ends.engine.requests.published()
    pending = new_pending()

    assert client.try_send(pending, state(1)) is None

    assert client.ends.engine.requests.published() == before
    assert pending.sequence == 0
    del kept


@pytest.mark.parametrize(
    "observation",
    [
        {"state": np.zeros((3, 1))},
        {"state": np.zeros(3, np.float32)},
        {"state": 1.0},
        {"other": np.zeros(3)},
        {"state": np.zeros(3), "more": 1},
        None,
        [np.zeros(3)],
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_observation_of_another_structure_is_examined_once_and_sent(client: Client, observation: Any) -> None:
    examined: list[Any] = []
    client.encoder.examine = examined.append

    for _ in range(2):
        pending = new_pending()
        assert client.try_send(pending, observation) is not None
        assert client.ends.table.in_flight == {pending.sequence: pending}
        client.ends.table.in_flight.clear()

    assert len(examined) == 1


@pytest.mark.parametrize("observation", [state(1, size=4000), {1.5: 1}], ids=["room", "key"])
def test_an_observation_without_room_or_a_safe_form_takes_the_slow_path(client: Client, observation: Any) -> None:
    assert client.try_send(new_pending(), observation) is None
    assert client.ends.table.in_flight == {}


def test_a_declared_length_is_examined_by_the_slow_path_while_others_change_freely(unused: Client) -> None:
    client = unused
    examined: list[Any] = []

    def examine(observation: Any) -> tuple[int, ...]:
        examined.append(observation)
        return 3, -1, -1  # the state's length is declared; that of the text and of the points is not

    client.encoder.examine = examine

    def tree(state: int, text: str, points: int) -> dict[str, Any]:
        return {"state": np.zeros(state), "text": text, "points": np.zeros((points), np.uint8)}

    client.ask_slowly(tree(3, "a", 5), state(0))
    for text, points in (("longer", 5), ("", 0), ("b", 60)):
        assert client.try_send(new_pending(), tree(3, text, points)) is not None
    assert len(examined) == 1
    client.ends.table.in_flight.clear()
    for size in (2, 4, 0):
        assert client.try_send(new_pending(), tree(size, "a", 5)) is None


@pytest.mark.parametrize(
    ("action", "flags", "receives"),
    [
        (state(1), 0, True),
        ({"text": "a"}, 0, True),
        ({"n": np.float32(1)}, 0, True),
        ([1.5, 2.5], 0, True),
        (None, 0, True),
        (state(1), Flag.PICKLED, False),
    ],
    ids=["arrays", "text", "scalar", "list", "None", "pickled"],
)
def test_a_reply_of_a_structure_that_was_read_before_is_received(
    unused: Client, action: Any, flags: int, receives: bool
) -> None:
    client = unused
    client.ask_slowly(state(1), action)
    pending = new_pending()
    assert client.try_send(pending, state(1)) is not None
    client.ends.answer(pending.sequence, action, flags=flags)

    assert client.path.native is not None
    found = client.path.native.try_receive(ReplyHead)

    assert (found is not None) == receives
    if found is not None:
        np.testing.assert_equal(found[0], action)


def test_a_reply_of_a_new_structure_is_left_to_the_table(client: Client) -> None:
    pending = new_pending()
    assert client.try_send(pending, state(1)) is not None
    client.ends.answer(pending.sequence, {"new": 1})

    assert client.try_receive() is None
    assert client.ends.table.poll()
    assert pending._result == {"new": 1}


@pytest.mark.parametrize("status", [Status.FAILED, Status.RESIZE_REQUIRED, Status.REJECTED])
def test_a_reply_of_another_status_is_left_to_the_table(client: Client, status: Status) -> None:
    pending = new_pending()
    assert client.try_send(pending, state(1)) is not None
    client.ends.answer(pending.sequence, state(2), status)

    assert client.try_receive() is None
    assert pending.sequence in client.ends.table.in_flight

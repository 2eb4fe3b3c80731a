"""The client's fast path: which requests and replies are eligible, on a channel whose both ends are in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from shmserve.backend import NATIVE
from shmserve.client.connection import Connection
from shmserve.client.fast_path import FastPath
from shmserve.client.loans import ReplyLoan, RequestLoan
from shmserve.client.request_options import DEFAULT_OPTIONS
from shmserve.codec import Encoder
from shmserve.layout import number_of
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead
from tests.support.channel_ends import ChannelEnds, new_pending

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")


class Client:
    """A fast path, and the slow path's steps that specialize it."""

    def __init__(self, ends: ChannelEnds) -> None:
        self.ends = ends
        self.path = FastPath(ends.guard, ends.connector, ends.table)
        self.encoder = Encoder()

    def ask_slowly(self, observation: Any, action: Any, flags: int = 0) -> None:
        pending = new_pending()
        self.ends.answer(self.ends.publish(pending, self.encoder, observation), action, flags=flags)
        self.ends.table.poll()
        self.path.specialize(pending, self.encoder, cast(Connection, self.ends.connection))


@pytest.fixture
def client() -> Iterator[Client]:
    with ChannelEnds() as ends:
        client = Client(ends)
        yield client
        client.path.deoptimize()


def state(number: float, size: int = 3) -> dict[str, Any]:
    return {"state": np.full(size, number)}


def test_a_request_like_the_slow_one_before_it_is_sent_and_its_reply_received(client: Client) -> None:
    ends = client.ends
    assert client.path.try_send(new_pending(), state(1)) is None
    for number in range(1, 12):  # the path takes a structure in a slot once its metadata is there
        client.ask_slowly(state(number), state(number))
    pending = new_pending(deadline_ns=1 << 60)

    assert client.path.try_send(pending, state(12)) is ends.channel

    head, observation = ends.request(pending.sequence)
    assert (number_of(pending.sequence), head.deadline_ns, observation["state"].tolist()) == (12, 1 << 60, [12] * 3)
    assert ends.table.in_flight == {pending.sequence: pending}
    native = client.path.native
    assert native is not None and native.try_receive(ReplyHead) is None
    ends.answer(pending.sequence, state(24))
    found = native.try_receive(ReplyHead)
    assert found is not None
    action, reply, completed_ns = found
    assert action["state"].tolist() == [24] * 3
    assert (reply.sequence, reply.version) == (pending.sequence, 7) and completed_ns > 0


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
    "another request in flight": lambda client: client.ends.publish(new_pending(), client.encoder, state(0)),
    "deoptimized": lambda client: client.path.deoptimize(),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_path_declines_and_publishes_nothing(client: Client, reason: str) -> None:
    for number in range(12):
        client.ask_slowly(state(number), state(number))
    kept = REASONS[reason](client)
    before = client.ends.engine.requests.published()
    pending = new_pending()

    assert client.path.try_send(pending, state(1)) is None

    assert client.ends.engine.requests.published() == before
    assert pending.sequence == 0
    del kept


@pytest.mark.parametrize("observation", [state(1, size=4), {"state": 1.0}, {"other": np.zeros(3)}, None, [np.zeros(3)]])
def test_an_observation_of_another_structure_takes_the_slow_path(client: Client, observation: Any) -> None:
    for number in range(12):
        client.ask_slowly(state(number), state(number))

    assert client.path.try_send(new_pending(), observation) is None


@pytest.mark.parametrize(
    ("action", "flags", "specializes"),
    [(state(1), 0, True), ({"text": "a"}, 0, True), ({"n": np.float32(1)}, 0, False), (state(1), Flag.PICKLED, False)],
    ids=["arrays", "text", "scalar", "pickled"],
)
def test_replies_of_arrays_alone_specialize(client: Client, action: Any, flags: int, specializes: bool) -> None:
    pending = new_pending()
    client.ends.answer(client.ends.publish(pending, client.encoder, state(1)), action)
    client.ends.table.poll()
    assert pending._head is not None
    pending._head = pending._head._replace(flags=flags)

    client.path.specialize(pending, client.encoder, cast(Connection, client.ends.connection))

    assert (client.path.native is not None) == specializes


@pytest.mark.parametrize("status", [Status.FAILED, Status.RESIZE_REQUIRED, Status.REJECTED])
def test_a_reply_of_another_status_is_left_to_the_table(client: Client, status: Status) -> None:
    for number in range(12):
        client.ask_slowly(state(number), state(number))
    pending = new_pending()
    assert client.path.try_send(pending, state(1)) is not None
    client.ends.answer(pending.sequence, state(2), status)

    assert client.path.native is not None and client.path.native.try_receive(ReplyHead) is None
    assert pending.sequence in client.ends.table.in_flight

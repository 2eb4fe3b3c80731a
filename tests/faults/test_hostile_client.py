"""What a client writes against the protocol costs it its channel or its request; nobody else notices."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.client.capacity import SlotCapacity
from shmserve.layout import MAX_METADATA_BYTES, sequence_of
from shmserve.protocol import WIRE_VERSION, Flag, Status
from shmserve.ring import RequestHead
from shmserve.varlink import INVALID_PARAMETER, VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.daemon_process import Daemon
from tests.support.raw_channel import RawChannel

_LARGEST = (1 << 64) - 1


@pytest.fixture(scope="module", params=["named", "sealed"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = Daemon("obedient", arguments=("--transport", request.param), config="trusted_uids = []\nban_s = 0\n")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def neighbour(daemon: Daemon) -> Iterator[ShmClient]:
    """Another robot of the same service, which must not notice anything."""
    engine = daemon.engine_pid
    with daemon.client() as client:
        client.infer({"do": "echo", "value": 0})
        yield client
        for number in range(20):
            assert client.infer({"do": "echo", "value": number}) == number
    assert daemon.engine_pid == engine


@pytest.fixture
def raw(daemon: Daemon, neighbour: ShmClient) -> Iterator[RawChannel]:
    with RawChannel(daemon) as raw:
        raw.publish(raw.head({"do": "echo", "value": "well-behaved"}))
        assert raw.reply(sequence_of(1, 0))[1] == "well-behaved"
        yield raw


@pytest.mark.fault("T05")
@pytest.mark.parametrize("counter", [0, sequence_of(1, 1), sequence_of(6, 0), 1 << 32, 1 << 63, _LARGEST])
def test_a_counter_that_jumps_costs_the_channel(daemon: Daemon, raw: RawChannel, counter: int) -> None:
    raw.count(counter)

    raw.wait_evicted()
    assert f"is evicted: published counter {counter:#x} after 0x40" in daemon.log


@pytest.mark.parametrize("slot", [4, 63])
def test_a_slot_that_the_channel_does_not_have_costs_it(daemon: Daemon, raw: RawChannel, slot: int) -> None:
    raw.count(sequence_of(2, slot))

    raw.wait_evicted()
    assert f"is evicted: no request 2 in slot {slot}" in daemon.log


@pytest.mark.fault("T05")
@pytest.mark.parametrize(
    "claims",
    [
        pytest.param([], id="nothing"),
        pytest.param([sequence_of(2, 1)], id="one of two"),
        pytest.param([sequence_of(3, 1), sequence_of(3, 2)], id="one twice"),
        pytest.param([sequence_of(2, 1), sequence_of(3, 1)], id="in another's slot"),
        pytest.param([sequence_of(2, 1), sequence_of(4, 2)], id="a later one"),
    ],
)
def test_several_requests_that_are_not_in_their_slots_cost_the_channel(
    daemon: Daemon, raw: RawChannel, claims: list[int]
) -> None:
    for slot, claim in enumerate(claims, 1):
        raw.requests.segment.words[raw.requests.segment.geometry.slot_offset(slot) // 8] = claim
    raw.count(sequence_of(3, 2))

    raw.wait_evicted()
    assert "is evicted: 2 requests were published, the slots hold others" in daemon.log


@pytest.mark.parametrize("sequence", [0, sequence_of(1, 0), sequence_of(3, 0), sequence_of(2, 1), _LARGEST])
def test_a_slot_without_the_request_that_was_published_costs_the_channel(
    daemon: Daemon, raw: RawChannel, sequence: int
) -> None:
    second = sequence_of(2, 0)
    head = raw.head({"do": "echo", "value": 1}, second)
    raw.requests.publish(tuple(head))
    raw.requests.segment.words[raw.requests.segment.geometry.slot_offset(0) // 8] = sequence
    raw.count(second)

    # The engine may have looked between the two; then it has answered, and the slot is whose it was.
    if raw.replies.try_head(second) is None:
        raw.wait_evicted()
        assert "is evicted: no request 2 in slot 0" in daemon.log


def answered(raw: RawChannel, head: RequestHead) -> tuple[int, Any]:
    """Status and tree of the reply to a head that somebody tampered with."""
    raw.publish(head)
    reply, tree = raw.reply(head.sequence)
    return reply.status, tree


@pytest.mark.parametrize("kind", [0, 3, 77, _LARGEST])
def test_an_unknown_kind_of_request_is_rejected(raw: RawChannel, kind: int) -> None:
    status, tree = answered(raw, raw.head({"do": "count"})._replace(kind=kind))

    assert (status, tree) == (Status.REJECTED, ("RequestRejected", f"unknown kind of request: {kind}"))


@pytest.mark.fault("T06")
@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata_bytes": 0},
        {"metadata_bytes": 7},
        {"metadata_bytes": MAX_METADATA_BYTES + 1},
        {"metadata_bytes": _LARGEST},
        {"payload_bytes": 0},
        {"payload_bytes": 1 << 33},
        {"payload_bytes": _LARGEST},
    ],
    ids=str,
)
def test_lengths_that_lie_are_rejected(raw: RawChannel, wrong: dict[str, int]) -> None:
    head = raw.head({"do": "echo", "value": np.arange(10)})

    status, tree = answered(raw, head._replace(schema=12345, **wrong))

    assert status == Status.REJECTED
    assert tree[0] == "MetadataError"


def test_metadata_that_is_none_is_rejected(raw: RawChannel) -> None:
    head = raw.head({"do": "count"})._replace(schema=777)
    raw.requests.memory(head.sequence).metadata[:] = 0x80

    status, tree = answered(raw, head)

    assert (status, tree[0]) == (Status.REJECTED, "MetadataError")


def test_invalid_text_is_rejected(raw: RawChannel) -> None:
    head = raw.head({"do": "echo", "value": "x" * 300})
    raw.requests.memory(head.sequence).payload[head.payload_bytes - 300 : head.payload_bytes] = 0xFF

    status, tree = answered(raw, head)

    assert (status, tree[0]) == (Status.REJECTED, "MetadataError")
    assert "utf-8" in tree[1].lower()


@pytest.mark.fault("T06")
@pytest.mark.parametrize(
    "sizes",
    [(4, 81), (4, 79), (4, 0), (65, 80), (4, 2**61), (4, 2**63), (4, 2**64 - 1), (2**64 - 8, 80), (2**32, 2**32)],
    ids=str,
)
def test_sizes_that_lie_are_rejected_and_the_next_request_is_served(raw: RawChannel, sizes: tuple[int, int]) -> None:
    head = raw.head({"do": "echo", "value": np.arange(80.0)})
    memory = raw.requests.memory(head.sequence)
    assert memory.payload[:16].view(np.uint64).tolist() == [4, 80]
    memory.payload[:16].view(np.uint64)[:] = sizes

    status, tree = answered(raw, head)

    assert (status, tree[0]) == (Status.REJECTED, "MetadataError")
    status, tree = answered(raw, raw.head({"do": "echo", "value": np.arange(81.0)}))
    assert (status, tree.shape) == (Status.OK, (81,))


class Bomb:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


@pytest.mark.fault("T30")
def test_a_strangers_pickle_is_never_opened(raw: RawChannel) -> None:
    head = raw.head({"bomb": Bomb()})
    assert head.flags & Flag.PICKLED

    status, tree = answered(raw, head)

    assert (status, tree) == (
        Status.REJECTED,
        ("RequestRejected", "a pickled object from a client that is not trusted"),
    )


def test_metadata_that_is_a_general_pickle_is_never_opened(raw: RawChannel) -> None:
    bomb = np.frombuffer(pickle.dumps({"bomb": Bomb()}, 5), np.uint8)
    head = raw.head({"do": "count"})
    raw.requests.memory(head.sequence).metadata[: bomb.size] = bomb

    status, tree = answered(raw, head._replace(schema=999, metadata_bytes=bomb.size))

    assert (status, tree[0]) == (Status.REJECTED, "MetadataError")


def test_a_schema_number_that_changes_its_meaning_harms_only_its_client(raw: RawChannel) -> None:
    first = raw.head({"do": "echo", "value": 1})
    assert answered(raw, first) == (Status.OK, 1)
    second = raw.head({"do": "echo", "value": 1.5})

    status, tree = answered(raw, second._replace(schema=first.schema, metadata_bytes=first.metadata_bytes))

    # The bits of the float, read with the schema that the number stood for.
    assert (status, tree) == (Status.OK, int(np.float64(1.5).view(np.int64)))


@pytest.mark.parametrize("submitted_ns", [0, 1, 1 << 63, _LARGEST])
def test_a_time_of_submission_that_lies_gains_nothing(raw: RawChannel, submitted_ns: int) -> None:
    head = raw.head({"do": "echo", "value": 1})

    assert answered(raw, head._replace(submitted_ns=submitted_ns)) == (Status.OK, 1)


@pytest.mark.parametrize(
    ("times", "status"),
    [
        ({"deadline_ns": _LARGEST}, Status.OK),
        ({"deadline_ns": 1}, Status.EXPIRED),
        ({"capture_ns": 1, "max_age_ns": 1}, Status.STALE),
        ({"capture_ns": _LARGEST, "max_age_ns": 1}, Status.OK),
        ({"capture_ns": 1, "max_age_ns": _LARGEST}, Status.OK),
        ({"capture_ns": 0, "max_age_ns": 1}, Status.OK),
    ],
    ids=str,
)
def test_times_are_compared_and_never_trusted(raw: RawChannel, times: dict[str, int], status: Status) -> None:
    head = raw.head({"do": "echo", "value": 1})

    assert answered(raw, head._replace(**times))[0] == status


def test_bits_that_mean_nothing_are_ignored(raw: RawChannel) -> None:
    head = raw.head({"do": "echo", "value": 1})

    assert answered(raw, head._replace(flags=_LARGEST ^ Flag.PICKLED)) == (Status.OK, 1)


@pytest.mark.fault("T21")
def test_more_rings_than_requests_delay_no_client(raw: RawChannel) -> None:
    for _ in range(100_000):
        raw.ring()

    for value in range(10):
        assert answered(raw, raw.head({"do": "echo", "value": value})) == (Status.OK, value)


@pytest.mark.fault("T20")
def test_a_request_without_a_ring_is_found_all_the_same(raw: RawChannel) -> None:
    for value in range(3):
        head = raw.head({"do": "echo", "value": value})
        raw.requests.publish(tuple(head))

        assert raw.reply(head.sequence)[1] == value


@pytest.mark.fault("T52")
def test_requests_that_overtake_their_replies_reach_no_other_client(raw: RawChannel) -> None:
    # Ten rounds without ever waiting for a slot: the engine sees some of them, and whatever it sees is this client's.
    for value in range(40):
        head = raw.head({"do": "echo", "value": value})
        raw.publish(head)
        if raw.attachment.is_peer_closed():
            break


def test_a_channel_may_be_attached_once_and_in_one_version(daemon: Daemon, neighbour: ShmClient) -> None:
    def call(connection: VarlinkConnection, method: str, **parameters: Any) -> str:
        try:
            connection.call(f"io.shmserve.Client.{method}", parameters, timeout_s=10.0)
        except VarlinkError as error:
            assert error.error != INVALID_PARAMETER or error.parameters
            return f"{error.error.rpartition('.')[2]} {error.parameters.get('parameter', '')}".strip()
        return "done"

    wanted = vars(SlotCapacity(2))
    with VarlinkConnection.connect(daemon.client_socket, 10.0, accept_fds=8) as connection:
        assert call(connection, "Resize", wanted=wanted, published=0, deferred=[]) == "NotAttached"
        assert call(connection, "Attach", wire_version=WIRE_VERSION + 1, wanted=wanted) == "ProtocolMismatch"
        for wrong in (
            {"slots": 0},
            {"slots": 65},
            {"slots": True},
            {"request_bytes": -1},
            {"reply_bytes": 1 << 40},
            {"slots": None},
        ):
            said = call(connection, "Attach", wire_version=WIRE_VERSION, wanted={**wanted, **wrong})
            assert said.startswith("InvalidParameter"), (wrong, said)
        assert call(connection, "Attach", wire_version=WIRE_VERSION, wanted=wanted) == "done"
        assert call(connection, "Attach", wire_version=WIRE_VERSION, wanted=wanted) == "AlreadyAttached"
        for published, deferred in (
            (-1, []),
            (1 << 62, []),
            (5, [6]),
            (5, [0]),
            (5, [1, 3]),
            (5, ["1"]),
            (5, [True]),
            (5, list(range(1, 70))),
        ):
            said = call(connection, "Resize", wanted=wanted, published=published, deferred=deferred)
            assert said.startswith("InvalidParameter"), (published, deferred, said)
        assert (
            call(connection, "Resize", wanted={**wanted, "request_bytes": 1 << 32}, published=0, deferred=[])
            == "Refused"
        )
        assert call(connection, "Resize", wanted=wanted, published=0, deferred=[]) == "done"

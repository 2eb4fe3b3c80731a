"""The native fast path: every option of a request, and misuse: wrong arguments, code that runs in the middle of a call."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmserve.carried_values import carried
from shmserve.codec import SlotMemory
from shmserve.layout import ASLEEP, REPLY, REQUEST, number_of, sequence_of, slot_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead, RequestHead
from tests.support.native import NATIVE, core
from tests.support.native_ends import (
    NativeEnds,
    decoders_of,
    encoder_of,
    metadata_of,
    new_slots,
    slot_memory,
    slots_memory,
)
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

TREE: dict[str, Any] = {"state": np.arange(3.0), "task": "pick", "step": 7, "list": [0.5, 1.5], "none": None}


class Odd:
    """A value that the walk asks `convert` about."""


def converting(code: Any) -> Any:
    return lambda value: (0, code()) if type(value) is Odd else carried(value)


# Requests and replies


def test_a_request_goes_to_the_engine_and_back() -> None:
    ends = NativeEnds(TREE)

    for step in range(10):
        tree = {**TREE, "step": step, "task": "x" * step, "state": np.full(step, float(step))}
        assert_same(ends.ask(tree), tree)
        assert number_of(ends.client.sequence) == step + 1
    assert {slot_of(sequence) for sequence in range(64, 704, 65)} and not ends.in_flight


def test_a_reply_has_the_head_that_the_engine_gave() -> None:
    ends = NativeEnds(TREE)
    began_ns = time.monotonic_ns()
    ends.send(TREE)
    observation = ends.take()
    copied_ns = ends.engine.reply(observation, Flag.IN_PLACE, 12, 34)
    found = ends.receive()

    assert found is not None
    tree, head, now_ns = found
    assert_same(tree, TREE)
    assert (head.sequence, head.status, head.flags, head.schema) == (ends.client.sequence, Status.OK, Flag.IN_PLACE, 1)
    assert (head.version, head.infer_ns, head.copied_ns, head.attempts) == (12, 34, copied_ns, 1)
    assert (head.queued_ns, head.staged_ns) == (ends.engine.queued_ns, ends.engine.staged_ns)
    assert head.metadata_bytes == len(metadata_of(TREE)) and began_ns <= now_ns <= time.monotonic_ns()


def test_a_request_s_options_are_published_with_it() -> None:
    ends = NativeEnds(TREE)
    began_ns = time.monotonic_ns()
    far_ns = began_ns + (1 << 50)

    assert ends.send(
        TREE, flags=Flag.SUPERSEDE | Flag.REPEATABLE, deadline_ns=far_ns, capture_ns=began_ns, max_age_ns=1 << 50
    )
    ends.take()

    head = ends.head()
    assert (head.sequence, head.kind, head.flags) == (
        ends.client.sequence,
        Kind.INFER,
        Flag.SUPERSEDE | Flag.REPEATABLE,
    )
    assert (head.deadline_ns, head.capture_ns, head.max_age_ns) == (far_ns, began_ns, 1 << 50)
    assert began_ns <= head.submitted_ns <= time.monotonic_ns()
    assert (head.schema, head.metadata_bytes, head.cancelled, head.write_id) == (1, len(metadata_of(TREE)), 0, 0)


_NOW, _PAST, _FUTURE, _LONG = time.monotonic_ns(), 1, time.monotonic_ns() + (1 << 58), 1 << 58


@pytest.mark.parametrize(
    ("options", "is_eligible"),
    [
        ({}, True),
        ({"deadline_ns": _FUTURE}, True),
        ({"deadline_ns": _PAST}, False),
        ({"capture_ns": _NOW}, True),
        ({"capture_ns": _NOW, "max_age_ns": _LONG}, True),
        ({"capture_ns": _PAST, "max_age_ns": 1}, False),
        ({"capture_ns": _FUTURE, "max_age_ns": 1}, True),
        ({"max_age_ns": 1}, True),
        ({"flags": Flag.SUPERSEDE}, True),
        ({"flags": Flag.REPEATABLE}, True),
        (
            {
                "flags": Flag.SUPERSEDE | Flag.REPEATABLE,
                "deadline_ns": _FUTURE,
                "capture_ns": _NOW,
                "max_age_ns": _LONG,
            },
            True,
        ),
        ({"flags": Flag.PICKLED}, False),
        ({"flags": 1 << 40}, False),
        ({"kind": Kind.RESET}, True),
        ({"kind": Kind.RESET, "deadline_ns": _PAST}, False),
        ({"kind": 0}, False),
        ({"kind": 99}, False),
    ],
    ids=lambda each: "-".join(each) if type(each) is dict else str(each),
)
def test_an_engine_takes_a_request_that_may_run_and_leaves_any_other(
    options: dict[str, int], is_eligible: bool
) -> None:
    ends = NativeEnds(TREE)
    assert ends.send(TREE, **options)  # type: ignore[arg-type]

    observation = ends.take()

    assert bool(ends.engine.sequence) == is_eligible
    assert (observation is not None) == (is_eligible and options.get("kind") != Kind.RESET)
    taken = ends.reply_memory.view(np.uint64)[16 + REPLY.names.index("taken") :: 16]
    assert bool(taken.any()) == is_eligible


def test_a_reset_carries_no_tree() -> None:
    ends = NativeEnds(TREE)

    assert ends.send(object(), kind=Kind.RESET)

    assert ends.take() is None and ends.engine.sequence == ends.client.sequence and ends.engine.kind == Kind.RESET
    assert ends.head()[7:10] == (0, 0, 0)
    assert ends.engine.reply({"done": True}, 0, 1, 1) == -1  # a structure that is new takes the slow path


def test_a_withdrawn_request_is_left_to_the_slow_path() -> None:
    ends = NativeEnds(TREE)
    ends.send(TREE)
    words = ends.request_memory.view(np.uint64)
    slot = slot_of(ends.client.sequence)
    words[16 + slot * 16 + REQUEST.names.index("cancelled")] = ends.client.sequence

    assert ends.take() is None and ends.engine.sequence == 0

    words[16 + slot * 16 + REQUEST.names.index("cancelled")] = ends.client.sequence - 64
    assert_same(ends.take(), TREE)


def test_a_request_that_was_begun_or_answered_before_is_left_to_the_slow_path() -> None:
    ends = NativeEnds(TREE)
    ends.send(TREE)
    assert ends.take() is not None and ends.engine.sequence

    ends.seen = 0
    assert ends.take() is None and ends.engine.sequence == 0

    ends.replies.complete(ends.client.sequence, *range(10))
    ends.reply_memory.view(np.uint64)[16 + 16 * slot_of(ends.client.sequence) + REPLY.names.index("taken")] = 0
    assert ends.take() is None and ends.engine.sequence == 0


def test_several_requests_are_in_flight_in_slots_of_their_own() -> None:
    ends = NativeEnds(TREE, slots=3)
    pendings = [SimpleNamespace(sequence=0) for _ in range(4)]
    for step, pending in enumerate(pendings[:3]):
        assert ends.send({**TREE, "step": step}, pending=pending)
    assert [pending.sequence for pending in pendings[:3]] == list(ends.in_flight)
    assert {slot_of(sequence) for sequence in ends.in_flight} == {0, 1, 2}
    assert list(ends.in_flight.values()) == pendings[:3]

    assert not ends.send(TREE, pending=pendings[3]) and len(ends.in_flight) == 3  # every slot is in use

    # More than the next one was published: the slow path orders them.
    assert ends.take() is None and not ends.engine.sequence
    ends.seen = pendings[1].sequence
    assert ends.take()["step"] == 2
    ends.engine.reply(TREE, 0, 1, 1)
    assert ends.receive() is not None and len(ends.in_flight) == 2
    assert ends.send(TREE, pending=pendings[3])
    assert slot_of(pendings[3].sequence) == slot_of(pendings[2].sequence)


def test_requests_take_slots_in_turn_and_pass_over_one_that_is_in_use() -> None:
    ends = NativeEnds(TREE, slots=4)
    slots = []
    for number in range(1, 9):
        ends.send(TREE, in_flight={sequence_of(1, 2): None})
        slots.append((number % 4, slot_of(ends.client.sequence)))

    assert slots == [(1, 1), (2, 3), (3, 3), (0, 0), (1, 1), (2, 3), (3, 3), (0, 0)]


def test_a_tree_that_is_not_eligible_publishes_nothing() -> None:
    ends = NativeEnds(TREE, payload_bytes=400)
    counter = ends.request_memory.view(np.uint64)
    ends.client_encoder.remember(metadata_of({"declared": b"abc"}), 5, (3,))
    for tree in ({"new": 1}, {**TREE, "state": np.zeros(100)}, {**TREE, "state": object}, {"declared": b"abcd"}):
        assert not ends.send(tree)
        assert not counter[8] and not ends.in_flight and not ends.client.sequence

    assert ends.send({"declared": b"xyz"})


def test_an_observation_that_is_too_large_for_the_arena_is_left_to_the_slow_path() -> None:
    ends = NativeEnds(TREE)
    ends.engine.use_arena(np.zeros(100, np.uint8))
    ends.send(TREE)

    assert ends.take() is None and not ends.engine.sequence

    ends.engine.use_arena(np.zeros(4096, np.uint8))
    assert_same(ends.take(), TREE)
    ends.engine.reset()
    ends.send(TREE)
    assert ends.take() is None and not ends.engine.sequence  # there is no arena


def test_a_structure_that_was_not_read_before_is_left_to_the_slow_path() -> None:
    ends = NativeEnds(TREE)
    ends.client_encoder.remember(metadata_of({"new": 1}), 9, None)
    ends.send({"new": 1})

    assert ends.take() is None and not ends.engine.sequence

    others: tuple[Any, ...] = (None, object(), encoder_of(), decoders_of({"t": np.zeros(2, np.uint16)})[1])
    for other in others[:3]:
        ends.engine_decoders[9] = other
        assert ends.take() is None and not ends.engine.sequence
    ends.engine_decoders[9] = decoders_of({"new": 1})[1]
    assert ends.take() == {"new": 1}


def test_a_bfloat16_structure_is_left_to_the_slow_path_by_both_ends() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tree = {"a": np.ones(3, ml_dtypes.bfloat16)}
    ends = NativeEnds(tree, TREE)

    assert ends.send(tree) and ends.take() is None and not ends.engine.sequence

    ends.replies.complete(ends.client.sequence, Status.OK, 0, 1, *range(7))
    assert ends.receive() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": 2},
        {"schema": 0},
        {"schema": (1 << 64) - 1},
        {"flags": Flag.PICKLED},
        {"status": Status.FAILED},
        {"status": Status.REJECTED},
        {"status": 1 << 60},
        {"payload_bytes": 0},
        {"payload_bytes": 8},
        {"payload_bytes": 4097},
        {"payload_bytes": 1 << 63},
    ],
    ids=str,
)
def test_a_reply_that_is_not_a_known_structure_s_result_is_left_to_the_slow_path(wrong: dict[str, int]) -> None:
    ends = NativeEnds(TREE)
    ends.send(TREE)
    assert ends.receive() is None  # not there yet
    ends.engine.reply(ends.take(), 0, 1, 1)
    head = ends.replies.reply(ReplyHead, ends.client.sequence)
    assert head is not None
    ends.replies.complete(head.sequence, *head._replace(**wrong)[1:11])

    assert ends.receive() is None

    ends.replies.complete(head.sequence, *head[1:11])
    assert ends.receive() is not None


def test_a_reply_whose_bytes_cannot_be_read_is_left_to_the_slow_path() -> None:
    ends = NativeEnds(TREE)
    ends.send(TREE)
    ends.engine.reply(ends.take(), 0, 1, 1)
    payload = ends.answers[slot_of(ends.client.sequence)].payload
    for at, value in ((0, 9), (6, 255), (200, 255)):
        before = payload[at : at + 8].copy()
        payload[at : at + 8] = value
        text = payload[128:132].copy()
        payload[128:132] = 0xFF if at == 200 else text
        assert ends.receive() is None
        payload[128:132], payload[at : at + 8] = text, before

    assert ends.receive() is not None


def test_only_the_reply_to_the_last_request_is_received() -> None:
    ends = NativeEnds(TREE)
    assert ends.receive() is None  # the memory is all zeros, and so would the reply to sequence 0 be
    ends.send(TREE)
    ends.engine.reply(ends.take(), 0, 1, 1)
    ends.send(TREE)

    assert ends.receive() is None


def test_a_result_that_is_not_eligible_is_not_replied() -> None:
    ends = NativeEnds(TREE, payload_bytes=400)
    ends.send(TREE)
    ends.take()
    ends.engine_encoder.remember(metadata_of({"declared": b"abc"}), 5, (3,))
    trees: Any = ({"new": 1}, {**TREE, "state": np.zeros(100)}, {"declared": b"abcd"}, {"circle": [[]] * 5000})
    for tree in trees:
        assert ends.engine.reply(tree, 0, 1, 1) == -1
        assert ends.receive() is None and not ends.reply_memory.view(np.uint64)[8]

    assert ends.engine.reply(TREE, 0, 1, 1) >= 0
    assert ends.receive() is not None


def test_leading_notes_the_replies_that_were_there_before() -> None:
    ends = NativeEnds(TREE)
    ends.reply_memory.view(np.uint64)[8] = 5
    ends.poller.last_seen = 0

    ends.send(TREE)
    assert ends.poller.last_seen == 0
    ends.in_flight.clear()
    ends.send(TREE, leads=True)
    assert ends.poller.last_seen == 5


# Views of the engine's memory


def views_of(ends: NativeEnds, tree: Any) -> Any:
    ends.send(tree)
    ends.take()
    ends.in_flight.clear()
    return ends.engine.views


@pytest.mark.parametrize("in_place", [False, True])
def test_views_are_those_of_the_last_payload_of_the_same_structure_and_sizes(in_place: bool) -> None:
    other = {"other": np.zeros(4), "text": ""}
    ends = NativeEnds(TREE, other, slots=1, in_place=in_place)
    longer = {**TREE, "state": np.arange(4.0)}

    first = views_of(ends, TREE)
    assert views_of(ends, {**TREE, "step": 8, "state": -TREE["state"]}) is first
    assert first[0].tolist() == [-0.0, -1.0, -2.0]
    changed = views_of(ends, longer)
    assert changed is not first and changed[0].shape == (4,) and first[0].shape == (3,)
    assert views_of(ends, longer) is changed
    assert views_of(ends, {**longer, "task": "another"}) is not changed  # its arrays lie elsewhere, or may
    assert views_of(ends, other) is not views_of(ends, TREE)
    for array in ends.engine.views or ():
        assert np.shares_memory(array, ends.taken[0].payload) == in_place


def test_views_of_each_slot_are_its_own_in_place_and_the_arena_has_one() -> None:
    for in_place in (True, False):
        ends = NativeEnds(TREE, slots=2, in_place=in_place)

        one, other, again = (views_of(ends, TREE) for _ in range(3))

        assert again is (one if in_place else other) and (one is other) != in_place


def test_a_new_arena_and_a_reset_make_new_views() -> None:
    ends = NativeEnds(TREE)
    first = views_of(ends, TREE)
    arena = np.zeros(4096, np.uint8)

    ends.engine.use_arena(arena)

    assert ends.engine.views is None
    second = views_of(ends, TREE)
    assert second is not first and np.shares_memory(second[0], arena)
    ends.engine.reset()
    ends.engine.reset()
    assert ends.engine.views is None and second[0].tolist() == [0.0, 1.0, 2.0]


def test_an_observation_s_arrays_are_new_objects_over_the_views() -> None:
    ends = NativeEnds(TREE)
    for _ in range(2):
        ends.send(TREE)
        state = ends.take()["state"]
        ends.in_flight.clear()
        views = ends.engine.views
        assert views is not None and state is not views[0] and np.shares_memory(state, views[0])
        state.shape = (3, 1)
        assert views[0].shape == (3,)


@pytest.mark.parametrize("payload_bytes", [8, 4097, (1 << 32) + 1, 1 << 63, (1 << 63) + 400, (1 << 64) - 1])
def test_lengths_that_lie_are_an_error_in_place(payload_bytes: int) -> None:
    ends = NativeEnds(TREE, in_place=True)
    for _ in range(2):  # the second time there are views of the same sizes
        views_of(ends, TREE)
        ends.send(TREE)
        head = ends.requests.request(RequestHead, ends.client.sequence)
        assert head is not None
        ends.requests.publish(head._replace(payload_bytes=payload_bytes))

        with pytest.raises(ValueError):
            ends.take()

        assert ends.engine.sequence == ends.client.sequence  # it was taken, and the slow path answers it
        ends.seen = ends.client.sequence
        ends.in_flight.clear()


def test_sizes_that_a_payload_has_no_room_for_are_not_read_beyond_it() -> None:
    tree = [np.zeros((1,) * 16)] * 40  # 5,120 bytes of sizes
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    memory = np.frombuffer(pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + page), ctypes.c_size_t(page), 0) == 0
    ends = NativeEnds(tree, slots=1, in_place=True, payload_bytes=1 << 15)
    views_of(ends, tree)
    ends.send(tree)
    head = ends.requests.request(RequestHead, ends.client.sequence)
    assert head is not None
    ends.requests.publish(head._replace(payload_bytes=1 << 63))
    ends.taken[0].payload = memory[page - 64 : page]
    try:
        with pytest.raises(ValueError, match="more bytes"):
            ends.take()
    finally:
        libc.mprotect(
            ctypes.c_void_p(memory.ctypes.data + page), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE
        )


def test_sizes_that_lie_are_an_error_and_the_next_request_is_read() -> None:
    for in_place in (True, False):
        ends = NativeEnds(TREE, in_place=in_place)
        for at, value in ((0, 100), (1, 1 << 63), (2, (1 << 64) - 1)):
            ends.send(TREE)
            ends.sent[slot_of(ends.client.sequence)].payload[:24].view(np.uint64)[at] = value
            with pytest.raises(ValueError):
                ends.take()
            ends.seen = ends.client.sequence
            ends.in_flight.clear()

        assert_same(ends.ask(TREE), TREE)


# Arguments


def test_halves_refuse_parts_of_another_type() -> None:
    slots, encoder = new_slots(), encoder_of(TREE)
    memories, decoders = [slot_memory()] * 2, decoders_of(TREE)
    poller = core.CounterPoller(np.zeros(64, np.uint8), 0)
    client_path: Any = core.ClientFastPath
    server_path: Any = core.ServerFastPath
    strange = object()
    client = (slots, memories, 2, slots, memories, poller, encoder, decoders, None, None)
    server = (slots, memories, slots, memories, None, None, decoders, encoder, False)
    client_path(*client)
    server_path(*server)
    for path, parts, kept in ((client_path, client, (9,)), (server_path, server, (5, 8))):
        for place in range(len(parts)):
            for other in (strange, None, poller if parts[place] is not poller else slots):
                if place in kept or (other is None and parts[place] is None):
                    continue
                with pytest.raises(TypeError):
                    path(*parts[:place], other, *parts[place + 1 :])
        with pytest.raises(TypeError):
            path(*parts[:-1])
        with pytest.raises(TypeError):
            path(*parts, key=1)
    for rotating_slots in (0, -1):
        with pytest.raises(ValueError, match="at least one rotating slot"):
            client_path(slots, memories, rotating_slots, *client[3:])


def test_calls_refuse_wrong_arguments() -> None:
    ends = NativeEnds(TREE)
    client, engine, strange = ends.client, ends.engine, object()
    pending, numbers = SimpleNamespace(sequence=0), (1, 0, 0, 0, 0)
    any_client: Any = client
    any_engine: Any = engine
    for call in (
        any_client.try_send,
        lambda: any_client.try_send(TREE, pending, {}, False, *numbers[:4]),
        lambda: any_client.try_send(TREE, pending, [], False, *numbers),
        lambda: any_client.try_send(TREE, pending, {"64": pending}, False, *numbers),
        lambda: any_client.try_send(TREE, pending, {True: pending}, False, *numbers),
        *(
            lambda place=place: any_client.try_send(
                TREE, pending, {}, False, *numbers[:place], strange, *numbers[place + 1 :]
            )
            for place in range(5)
        ),
        lambda: any_engine.try_take(strange),
        lambda: any_engine.try_take("1"),
        lambda: any_engine.head(int),
        lambda: any_engine.head(strange),
        lambda: any_engine.use_arena(None),
        lambda: any_engine.use_arena(bytearray(100)),
        lambda: any_engine.use_arena(np.zeros(100, np.int8)),
        lambda: any_engine.use_arena(np.zeros((10, 10), np.uint8)),
        any_engine.reply,
        lambda: any_engine.reply(TREE, strange, 1, 1),
        lambda: any_engine.reply(TREE, 0, 1.0, 1),
        lambda: any_engine.reply(TREE, 0, 1, strange),
    ):
        with pytest.raises(TypeError):
            call()
    for number in (-1, 1 << 64):
        for call in (
            lambda: ends.send(TREE, flags=number),  # noqa: B023
            lambda: ends.send(TREE, in_flight={number: pending}),  # noqa: B023
            lambda: engine.try_take(number),  # noqa: B023
            lambda: engine.reply(TREE, number, 1, 1),  # noqa: B023
        ):
            with pytest.raises(OverflowError):
                call()
    with pytest.raises(ValueError, match="no request was taken"):
        engine.reply(TREE, 0, 1, 1)
    with pytest.raises(AttributeError):
        ends.send(TREE, pending=object())
    assert not ends.in_flight and not client.sequence and not ends.request_memory.view(np.uint64)[8]
    assert ends.send(TREE) and ends.take() is not None
    ends.engine.reply(TREE, 0, 1, 1)
    for kind in (int, strange, tuple[int]):
        with pytest.raises(TypeError):
            any_client.try_receive(kind)
    assert ends.receive() is not None
    with pytest.raises(TypeError):
        any_client.touch([])
    with pytest.raises(TypeError):
        any_client.touch({"64": None})


def test_memories_of_another_type_are_an_error() -> None:
    ends = NativeEnds(TREE)
    for name, memories, error in (
        ("payload", SlotMemory(np.zeros(99, np.uint8), np.zeros(4096, np.int8)), TypeError),
        ("none", object(), AttributeError),
    ):
        slot = (number_of(ends.client.sequence) + 1) % 4
        kept = ends.sent[slot], ends.taken[slot], ends.answers[slot], ends.received[slot]
        ends.sent[slot] = memories  # type: ignore[call-overload]
        with pytest.raises(error):
            ends.send(TREE)
        ends.sent[slot] = kept[0]
        assert ends.send(TREE), name
        ends.taken[slot] = memories  # type: ignore[call-overload]
        with pytest.raises(error):
            ends.take()
        ends.taken[slot], ends.seen = kept[1], ends.client.sequence
        ends.answers[slot] = memories  # type: ignore[call-overload]
        with pytest.raises(error):
            ends.engine.reply(TREE, 0, 1, 1)
        ends.answers[slot] = kept[2]
        ends.engine.reply(TREE, 0, 1, 1)
        ends.received[slot] = memories  # type: ignore[call-overload]
        with pytest.raises(error):
            ends.receive()
        ends.received[slot] = kept[3]
        assert ends.receive() is not None


@pytest.mark.parametrize("name", ["sent", "taken", "answers", "received"])
def test_lists_of_memories_that_became_shorter_are_an_error(name: str) -> None:
    ends = NativeEnds(TREE)
    ends.send(TREE)
    if name in ("answers", "received"):
        ends.take()
    if name == "received":
        ends.engine.reply(TREE, 0, 1, 1)

    getattr(ends, name).clear()

    if name == "taken":
        assert ends.take() is None and not ends.engine.sequence
        return
    calls = {
        "sent": lambda: ends.send(TREE),
        "answers": lambda: ends.engine.reply(TREE, 0, 1, 1),
        "received": ends.receive,
    }
    with pytest.raises(ValueError, match="was closed"):
        calls[name]()


def test_closed_segments_are_an_error_for_both_halves() -> None:
    for closes in ("requests", "replies"):
        ends = NativeEnds(TREE)
        ends.send(TREE)
        ends.take()
        getattr(ends, closes).close()
        with pytest.raises((ValueError, TypeError), match=r"closed|open slots"):
            ends.send(TREE)
        with pytest.raises(ValueError, match="closed"):
            ends.take()
        if closes == "replies":
            with pytest.raises(ValueError, match="closed"):
                ends.receive()
            ends.seen = 0
            # The last request is no longer known, as a call to take another has failed since.
            with pytest.raises((ValueError, TypeError)):
                ends.engine.reply(TREE, 0, 1, 1)


def test_segments_for_reading_are_not_written() -> None:
    memory, locked = slots_memory(), slots_memory()
    locked.flags.writeable = False
    slots, reading = new_slots(2, memory), new_slots(2, locked)
    memories, poller = [slot_memory(), slot_memory()], core.CounterPoller(memory, 8)
    encoder, decoders = encoder_of(TREE), decoders_of(TREE)
    numbers, bell = (1, 0, 0, 0, 0), Bell(lambda: None)
    client = core.ClientFastPath(reading, memories, 2, slots, memories, poller, encoder, decoders, None, bell)
    with pytest.raises(TypeError, match="writable"):
        client.try_send(TREE, SimpleNamespace(), {}, False, *numbers)
    sending = core.ClientFastPath(slots, memories, 2, slots, memories, poller, encoder, decoders, None, bell)
    assert sending.try_send(TREE, SimpleNamespace(), {}, False, *numbers)
    engine = core.ServerFastPath(slots, memories, reading, memories, None, None, decoders, encoder, True)

    with pytest.raises(TypeError, match="reading"):
        engine.try_take(0)

    assert not engine.sequence
    staged = core.ServerFastPath(slots, memories, new_slots(), memories, None, None, decoders, encoder, False)
    arena = np.zeros(4096, np.uint8)
    arena.flags.writeable = False
    staged.use_arena(arena)
    with pytest.raises(ValueError, match="only be read"):
        staged.try_take(0)


# Waiting for the reply


class Bell:
    """A doorbell that does something when the client sleeps at it."""

    def __init__(self, ring: Callable[[], object], *, rings: bool = True) -> None:
        self._ring = ring
        self._rings = rings
        self.waits: list[int] = []
        self.taken = 0

    def try_take(self) -> bool:
        self.taken += 1
        return True

    def wait(self, timeout_ns: int) -> bool:
        self.waits.append(timeout_ns)
        self._ring()
        return self._rings


FAR_NS = 1 << 62


def waiting_ends(bell: Bell) -> NativeEnds:
    """A request that was sent by the thread that leads."""
    ends = NativeEnds(TREE, reply_bell=bell)
    assert ends.send(TREE, leads=True)
    return ends


def answer(ends: NativeEnds) -> None:
    assert ends.engine.reply(ends.take(), 0, 1, 1) >= 0


def test_a_reply_that_is_there_is_received_without_a_sleep() -> None:
    bell = Bell(lambda: None)
    ends = waiting_ends(bell)
    answer(ends)

    found = ends.client.wait(ends.client.sequence, False, 0, 0, 0, 1000, FAR_NS, ReplyHead)

    assert found is not None and found[1].sequence == ends.client.sequence
    assert (bell.waits, bell.taken) == ([], 0)
    assert ends.client.waited_ns < 0


def test_a_client_sleeps_at_the_doorbell_and_says_so_until_the_reply_is_there() -> None:
    asleep: list[bool] = []

    def ring() -> None:
        asleep.append(bool(words[11] & ASLEEP))
        answer(ends)

    bell = Bell(ring)
    ends = waiting_ends(bell)
    words = ends.request_memory.view(np.uint64)

    found = ends.client.wait(ends.client.sequence, True, 0, 0, 0, 5000, FAR_NS, ReplyHead)

    assert found is not None and ends.client.waited_ns > 0
    assert (asleep, bell.taken) == ([True], 1)
    assert 0 < bell.waits[0] <= 5000
    assert not words[11] & ASLEEP


@pytest.mark.parametrize("rings", [False, True])
def test_a_wait_without_a_reply_ends(rings: bool) -> None:
    bell = Bell(lambda: None, rings=rings)
    ends = waiting_ends(bell)

    assert ends.client.wait(ends.client.sequence, False, 0, 0, 0, 5000, FAR_NS, ReplyHead) is None
    assert (ends.client.waited_ns > 0) == rings
    assert ends.client.wait(ends.client.sequence, False, 0, 0, 0, 5000, 1, ReplyHead) is None
    assert bell.waits[1] == 0


def test_another_reply_ends_the_wait_and_is_not_taken_for_this_one() -> None:
    bell = Bell(lambda: ends.engine.reply(TREE, 0, 1, 1))
    ends = NativeEnds(TREE, reply_bell=bell)
    assert ends.send(TREE) and ends.take() is not None
    assert ends.send(TREE, leads=True)

    assert ends.client.wait(ends.client.sequence, False, 0, 0, 0, 5000, FAR_NS, ReplyHead) is None
    assert ends.client.waited_ns > 0


def test_an_error_at_the_doorbell_is_the_callers_and_the_client_is_awake() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    ends = waiting_ends(Bell(interrupt))

    with pytest.raises(KeyboardInterrupt):
        ends.client.wait(ends.client.sequence, False, 0, 0, 0, 5000, FAR_NS, ReplyHead)
    assert not ends.request_memory.view(np.uint64)[11] & ASLEEP


@pytest.mark.parametrize("closes", ["requests", "replies", "poller"])
def test_a_channel_that_is_closed_during_a_sleep_ends_the_wait_without_a_reply(closes: str) -> None:
    def close() -> None:
        answer(ends)
        getattr(ends, closes).close()

    ends = waiting_ends(Bell(close))
    found = ends.client.wait(ends.client.sequence, False, 0, 0, 0, 5000, FAR_NS, ReplyHead)

    assert (found is None) == (closes == "replies")


def test_a_wait_refuses_what_is_none() -> None:
    ends = waiting_ends(Bell(lambda: None))
    any_client: Any = ends.client
    short, far = (64, False, 0, 0, 0, 0, 0), (0, 0, 0, 0, ReplyHead)
    for arguments in ((), short, (64, False, -1, *far), (64, False, 0, -1, *far[1:]), ("64", False, 0, *far)):
        with pytest.raises((TypeError, OverflowError)):
            any_client.wait(*arguments)
    assert any_client.wait(0, False, 0, 0, 0, 0, 0, ReplyHead) is None
    with pytest.raises(IndexError):
        any_client.wait(5 << 6 | 63, False, 0, 0, 0, 0, 0, ReplyHead)


# Code that runs in the middle of a call


def test_a_request_made_while_another_is_converted_is_published_once() -> None:
    within: list[bool | None] = []

    def convert() -> float:
        if not within:
            within.append(False)
            within[0] = ends.send(tree)
        return 1.0

    tree = {"first": np.ones(3), "odd": Odd()}
    ends = NativeEnds({"first": np.ones(3), "odd": 1.0}, convert=converting(convert))

    assert not ends.send(tree)

    assert within == [True] and list(ends.in_flight) == [65] and ends.client.sequence == 65
    ends.client_encoder.remember(metadata_of({"first": np.ones(3), "odd": 1.0}), 1, None)


def test_a_segment_that_is_closed_while_a_request_is_written_is_not_written_to() -> None:
    for closes in ("requests", "replies"):
        ends: NativeEnds = NativeEnds({"odd": 1.0}, convert=converting(lambda: getattr(ends, closes).close() or 1.0))  # noqa: B023

        with pytest.raises((TypeError, ValueError), match=r"open slots|closed"):
            ends.send({"odd": Odd()})

        assert not ends.in_flight and not ends.client.sequence


class Closing:
    """A pending request that runs code when it learns its sequence."""

    code: Any

    def __init__(self, code: Any) -> None:
        self.__dict__["code"] = code

    def __setattr__(self, name: str, value: Any) -> None:
        self.code()


def test_a_segment_that_is_closed_while_a_request_learns_its_sequence_is_not_written_to() -> None:
    for closes in ("requests", "replies"):
        ends = NativeEnds(TREE)
        before = ends.request_memory.copy()

        with pytest.raises((TypeError, ValueError), match=r"open slots|closed"):
            ends.send(TREE, pending=Closing(getattr(ends, closes).close))

        assert not ends.in_flight and not ends.client.sequence
        assert (ends.request_memory == before).all()


def test_a_request_that_is_published_while_another_learns_its_sequence_keeps_its_slot() -> None:
    ends = NativeEnds(TREE)
    within: list[bool | None] = []

    assert not ends.send(TREE, pending=Closing(lambda: within.append(ends.send(TREE))))

    assert within == [True] and list(ends.in_flight) == [ends.client.sequence]
    assert_same(ends.take(), TREE)


def test_a_segment_that_is_closed_while_a_reply_is_written_is_not_written_to() -> None:
    def close() -> float:
        ends.replies.close()
        return 1.0

    ends: NativeEnds = NativeEnds({"odd": 1.0}, convert=converting(close))
    ends.send({"odd": 1.0})
    ends.take()

    with pytest.raises(TypeError, match="expected open slots"):
        ends.engine.reply({"odd": Odd()}, 0, 1, 1)


def test_an_exception_of_a_result_s_own_code_is_raised_and_nothing_is_replied() -> None:
    def fail() -> Any:
        raise KeyError("no action")

    ends = NativeEnds({"odd": 1.0}, convert=converting(fail))
    ends.send({"odd": 1.0})
    ends.take()

    with pytest.raises(KeyError, match="no action"):
        ends.engine.reply({"odd": Odd()}, 0, 1, 1)
    with pytest.raises(KeyError, match="no action"):
        ends.send({"odd": Odd()})

    assert ends.receive() is None
    assert ends.engine.reply({"odd": 2.0}, 0, 1, 1) >= 0


def test_another_request_that_is_taken_while_a_result_is_converted_does_not_get_its_reply() -> None:
    def take() -> float:
        ends.send({"odd": 5.0})
        assert ends.take() == {"odd": 5.0}
        return 1.0

    ends = NativeEnds({"odd": 1.0}, convert=converting(take))
    ends.send({"odd": 1.0})
    ends.take()
    first = ends.engine.sequence

    assert ends.engine.reply({"odd": Odd()}, 0, 1, 1) >= 0

    assert ends.engine.sequence != first
    head = ends.replies.reply(ReplyHead, first)
    assert head is not None and ends.replies.reply(ReplyHead, ends.engine.sequence) is None


@pytest.mark.parametrize("in_place", [False, True])
def test_parts_may_be_dropped_while_they_are_used(in_place: bool) -> None:
    def wrap(view: npt.NDArray[Any]) -> Any:
        ends.engine.reset()
        ends.engine_decoders.clear()
        ends.taken.clear()
        return view.copy()

    ends = NativeEnds(TREE, wrap=wrap, in_place=in_place)
    ends.send(TREE)

    observation = ends.take()

    assert_same(observation, TREE)
    assert ends.engine.sequence == ends.client.sequence and ends.engine.views is None
    ends.seen = 0
    assert ends.take() is None and not ends.engine.sequence


class Dropping:
    """Memory of a slot that runs code when its payload is looked up."""

    def __init__(self, memory: SlotMemory, code: Any) -> None:
        self._memory, self._code = memory, code

    @property
    def payload(self) -> Any:
        self._code()
        return self._memory.payload


@pytest.mark.parametrize("drops", ["arena", "structures"])
def test_what_is_dropped_while_a_payload_is_looked_up_is_an_error(drops: str) -> None:
    ends = NativeEnds(TREE)
    drop = ends.engine.reset if drops == "arena" else ends.engine_decoders.clear
    ends.taken[1] = Dropping(ends.taken[1], drop)  # type: ignore[call-overload]
    ends.send(TREE)

    with pytest.raises(RuntimeError, match="forgotten"):
        ends.take()


def test_an_arena_that_another_thread_drops_during_the_copy_is_held() -> None:
    tree = {"image": np.zeros(8 << 20, np.uint8)}
    ends = NativeEnds(tree, payload_bytes=9 << 20)
    ended = threading.Event()

    def drop() -> None:
        while not ended.is_set():
            ends.engine.reset()

    dropping = threading.Thread(target=drop)
    dropping.start()
    try:
        for number in range(20):
            ends.engine.use_arena(np.zeros(9 << 20, np.uint8))
            ends.send({"image": np.full(8 << 20, number, np.uint8)})
            observation = ends.take()
            assert observation is None or (observation["image"] == number).all()
            ends.seen = ends.client.sequence
            ends.in_flight.clear()
    finally:
        ended.set()
        dropping.join()


def test_an_exception_of_a_wrapper_is_raised_and_the_request_is_taken() -> None:
    def wrap(view: npt.NDArray[Any]) -> Any:
        raise KeyError("no tensor")

    ends = NativeEnds(TREE, wrap=wrap)
    ends.send(TREE)

    with pytest.raises(KeyError, match="no tensor"):
        ends.take()

    assert ends.engine.sequence == ends.client.sequence
    assert ends.head().schema == 1

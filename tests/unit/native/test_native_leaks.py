"""No step of a request keeps what it was given, whether it succeeds or fails: a robot sends a billion of them."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.backend import CounterPoller, TreeEncoder, poll_all, poll_first, spin
from shmserve.carried_values import carried
from shmserve.codec import Decoder, DoesNotFit, Encoder, described
from shmserve.daemon.ipc.stats import Stats, create_stats_memory
from shmserve.layout import Geometry, sequence_of
from shmserve.protocol import Kind, Status
from shmserve.ring import ReplyHead, RequestHead, RequestWriter
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity, Segment
from tests.support.native import NATIVE, core
from tests.support.native_ends import NativeEnds, decoders_of, encoder_of, metadata_of, new_slots, slot_memory

pytestmark = pytest.mark.pure_too

_TIMES = 3000
#: What Python itself takes now and then: a longer table of a dict, a cache that has just been made.
_SPARE_BLOCKS = _TIMES // 10

F8 = np.dtype("<f8")
TREE: dict[Any, Any] = {
    "state": np.arange(4.0),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.float32(1),
    "tensor": torch.ones(3),
    "big": np.zeros(40_000, np.uint8),
    "empty": np.zeros((0, 3)),
    "nested": [1, 2.5, True, {"task": "pick", "none": None}, (), [0.5] * 9],
    "text": "x" * 300,
    "raw": b"raw",
    1: {-5: 1 << 70, 1 << 40: [True, False]},
}
#: Of another structure or of other sizes: at its end, at a number, at an array, at a dtype, far inside.
OTHERS: list[Any] = [
    {**TREE, "more": 1},
    {**TREE, "nested": [1 << 70, *TREE["nested"][1:]]},
    {**TREE, "state": np.arange(5.0)},
    {**TREE, "turned": np.zeros((3, 2))},
    {**TREE, "nested": [1, 2.5, True, {"task": "place", "none": None}, (), [0.5] * 9]},
    {**TREE, 1: {-5: 1 << 71, 1 << 40: [True, False]}},
    [1, 2],
]


@pytest.fixture(autouse=True, scope="module")
def frozen() -> Iterator[None]:
    """What there was before is not looked at: a collection would take longer than all else here, of torch alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _raises(error: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], Any]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError("it did not raise")


def _assert_keeps_nothing(call: Callable[[], Any], *watched: Any) -> None:
    """Neither memory nor a reference to one of these, nor to a type, that it is made of."""
    watched = (*watched, F8, np.ndarray, None, dict, list, tuple, RequestHead, ReplyHead)
    for _ in range(100):
        call()
    gc.collect()
    blocks, counts = sys.getallocatedblocks(), [sys.getrefcount(each) for each in watched]
    for _ in range(_TIMES):
        call()
    gc.collect()
    grown = sys.getallocatedblocks() - blocks
    kept = [sys.getrefcount(each) - count for each, count in zip(watched, counts, strict=True)]
    assert grown < _SPARE_BLOCKS, f"{grown} blocks after {_TIMES} times"
    assert max(map(abs, kept)) < _SPARE_BLOCKS, dict(zip(map(repr, watched), kept, strict=True))


class Odd:
    """A value that the walk asks `convert` about."""


def test_writing_keeps_nothing() -> None:
    slot, encoder, leaf = slot_memory(1 << 17), Encoder(), TREE["state"]

    _assert_keeps_nothing(lambda: encoder.encode(TREE, slot), TREE, leaf, leaf.dtype, slot.payload)


def test_a_tree_of_another_structure_or_without_room_is_not_kept() -> None:
    slot, encoder = slot_memory(1 << 17), TreeEncoder(carried)
    sizes = described(TREE, "tree")[0].reader.sizes_count
    encoder.remember(metadata_of(TREE), 1, (4, *[-1] * (sizes - 1)))
    small, thin = slot_memory(8), slot_memory(1 << 17, 8)
    for other in OTHERS:
        found = encoder.encode_into(other, slot, None, 0, False)
        assert type(found) is bytes or other["state"] is TREE["state"]
        encode = functools.partial(encoder.encode_into, other, slot, None, 0, False)
        _assert_keeps_nothing(encode, other, TREE["state"])
    for memory in (small, thin):
        encode = functools.partial(encoder.encode_into, TREE, memory, None, 0, True)
        assert len(encode() or ()) == 2
        _assert_keeps_nothing(encode, TREE, memory.payload)
    whole = Encoder()
    whole.encode(TREE, slot)
    _assert_keeps_nothing(lambda: _raises(DoesNotFit, lambda: whole.encode(TREE, small)), TREE, small.payload)


def test_new_structures_keep_nothing_but_their_memory() -> None:
    slot, encoder, number = slot_memory(1 << 17), Encoder(), [0]

    def encode() -> None:
        number[0] += 1
        encoder.encode({f"key {number[0] % 200}": number[0]}, slot)

    for _ in range(400):
        encode()
    _assert_keeps_nothing(encode, slot.payload, slot.metadata)


def test_reading_keeps_nothing() -> None:
    arrays = {name: value for name, value in TREE.items() if type(value) is np.ndarray} | {"nested": [1, {"a": True}]}
    trees: tuple[Any, ...] = (TREE, arrays, np.arange(3.0), [], 7)
    for tree in trees:
        slot, decoder = slot_memory(1 << 17), Decoder()
        encoded = Encoder().encode(tree, slot)

        _assert_keeps_nothing(lambda: decoder.decode(slot, *encoded), slot.payload)  # noqa: B023


def test_the_ends_of_a_channel_keep_nothing() -> None:
    sealed, geometry = SealedChannelFds(), Geometry(2, 64, 64)
    sealed.create(Identity(1, 2, 3), geometry, geometry)
    segment = Segment.from_descriptor(sealed.engine_ends()[1], writable=True)
    writer, sequence = RequestWriter(segment), sequence_of(1 << 40, 1)
    head = (sequence, *range(1 << 40, (1 << 40) + 11))
    stats = Stats(create_stats_memory())
    poller = CounterPoller(segment.bytes, segment.counter_index)

    _assert_keeps_nothing(lambda: writer.publish(head), head, segment.bytes)
    _assert_keeps_nothing(lambda: stats.record(1 << 40, 1, 2, 3))
    for look in (poll_first, poll_all, lambda pollers: spin(pollers, 0)):
        _assert_keeps_nothing(lambda look=look: look([poller]), poller)  # type: ignore[misc]
    _assert_keeps_nothing(lambda: CounterPoller(segment.bytes, 0).close(), segment.bytes)
    writer.close()
    poller.close()
    stats.close()
    sealed.close()


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("wrap", [None, torch.from_numpy], ids=["arrays", "tensors"])
def test_the_fast_path_keeps_nothing(in_place: bool, wrap: Any) -> None:
    tree, other = {"state": np.arange(4.0), "step": 1, "task": "pick"}, {"new": 1}
    ends, longer = NativeEnds(tree, in_place=in_place, wrap=wrap), {**tree, "state": np.arange(9.0), "task": "p" * 70}
    pending: Any = SimpleNamespace(sequence=0)
    strange: Any = SimpleNamespace()
    options = {"flags": 6, "deadline_ns": 1 << 62, "capture_ns": 1 << 61, "max_age_ns": 1 << 60}

    def ask(sent: Any) -> None:
        assert ends.send(sent, pending=pending, leads=True, **options)
        assert ends.in_flight[pending.sequence] is pending
        observation = ends.take()
        ends.head()
        assert ends.engine.reply({**observation, "state": np.asarray(observation["state"])}, 0, 1 << 40, 1 << 40) >= 0
        found = ends.receive()
        assert found is not None and found[0]["task"] == sent["task"]

    def ask_both() -> None:
        ask(tree)
        ask(longer)

    def reset() -> None:
        assert ends.send(strange, kind=Kind.RESET, pending=pending) and ends.take() is None
        ends.in_flight.clear()

    def refuse_new() -> None:
        assert not ends.send(other, pending=pending)

    def refuse_full() -> None:
        assert not ends.send(tree, pending=pending, in_flight={sequence_of(1, slot): strange for slot in range(4)})

    def leave_unknown() -> None:
        ends.client_encoder.remember(metadata_of(other), 9, None)
        assert ends.send(other, pending=pending) and ends.take() is None and not ends.engine.sequence
        ends.seen = ends.client.sequence
        ends.in_flight.clear()
        ends.client_encoder.forget()
        ends.client_encoder.remember(metadata_of(tree), 1, None)

    def lie() -> None:
        assert ends.send(tree, pending=pending)
        ends.sent[pending.sequence % 4].payload[:8] = 0xFF
        _raises(ValueError, ends.take)
        ends.seen = ends.client.sequence
        ends.in_flight.clear()

    def receive_none() -> None:
        assert ends.send(tree, pending=pending) and ends.take() is not None and ends.receive() is None
        ends.replies.complete(pending.sequence, Status.FAILED, 0, 1 << 40, *range(1 << 40, (1 << 40) + 7))
        assert ends.receive() is None
        ends.replies.complete(pending.sequence, Status.OK, 0, 1, 100, 100, *[1 << 40] * 5)
        assert ends.receive() is None
        ends.in_flight.clear()

    def reply_none() -> None:
        assert ends.send(tree, pending=pending) and ends.take() is not None
        assert ends.engine.reply(strange, 0, 1, 1) == ends.engine.reply(other, 0, 1, 1) == -1
        _raises(TypeError, lambda: ends.engine.reply(tree, 0, 1, strange))
        ends.in_flight.clear()

    def refuse_arguments() -> None:
        wrong: Any = ends.client.try_send
        ends.in_flight.clear()
        assert (
            ends.send(tree, pending=pending)
            and ends.engine.reply({**ends.take(), "state": tree["state"]}, 0, 1, 1) >= 0
        )
        _raises(AttributeError, lambda: ends.send(tree, pending=object()))
        _raises(TypeError, lambda: ends.send(tree, in_flight=[strange]))
        _raises(TypeError, lambda: ends.send(tree, in_flight={"64": strange}))
        _raises(TypeError, lambda: wrong(tree, pending, {}, False, 1, 0, 0, 0, strange))
        _raises(TypeError, lambda: ends.client.try_receive(strange))
        any_client: Any = ends.client
        ends.poller.last_seen = ends.poller.load()
        _raises(AttributeError, lambda: any_client.wait(64, False, 0, 0, 0, 0, 0, ReplyHead))  # its bell is None
        _raises(AttributeError, lambda: any_client.wait(64, True, *[0] * 5, ReplyHead))
        _raises(AttributeError, lambda: any_client.wait(64, False, 0, 1, 1, 1 << 40, 1 << 62, ReplyHead))
        _raises(TypeError, lambda: any_client.wait(64, False, *[0] * 5))
        ends.client.touch({})
        _raises(TypeError, lambda: ends.client.touch(strange))

    def new_arena() -> None:
        ends.engine.reset()
        ends.engine.use_arena(arena)

    arena = np.zeros(4096, np.uint8)
    memories = (*ends.sent, *ends.taken, *ends.answers, *ends.received)
    watched = (
        tree,
        tree["state"],
        longer,
        other,
        pending,
        strange,
        arena,
        *memories,
        *(each.payload for each in memories),
    )
    watched += (ends.requests, ends.replies, ends.poller, ends.client_encoder, *ends.engine_decoders.values())
    calls = (ask_both, reset, refuse_new, refuse_full, leave_unknown, lie, receive_none, reply_none, refuse_arguments)
    for call in (*calls, *(() if in_place else (new_arena,))):
        _assert_keeps_nothing(call, *watched)


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_the_halves_of_the_fast_path_keep_nothing_when_they_end_or_are_refused() -> None:
    ends, strange = NativeEnds(TREE), SimpleNamespace()
    client: tuple[Any, ...] = (
        *(ends.requests, ends.sent, 2, ends.replies, ends.received),
        *(ends.poller, ends.client_encoder, ends.client_decoders, None, strange),
    )
    server: tuple[Any, ...] = (
        *(ends.requests, ends.taken, ends.replies, ends.answers, None, None),
        *(ends.engine_decoders, ends.engine_encoder, False),
    )
    watched = (strange, *client, *server)
    for kind, parts, refused in ((core.ClientFastPath, client, 8), (core.ServerFastPath, server, 8)):
        _assert_keeps_nothing(lambda kind=kind, parts=parts: kind(*parts), *watched)  # type: ignore[misc]
        for place in range(refused):
            if kind is core.ServerFastPath and place == 5:
                continue
            wrong = (*parts[:place], strange, *parts[place + 1 :])
            _assert_keeps_nothing(
                lambda kind=kind, wrong=wrong: _raises(TypeError, lambda: kind(*wrong)),  # type: ignore[misc]
                *watched,
            )


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_a_native_call_that_fails_keeps_nothing() -> None:
    tree = {"state": np.arange(4.0), "nested": [1, 2.5, True, {"a": np.ones((2, 3))}], "text": "text", 7: [0.5]}
    metadata, slot = metadata_of(tree), slot_memory()
    encoder, decoder = encoder_of(tree), decoders_of(tree)[1]
    found = encoder.encode_into(tree, slot, None, 0, True)
    assert type(found) is tuple
    payload_bytes = found[2]  # type: ignore[misc]
    payload, small, locked = slot.payload, slot_memory(8), slot_memory()
    locked.payload.flags.writeable = False
    views = decoder.views(payload, payload_bytes)
    strange: Any = SimpleNamespace()
    deep: Any = [[[np.ones(3), {"a": [Odd()]}]]]
    large = {"image": np.zeros(300_000, np.uint8), "turned": np.zeros((100, 200)).T}
    announced, sending = slot_memory(1 << 20), new_slots()
    announcing = encoder_of(large)
    memory = np.zeros(2048, np.uint8)
    slots = core.Slots(memory, 8, 16, 56, 2)
    slots.publish((64, *range(1 << 40, (1 << 40) + 11)))
    slots.complete(64, *range(1 << 40, (1 << 40) + 10))
    refused = (TypeError, ValueError, IndexError, OverflowError, AttributeError)

    def raising(value: Any) -> Any:
        raise ValueError("no conversion today")

    def giving(given: Any) -> core.TreeEncoder:
        return core.TreeEncoder(lambda value: given)

    def unwakable() -> None:
        raise ValueError("no engine today")

    def forget_and_remember() -> None:
        encoder.forget()
        encoder.remember(metadata, 1, (4, -1, -1, -1, -1))

    def within_the_slot() -> None:
        shifted = {**tree, "state": payload[72:104].view(F8), "text": "x" * 80}
        assert type(encoder.encode_into(shifted, slot, None, 0, True)) is tuple
        assert encoder.encode_into(tree, slot, None, 0, True) == found

    def remember_and_forget() -> None:
        forgetting.remember(metadata, 1, (4, -1, -1, -1, -1))
        forgetting.forget()

    forgetting = encoder_of()
    sleeping = slot_memory(1 << 20)
    sleeping.wake = unwakable
    wrong: Any = core
    too_many = core.TreeDecoder(metadata_of([np.zeros(2, np.uint8)]))
    fine = (
        lambda: core.TreeEncoder(carried),
        lambda: core.TreeDecoder(metadata),
        lambda: encoder.describe(tree),
        lambda: encoder.describe(deep) or encoder.describe({"\ud800": 1}) or encoder.describe({1.5: strange}),
        lambda: encoder.encode_into(tree, slot, None, 0, True),
        lambda: encoder.encode_into(tree, small, None, 0, True),
        lambda: encoder.encode_into("\ud800", slot, None, 0, True),
        lambda: encoder.encode_into({**tree, "more": 1}, slot, None, 0, True),
        lambda: announcing.encode_into(large, announced, sending, 1, True),
        remember_and_forget,
        within_the_slot,
        forget_and_remember,
        lambda: giving((0, 1 << 70)).describe(deep),
        lambda: giving((3, b"\0" * 17)).describe(deep),
        lambda: giving((1, np.zeros(3, np.uint16))).describe(deep),
        lambda: giving((7, strange)).describe(deep),
        lambda: decoder.decode(payload, payload_bytes),
        lambda: decoder.views(payload, payload_bytes),
        lambda: decoder.decode_over(payload, payload_bytes, views, None),
        lambda: decoder.decode_over(payload, payload_bytes, views, np.copy),
        lambda: core.stage(payload, 100, memory, None, 0),
        lambda: slots.request(RequestHead, 64),
        lambda: slots.request(RequestHead, 128),
        lambda: slots.reply(ReplyHead, 64),
        lambda: slots.reply(ReplyHead, 128),
        lambda: slots.take(64),
        lambda: slots.complete(64, *range(10)),
        lambda: core.Slots(memory, 8, 16, 56, 2),
    )
    failing = (
        lambda: core.TreeDecoder(metadata[:-1]),
        lambda: core.TreeDecoder(b"\x80\x05}(\x8c\x01\xffN\x8c\x01aNu."),  # a key that is not UTF-8
        lambda: wrong.TreeDecoder(strange),
        lambda: wrong.TreeEncoder(strange, strange),
        lambda: encoder.remember(metadata[:-1], 1, None),
        lambda: encoder.remember(metadata, 1, (1,)),
        lambda: encoder.remember(metadata, 1, (1, 2, strange, 4, 5)),
        lambda: encoder.remember(metadata, -1, None),
        lambda: encoder.encode_into(tree, locked, None, 0, True),
        lambda: encoder.encode_into(tree, strange, None, 0, True),
        lambda: encoder.encode_into(tree, slot, strange, 0, True),
        lambda: encoder.encode_into(tree, slot, slots, 64, True),
        lambda: announcing.encode_into(large, sleeping, sending, 1, True),
        lambda: core.TreeEncoder(raising).describe(deep),
        lambda: core.TreeEncoder(raising).encode_into(deep, slot, None, 0, True),
        lambda: giving((0,)).describe(deep),
        lambda: giving((1 << 70, strange)).describe(deep),
        lambda: decoder.decode(small.payload, payload_bytes),
        lambda: decoder.decode(payload, payload_bytes - 1),
        lambda: decoder.views(payload, payload_bytes + 64),
        lambda: decoder.decode_over(payload, payload_bytes, [*views[:1], strange], None),
        lambda: decoder.decode_over(payload, payload_bytes, views[:1], None),
        lambda: decoder.decode_over(payload, payload_bytes, views, raising),
        lambda: wrong.TreeDecoder(metadata).decode_over(payload, payload_bytes, views, strange),
        lambda: too_many.decode_over(payload, payload_bytes, views[:1], None),
        lambda: core.stage(payload, 100, locked.payload, None, 0),
        lambda: slots.publish((64, *range(9), strange)),
        lambda: slots.complete(64, strange, *range(9)),
        lambda: slots.request(strange, 64),
        lambda: slots.take(-1),
        lambda: slots.take(66),
        lambda: core.Slots(memory, 8, 16, 57, 20),
        lambda: core.CounterPoller(memory, 1 << 40),
        lambda: core.Histograms(memory, 0),
        lambda: core.poll_first([strange]),
        lambda: core.spin([], strange),
    )
    watched: Any = (
        tree,
        tree["state"],
        payload,
        slot.metadata,
        small.payload,
        memory,
        views[0],
        strange,
        metadata,
        deep,
        large,
    )
    watched += (large["turned"], announced.payload, sending)

    for call in fine:
        _assert_keeps_nothing(call, *watched)
    for call in failing:
        _assert_keeps_nothing(lambda call=call: _raises(refused, call), *watched)  # type: ignore[misc]

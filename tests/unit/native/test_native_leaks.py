"""No step of a request keeps what it was given, whether it succeeds or fails: a robot sends a billion of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.backend import NATIVE, core
from shmserve.codec import Decoder, DoesNotFit, Encoder, SlotMemory
from shmserve.counter_poller import CounterPoller, poll_all, poll_first, spin
from shmserve.daemon.ipc.stats import Stats, create_stats_memory
from shmserve.layout import Geometry, sequence_of
from shmserve.ring import ReplyHead, RequestHead, RequestWriter
from shmserve.schema import Schema
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity, Segment
from shmserve.structure_guard import infer_schema

pytestmark = pytest.mark.pure_too

_TIMES = 3000
#: What Python itself takes now and then: a longer table of a dict, a cache that has just been made.
_SPARE_BLOCKS = _TIMES // 10

F8 = np.dtype("<f8")
TREE = {
    "state": np.arange(4.0),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.float32(1),
    "tensor": torch.ones(3),
    "big": np.zeros(40_000, np.uint8),
    "empty": np.zeros((0, 3)),
    "nested": [1, 2.5, True, {"task": "pick", "none": None}, (), [0.5] * 9],
    "text": "x" * 300,
}
#: Of another structure at the first look, at a number, at an array, at a dtype, and far inside.
OTHERS = [
    {**TREE, "more": 1},
    {**TREE, "nested": [1 << 70, *TREE["nested"][1:]]},
    {**TREE, "state": np.arange(5.0)},
    {**TREE, "turned": np.zeros((3, 2))},
    {**TREE, "nested": [1, 2.5, True, {"task": "place", "none": None}, (), [0.5] * 9]},
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


def _slot(schema: Schema) -> SlotMemory:
    return SlotMemory(np.zeros(8192, np.uint8), np.zeros(schema.payload_bytes, np.uint8))


def test_writing_keeps_nothing() -> None:
    schema, _ = infer_schema(TREE)
    slot, encoder, leaf = _slot(schema), Encoder(), TREE["state"]

    _assert_keeps_nothing(lambda: encoder.encode(TREE, slot), TREE, leaf, leaf.dtype, slot.payload)


def test_a_tree_of_another_structure_or_without_room_is_not_kept() -> None:
    schema, _ = infer_schema(TREE)
    encoder, slot = Encoder(), _slot(schema)
    encoder.encode(TREE, slot)
    (known,) = encoder._cached
    small = SlotMemory(slot.metadata, np.zeros(8, np.uint8))
    recognise: Callable[[Any], Any]
    if known.encode_into is None:
        recognise = known.flatten
    else:
        write = known.encode_into
        recognise = lambda tree: write(tree, slot.payload)
    for other in OTHERS:
        _assert_keeps_nothing(lambda other=other: recognise(other), other, TREE["state"])  # type: ignore[misc]
    _assert_keeps_nothing(lambda: _raises(DoesNotFit, lambda: encoder.encode(TREE, small)), TREE, small.payload)


def test_reading_keeps_nothing() -> None:
    arrays = {name: value for name, value in TREE.items() if type(value) is np.ndarray} | {"nested": [1, {"a": True}]}
    trees: tuple[Any, ...] = (TREE, arrays, np.arange(3.0), [], 7)
    for tree in trees:
        schema, _ = infer_schema(tree)
        slot, decoder = _slot(schema), Decoder()
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
def test_plain_steps_keep_nothing() -> None:
    schema, guard = infer_schema({"state": np.arange(4.0), "step": 1})
    places = tuple((place.offset, place.size, place.stored_as) for place in schema.arrays)
    encoder, decoder = core.TreeEncoder(guard.spec(), False, places, schema.payload_bytes), schema.decoder
    assert decoder is not None
    payload, arena = (np.zeros(schema.payload_bytes, np.uint8) for _ in range(2))
    views = [place.view(arena) for place in schema.arrays]
    requests, replies = (core.Slots(np.zeros(8192, np.uint8), 8, 16, 56, 2) for _ in range(2))
    tree, sent = {"state": np.arange(4.0), "step": 7}, [0]
    server_paths = [core.ServerFastPath(requests, replies, None, wrap) for wrap in (None, torch.from_numpy)]
    strange: Any = SimpleNamespace()
    memories = [SlotMemory(np.zeros(8, np.uint8), payload)]
    memories[0].written_schema = 1 << 40
    client_path = core.ClientFastPath(
        requests, memories, 1, replies, memories, core.CounterPoller(np.zeros(64, np.uint8), 0)
    )
    client_path.specialize(encoder, 1 << 40, 1, decoder, 1)
    pending, in_flight = SimpleNamespace(sequence=0), dict[int, Any]()

    def ask(server_path: core.ServerFastPath) -> None:
        sent[0] += 1
        sequence = sequence_of(sent[0], 0)
        assert client_path.try_send(tree, 1 << 62, in_flight, pending)
        assert in_flight.pop(sequence) is pending and pending.sequence == sequence == client_path.sequence
        observation = server_path.try_take(sequence_of(sent[0] - 1, 0))
        server_path.head(RequestHead)
        server_path.reply(
            encoder, {**observation, "state": np.asarray(observation["state"])}, payload, 1, 1, 0, 1, 1 << 40
        )
        found = client_path.try_receive(ReplyHead)
        assert found is not None and found[0]["step"] == 7

    watched = (tree, tree["state"], payload, arena, views, views[0], encoder, decoder, requests, replies, memories)
    for server_path in server_paths:
        server_path.specialize(1 << 40, decoder, [payload, payload], arena, views)
        _assert_keeps_nothing(lambda server_path=server_path: ask(server_path), *watched)  # type: ignore[misc]
        _assert_keeps_nothing(
            lambda server_path=server_path: server_path.specialize(1 << 40, decoder, [payload, payload], arena, views),  # type: ignore[misc]
            *watched,
        )
        _assert_keeps_nothing(lambda server_path=server_path: server_path.try_take(0), *watched)  # type: ignore[misc]
        _assert_keeps_nothing(
            lambda server_path=server_path: server_path.reply(encoder, strange, payload, 1, 1, 0, 1, 1),  # type: ignore[misc]
            strange,
        )
    _assert_keeps_nothing(lambda: core.ServerFastPath(requests, replies, None, None), requests, replies)
    _assert_keeps_nothing(
        lambda: _raises(TypeError, lambda: core.ServerFastPath(strange, replies, None, None)), strange
    )
    _assert_keeps_nothing(lambda: client_path.specialize(encoder, 1 << 40, 1, decoder, 1), *watched)
    _assert_keeps_nothing(lambda: client_path.try_send(strange, 0, in_flight, pending), strange, *watched)
    _assert_keeps_nothing(lambda: client_path.try_send(tree, 0, {1: strange}, pending), strange, pending, *watched)
    _assert_keeps_nothing(
        lambda: _raises(AttributeError, lambda: client_path.try_send(tree, 0, in_flight, object())), *watched
    )
    _assert_keeps_nothing(
        lambda: _raises(TypeError, lambda: client_path.try_send(tree, strange, in_flight, pending)), strange
    )
    _assert_keeps_nothing(lambda: _raises(TypeError, lambda: client_path.try_receive(strange)), strange, *watched)
    _assert_keeps_nothing(
        lambda: core.ClientFastPath(
            requests, memories, 1, replies, memories, core.CounterPoller(np.zeros(64, np.uint8), 0)
        ),
        *watched,
    )
    refused: Any = (requests, memories, 1, replies, memories, strange)
    _assert_keeps_nothing(lambda: _raises(TypeError, lambda: core.ClientFastPath(*refused)), strange, *watched)


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_a_native_call_that_fails_keeps_nothing() -> None:
    tree = {"state": np.arange(4.0), "nested": [1, 2.5, True, {"a": np.ones((2, 3))}]}
    schema, guard = infer_schema(tree)
    spec = guard.spec()
    places = tuple((place.offset, place.size, place.stored_as) for place in schema.arrays)
    decoder = schema.decoder
    assert decoder is not None
    payload, small, locked = (np.zeros(size, np.uint8) for size in (schema.payload_bytes, 8, schema.payload_bytes))
    locked.flags.writeable = False
    encoder = core.TreeEncoder(spec, False, places, schema.payload_bytes)
    views = [place.view(payload) for place in schema.arrays]
    parts: tuple[Any, ...] = (tuple(schema._layout.containers()), "qdq", None, (), False, schema.payload_bytes)
    received = tuple((*place, each.shape) for place, each in zip(places, schema.arrays, strict=True))
    memory = np.zeros(2048, np.uint8)
    slots = core.Slots(memory, 8, 16, 56, 2)
    slots.publish((64, *range(1 << 40, (1 << 40) + 11)))
    slots.complete(64, *range(1 << 40, (1 << 40) + 10))
    refused = (TypeError, ValueError, IndexError, OverflowError, AttributeError)

    def broken(value: Any) -> Any:
        raise ValueError("no conversion today")

    def encoder_with(convert: Any) -> core.TreeEncoder:
        leaves = ((0, F8, (3,), None), (1, F8, (3,), convert))
        guard = (list, None, (np.ndarray, np.ndarray), (), (), leaves, ())
        return core.TreeEncoder(guard, False, ((0, 24, F8), (64, 24, F8)), 88)

    two = [np.ones(3), np.ones(3)]
    strange: Any = SimpleNamespace()
    fine = (
        lambda: core.TreeEncoder(spec, False, places, schema.payload_bytes),
        lambda: core.TreeDecoder(parts[0], parts[1], received, (), False, schema.payload_bytes),
        lambda: encoder.encode_into(tree, payload),
        lambda: encoder.encode_into(tree, small),
        lambda: decoder.stage(payload, memory),
        lambda: decoder.decode_in_place(payload, views),
        lambda: decoder.unflatten(payload, views),
        lambda: slots.request(RequestHead, 64),
        lambda: slots.request(RequestHead, 128),
        lambda: slots.reply(ReplyHead, 64),
        lambda: slots.reply(ReplyHead, 128),
        lambda: slots.take(64),
        lambda: slots.complete(64, *range(10)),
        lambda: core.Slots(memory, 8, 16, 56, 2),
        lambda: encoder_with(lambda value: None).encode_into(two, payload),
    )
    failing = (
        lambda: core.TreeEncoder(spec, False, places[:1], schema.payload_bytes),
        lambda: core.TreeEncoder((*spec[:-1], ((9, spec, None),)), False, places, schema.payload_bytes),
        lambda: core.TreeEncoder((*spec[:-1], ((0, spec, None),)), False, places, schema.payload_bytes),
        lambda: core.TreeEncoder(
            (*spec[:3], ((0, "constant", None), (9, 1, None)), *spec[4:]), False, places, schema.payload_bytes
        ),
        lambda: core.TreeEncoder((*spec[:2], (np.ndarray, 1), *spec[3:]), False, places, schema.payload_bytes),
        lambda: core.TreeEncoder(spec, False, ((0, 1 << 40, F8), places[1]), schema.payload_bytes),
        lambda: core.TreeEncoder(spec, True, places, schema.payload_bytes),
        lambda: core.TreeDecoder(parts[0], "qdx", received, (), False, schema.payload_bytes),
        lambda: core.TreeDecoder(parts[0], "qdq", received[:1], (), False, schema.payload_bytes),
        lambda: core.TreeDecoder(parts[0], "qdq", (received[0], (*received[1][:3], (1, -1))), (), False, 1 << 20),
        lambda: core.TreeDecoder((*parts[0], ((99,), None, list)), "qdq", received, (), False, schema.payload_bytes),
        lambda: encoder.encode_into(tree, locked),
        lambda: encoder.encode_into(tree, strange),
        lambda: encoder_with(broken).encode_into(two, payload),
        lambda: decoder.decode(small),
        lambda: decoder.decode_in_place(payload, [*views[:1], strange]),
        lambda: decoder.unflatten(payload, views[:1]),
        lambda: decoder.stage(payload, locked),
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
    watched = (tree, tree["state"], payload, small, memory, spec, views[0], strange, two[0], parts[0])

    for call in fine:
        _assert_keeps_nothing(call, *watched)
    for call in failing:
        _assert_keeps_nothing(lambda call=call: _raises(refused, call), *watched)  # type: ignore[misc]

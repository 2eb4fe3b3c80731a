"""The native core does the same as the Python that replaces it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shmserve.backend import NATIVE, core
from shmserve.counter_poller import PurePoller, pure_poll_all, pure_poll_first, pure_spin
from shmserve.daemon.ipc.stats import Stage, Stats, bucket_of, create_stats_memory, lower_ns
from shmserve.schema import Schema
from shmserve.structure_guard import StructureGuard, infer_schema
from tests.support.trees import Colour, Items, Mode, Pair, Pixels, Real, Task, Text, Whole

native_only = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

_pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
_subclassed = st.sampled_from(
    [
        Mode.HOLD,
        Mode.MOVE,
        *Colour,
        Task.FOLD,
        np.str_("fold"),
        np.str_("x" * 300),
        np.bytes_(b"raw"),
        Whole(5),
        Whole(6),
        Real(0.5),
        Text("fold"),
        np.array(["a", "b"]),
        np.array(["a", "c"]),
        np.array("text"),
        np.array([b"a"]),
        _pixels.view(Pixels),
        _pixels.T.view(Pixels),
        _pixels.view(np.recarray),
        torch.nn.Parameter(torch.ones(2)),
        torch.Size([1, 2]),
    ]
)
_numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.booleans()
_texts = st.text(max_size=8) | st.text(min_size=257, max_size=300) | st.binary(max_size=40)
_arrays = st.sampled_from(
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.arange(24, dtype=">i4")[::2],
        np.array(3.5),
        np.zeros((0, 4), np.uint8),
        np.float32(1.5),
        np.bool_(True),
        np.broadcast_to(np.int8(7), (2, 3)),
        torch.arange(6, dtype=torch.float64).reshape(2, 3),
        torch.ones(3, dtype=torch.bfloat16),
    ]
)
_lists = st.lists(st.floats(allow_nan=False), min_size=8, max_size=10)
_leaves = _numbers | _texts | _arrays | _lists | _subclassed | st.none()
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner)
        | st.dictionaries(st.text(max_size=4), inner).map(OrderedDict)
        | st.lists(inner, max_size=3).map(Items)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)


def encoder_of(tree: Any) -> tuple[Schema, StructureGuard, core.TreeEncoder]:
    schema, guard = infer_schema(tree)
    places = tuple((place.offset, place.size, place.stored_as) for place in schema.arrays)
    return (
        schema,
        StructureGuard(schema, 1, guard),
        core.TreeEncoder(guard.spec(), guard.wrapped, places, schema.payload_bytes),
    )


def written_by_python(schema: Schema, structure_guard: StructureGuard, tree: Any) -> bytes:
    payload = np.zeros(schema.payload_bytes, np.uint8)
    leaves = structure_guard.flatten(tree)
    assert leaves is not None
    numbers, arrays = leaves
    schema.numbers.pack_into(payload.data, 0, *numbers)
    for place, array in zip(schema.arrays, arrays, strict=True):
        if place.size:
            place.view(payload)[...] = array
    return payload.tobytes()


@native_only
@given(_trees)
def test_a_tree_is_written_as_python_writes_it(tree: Any) -> None:
    schema, structure_guard, encoder = encoder_of(tree)
    payload = np.zeros(schema.payload_bytes, np.uint8)

    assert encoder.encode_into(tree, payload) == 1

    assert payload.tobytes() == written_by_python(schema, structure_guard, tree)


@native_only
@given(_trees, _trees)
def test_another_structure_is_told_apart_as_python_does(tree: Any, other: Any) -> None:
    _, structure_guard, encoder = encoder_of(tree)
    payload = np.zeros(1 << 16, np.uint8)
    try:
        as_python = int(structure_guard.flatten(other) is not None)
    except (ValueError, TypeError, OverflowError):
        as_python = 0
    try:
        found = encoder.encode_into(other, payload)
    except (ValueError, TypeError, OverflowError):
        found = 0

    assert found == as_python


@native_only
@given(_trees)
def test_a_tree_is_put_together_as_python_does(tree: Any) -> None:
    schema, _, encoder = encoder_of(tree)
    payload = np.zeros(schema.payload_bytes, np.uint8)
    encoder.encode_into(tree, payload)
    decoder = schema.decoder
    assert decoder is not None
    views = [place.view(payload) for place in schema.arrays]
    numbers = schema.numbers.unpack_from(payload.data, 0)

    for built in (decoder.decode(payload), decoder.decode_in_place(payload, views), decoder.unflatten(payload, views)):
        assert repr(built) == repr(schema.unflatten(numbers, views))


@native_only
def test_a_tree_that_does_not_fit_is_not_written() -> None:
    schema, _, encoder = encoder_of({"x": np.ones(100, np.uint8)})
    payload = np.zeros(schema.payload_bytes - 1, np.uint8)

    assert encoder.encode_into({"x": np.ones(100, np.uint8)}, payload) == 2

    assert not payload.any()


@native_only
def test_arrays_that_are_lent_hang_on_the_view_s_base_as_numpy_s_own_do() -> None:
    schema, _, encoder = encoder_of({"x": np.arange(5.0)})
    payload = np.zeros(schema.payload_bytes, np.uint8)
    encoder.encode_into({"x": np.arange(5.0)}, payload)
    views = [place.view(payload) for place in schema.arrays]
    decoder = schema.decoder
    assert decoder is not None

    lent = decoder.decode_in_place(payload, views)["x"]

    assert lent.base is views[0][...].base
    assert lent.flags == views[0][...].flags


@native_only
@pytest.mark.parametrize(
    "payload",
    [
        np.zeros(4, np.uint8),
        np.zeros((4, 100), np.uint8),
        np.zeros(400, np.int8),
        np.zeros(800, np.uint8)[::2],
        b"0" * 400,
    ],
    ids=["short", "shaped", "signed", "strided", "bytes"],
)
def test_a_payload_that_is_none_is_refused(payload: Any) -> None:
    schema, _, encoder = encoder_of({"x": np.arange(5.0), "y": 3})
    decoder = schema.decoder
    assert decoder is not None
    views = [place.view(np.zeros(schema.payload_bytes, np.uint8)) for place in schema.arrays]

    for call in (decoder.decode, lambda p: decoder.decode_in_place(p, views), lambda p: decoder.unflatten(p, views)):
        with pytest.raises((TypeError, ValueError)):
            call(payload)
    with pytest.raises((TypeError, ValueError)):
        decoder.stage(np.zeros(schema.payload_bytes, np.uint8), payload)
    if len(payload) != 4:
        with pytest.raises(TypeError):
            encoder.encode_into({"x": np.arange(5.0), "y": 3}, payload)


@native_only
@given(st.tuples(*[st.integers(0, 1 << 50)] * 4))
def test_durations_are_counted_in_the_buckets_of_stats(durations: tuple[int, int, int, int]) -> None:
    stats = Stats(create_stats_memory())

    stats.record(*durations)

    for stage, duration_ns in zip(Stage, (*durations, sum(durations)), strict=True):
        counts = stats.distribution(stage).counts
        assert [index for index, count in enumerate(counts) if count] == [bucket_of(duration_ns)]
    stats.close()


@native_only
def test_the_edges_of_every_bucket_are_counted_as_stats_does() -> None:
    stats = Stats(create_stats_memory())

    for bucket in range(1, 240):
        for duration_ns in (lower_ns(bucket) - 1, lower_ns(bucket)):
            before = stats.distribution(Stage.QUEUED).counts
            stats.record(duration_ns, 0, 0, 0)
            after = stats.distribution(Stage.QUEUED).counts
            assert [b - a for a, b in zip(before, after, strict=True)].index(1) == bucket_of(duration_ns)
    stats.close()


def test_watches_are_looked_at_alike() -> None:
    words = np.zeros(16, np.uint64)
    ways: list[tuple[Any, Any, Any, Any]] = [(PurePoller, pure_poll_first, pure_poll_all, pure_spin)]
    if NATIVE:
        ways.append((core.CounterPoller, core.poll_first, core.poll_all, core.spin))
    for kind, poll_first, poll_all, spin in ways:
        pollers = [kind(words.view(np.uint8), place) for place in (0, 5, 9)]
        for poller in pollers:
            poller.last_seen = poller.load()
        assert (poll_first(pollers), poll_all(pollers), spin(pollers, 0)) == (-1, [], -1)

        words[5] += 1
        words[9] = (1 << 64) - 1 - words[9]

        assert (poll_first(pollers), poll_all(pollers), spin(pollers, 1 << 62)) == (1, [1, 2], 1)
        for poller in pollers:
            poller.close()
            poller.close()


@native_only
def test_memory_is_kept_under_a_thread_that_looks() -> None:
    words = np.zeros(8, np.uint64)
    poller = core.CounterPoller(words.view(np.uint8), 0)
    found: list[int] = []
    looking = threading.Thread(target=lambda: found.append(core.spin([poller], 1 << 62)))
    looking.start()

    poller.close()
    words[0] = 7
    looking.join()

    assert found == [0]
    with pytest.raises(ValueError, match="closed"):
        poller.load()
    with pytest.raises(ValueError, match="closed"):
        core.spin([poller], 0)


@native_only
def test_slots_that_are_not_in_the_memory_are_refused() -> None:
    memory = np.zeros(1024, np.uint8)
    core.Slots(memory, 8, 16, 56, 2).close()
    for counter, first, stride, slots in (
        (128, 16, 16, 1),
        (8, -1, 16, 1),
        (8, 16, 57, 2),
        (8, 16, 12, 1),
        (8, 16, 16, 0),
    ):
        with pytest.raises(ValueError):
            core.Slots(memory, counter, first, stride, slots)


@native_only
def test_closed_slots_are_not_touched() -> None:
    slots = core.Slots(np.zeros(1024, np.uint8), 8, 16, 56, 2)
    slots.close()
    slots.close()

    for call in (
        lambda: slots.publish((64, *[0] * 11)),
        lambda: slots.request(tuple, 64),
        lambda: slots.reply(tuple, 64),
        lambda: slots.take(64),
        lambda: slots.cancelled(64),
        lambda: slots.complete(64, *[0] * 10),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


@native_only
def test_memory_for_reading_is_not_written() -> None:
    memory = np.zeros(1024, np.uint8)
    memory.flags.writeable = False
    slots = core.Slots(memory, 8, 16, 56, 2)

    for call in (lambda: slots.publish((64, *[0] * 11)), lambda: slots.take(64), lambda: slots.complete(64, *[0] * 10)):
        with pytest.raises(TypeError, match="reading"):
            call()

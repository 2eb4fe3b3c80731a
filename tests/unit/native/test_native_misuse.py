"""The native core under misuse: objects half made, code that runs in the middle of a call."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmserve.backend import NATIVE, core
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.daemon.ipc.stats import CHANNEL_LIMIT, Stage, Stats, create_stats_memory
from shmserve.layout import COUNTER_LINE, REPLY, REQUEST
from shmserve.ring import ReplyHead, RequestHead
from shmserve.structure_guard import infer_schema

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")

F8 = np.dtype("<f8")
#: Two arrays of three numbers, in a list; what the second is converted with goes in between.
PLACES = ((0, 24, F8), (64, 24, F8))
PAYLOAD_BYTES = 88


def encoder_of_two(convert: Any, shape: tuple[int, ...] = (3,)) -> core.TreeEncoder:
    arrays = ((0, F8, shape, None), (1, F8, (3,), convert))
    places = ((0, 8 * int(np.prod(shape)), F8), (1024, 24, F8))
    return core.TreeEncoder((list, None, (np.ndarray, np.ndarray), (), (), arrays, ()), False, places, 1048)


@pytest.mark.parametrize(
    "name",
    [
        "TreeEncoder",
        "TreeDecoder",
        "Slots",
        "CounterPoller",
        "Histograms",
        "CutThroughCopier",
        "ServerFastPath",
        "ClientFastPath",
    ],
)
def test_nothing_is_half_made(name: str) -> None:
    kind: Any = getattr(core, name)
    made_by: Any = (kind.__new__, object.__new__, lambda kind: kind(place=1))

    for make in made_by:
        with pytest.raises(TypeError):
            make(kind)
    with pytest.raises(TypeError, match="immutable"):
        kind.__init__ = None


def test_a_segment_cannot_be_created_twice() -> None:
    words = np.zeros(8, np.uint64)
    poller: Any = core.CounterPoller(words.view(np.uint8), 1)
    words[1] = 5

    poller.__init__(words.view(np.uint8), 0)

    assert poller.load() == 5


def test_places_that_do_not_fit_are_refused() -> None:
    guard = (list, None, (np.ndarray, np.ndarray), (), (), ((0, F8, (3,), None), (1, F8, (3,), None)), ())
    core.TreeEncoder(guard, False, PLACES, PAYLOAD_BYTES)
    for places in (
        PLACES[:1],
        ((0, 24, F8), (80, 24, F8)),
        ((0, 24, F8), (-8, 24, F8)),
        ((0, 24, F8), (sys.maxsize, 24, F8)),
        ((0, 24, F8), (0, sys.maxsize, F8)),
        ((0, 24, F8), (64, 24, np.dtype(object))),
    ):
        with pytest.raises(ValueError):
            core.TreeEncoder(guard, False, places, PAYLOAD_BYTES)
        with_shapes = tuple((*place, (3,)) for place in places)
        with pytest.raises((ValueError, MemoryError)):
            core.TreeDecoder((((0, 1), None, list),), "", with_shapes, (), False, PAYLOAD_BYTES)


def test_an_array_that_shrinks_while_the_next_is_converted_is_not_read() -> None:
    first = np.ones(3)

    def convert(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        first.resize(0, refcheck=False)
        return array

    payload = np.zeros(1048, np.uint8)

    assert encoder_of_two(convert).encode_into([first, np.ones(3)], payload) == 0

    assert not payload.any()


def test_an_array_that_grows_while_the_next_is_converted_is_not_written_beyond_its_place() -> None:
    first = np.asfortranarray(np.ones((2, 3)))

    def convert(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        first.resize((4, 3), refcheck=False)
        return array

    payload = np.zeros(1048, np.uint8)

    assert encoder_of_two(convert, (2, 3)).encode_into([first, np.ones(3)], payload) == 0

    assert not payload.any()


def test_a_payload_that_moves_while_an_array_is_converted_is_written_where_it_is() -> None:
    payload = np.zeros(1048, np.uint8)

    def convert(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        payload.resize(1 << 22, refcheck=False)
        return array

    assert encoder_of_two(convert).encode_into([np.ones(3), np.full(3, 2.0)], payload) == 1

    assert payload[:24].view(F8).tolist() == [1.0] * 3
    assert payload[1024:1048].view(F8).tolist() == [2.0] * 3


@pytest.mark.parametrize("kind", [dict, list])
def test_a_container_that_is_emptied_while_it_is_written_is_written_as_it_was(kind: type) -> None:
    tree: Any = {"a": np.ones(3), "b": np.ones(3)} if kind is dict else [np.ones(3), np.ones(3)]

    def convert(array: npt.NDArray[Any]) -> Any:
        tree.clear()
        return array.copy()

    keys = ("a", "b") if kind is dict else None
    arrays = ((0, F8, (3,), convert), (1, F8, (3,), convert))
    encoder = core.TreeEncoder(
        (kind, keys, (np.ndarray, np.ndarray), (), (), arrays, ()), False, ((0, 24, F8), (64, 24, F8)), PAYLOAD_BYTES
    )
    payload = np.zeros(PAYLOAD_BYTES, np.uint8)

    assert encoder.encode_into(tree, payload) == 1

    assert payload[64:].view(F8).tolist() == [1.0] * 3


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="cycles are collected between two operations of the program")
def test_watches_that_a_collection_of_cycles_ends_are_not_looked_at() -> None:
    words = np.zeros(4, np.uint64)
    pollers = [core.CounterPoller(words.view(np.uint8), 0)]
    words[0] = 1

    class Ending:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            pollers.clear()

    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Ending()
        gc.set_threshold(1)
        kept: list[list[int]] = [[] for _ in range(200)]  # more than Python keeps for the next list
        gc.enable()
        found = core.poll_all(pollers)
    finally:
        gc.enable()
        gc.set_threshold(*before)

    assert (found, pollers, len(kept)) == ([], [], 200)


def test_as_many_watches_as_a_service_has_clients_are_looked_at_together() -> None:
    words = np.zeros(CHANNEL_LIMIT + 4, np.uint64)
    pollers = [core.CounterPoller(words.view(np.uint8), place) for place in range(CHANNEL_LIMIT + 1)]
    words[CHANNEL_LIMIT - 1 : CHANNEL_LIMIT + 1] = 1
    for look in (
        core.poll_first,
        core.poll_all,
        lambda pollers: core.spin(pollers, 0),
        lambda pollers: core.spin_unless_same_cpu(pollers, 0),
    ):
        with pytest.raises(TypeError, match="256 at most"):
            look(pollers)

    del pollers[-1]

    assert core.poll_all(pollers) == [core.poll_first(pollers)] == [core.spin(pollers, 0)] == [CHANNEL_LIMIT - 1]


def test_a_list_of_watches_holds_nothing_else() -> None:
    words = np.zeros(200, np.uint64).view(np.uint8)
    others: tuple[Any, ...] = (object(), core.Slots(words, 8, 16, 56, 2), np.zeros(4, np.uint64), None)
    for other in others:
        for look in (
            core.poll_first,
            core.poll_all,
            lambda pollers: core.spin(pollers, 0),
            lambda pollers: core.spin_unless_same_cpu(pollers, 0),
        ):
            with pytest.raises(TypeError, match="something else"):
                look([core.CounterPoller(words, 0), other])


def test_memory_that_words_cannot_lie_in_is_refused() -> None:
    memory = np.zeros(16384, np.uint8)
    for make in (
        lambda memory: core.Slots(memory, 8, 16, 56, 2),
        lambda memory: core.CounterPoller(memory, 0),
        lambda memory: core.Histograms(memory, 0),
        lambda memory: core.CutThroughCopier(memory, 64, 256, 512, 2, 100),
    ):
        make(memory).close()
        for other in (memory[1:], memory[::2]):
            with pytest.raises(ValueError):
                make(other)
        with pytest.raises(TypeError):
            make("memory")
    for place in (-1, 2048, sys.maxsize):
        with pytest.raises(ValueError):
            core.CounterPoller(memory, place)
        with pytest.raises(ValueError):
            core.Histograms(memory, place)


def test_durations_that_are_too_long_together_count_as_the_longest() -> None:
    stats = Stats(create_stats_memory())

    stats.record((1 << 64) - 1, 1, 0, 0)

    assert stats.distribution(Stage.TOTAL).counts[-1] == 1
    stats.close()


def test_a_head_is_a_tuple_like_any_other() -> None:
    slots = core.Slots(np.zeros(2048, np.uint8), 8, 16, 56, 2)
    slots.publish((65, *range(1, len(REQUEST.names))))
    request = slots.request(RequestHead, 65)
    slots.complete(64, *range(1, 11))
    reply = slots.reply(ReplyHead, 64)

    assert request is not None and reply is not None
    assert type(request) is RequestHead and type(reply) is ReplyHead
    for head, names in ((request, REQUEST.names), (reply, REPLY.names)):
        assert head == tuple(head) and hash(head) == hash(tuple(head)) and len(head) == len(names)
    assert (request.sequence, request.cancelled, reply.status, reply.attempts) == (65, 10, 1, 0)


def test_a_slot_that_the_segment_does_not_have_is_not_touched() -> None:
    slots = core.Slots(np.zeros(2048, np.uint8), 8, 16, 56, 2)

    assert slots.request(RequestHead, 66) is None
    for call in (
        lambda: slots.publish((66, *[0] * 11)),
        lambda: slots.complete(66, *[0] * 10),
        lambda: slots.take((1 << 64) - 1),
        lambda: slots.cancelled(66),
        lambda: slots.reply(ReplyHead, 66),
    ):
        with pytest.raises(IndexError, match=r"slot \d+ of 2"):
            call()
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            slots.take(number)


def test_a_structure_with_as_many_leaves_as_metadata_has_room_for_is_carried() -> None:
    tree: dict[str, Any] = {f"array {place}": np.full(2, place) for place in range(300)}
    tree |= {f"nested {place}": [np.float32(place), place] for place in range(60)}
    schema, _ = infer_schema(tree)
    slot = SlotMemory(np.zeros(len(schema.metadata), np.uint8), np.zeros(schema.payload_bytes, np.uint8))
    encoder, decoder = Encoder(), Decoder()
    for _ in range(2):  # described, then recognised
        encoded = encoder.encode(tree, slot)

    assert repr(decoder.decode(slot, *encoded)) == repr(tree)


def test_a_copier_of_slots_that_are_not_in_its_memory_is_refused() -> None:
    memory = np.zeros(2048, np.uint8)
    core.CutThroughCopier(memory, 64, 256, 896, 2, 896).close()
    for places in (
        (-8, 256, 896, 2, 896),
        (60, 256, 896, 2, 896),
        (2040, 256, 896, 2, 896),
        (64, -1, 896, 2, 896),
        (64, 257, 896, 2, 896),
        (64, 256, 897, 2, 896),
        (64, 256, 895, 2, 896),
        (64, 256, 896, 3, 896),
        (64, 256, 896, 0, 896),
        (64, 256, sys.maxsize, 2, 896),
        (64, 256, 896, 2, -1),
    ):
        with pytest.raises(ValueError):
            core.CutThroughCopier(memory, *places)


def test_copiers_are_told_from_what_is_none() -> None:
    words = np.zeros(8, np.uint64).view(np.uint8)
    for other in (object(), core.CounterPoller(words, 0), None):
        with pytest.raises(TypeError, match="something else"):
            core.spin([core.CounterPoller(words, 0)], 0, [other])  # type: ignore[list-item]
    for call in (core.bytes_in_flight, core.abandon):
        with pytest.raises(TypeError):
            call(None)  # type: ignore[arg-type]
    copier = core.CutThroughCopier(np.zeros(2048, np.uint8), 64, 256, 896, 2, 896)
    locked = np.zeros(10, np.uint8)
    locked.flags.writeable = False
    for arena in (locked, np.zeros((2, 5), np.uint8), b"0" * 10):
        with pytest.raises((TypeError, ValueError)):
            copier.set_target(arena)  # type: ignore[arg-type]


def test_a_long_spin_handles_signals_and_releases_the_memory() -> None:
    words = np.zeros(8, np.uint64)
    poller = core.CounterPoller(words.view(np.uint8), 0)

    def interrupt(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            core.spin_unless_same_cpu([poller], 1 << 62)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert sys.getrefcount(poller) == 2
    poller.close()
    words.resize(16)  # nothing views it any more


def test_a_long_spin_yields_the_cpu_to_the_writer() -> None:
    words = np.zeros(8, np.uint64)
    poller = core.CounterPoller(words.view(np.uint8), 0)
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    os.sched_setaffinity(0, {here})
    try:
        words[COUNTER_LINE.offset("processor") // 8] = here + 1

        assert core.spin_unless_same_cpu([poller], 1 << 62) == 0

        words[0] = 1
        began_ns = time.monotonic_ns()
        assert began_ns <= core.spin_unless_same_cpu([poller], 1 << 62) <= time.monotonic_ns()
        assert began_ns <= core.spin_unless_same_cpu([poller], 0)
    finally:
        os.sched_setaffinity(0, allowed)

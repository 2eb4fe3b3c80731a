"""Slots, counters and histograms of both backends: the same words, the same results, the same refusals."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve import pure
from shmserve.histogram_buckets import BUCKETS, bucket_of, lower_ns
from shmserve.layout import COUNTER_LINE, REPLY, REQUEST
from shmserve.ring import ReplyHead, RequestHead
from tests.support import native

#: Each backend under the pure one's types: test_backend_interface.py holds the two to one interface.
BACKENDS: list[Any] = [pure, *([native.core] if native.NATIVE else [])]
both = pytest.mark.parametrize("module", BACKENDS, ids=lambda module: module.__name__.rpartition(".")[2])

#: Two slots in 1 KiB, in words: the counter, the first head, the words from head to head.
PLACES = (8, 16, 56, 2)
_WORDS = st.integers(0, (1 << 64) - 1)


def words_and_slots(module: Any) -> tuple[Any, pure.Slots]:
    words = np.zeros(128, np.uint64)
    return words, module.Slots(words.view(np.uint8), *PLACES)


@given(st.tuples(*[_WORDS] * (len(REQUEST.names) - 1)), st.tuples(*[_WORDS] * 10), st.integers(1, 1 << 50), _WORDS)
def test_heads_are_written_and_read_alike(
    request: tuple[int, ...], reply: tuple[int, ...], number: int, other: int
) -> None:
    sequence = number << 6 | 1
    memories, found = [], []
    for module in BACKENDS:
        words, slots = words_and_slots(module)
        slots.publish((sequence, *request))
        read = slots.request(RequestHead, sequence)
        results: list[Any] = [read, slots.cancelled(sequence), slots.request(RequestHead, other | 63)]
        words[:] = 0
        results += [slots.reply(ReplyHead, sequence), slots.take(sequence), slots.take(sequence)]
        slots.complete(sequence, *reply)
        results += [slots.reply(ReplyHead, sequence), slots.take(sequence), slots.take(sequence + 64)]
        words[PLACES[0] + COUNTER_LINE.names.index("processor")] = 0  # a hint, which Python does not write
        memories.append(words.tobytes())
        found.append(results)

        assert read == (sequence, *request)
    assert all(memory == memories[0] for memory in memories)
    assert all(results == found[0] for results in found)
    assert found[0][-6:] == [None, 1, 2, (sequence, *reply, sequence, 2), 3, 1]


@both
def test_a_head_is_a_tuple_like_any_other(module: Any) -> None:
    _, slots = words_and_slots(module)
    slots.publish((65, *range(1, len(REQUEST.names))))
    request = slots.request(RequestHead, 65)
    slots.complete(64, *range(1, 11))
    reply = slots.reply(ReplyHead, 64)

    assert request is not None and reply is not None
    assert type(request) is RequestHead and type(reply) is ReplyHead
    for head, names in ((request, REQUEST.names), (reply, REPLY.names)):
        assert head == tuple(head) and hash(head) == hash(tuple(head)) and len(head) == len(names)
    assert (request.sequence, request.cancelled, reply.status, reply.attempts) == (65, 10, 1, 0)


@both
def test_the_sequence_of_a_reply_is_written_before_its_counter(module: Any) -> None:
    words, slots = words_and_slots(module)

    slots.complete(64, *range(1, 11))
    slots.complete(65, *range(1, 11))

    assert words[PLACES[0]] == 2
    assert (words[PLACES[1]], words[PLACES[1] + PLACES[2]]) == (64, 65)


@both
def test_slots_that_are_not_in_the_memory_are_refused(module: Any) -> None:
    memory = np.zeros(1024, np.uint8)
    module.Slots(memory, *PLACES).close()
    for places in ((128, 16, 16, 1), (125, 16, 16, 1), (8, -1, 16, 1), (8, 16, 57, 2), (8, 16, 12, 1), (8, 16, 16, 0)):
        with pytest.raises(ValueError, match="not in this memory"):
            module.Slots(memory, *places)


@both
def test_a_slot_that_the_segment_does_not_have_is_not_touched(module: Any) -> None:
    words, slots = words_and_slots(module)

    assert slots.request(RequestHead, 66) is None
    for call in (
        lambda: slots.publish((66, *[0] * 11)),
        lambda: slots.complete(66, *[0] * 10),
        lambda: slots.take((1 << 64) - 1),
        lambda: slots.cancelled(66),
        lambda: slots.reply(ReplyHead, 66),
    ):
        with pytest.raises(IndexError):
            call()
    assert not words.any()


@both
def test_closed_slots_are_not_touched(module: Any) -> None:
    _, slots = words_and_slots(module)
    slots.close()
    slots.close()

    for call in (
        lambda: slots.publish((64, *[0] * 11)),
        lambda: slots.request(RequestHead, 64),
        lambda: slots.request(RequestHead, 66),
        lambda: slots.reply(ReplyHead, 64),
        lambda: slots.take(64),
        lambda: slots.cancelled(64),
        lambda: slots.complete(64, *[0] * 10),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


@both
def test_memory_for_reading_is_not_written(module: Any) -> None:
    memory = np.zeros(1024, np.uint8)
    memory.flags.writeable = False
    slots = module.Slots(memory, *PLACES)

    calls: list[Any] = [
        lambda: slots.publish((64, *[0] * 11)),
        lambda: slots.take(64),
        lambda: slots.complete(64, *[0] * 10),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="read"):
            call()


@both
def test_memory_that_words_cannot_lie_in_is_refused(module: Any) -> None:
    memory = np.zeros(16384, np.uint8)
    makes: list[Any] = [
        lambda memory: module.Slots(memory, *PLACES),
        lambda memory: module.CounterPoller(memory, 0),
        lambda memory: module.Histograms(memory, 0),
    ]
    for make in makes:
        make(memory).close()
        for other in (memory[1:], memory[::2]):
            with pytest.raises(ValueError):
                make(other)
        with pytest.raises(TypeError):
            make("memory")
    for place in (-1, 2045, 2048, sys.maxsize):
        with pytest.raises(ValueError, match="not in this memory"):
            module.CounterPoller(memory, place)
        with pytest.raises(ValueError, match="not in this memory"):
            module.Histograms(memory, place)


@both
def test_counters_are_polled_alike(module: Any) -> None:
    words = np.zeros(16, np.uint64)
    pollers = [module.CounterPoller(words.view(np.uint8), place) for place in (0, 5, 9)]
    for poller in pollers:
        poller.last_seen = poller.load()
    assert (module.poll_first(pollers), module.poll_all(pollers), module.spin(pollers, 0)) == (-1, [], -1)
    assert module.spin_unless_blocked(pollers, 0) == 0

    words[5] += 1
    words[9] = (1 << 64) - 1 - words[9]

    assert (module.poll_first(pollers), module.poll_all(pollers)) == (1, [1, 2])
    assert (module.spin(pollers, 1 << 62), module.spin(pollers, 1 << 62, [])) == (1, 1)
    assert module.spin_unless_blocked(pollers, 0) > 0
    for poller in pollers:
        poller.close()
        poller.close()


@both
def test_memory_is_kept_under_a_thread_that_polls(module: Any) -> None:
    words = np.zeros(8, np.uint64)
    poller = module.CounterPoller(words.view(np.uint8), 0)
    found: list[int] = []
    polling = threading.Thread(target=lambda: found.append(module.spin([poller], 1 << 62)))
    polling.start()
    while not _is_spinning(module, polling):
        pass

    poller.close()
    words[0] = 7
    polling.join()

    assert found == [0]
    with pytest.raises(ValueError, match="closed"):
        poller.load()
    for poll in (module.poll_first, module.poll_all, lambda pollers: module.spin(pollers, 0)):
        with pytest.raises(ValueError, match="closed"):
            poll([poller])


def _is_spinning(module: Any, thread: threading.Thread) -> bool:
    """Return whether the thread is inside `spin`; a native one shows only that it has been started."""
    if module is not pure:
        return True
    assert thread.ident is not None
    frame = sys._current_frames().get(thread.ident)
    while frame is not None and frame.f_code is not pure.spin.__code__:
        frame = frame.f_back
    return frame is not None and "crowded" in frame.f_locals


@both
def test_a_copier_without_a_write_has_nothing_in_flight(module: Any) -> None:
    memory = np.zeros(2048, np.uint8)
    copier = module.CutThroughCopier(memory, 64, 256, 896, 2, 896)
    copier.set_target(np.zeros(896, np.uint8))
    copier.commit(0)

    assert module.bytes_in_flight([copier]) == -1
    assert module.abandon([copier]) is None
    copier.close()
    copier.close()


@both
@given(durations=st.tuples(*[st.integers(0, 1 << 50)] * 4))
def test_durations_are_counted_in_their_buckets(module: Any, durations: tuple[int, int, int, int]) -> None:
    counts = np.zeros(5 * BUCKETS, np.uint64)
    histograms = module.Histograms(counts, 0)

    histograms.record(*durations)

    for stage, duration_ns in zip(counts.reshape(5, BUCKETS), (*durations, sum(durations)), strict=True):
        assert np.flatnonzero(stage).tolist() == [bucket_of(duration_ns)]
    histograms.close()


@both
def test_both_sides_of_every_bucket_s_edge_are_counted(module: Any) -> None:
    counts = np.zeros(5 * BUCKETS + 3, np.uint64)
    histograms = module.Histograms(counts, 3)

    for bucket in range(1, BUCKETS):
        for duration_ns in (lower_ns(bucket) - 1, lower_ns(bucket)):
            before = counts[3 : 3 + BUCKETS].copy()
            histograms.record(duration_ns, 0, 0, 0)
            assert np.flatnonzero(counts[3 : 3 + BUCKETS] - before).tolist() == [bucket_of(duration_ns)]


@both
def test_durations_that_are_too_long_together_count_as_the_longest(module: Any) -> None:
    counts = np.zeros(5 * BUCKETS, np.uint64)
    histograms = module.Histograms(counts, 0)

    histograms.record((1 << 64) - 1, 1, 0, 0)

    assert counts[-1] == 1
    histograms.close()
    histograms.close()
    with pytest.raises(ValueError):
        histograms.record(1, 1, 1, 1)

"""Large observations are copied while they are being written, and what is used is never of another write."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shmserve.backend import spin
from shmserve.codec import DoesNotFit, Encoder, Schemas
from shmserve.daemon.engine.channel.staging import Staging
from shmserve.layout import COUNTER_LINE, COUNTER_OFFSET, WORD, Geometry, header_bytes, sequence_of, slot_of
from shmserve.ring import RequestHead, RequestReader, RequestWriter
from shmserve.segment import Segment
from tests.support.daemon_process import Daemon
from tests.support.native import NATIVE, core

pytestmark = [pytest.mark.skipif(not NATIVE, reason="installed without a compiler"), pytest.mark.sealed_too]

_BYTES = 300_000
_LINE = COUNTER_OFFSET // WORD
_WRITE_ID, _WRITTEN_BYTES = (_LINE + COUNTER_LINE.names.index(name) for name in ("write_id", "written_bytes"))


class Channel:
    """Both ends of the requests in one process: what the engine copies ahead is copied when the test says so."""

    def __init__(self) -> None:
        geometry = Geometry(slots=2, metadata_bytes=4096, payload_bytes=1 << 20)
        descriptor = os.memfd_create("shmserve-test", os.MFD_CLOEXEC)
        os.posix_fallocate(descriptor, 0, geometry.segment_bytes)
        os.pwrite(descriptor, header_bytes(geometry, epoch=1, generation=1, channel=0), 0)
        self.client = RequestWriter(Segment.from_descriptor(descriptor, writable=True))
        self.engine = RequestReader(Segment.from_descriptor(descriptor, writable=False))
        os.close(descriptor)
        self.encoder = Encoder()
        self.copier = self.engine.copier
        self.staging = Staging(None, self.copier)
        self._schemas = Schemas()

    def write(self, observation: Any, sequence: int) -> RequestHead:
        memory = self.client.memory(sequence)
        encoded = self.encoder.encode(observation, memory)
        return RequestHead(sequence, 1, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0, memory.write_id)

    def look(self) -> None:
        """What an engine does that has nothing else to do, for long enough to copy everything on a busy machine, too."""
        self.engine.poller.last_seen = self.engine.poller.load()
        begun = time.thread_time_ns()
        while time.thread_time_ns() - begun < 5_000_000:  # of processor time: other programs may have the processor
            spin(self.engine.pollers, time.monotonic_ns() + 1_000_000, [self.copier])

    def staged(self, head: RequestHead) -> Any:
        slot = self.engine.memory(head.sequence)
        schema = self._schemas.get(head.schema, head.metadata_bytes, slot)
        return self.staging.observation(
            schema, slot, head.payload_bytes, in_place=False, pickled=False, write_id=head.write_id
        )

    def close(self) -> None:
        self.client.close()
        self.engine.close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    warm = channel.write(image(0), sequence_of(1, 0))
    channel.staged(warm)  # from now on there is an arena
    yield channel
    channel.close()


def image(value: int) -> dict[str, Any]:
    return {"image": np.full(_BYTES, value, np.uint8), "step": value}


def test_copied_bytes_are_complete_when_the_request_comes(channel: Channel) -> None:
    head = channel.write(image(1), sequence_of(2, 1))
    channel.look()

    observation = channel.staged(head)

    assert channel.staging.cut_through_bytes >= _BYTES
    assert observation["step"] == 1
    np.testing.assert_array_equal(observation["image"], image(1)["image"])


def test_half_of_it_is_completed(channel: Channel) -> None:
    head = channel.write(image(2), sequence_of(2, 1))
    channel.client.words[_WRITTEN_BYTES] = _BYTES // 2
    channel.look()

    observation = channel.staged(head)

    assert channel.staging.cut_through_bytes == _BYTES // 2
    np.testing.assert_array_equal(observation["image"], image(2)["image"])


def again_native(channel: Channel, sequence: int) -> RequestHead:
    return channel.write(image(4), sequence)


def again_in_python(channel: Channel, sequence: int) -> RequestHead:
    channel.encoder = Encoder(numbers=itertools.count(100))  # which has never seen such a tree, and describes it
    return channel.write(image(4), sequence)


@pytest.mark.fault("T04")
@pytest.mark.parametrize("again", [again_native, again_in_python])
def test_a_write_that_was_given_up_leaves_nothing(
    channel: Channel, again: Callable[[Channel, int], RequestHead]
) -> None:
    sequence = sequence_of(2, 1)
    channel.write(image(3), sequence)
    channel.look()  # all of it was copied; an interrupt comes before it is published, and the slot is written again

    observation = channel.staged(again(channel, sequence))

    assert channel.staging.cut_through_bytes == 0
    assert observation["step"] == 4
    np.testing.assert_array_equal(observation["image"], image(4)["image"])


def test_another_slot_s_bytes_are_not_taken_for_a_request_s(channel: Channel) -> None:
    first = channel.write(image(5), sequence_of(2, 0))
    channel.look()
    second = channel.write(image(6), sequence_of(3, 1))

    assert channel.staged(first)["step"] == 5
    np.testing.assert_array_equal(channel.staged(second)["image"], image(6)["image"])
    np.testing.assert_array_equal(channel.staged(first)["image"], image(5)["image"])


def test_memory_used_once_is_copied_anew(channel: Channel) -> None:
    head = channel.write(image(7), sequence_of(2, 1))
    channel.look()
    channel.staged(head)["image"][:] = 99  # the policy writes into what it was given

    observation = channel.staged(head)  # a batch that failed is run again, one by one

    assert channel.staging.cut_through_bytes == 0
    np.testing.assert_array_equal(observation["image"], image(7)["image"])


def test_nothing_is_copied_into_memory_that_the_policy_has_kept(channel: Channel) -> None:
    kept = channel.staged(channel.write(image(8), sequence_of(2, 1)))["image"]
    channel.staging.give_back()

    head = channel.write(image(9), sequence_of(3, 0))
    channel.look()

    np.testing.assert_array_equal(kept, image(8)["image"])
    np.testing.assert_array_equal(channel.staged(head)["image"], image(9)["image"])


def test_arrays_that_are_not_in_order_are_not_announced_before_they_are_there(channel: Channel) -> None:
    def observation(value: int) -> dict[str, Any]:
        rows = np.full((300, 400, 3), value, np.uint8)
        return {"a": np.full(100_000, value, np.uint8), "b": rows.transpose(2, 0, 1), "c": rows[:, :, 0].copy()}

    channel.staged(channel.write(observation(1), sequence_of(2, 0)))
    head = channel.write(observation(2), sequence_of(3, 1))

    assert channel.client.words[_WRITTEN_BYTES] == 64 + 100_000  # the sizes lie before it

    channel.look()
    staged = channel.staged(head)
    for key, array in observation(2).items():
        np.testing.assert_array_equal(staged[key], array)


def test_lengths_that_change_are_copied_ahead_like_any_other(channel: Channel) -> None:
    for number, size in enumerate((_BYTES, 70_000, 2 * _BYTES, _BYTES + 1, 90_000), 2):
        observation = {"image": np.full(size, number, np.uint8), "task": "x" * number, "step": number}
        head = channel.write(observation, sequence_of(number, number % 2))
        channel.look()

        staged = channel.staged(head)

        assert staged["task"] == observation["task"] and staged["step"] == number
        np.testing.assert_array_equal(staged["image"], observation["image"])
    assert len(channel._schemas.known) == 2


def test_memory_of_the_slot_that_a_longer_text_moves_is_announced_as_it_was_filled(channel: Channel) -> None:
    example = {"task": "", "left": np.zeros(_BYTES, np.uint8), "right": np.zeros(_BYTES, np.uint8)}
    longer = "a text that is longer than a cache line, so that whatever follows it moves"
    channel.staged(channel.write({**example, "task": longer}, sequence_of(2, 0)))
    sequence = sequence_of(3, 1)
    tree, _ = channel.encoder.lay_out(example, channel.client.memory(sequence))
    tree["left"][:], tree["right"][:] = 1, 2
    tree["task"] = longer

    head = channel.write(tree, sequence)
    channel.look()

    staged = channel.staged(head)
    assert channel.staging.cut_through_bytes > 0 and staged["task"] == longer
    assert (staged["left"] == 1).all() and (staged["right"] == 2).all()


@pytest.mark.fault("T04")
@pytest.mark.parametrize("write_id", [1, 5, 63, 64 + 2, (1 << 64) - 1], ids=hex)
@pytest.mark.parametrize("written_bytes", [1, (1 << 20) + 1, 1 << 32, (1 << 64) - 1], ids=hex)
def test_an_announced_write_stays_within_its_slot(channel: Channel, write_id: int, written_bytes: int) -> None:
    channel.client.words[_WRITE_ID] = write_id
    channel.client.words[_WRITTEN_BYTES] = written_bytes

    channel.look()

    head = channel.write(image(10), sequence_of(2, 1))
    channel.look()
    np.testing.assert_array_equal(channel.staged(head)["image"], image(10)["image"])


def test_a_write_s_number_names_its_slot_and_only_grows(channel: Channel) -> None:
    heads = [channel.write(image(number), sequence_of(number, number % 2)) for number in range(2, 6)]

    assert [slot_of(head.write_id) for head in heads] == [0, 1, 0, 1]
    assert sorted({head.write_id for head in heads}) == [head.write_id for head in heads]


def test_small_observations_and_those_that_do_not_fit_are_not_announced(channel: Channel) -> None:
    before = channel.client.words[_WRITE_ID]

    small = {"x": np.zeros(60_000, np.uint8)}
    assert channel.write(small, sequence_of(2, 1)).write_id == 0
    assert channel.write(small, sequence_of(2, 1)).write_id == 0
    large = {"x": np.zeros(2 << 20, np.uint8)}
    for _ in range(2):
        with pytest.raises(DoesNotFit):
            channel.write(large, sequence_of(2, 1))

    assert channel.client.words[_WRITE_ID] == before


def test_a_closed_copier_is_left_alone(channel: Channel) -> None:
    channel.copier.close()
    channel.copier.close()
    channel.copier.set_target(np.zeros(10, np.uint8))

    channel.look()

    assert core.bytes_in_flight([channel.copier]) == -1


@pytest.mark.parametrize("transport", ["named", "sealed"])
def test_observations_arrive_complete_when_the_engine_copies_while_the_client_writes(transport: str) -> None:
    daemon = Daemon("echo", arguments=("--transport", transport)).start()
    try:
        with daemon.client() as client:
            observation = image(0)
            count = 0
            while not daemon.status()["requests"]["cut_through"]:
                for _ in range(50):
                    count += 1
                    observation["image"][:] = count % 251
                    observation["step"] = count
                    answer = client.infer(observation)
                    assert answer["step"] == count
                    np.testing.assert_array_equal(answer["image"], observation["image"])
    finally:
        daemon.dismiss()

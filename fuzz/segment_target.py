"""Fuzz target for the reader of a segment's header: a mapped segment that its file can hold, or ProtocolMismatch.

An input is the file's size (two bytes, in words), the header, and what follows it. The backend that runs reads and writes
the same words as the pure one.
"""

from __future__ import annotations

import os

from fuzz.target import Target
from shmserve import pure
from shmserve.errors import ProtocolMismatch
from shmserve.layout import (
    COUNTER_LINE,
    COUNTER_OFFSET,
    HEADER,
    SLOT_HEAD_BYTES,
    SLOTS_OFFSET,
    WORD,
    Geometry,
    header_bytes,
    number_of,
    sequence_of,
)
from shmserve.ring import ReplyHead, ReplyReader, ReplyWriter, RequestHead, RequestReader, RequestWriter
from shmserve.segment import Segment

_file: list[int] = []


def run(data: bytes) -> None:
    if not _file:
        _file.append(os.memfd_create("fuzz", os.MFD_CLOEXEC))
    descriptor = _file[0]
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, int.from_bytes(data[:2], "little") * WORD)
    os.pwrite(descriptor, data[2 : 2 + HEADER.size], 0)
    os.pwrite(descriptor, data[2 + HEADER.size : 2 + COUNTER_OFFSET + WORD], HEADER.size)
    try:
        segment = Segment.from_descriptor(descriptor, writable=True)
    except ProtocolMismatch:
        return
    assert segment.geometry.segment_bytes == segment.bytes.size <= os.fstat(descriptor).st_size
    sequence = segment.words[segment.counter_index]
    requests, replies, in_python = RequestReader(segment), ReplyReader(segment), _pure_slots(segment)
    assert requests.poller.load() == sequence == requests.published()
    for near in (
        0,
        1,
        sequence,
        (sequence + 1) & ((1 << 64) - 1),
        (1 << 64) - 1,
    ):  # an unsigned word, as every sequence
        head = requests.head(near)
        assert head is None or head.sequence == near
        assert head == in_python.request(RequestHead, near)
        own = sequence_of(number_of(near), 0)  # a client polls only sequences that it made
        reply = replies.try_head(own)
        assert reply is None or reply.sequence == own
        assert reply == in_python.reply(ReplyHead, own)
    for found in requests.between(0, sequence):
        assert 0 < number_of(found) <= number_of(sequence)
        requests.memory(found)
    _write_as_python_does(segment, requests, replies, in_python)
    in_python.close()
    segment.close()


def _pure_slots(segment: Segment) -> pure.Slots:
    geometry = segment.geometry
    places = COUNTER_OFFSET // WORD, SLOTS_OFFSET // WORD, geometry.stride // WORD, geometry.slots
    return pure.Slots(segment.bytes, *places)


def _write_as_python_does(
    segment: Segment, requests: RequestReader, replies: ReplyReader, in_python: pure.Slots
) -> None:
    """Write one head to the first slot and read it back, by each end; the words are the header's."""
    written = segment.bytes[COUNTER_OFFSET : SLOTS_OFFSET + SLOT_HEAD_BYTES]
    before = written.copy()
    numbers = HEADER.packed.unpack_from(segment.memory) * 2
    sequence = sequence_of(number_of(numbers[2]), 0)
    client, engine = RequestWriter(segment), ReplyWriter(segment)
    client.publish((sequence, *numbers[:11]))
    assert requests.head(sequence) == in_python.request(RequestHead, sequence) == (sequence, *numbers[:11])
    engine.take(sequence)
    engine.complete(sequence, *numbers[:10])
    engine.take(sequence)
    assert replies.try_head(sequence) == in_python.reply(ReplyHead, sequence), "Python reads another head"
    found = written.copy()
    written[:] = before
    in_python.publish((sequence, *numbers[:11]))
    in_python.take(sequence)
    in_python.complete(sequence, *numbers[:10])
    in_python.take(sequence)
    processor = slice(COUNTER_LINE.offset("processor"), COUNTER_LINE.size)
    found[processor] = written[processor]  # a hint, which Python does not write
    assert (written == found).all(), "Python writes other words"


def seeds() -> list[bytes]:
    found = []
    for geometry in (Geometry(1, 64, 0), Geometry(2, 256, 100), Geometry(64, 4096, 4096)):
        header = header_bytes(geometry, epoch=7, generation=1, channel=3)
        words = min(geometry.segment_bytes // WORD, 65535)
        found.append(words.to_bytes(2, "little") + header + (5).to_bytes(8, "little"))
    return found


TARGET = Target(run, seeds, (b"shmserve"[::-1], b"\x40", b"\0" * 7, b"\xff" * 8, b"\x00\x00\x01"))

"""The reader of a segment's header: a mapped segment that its file can hold, or ProtocolMismatch.

An input is the file's size (two bytes, in words) and the header.
"""

from __future__ import annotations

import os

from fuzz.target import Target
from shmserve.errors import ProtocolMismatch
from shmserve.layout import COUNTER_OFFSET, HEADER, SLOT_MASK, WORD, Geometry, header_bytes, number_of
from shmserve.ring import ReplyReader, RequestReader
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
    requests, replies = RequestReader(segment), ReplyReader(segment)
    for near in (0, 1, sequence, sequence + 1, (1 << 64) - 1):
        head = requests.head(near)
        assert head is None or head.sequence == near
        own = near & ~SLOT_MASK  # a client asks for sequences that it made itself
        reply = replies.try_head(own)
        assert reply is None or reply.sequence == own
    for found in requests.between(0, sequence):
        assert 0 < number_of(found) <= number_of(sequence)
        requests.memory(found)
    segment.close()


def seeds() -> list[bytes]:
    found = []
    for geometry in (Geometry(1, 64, 0), Geometry(2, 256, 100), Geometry(64, 4096, 4096)):
        header = header_bytes(geometry, epoch=7, generation=1, channel=3)
        words = min(geometry.segment_bytes // WORD, 65535)
        found.append(words.to_bytes(2, "little") + header + (5).to_bytes(8, "little"))
    return found


TARGET = Target(run, seeds, (b"shmserve"[::-1], b"\x40", b"\0" * 7, b"\xff" * 8, b"\x00\x00\x01"))

"""Layout of a segment, byte by byte.

A channel is two segments of the same shape, one for each direction: the client writes the one, the
engine the other. Everything is counted in native 8-byte words, and the two sides never
write to the same cache line.

    0        64        128                                    128 + stride
    +--------+---------+--------------------------------------+---------------- ...
    | header | counter | slot 0: head | metadata | payload    | slot 1: ...
    +--------+---------+--------------------------------------+---------------- ...
      supervisor, once   `slots` of them

A sequence names a request for good, and its slot with it: the request's number in the high bits, the slot
in the low six. Which free slot it takes is the client's affair (ring.py).

>>> [hex(sequence_of(number, slot)) for number, slot in ((1, 0), (2, 0), (3, 5))]
['0x40', '0x80', '0xc5']
>>> number_of(0xc5), slot_of(0xc5)
(3, 5)
>>> [(name, HEADER.offset(name)) for name in HEADER.names]  # doctest: +NORMALIZE_WHITESPACE
[('magic', 0), ('wire_version', 8), ('epoch', 16), ('generation', 24), ('channel', 32), ('slots', 40),
 ('metadata_bytes', 48), ('payload_bytes', 56)]
>>> [(name, REQUEST.offset(name)) for name in REQUEST.names]  # doctest: +NORMALIZE_WHITESPACE
[('sequence', 0), ('kind', 8), ('flags', 16), ('deadline_ns', 24), ('capture_ns', 32), ('max_age_ns', 40),
 ('submitted_ns', 48), ('schema', 56), ('metadata_bytes', 64), ('payload_bytes', 72), ('cancelled', 80), ('write_id', 88)]
>>> [(name, REPLY.offset(name)) for name in REPLY.names]  # doctest: +NORMALIZE_WHITESPACE
[('sequence', 0), ('status', 8), ('flags', 16), ('schema', 24), ('metadata_bytes', 32), ('payload_bytes', 40),
 ('version', 48), ('queued_ns', 56), ('staged_ns', 64), ('infer_ns', 72), ('copied_ns', 80), ('taken', 88),
 ('attempts', 96)]

A segment of two slots, each with 256 bytes of metadata and 100 of payload:

>>> geometry = Geometry(slots=2, metadata_bytes=256, payload_bytes=100)
>>> geometry.stride, geometry.segment_bytes, geometry.slot_offset(1), geometry.payload_offset(1)
(512, 1152, 640, 1024)
>>> header_bytes(geometry, epoch=7, generation=1, channel=3).hex(" ", 8)
'73686d7365727665 0400000000000000 0700000000000000 0100000000000000 0300000000000000 0200000000000000 0001000000000000 6400000000000000'
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .protocol import MAGIC, WIRE_VERSION

WORD = 8
CACHE_LINE = 64


class Words:
    """A run of named 8-byte words; the offsets follow from the order of the names."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.packed = struct.Struct("@" + "Q" * len(names))

    @property
    def size(self) -> int:
        return self.packed.size

    def offset(self, name: str) -> int:
        return self.names.index(name) * WORD


HEADER = Words("magic", "wire_version", "epoch", "generation", "channel", "slots", "metadata_bytes", "payload_bytes")

#: Written by the client; `cancelled` alone may change after publication.
REQUEST = Words(
    "sequence",
    "kind",
    "flags",
    "deadline_ns",
    "capture_ns",
    "max_age_ns",
    "submitted_ns",
    "schema",
    "metadata_bytes",
    "payload_bytes",
    "cancelled",
    "write_id",
)

#: Written by the engine: `taken` and `attempts` before the model runs, `sequence` last of all, on its own.
REPLY = Words(
    "sequence",
    "status",
    "flags",
    "schema",
    "metadata_bytes",
    "payload_bytes",
    "version",
    "queued_ns",
    "staged_ns",
    "infer_ns",
    "copied_ns",
    "taken",
    "attempts",
)

#: The counter's line: the last sequence that the client has published, or the number of replies of the engine. Beside it,
#: hints: the id of the large write in progress and its bytes so far, the writer's last CPU plus 1 (0: unknown), with ASLEEP
#: while the writer sleeps, and the time at which the client says that its next request comes, and the period of its requests
#: (0: not said).
COUNTER_OFFSET = CACHE_LINE
COUNTER_LINE = Words("counter", "write_id", "written_bytes", "processor", "expected_ns", "period_ns")
ASLEEP = 1 << 63
SLOTS_OFFSET = 2 * CACHE_LINE
SLOT_HEAD_BYTES = 2 * CACHE_LINE

MAX_SLOTS = 64
SLOT_BITS = 6
#: The bits of a sequence that name its slot; a reader checks them against the number of slots.
SLOT_MASK = (1 << SLOT_BITS) - 1
MAX_METADATA_BYTES = 65536
MAX_PAYLOAD_BYTES = 1 << 32


def aligned(size: int, alignment: int = CACHE_LINE) -> int:
    """`size` rounded up to a multiple of `alignment`.

    >>> aligned(0), aligned(1), aligned(64), aligned(65)
    (0, 64, 64, 128)
    """
    return -(-size // alignment) * alignment


def sequence_of(number: int, slot: int) -> int:
    """The sequence of a client's `number`-th request (from 1) in `slot`."""
    return number << SLOT_BITS | slot


def number_of(sequence: int) -> int:
    """How many requests its client had made with this one."""
    return sequence >> SLOT_BITS


def slot_of(sequence: int) -> int:
    """The slot of both directions that the request uses."""
    return sequence & SLOT_MASK


@dataclass(frozen=True)
class Geometry:
    """How many slots a segment has, and how large each is (bytes)."""

    slots: int
    metadata_bytes: int
    payload_bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MAX_SLOTS:
            raise ValueError(f"{self.slots} slots: a channel has 1 to {MAX_SLOTS}")
        if not 0 < self.metadata_bytes <= MAX_METADATA_BYTES or self.metadata_bytes % CACHE_LINE:
            raise ValueError(f"{self.metadata_bytes} bytes of metadata: 64 to {MAX_METADATA_BYTES}, a multiple of 64")
        if not 0 <= self.payload_bytes <= MAX_PAYLOAD_BYTES:
            raise ValueError(f"{self.payload_bytes} bytes of payload: 0 to {MAX_PAYLOAD_BYTES}")

    @property
    def stride(self) -> int:
        return SLOT_HEAD_BYTES + self.metadata_bytes + aligned(self.payload_bytes)

    @property
    def segment_bytes(self) -> int:
        return SLOTS_OFFSET + self.slots * self.stride

    def slot_offset(self, slot: int) -> int:
        return SLOTS_OFFSET + slot * self.stride

    def metadata_offset(self, slot: int) -> int:
        return self.slot_offset(slot) + SLOT_HEAD_BYTES

    def payload_offset(self, slot: int) -> int:
        return self.metadata_offset(slot) + self.metadata_bytes


def header_bytes(geometry: Geometry, *, epoch: int, generation: int, channel: int) -> bytes:
    """The segment header as the supervisor writes it, before the channel is handed out."""
    return HEADER.packed.pack(
        MAGIC,
        WIRE_VERSION,
        epoch,
        generation,
        channel,
        geometry.slots,
        geometry.metadata_bytes,
        geometry.payload_bytes,
    )

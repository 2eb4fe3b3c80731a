"""Record ring: a single-producer ring of bytes from the serving engine to a recorder, for which the engine never waits.

The recorder makes it, a memfd sealed against shrinking, and sends its descriptor to the daemon; the serving
engine writes. If the recorder is too slow, the ring is full: the engine skips and counts the request, and the robot
is not affected.

    0        64                            128     192                       4096
    +--------+-----------------------------+-------+-------------------------+------------- ...
    | header | written, dropped, pickled   | read  | nothing                 | entries, a ring of `capacity` bytes
    +--------+-----------------------------+-------+-------------------------+------------- ...
      recorder  the serving engine           recorder

Positions only grow; an entry lies at `position % capacity`, never across the end of the ring.

>>> reader = RecordRingReader(capacity=4096)
>>> writer = RecordRingWriter(reader.descriptor)
>>> writer.write(Entry.REQUEST, 3, 1, (7, 8, 9), np.arange(4, dtype=np.uint8), np.zeros(100, np.uint8))
True
>>> entry = reader.try_next()
>>> entry.kind == Entry.REQUEST, entry.channel, entry.head[:3], entry.metadata.tobytes().hex(), entry.payload.size
(True, 3, (7, 8, 9), '00010203', 100)
>>> reader.try_next(), writer.write(Entry.REPLY, 3, 1, (), np.zeros(0, np.uint8), np.zeros(5000, np.uint8))
(None, False)
>>> reader.dropped
1
>>> writer.close(); reader.close()
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .errors import ShmServeError
from .fence import fence
from .layout import CACHE_LINE, WORD, Words, aligned
from .sealed_memory import seal, unsafe_to_map

#: First word of every record ring: the bytes ``shmsring`` read as a little-endian number.
_MAGIC = int.from_bytes(b"shmsring", "little")
_VERSION = 1
_HEADER = Words("magic", "version", "capacity")
_WRITTEN, _DROPPED, _PICKLED = (CACHE_LINE // WORD + index for index in range(3))
_READ = 2 * CACHE_LINE // WORD
_ENTRIES_AT = 4096
#: Words of a request's or a reply's head that an entry has room for.
_HEAD_WORDS = 13
_ENTRY = Words(
    "entry_bytes", "kind", "channel", "generation", "at_ns", "metadata_bytes", "payload_bytes", *["head"] * _HEAD_WORDS
)
_ENTRY_BYTES = aligned(_ENTRY.size)
_PAD = struct.Struct("@QQ")
_LEAST_CAPACITY, _MOST_CAPACITY = 4096, 1 << 36

Bytes = npt.NDArray[np.uint8]


class Entry(IntEnum):
    """What an entry is; the head's words are those of shmserve.ring's RequestHead or ReplyHead."""

    PAD = 0  # the rest of the ring, where the next entry would cross its end
    REQUEST = 1
    REPLY = 2


class RecordRingBroken(ShmServeError, ValueError):
    """Not a record ring, or one that contradicts itself; the message says what is wrong."""


@dataclass(frozen=True)
class RecordEntry:
    """A private copy of one entry; `at_ns` is CLOCK_MONOTONIC when it was written."""

    kind: Entry
    channel: int
    generation: int
    at_ns: int
    head: tuple[int, ...]
    metadata: Bytes
    payload: Bytes


def check_record_ring(descriptor: int) -> int:
    """The capacity of the record ring behind the descriptor; raises RecordRingBroken if an engine could be hurt by it."""
    if (problem := unsafe_to_map(descriptor, writable=True)) is not None:
        raise RecordRingBroken(f"the record ring {problem}")
    size = os.fstat(descriptor).st_size
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise RecordRingBroken(f"a record ring of {size} bytes has no header")
    magic, version, capacity = _HEADER.packed.unpack(header)
    if magic != _MAGIC or version != _VERSION:
        raise RecordRingBroken(
            f"a record ring of version {version}, this side has {_VERSION}: install the same shmserve on both"
        )
    if not _LEAST_CAPACITY <= capacity <= _MOST_CAPACITY or capacity % CACHE_LINE or size < _ENTRIES_AT + capacity:
        raise RecordRingBroken(f"a record ring of {size} bytes, its header says {capacity}")
    return int(capacity)


class _RecordRing:
    """The mapped ring."""

    def __init__(self, descriptor: int) -> None:
        self.capacity = check_record_ring(descriptor)
        self._mapped: mmap.mmap | None = mmap.mmap(descriptor, _ENTRIES_AT + self.capacity, flags=mmap.MAP_SHARED)
        self._memory = memoryview(self._mapped)
        self._words = self._memory.cast("Q")
        self._bytes: Bytes = np.frombuffer(self._mapped, np.uint8)[_ENTRIES_AT:]

    def close(self) -> None:
        """May be called twice."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            self._words.release()
            self._memory.release()
            self._bytes = np.empty(0, np.uint8)
            mapped.close()


class RecordRingWriter(_RecordRing):
    """The engine's end; the descriptor stays the caller's. Raises RecordRingBroken.

    Only the engine that serves writes, and a swap lets the one stop before the other begins.
    """

    def write(
        self, kind: Entry, channel: int, generation: int, head: tuple[int, ...], metadata: Bytes, payload: Bytes
    ) -> bool:
        """Copy one entry to the ring; False, and counted, if the ring is full."""
        words, capacity = self._words, self.capacity
        metadata_at = _ENTRY_BYTES
        payload_at = metadata_at + aligned(metadata.size)
        size = payload_at + aligned(payload.size)
        written = words[_WRITTEN]
        at = written % capacity
        pad = capacity - at if at + size > capacity else 0
        # The reader's word is a claim: a false one loses the recorder's entries, and nothing else.
        if size + pad > capacity - (written - words[_READ]):
            words[_DROPPED] += 1
            return False
        if pad:
            _PAD.pack_into(self._memory, _ENTRIES_AT + at, pad, Entry.PAD)
            at = 0
        padded = (*head, *[0] * (_HEAD_WORDS - len(head)))
        _ENTRY.packed.pack_into(
            self._memory,
            _ENTRIES_AT + at,
            size,
            kind,
            channel,
            generation,
            time.monotonic_ns(),
            metadata.size,
            payload.size,
            *padded,
        )
        entry = self._bytes[at : at + size]
        entry[metadata_at : metadata_at + metadata.size] = metadata
        np.copyto(entry[payload_at : payload_at + payload.size], payload)
        # ORDER: the entry before `written`; pairs with RecordRingReader.try_next.
        fence()
        words[_WRITTEN] = written + pad + size
        return True

    def count_skipped(self) -> None:
        """Count a request that a recording cannot hold, because it or its answer was pickled."""
        self._words[_PICKLED] += 1


class RecordRingReader(_RecordRing):
    """The recorder's end, which makes the record ring; `descriptor` is for the daemon."""

    def __init__(self, capacity: int) -> None:
        """Raises OSError (ENOMEM, ENOSPC) without room for `capacity` bytes."""
        capacity = aligned(max(capacity, _LEAST_CAPACITY))
        self.descriptor = os.memfd_create("shmserve-record-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self.descriptor, 0o600)
            # All of it now, by the recorder: an engine that met a full memory here would die of SIGBUS.
            os.posix_fallocate(self.descriptor, 0, _ENTRIES_AT + capacity)
            os.pwrite(self.descriptor, _HEADER.packed.pack(_MAGIC, _VERSION, capacity), 0)
            seal(self.descriptor)
            super().__init__(self.descriptor)
        except BaseException:
            os.close(self.descriptor)
            raise

    @property
    def dropped(self) -> int:
        """Return the number of entries that the full ring dropped."""
        return self._words[_DROPPED]

    @property
    def pickled(self) -> int:
        """Return the number of requests skipped because a recording holds no pickles."""
        return self._words[_PICKLED]

    def try_next(self) -> RecordEntry | None:
        """A copy of the next entry, whose place is free again then; None while there is none."""
        words, capacity = self._words, self.capacity
        while (read := words[_READ]) != (written := words[_WRITTEN]):
            # ORDER: `written` before the entry; pairs with RecordRingWriter.write.
            fence()
            at = read % capacity
            size, kind = _PAD.unpack_from(self._memory, _ENTRIES_AT + at)
            if not 0 < size <= min(written - read, capacity - at) or size % CACHE_LINE:
                raise RecordRingBroken(f"an entry of {size} bytes at {read} of {written}")
            entry = None if kind == Entry.PAD else self._copy(at, size)
            fence()  # the copy before the place is given back
            words[_READ] = read + size
            if entry is not None:
                return entry
        return None

    def _copy(self, at: int, size: int) -> RecordEntry:
        _, kind, channel, generation, at_ns, metadata_bytes, payload_bytes, *head = _ENTRY.packed.unpack_from(
            self._memory, _ENTRIES_AT + at
        )
        payload_at = _ENTRY_BYTES + aligned(metadata_bytes)
        if kind not in (Entry.REQUEST, Entry.REPLY) or payload_at + aligned(payload_bytes) != size:
            raise RecordRingBroken(f"an entry of kind {kind} with {metadata_bytes} and {payload_bytes} bytes in {size}")
        entry = self._bytes[at : at + size]
        return RecordEntry(
            Entry(kind),
            channel,
            generation,
            at_ns,
            tuple(head),
            entry[_ENTRY_BYTES : _ENTRY_BYTES + metadata_bytes].copy(),
            entry[payload_at : payload_at + payload_bytes].copy(),
        )

    def close(self) -> None:
        """May be called twice."""
        if self._mapped is not None:
            super().close()
            os.close(self.descriptor)

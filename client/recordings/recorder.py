"""Takes what a service serves from a record ring and writes it to a recording, in a process that no robot waits for."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from shmserve.codec import read_tree
from shmserve.errors import ServiceUnavailable
from shmserve.metadata import MetadataError
from shmserve.protocol import Kind, Status
from shmserve.record_ring import Entry, RecordEntry, RecordRingReader
from shmserve.ring import ReplyHead, RequestHead
from shmserve.schema import Schema

from .recording import RecordingWriter, RequestFacts
from .tree import leaf_as_it_is

#: Between two polls of an empty record ring.
_LOOK_S = 0.01
#: Longest wait for replies at the end of a recording, and longest wait without any entry.
_ON_ITS_WAY_S = 1.0
_QUIET_S = 0.1
#: Entries between two checks whether to stop, while the record ring is never empty.
_ENTRIES_A_LOOK = 64
#: Between two updates of the progress.
_PROGRESS_S = 0.2


class ReplyStream(Protocol):
    """The daemon's replies to Record, and a descriptor that is readable when one waits."""

    def fileno(self) -> int: ...

    def __next__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Recorded:
    """Counts of a recording so far."""

    requests: int
    size_bytes: int
    dropped: int  # entries that the record ring had no room for: the recorder was too slow
    pickled: int  # requests of any Python object, which a recording does not hold
    unreadable: int
    seconds: float


class _Lease:
    """One client's tenancy, as the entries show it."""

    def __init__(self, number: int, entry: RecordEntry) -> None:
        self.number = number
        self.generation = entry.generation
        self.sequence = 0
        #: Requests whose answers have not come, by sequence.
        self.open: dict[int, RecordEntry] = {}


class Recorder:
    """Joins the two entries of each request and writes it."""

    def __init__(self, record_ring: RecordRingReader, writer: RecordingWriter, began_ns: int) -> None:
        """`began_ns`: CLOCK_MONOTONIC of what the recording calls 0 s."""
        self._record_ring = record_ring
        self._writer = writer
        self._began_ns = began_ns
        self._leases: dict[int, _Lease] = {}
        self._lease_count = 0
        self._unreadable = 0

    def run(
        self,
        replies: ReplyStream,
        *,
        count: int | None,
        seconds: float | None,
        stopped: Callable[[], bool],
        progress: Callable[[Recorded], None],
    ) -> str:
        """Record until one of these ends it; returns which: "count", "seconds", "stopped" or "the daemon stopped".

        Raises OSError when the file cannot be written.
        """
        until = None if seconds is None else time.monotonic() + seconds
        shown = 0.0
        while True:
            taken = self._take(count)
            now = time.monotonic()
            if now - shown > _PROGRESS_S:
                progress(self.recorded())
                shown = now
            if count is not None and self._writer.requests >= count:
                return "count"
            if stopped():
                return "stopped"
            if until is not None and now >= until:
                return "seconds"
            if taken == 0:
                try:
                    if select.select([replies], [], [], _LOOK_S)[0]:
                        next(replies)  # another model serves: each request names its version
                except (ServiceUnavailable, StopIteration):
                    self._take(count)
                    return "the daemon stopped"

    def finish(self, count: int | None) -> None:
        """Take the entries still on their way when the recording ends, then write the requests without a reply.

        A robot gets its reply before the record ring does. A request stays without one if its engine died, or if it took
        too long.
        """
        until = time.monotonic() + _ON_ITS_WAY_S
        quiet = time.monotonic() + _QUIET_S
        while time.monotonic() < min(until, quiet) and (count is None or self._writer.requests < count):
            if self._take(count) or any(lease.open for lease in self._leases.values()):
                quiet = time.monotonic() + _QUIET_S
            time.sleep(_LOOK_S)
        if count is not None and self._writer.requests >= count:
            return
        for channel, lease in self._leases.items():
            for entry in lease.open.values():
                self._write(channel, lease, entry, None)
            lease.open.clear()

    def recorded(self) -> Recorded:
        return Recorded(
            self._writer.requests,
            self._writer.size_bytes,
            self._record_ring.dropped,
            self._record_ring.pickled,
            self._unreadable,
            (time.monotonic_ns() - self._began_ns) / 1e9,
        )

    def _take(self, count: int | None) -> int:
        taken = 0
        for entry in self._entries():
            if entry.kind == Entry.REQUEST:
                self._request(entry)
            else:
                self._reply(entry)
            taken += 1
            if count is not None and self._writer.requests >= count:
                break
        return taken

    def _entries(self) -> Iterator[RecordEntry]:
        for _ in range(_ENTRIES_A_LOOK):
            entry = self._record_ring.try_next()
            if entry is None:
                return
            yield entry

    def _request(self, entry: RecordEntry) -> None:
        sequence = entry.head[0]
        lease = self._leases.get(entry.channel)
        # A channel goes on under a new generation when it grows; a new client's sequences begin again.
        if lease is None or (entry.generation != lease.generation and sequence <= lease.sequence):
            if lease is not None:
                for left in lease.open.values():
                    self._write(entry.channel, lease, left, None)
            self._lease_count += 1
            lease = self._leases[entry.channel] = _Lease(self._lease_count, entry)
        lease.generation, lease.sequence = entry.generation, sequence
        lease.open[sequence] = entry  # one that an engine died of comes again

    def _reply(self, entry: RecordEntry) -> None:
        lease, sequence = self._leases.get(entry.channel), entry.head[0]
        if lease is None:
            return
        request = lease.open.pop(sequence, None)
        # Answers come in order: of what is older the answer was dropped, and counted.
        for older in [older for older in lease.open if older < sequence]:
            del lease.open[older]
        if request is not None:
            self._write(entry.channel, lease, request, entry)

    def _write(self, channel: int, lease: _Lease, request: RecordEntry, reply: RecordEntry | None) -> None:
        asked = RequestHead._make(request.head[: len(RequestHead._fields)])
        answer = ReplyHead._make(reply.head[: len(ReplyHead._fields)]) if reply is not None else None
        try:
            observation = _tree(request)
            result = _tree(reply) if reply is not None else None
        except MetadataError:  # the engine refused it as well, or its client wrote to it meanwhile
            self._unreadable += 1
            return
        status = "unanswered" if answer is None else _status(answer.status)
        facts = RequestFacts(
            number=self._writer.requests + 1,
            client=channel,
            lease=lease.number,
            sequence=asked.sequence,
            kind="reset" if asked.kind == Kind.RESET else "infer",
            status=status,
            at_s=round((asked.submitted_ns - self._began_ns) / 1e9, 6),
            model_version=f"{answer.version:016x}" if answer is not None and answer.version else None,
            queued_us=_us(answer and answer.queued_ns),
            staged_us=_us(answer and answer.staged_ns),
            infer_us=_us(answer and answer.infer_ns),
            copied_us=_us(answer and answer.copied_ns),
            error=": ".join(map(str, result)) if status != "ok" and isinstance(result, tuple) else None,
        )
        self._writer.add(facts, observation, result if status == "ok" else None)


@lru_cache(maxsize=64)
def _schema(metadata: bytes) -> Schema:
    # By its bytes, not by the number that its client gives it.
    return Schema(metadata)


def _tree(entry: RecordEntry) -> Any:
    """The tree of an entry, `Leaf`s for what is an array; raises MetadataError."""
    if not entry.metadata.size:
        return None
    try:
        return read_tree(_schema(entry.metadata.tobytes()), entry.payload, entry.payload.size, leaf_as_it_is)
    except UnicodeDecodeError as error:
        raise MetadataError(f"a text that is not UTF-8 at byte {error.start}") from None


def _us(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e3


def _status(number: int) -> str:
    try:
        return Status(number).name.lower()
    except ValueError:
        return f"status {number}"

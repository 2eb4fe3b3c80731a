"""Segment of counters that an engine writes and the supervisor reads.

It is a sealed memfd that only these two map. Every word has one writer: the control word is the
supervisor's, all others are the engine's, so counting costs the engine a store and no call.

>>> bucket_of(0), bucket_of(1023), bucket_of(1024), bucket_of(1_000_000), bucket_of(1 << 62)
(0, 0, 1, 80, 239)
>>> lower_ns(80) <= 1_000_000 < lower_ns(81)
True
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

from shmserve.backend import NATIVE, core
from shmserve.errors import ProtocolMismatch
from shmserve.sealed_memory import seal, unsafe_to_map

WORD = 8
#: Channels have a line each; a service has no more clients than this.
CHANNEL_LIMIT = 256
#: In place of a channel's number: a batch of several clients is being run; which of them it is cannot be known.
SEVERAL = CHANNEL_LIMIT + 1


class Counter(IntEnum):
    """Words that the engine counts in, by their index."""

    CONTROL = 0  # the supervisor's: moves when a control message waits
    HEARTBEAT_NS = 8
    CHANNEL = 9  # 1 + the channel that is being read or run, SEVERAL, 0 for none: whom to ask if this engine dies
    SERVED = 10
    FAILED = 11
    REJECTED = 12
    EXPIRED = 13
    CANCELLED = 14
    SUPERSEDED = 15
    STALE = 16
    LOST = 17
    IN_PLACE = 18
    BATCHES = 19
    WAKES = 20  # times the engine slept and was woken or looked up
    BUSY_NS = 21
    RESETS = 22
    CLAMPED = 23  # requests with a number of the observation or the action brought back to its limit
    OUT_OF_RANGE = 24  # requests that ended because of a number that is not finite or out of range
    CUT_THROUGH = 25  # requests that were copied in part while their client was still writing them


class Stage(IntEnum):
    """Parts of a request's time inside the engine; the histograms lie in this order."""

    QUEUED = 0
    STAGED = 1
    INFER = 2
    COPIED = 3
    TOTAL = 4


class ChannelWord(IntEnum):
    """Words of a channel's line."""

    SERVED = 0
    ERRORS = 1
    LAST_NS = 2
    GENERATION = 3  # of the channel that the engine serves: whose requests these are, also when the client has left
    IN_HAND = 4  # 1 while a batch of several clients is run that has a request of this one


# Log-linear buckets: eight for each doubling, from 1 us (2**10 ns) to 17 minutes.
_FIRST_BIT = 10
_SUB_BITS = 3
_BUCKETS = 240

_HISTOGRAMS_AT = 64
_CHANNELS_AT = _HISTOGRAMS_AT + len(Stage) * _BUCKETS
_WORDS = _CHANNELS_AT + CHANNEL_LIMIT * len(ChannelWord)
STATS_BYTES = -(-_WORDS * WORD // 4096) * 4096


def bucket_of(duration_ns: int) -> int:
    """The bucket that a duration counts in."""
    bits = duration_ns.bit_length() - 1 - _FIRST_BIT
    if bits < 0:
        return 0
    index = 1 + (bits << _SUB_BITS) + ((duration_ns >> (bits + _FIRST_BIT - _SUB_BITS)) & 7)
    return index if index < _BUCKETS else _BUCKETS - 1


def lower_ns(bucket: int) -> int:
    """The smallest duration that counts in `bucket`."""
    if bucket == 0:
        return 0
    bits, sub = divmod(bucket - 1, 1 << _SUB_BITS)
    return ((1 << _SUB_BITS) + sub) << (bits + _FIRST_BIT - _SUB_BITS)


#: Where each bucket begins (us), and where the last ends.
BUCKET_BOUNDS_US = [lower_ns(bucket) / 1000 for bucket in range(_BUCKETS + 1)]

#: Buckets of the durations below 2 ms, to look up by their 128 ns steps: five times as fast as counting bits.
_STEP_BITS = _FIRST_BIT - _SUB_BITS
_NEAR_NS = 1 << 21
_NEAR = bytes(bucket_of(step << _STEP_BITS) for step in range(_NEAR_NS >> _STEP_BITS))


@dataclass(frozen=True)
class Distribution:
    """A histogram's counts, read once."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    def percentile_us(self, percent: float) -> float | None:
        """The duration (us) that `percent` of the requests stayed below, to one bucket (12 %); None without any."""
        total = self.total
        if not total:
            return None
        rank = total * percent / 100
        seen = 0
        for bucket, count in enumerate(self.counts):
            if seen + count >= rank and count:
                low, high = lower_ns(bucket), lower_ns(bucket + 1)
                return (low + (high - low) * (rank - seen) / count) / 1000
            seen += count
        return lower_ns(_BUCKETS) / 1000

    def __add__(self, other: Distribution) -> Distribution:
        return Distribution(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))


def create_stats_memory() -> int:
    """A memfd for one engine's stats, sealed so that neither side can pull it from under the other."""
    descriptor = os.memfd_create("shmserve-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(descriptor, 0, STATS_BYTES)
    seal(descriptor)
    return descriptor


class Stats:
    """The mapped words; the engine writes with `words[Counter.X] += 1` and `record`, the supervisor reads."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's. Raises ProtocolMismatch for what `create_stats_memory` did not make."""
        problem = unsafe_to_map(descriptor, writable=True)
        if problem is None and os.fstat(descriptor).st_size < STATS_BYTES:
            problem = f"has {os.fstat(descriptor).st_size} of {STATS_BYTES} bytes"
        if problem is not None:
            raise ProtocolMismatch(f"the memory for an engine's stats {problem}")
        self._mapped = mmap.mmap(descriptor, STATS_BYTES, flags=mmap.MAP_SHARED)
        self.words = memoryview(self._mapped).cast("Q")
        self._histograms = core.Histograms(self._mapped, _HISTOGRAMS_AT) if NATIVE else None
        if self._histograms is not None:
            self.record = self._histograms.record  # type: ignore[method-assign]

    def record(self, queued_ns: int, staged_ns: int, infer_ns: int, copied_ns: int) -> None:
        """Count one request in the histograms of its stages and of its total."""
        words, near = self.words, _NEAR
        at = _HISTOGRAMS_AT
        for duration_ns in (
            queued_ns,
            staged_ns,
            infer_ns,
            copied_ns,
            queued_ns + staged_ns + infer_ns + copied_ns,
        ):
            bucket = near[duration_ns >> _STEP_BITS] if duration_ns < _NEAR_NS else bucket_of(duration_ns)
            words[at + bucket] += 1
            at += _BUCKETS

    def channel_index(self, channel: int) -> int:
        """Where the line of `channel` begins in `words`."""
        return _CHANNELS_AT + channel * len(ChannelWord)

    def clear_channel(self, channel: int) -> None:
        at = self.channel_index(channel)
        for word in ChannelWord:
            self.words[at + word] = 0

    def counters(self) -> dict[str, int]:
        """The engine's counters by their lower-case names."""
        return {counter.name.lower(): self.words[counter] for counter in Counter if counter != Counter.CONTROL}

    def channel(self, channel: int) -> tuple[int, int, int]:
        """(served, errors, monotonic ns of the last one) of a channel."""
        at = self.channel_index(channel)
        return self.words[at], self.words[at + 1], self.words[at + 2]

    def in_hand(self) -> list[tuple[int, int]]:
        """(channel, generation) of the clients whose requests the engine reads or runs: several for a batch."""
        channel = self.words[Counter.CHANNEL]
        if channel == SEVERAL:
            lines = ((number, self.channel_index(number)) for number in range(CHANNEL_LIMIT))
            return [
                (number, self.words[at + ChannelWord.GENERATION])
                for number, at in lines
                if self.words[at + ChannelWord.IN_HAND]
            ]
        if not 0 < channel <= CHANNEL_LIMIT:
            return []
        return [(channel - 1, self.words[self.channel_index(channel - 1) + ChannelWord.GENERATION])]

    def distribution(self, stage: Stage) -> Distribution:
        at = _HISTOGRAMS_AT + stage * _BUCKETS
        return Distribution(tuple(self.words[at : at + _BUCKETS]))

    def close(self) -> None:
        self.words.release()
        if self._histograms is not None:
            self._histograms.close()
        self._mapped.close()

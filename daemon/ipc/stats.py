"""Segment of counters that an engine writes and the supervisor reads.

It is a sealed memfd that only these two map. Every word has one writer: the control word is the
supervisor's, all others are the engine's, so counting costs the engine a store and no call.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from shmserve.backend import Histograms
from shmserve.errors import ProtocolMismatch
from shmserve.histogram_buckets import BUCKETS, lower_ns
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
    AHEAD_MET = 26  # requests for which an idle engine was awake when they came
    AHEAD_MISSED = 27  # times that it was awake for one that did not come
    AHEAD_NS = 28  # time that it was awake for both
    # Of a link (format remote): how the remote model answered each request.
    REMOTE_OK = 29
    REMOTE_LATE = 30  # not within the budget
    REMOTE_DOWN = 31  # no connection, or an answer that cannot be read
    REMOTE_BUSY = 32
    REMOTE_OPEN = 33  # not asked, because the link was open
    REMOTE_FAILED = 34  # the remote model raised, or rejected the observation
    REMOTE_MISMATCH = 35  # another version answered
    REMOTE_STALE = 36  # the observation was too old when its turn came there
    REMOTE_SWITCHES = 37  # changes between answers of the remote model and of the fallback


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


_HISTOGRAMS_AT = 64
_CHANNELS_AT = _HISTOGRAMS_AT + len(Stage) * BUCKETS
_WORDS = _CHANNELS_AT + CHANNEL_LIMIT * len(ChannelWord)
STATS_BYTES = -(-_WORDS * WORD // 4096) * 4096


#: Where each bucket begins (us), and where the last ends.
BUCKET_BOUNDS_US = [lower_ns(bucket) / 1000 for bucket in range(BUCKETS + 1)]


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
        return lower_ns(BUCKETS) / 1000

    def __add__(self, other: Distribution) -> Distribution:
        return Distribution(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def __sub__(self, earlier: Distribution) -> Distribution:
        return Distribution(tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))


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
        self._histograms = Histograms(self._mapped, _HISTOGRAMS_AT)
        #: Count one request in the histograms of its stages and of its total: (queued, staged, infer, copied), in ns.
        self.record: Callable[[int, int, int, int], None] = self._histograms.record

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

    def channel(self, channel: int, since_ns: int) -> tuple[int, int, int]:
        """(served, errors, monotonic ns of the last one) of the client that has the channel since then.

        Until the engine has opened a client's channel, its line is that of the client that had the channel before.
        """
        at = self.channel_index(channel)
        served, errors, last_ns = self.words[at], self.words[at + 1], self.words[at + 2]
        return (served, errors, last_ns) if last_ns >= since_ns else (0, 0, 0)

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
        at = _HISTOGRAMS_AT + stage * BUCKETS
        return Distribution(tuple(self.words[at : at + BUCKETS]))

    def close(self) -> None:
        self.words.release()
        self._histograms.close()
        self._mapped.close()

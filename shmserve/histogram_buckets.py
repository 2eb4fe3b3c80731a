"""Buckets of a histogram of durations: log-linear, eight for each doubling, from 1 us (2**10 ns) to 17 minutes.

>>> bucket_of(0), bucket_of(1023), bucket_of(1024), bucket_of(1_000_000), bucket_of(1 << 62)
(0, 0, 1, 80, 239)
>>> lower_ns(80) <= 1_000_000 < lower_ns(81)
True
"""

from __future__ import annotations

FIRST_BIT = 10
SUB_BITS = 3
BUCKETS = 240


def bucket_of(duration_ns: int) -> int:
    """The bucket that a duration counts in."""
    bits = duration_ns.bit_length() - 1 - FIRST_BIT
    if bits < 0:
        return 0
    index = 1 + (bits << SUB_BITS) + ((duration_ns >> (bits + FIRST_BIT - SUB_BITS)) & 7)
    return index if index < BUCKETS else BUCKETS - 1


def lower_ns(bucket: int) -> int:
    """The smallest duration that counts in `bucket`."""
    if bucket == 0:
        return 0
    bits, sub = divmod(bucket - 1, 1 << SUB_BITS)
    return ((1 << SUB_BITS) + sub) << (bits + FIRST_BIT - SUB_BITS)

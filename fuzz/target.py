"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: What one input may cost. The inputs have 64 KiB at the most, and the slowest are ten times below this.
TIME_LIMIT_S = 1.0
#: What the process may grow by over a run, beyond its size once every target has run its seeds.
MEMORY_LIMIT_BYTES = 16 << 20
INPUT_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Target:
    """A reader of foreign bytes.

    `run` takes any bytes and returns; the reader's own typed error is caught inside it, anything else that it raises is
    a finding. So is an AssertionError: what was read must also make sense.
    """

    run: Callable[[bytes], None]
    #: Real messages, from which the mutations start.
    seeds: Callable[[], list[bytes]]
    #: Byte strings that mean something to this reader.
    words: tuple[bytes, ...] = ()

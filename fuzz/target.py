"""Interface of a fuzz target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Time limit of one input. Inputs have at most 64 KiB, and the slowest take a tenth of this.
TIME_LIMIT_S = 1.0
#: Allowed growth of the process over a run, beyond its size after every target has run its seeds.
MEMORY_LIMIT_BYTES = 16 << 20
INPUT_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Target:
    """Parser of untrusted bytes.

    `run` takes any bytes and returns. It catches the parser's typed error; any other exception is a finding. So is an
    AssertionError: the parsed value must be valid as well.
    """

    run: Callable[[bytes], None]
    #: Real messages, from which the mutations start.
    seeds: Callable[[], list[bytes]]
    #: Byte strings with a meaning for this parser.
    words: tuple[bytes, ...] = ()

"""How a request is to be treated, and how far an attempt to publish it came."""

from __future__ import annotations

from typing import Final, NamedTuple

from shmserve.protocol import Kind


class Terms(NamedTuple):
    """How a request is to be treated; times are CLOCK_MONOTONIC nanoseconds, 0 for none."""

    kind: Kind = Kind.INFER
    flags: int = 0
    capture_ns: int = 0
    max_age_ns: int = 0


class Step:
    """How far an attempt to publish came, and what the next one needs; plain numbers, for they are compared often."""

    DONE: Final = 0
    #: The daemon, or what it knows of its model: `connect`.
    CONNECT: Final = 1
    #: Larger slots: `make_room`.
    RESIZE_REQUIRED: Final = 2
    #: A slot, or that another thread ends what it is doing.
    WAIT: Final = 3

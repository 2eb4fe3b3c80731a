"""Options of a request, and the status of a non-blocking publish."""

from __future__ import annotations

from typing import Final, NamedTuple

from shmserve.protocol import Kind


class RequestOptions(NamedTuple):
    """How a request is treated; times are CLOCK_MONOTONIC nanoseconds, 0 for none."""

    kind: Kind = Kind.INFER
    flags: int = 0
    capture_ns: int = 0
    max_age_ns: int = 0


#: Those of a request that asks for nothing special.
DEFAULT_OPTIONS: Final = RequestOptions()

# As Aeron's `offer`: the sequence of the request, or one of these. Plain numbers, which are compared for each request.
#: The client is not attached, or does not know the model yet: connect.
NOT_CONNECTED: Final = -1
#: Every slot is in use, or another thread resizes the channel or lends a slot: wait.
BACK_PRESSURED: Final = -2
#: The observation or a reply needs larger slots: resize the channel.
RESIZE_REQUIRED: Final = -3

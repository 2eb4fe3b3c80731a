"""What is known of a reply beside its result."""

from __future__ import annotations

from dataclasses import dataclass

from shmserve.layout import number_of
from shmserve.protocol import Flag
from shmserve.ring import ReplyHead


@dataclass(frozen=True)
class Reply:
    """Which model answered, and where the time went (microseconds)."""

    number: int  # which of this client's requests it answers, from 1
    model_version: str  # 16 hex digits, as `shmserve-admin status` shows it
    round_trip_us: float  # from before the observation was encoded until the result was decoded
    queued_us: float  # from publication until the engine took the request
    staged_us: float  # checked and copied in; reading the slot in place leaves only the check
    infer_us: float  # the model, with the whole batch it ran in
    copied_us: float  # the result encoded into the reply slot
    in_place: bool  # the model read the slot itself
    clamped: bool  # a number of the observation or the action was brought back to the range that the model declares

    @classmethod
    def of(cls, head: ReplyHead, round_trip_ns: int) -> Reply:
        return cls(
            number_of(head.sequence),
            f"{head.version:016x}",
            round_trip_ns / 1e3,
            head.queued_ns / 1e3,
            head.staged_ns / 1e3,
            head.infer_ns / 1e3,
            head.copied_ns / 1e3,
            bool(head.flags & Flag.IN_PLACE),
            bool(head.flags & Flag.CLAMPED),
        )
